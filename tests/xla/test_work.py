"""What programs compute and move, against counts made by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from blockjax.sharding.memory_spaces import to_device, to_host
from blockjax.sharding.mesh import make_mesh
from blockjax.xla.flops import matmul_flops
from blockjax.xla.work import work


def of(function, *shapes, dtype=jnp.float32):
    """Returns (FLOPs, bytes) of all turns."""
    found = work(jax.make_jaxpr(function)(*(jnp.zeros(shape, dtype) for shape in shapes)))
    return sum(w.turns * w.flops for w in found), sum(w.turns * w.size for w in found)


def test_a_product_reads_its_operands_and_writes_its_result():
    assert of(jnp.matmul, (3, 5), (5, 7)) == (2 * 3 * 5 * 7, 4 * (3 * 5 + 5 * 7 + 3 * 7))
    assert of(lambda a: a @ a, (4, 4)) == (2 * 4**3, 4 * 2 * 16)  # one array, read once


def test_widths_of_products():
    for dtype, is_narrow in ((jnp.bfloat16, True), (jnp.float32, False)):
        a = jnp.zeros((4, 4), dtype)
        (found,) = work(jax.make_jaxpr(jnp.matmul)(a, a))
        assert found.is_narrow == is_narrow and found.size == 3 * 16 * a.dtype.itemsize


def test_what_lies_between_products_is_fused():
    def chain(a):
        return jnp.sum(jnp.tanh(jnp.exp(2.0 * a)), axis=1)

    assert of(chain, (8, 32)) == (0, 4 * (8 * 32 + 8))

    def between(a, b):  # writes what the second product reads
        return jax.nn.gelu(a @ b) @ b

    product = 4 * 3 * 16
    assert of(between, (4, 4), (4, 4)) == (2 * 2 * 4**3, 2 * product + 4 * 2 * 16)


def test_what_is_kept_for_later_is_written_and_read():
    def kept(a, b):
        c = jnp.exp(a)
        return c + jnp.cos(c) @ b

    # exp: reads a, writes c and cos(c); product; sum: reads c and the product, writes.
    assert of(kept, (4, 4), (4, 4))[1] == 4 * 16 * (3 + 3 + 3)


def test_names_cost_nothing_and_parts_their_own_size():
    assert of(lambda a: a.reshape(16, 4).T, (8, 8)) == (0, 0)
    assert of(lambda a: a[2:4] * 2.0, (8, 8)) == (0, 4 * 2 * 16)
    put = of(lambda a, b: jax.lax.dynamic_update_slice(a, b, (0, 0)), (8, 8), (1, 8))
    assert put == (0, 4 * 2 * 8)


def test_loops_and_calls():
    def loop(a, b):
        return jax.lax.scan(lambda a, w: (jax.checkpoint(jnp.matmul)(a, w), None), a, b)[0]

    assert of(loop, (2, 8), (6, 8, 8)) == (6 * 2 * 2 * 64, 6 * 4 * (16 + 64 + 16))
    dear = of(lambda a: jax.lax.cond(a[0, 0] > 0, lambda a: a @ a @ a, lambda a: a, a), (4, 4))
    assert dear[0] == 2 * 2 * 4**3


def test_rows_of_the_host_are_written_once_and_read_once():
    def doubled(rows):
        return jax.lax.scan(lambda _, row: (0, to_host(2.0 * to_device(row))), 0, rows)[1]

    # Each row: it comes, is read, the doubled one is written, and read to go.
    assert of(doubled, (5, 6))[1] == 5 * 4 * 6 * 4


def test_devices_side_by_side_count_together():
    mesh = make_mesh((4, 1, 1), jax.devices()[:4])
    split = jax.shard_map(
        lambda a, b: a @ b, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data")
    )
    jaxpr = jax.make_jaxpr(split)(jnp.zeros((8, 16)), jnp.zeros((16, 16)))
    assert matmul_flops(jaxpr) == 2 * 8 * 16 * 16
    assert sum(w.turns * w.flops for w in work(jaxpr)) == 2 * 8 * 16 * 16


@pytest.mark.parametrize("fields", [{}, {"strategy": "streamed"}, {"strategy": "end_to_end"}])
def test_a_step_has_the_operations_that_are_counted_elsewhere(fields):
    from blockjax.learner.placement import Placement
    from tests.tiny import tiny_learner

    placement = Placement(tiny_learner(**fields), make_mesh((1, 1, 1), jax.devices()[:1]))
    jaxpr = placement.trace(8).jaxpr
    found = work(jaxpr)
    assert sum(w.turns * w.flops for w in found) == matmul_flops(jaxpr)
    state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(placement.abstract_state.blocks))
    assert sum(w.turns * w.size for w in found) > 2 * state  # each update reads and writes it
