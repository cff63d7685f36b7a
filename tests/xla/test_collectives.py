"""Collectives in compiled programs, with the turns of the loops around them."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from blockjax.sharding.mesh import make_mesh
from blockjax.xla.collectives import Collective, read_collectives


def test_loops_count_by_their_turns():
    def inner(x, _):
        return jax.lax.psum(x, "data") / 4, None

    def outer(x, _):
        x, _ = jax.lax.scan(inner, x, None, 3)
        return jax.lax.ppermute(x, "data", [(0, 1), (1, 0)]), None

    def program(x):
        x, _ = jax.lax.scan(outer, x, None, 5)
        return jax.lax.all_gather(x.astype(jnp.bfloat16), "data")

    sharded = jax.shard_map(
        program,
        mesh=make_mesh((4, 1, 1)),
        in_specs=PartitionSpec("data"),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    text = jax.jit(sharded).lower(jnp.zeros((32, 7))).compile().as_text()
    found = {collective.kind: collective for collective in read_collectives(text)}
    assert found["all-reduce"] == Collective("all-reduce", 8 * 7 * 4, 15)
    assert found["collective-permute"] == Collective("collective-permute", 8 * 7 * 4, 5)
    # XLA on CPU gathers bfloat16 as it is or widened.
    assert found["all-gather"].turns == 1 and found["all-gather"].size in (32 * 7 * 2, 32 * 7 * 4)
    assert len(read_collectives(text)) == 3


def test_asynchronous_pairs_and_loops_with_a_limit():
    """As the compilers for GPU and TPU write them."""
    program = """HloModule jit_step

%condition.1 (p: (s32[], f32[8])) -> pred[] {
  %constant.4 = s32[]{:T(128)} constant(11)
  %counter = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%counter, %constant.4), direction=LT
}

%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %permuted = (f32[8]{0:T(128)}, f32[8]{0:T(128)}, u32[], u32[]) collective-permute-start(%x)
  %done = f32[8]{0} collective-permute-done(%permuted)
  ROOT %t = (s32[], f32[8]{0}) tuple(%counter, %done)
}

%condition.2 (p: (s32[], f32[8])) -> pred[] {
  ROOT %lt.2 = pred[] fusion(%p), kind=kLoop
}

%body.2 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %scattered = f32[2]{0} reduce-scatter(%p), to_apply=%add
}

%unused (p: f32[8]) -> f32[8] {
  ROOT %sum = f32[8]{0} all-reduce(%p), to_apply=%add
}

ENTRY %main.9 (x: f32[8]) -> f32[8] {
  %loop = (s32[], /*index=1*/f32[8]{0}) while(%tuple), condition=%condition.1, body=%body.1
  %loop.2 = (s32[], f32[8]) while(%loop), condition=%condition.2, body=%body.2, backend={"known_trip_count":{"n":"7"}}
  %gathered = (f32[8]{0}, bf16[2]{0}, f32[32]{0}, bf16[8]{0}) all-gather-start(%a, %b), dimensions={0}
  %both = (pred[3]{0}, s4[4]{0}) all-reduce-start(%c, %d), to_apply=%add
  %named = f32[8]{0} add(%all-reduce.1, %gathered)
}
"""
    assert read_collectives(program) == [
        Collective("collective-permute", 32, 11),
        Collective("reduce-scatter", 8, 7),
        Collective("all-gather", 32 * 4 + 8 * 2, 1),
        Collective("all-reduce", 3 + 2, 1),
    ]
