"""Blocks in stages: the numbers of one block after another, with any block, and little between the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from blockjax.sharding.mesh import make_mesh
from blockjax.sharding.rules import state_shardings
from blockjax.strategies import Block, blockwise, host_memory_kinds, init_state, pipelined, streamed
from blockjax.xla.collectives import Collective, read_collectives

WIDTH, BLOCKS, BATCH = 8, 4, 6


def random_block():
    """A block whose forward and loss draw numbers, on a stream of two arrays of other types than float32."""

    def forward(params, stream, rng):
        noise = 0.1 * jax.random.normal(rng, stream["x"].shape)
        x = stream["x"].astype(jnp.float32) @ params["w"] + noise
        return {"x": x.astype(jnp.bfloat16), "seen": stream["seen"] + jnp.int8(1)}

    def loss(params, stream, targets, rng):
        drawn = jax.random.uniform(rng)
        error = (stream["x"].astype(jnp.float32) - targets) * params["scale"] + drawn
        return jnp.mean(error**2), {
            "drawn": drawn,
            "seen": jnp.mean(stream["seen"].astype(jnp.float32)),
        }

    return Block(forward, loss, optax.adam(1e-2), clip=0.5)


def stem(params, inputs, rng):
    noise = 0.1 * jax.random.normal(rng, inputs.shape)
    x = inputs * params["gain"] + noise
    return {"x": x.astype(jnp.bfloat16), "seen": jnp.zeros(len(x), jnp.int8)}


def prepare(rng, batch):
    return batch + jax.random.normal(rng, (1, WIDTH)), jnp.sin(batch)


def start(with_stem, block):
    keys = jax.random.split(jax.random.key(0), BLOCKS)
    w = jax.vmap(lambda key: jax.random.normal(key, (WIDTH, WIDTH)) / 3)(keys)
    stem_params = {"gain": jnp.ones((1, WIDTH))} if with_stem else None
    params = {"w": w, "scale": jnp.ones((BLOCKS, 1, WIDTH))}
    return init_state(block.optimizer, params, stem_params)


def without_stem(rng, batch):
    inputs, targets = prepare(rng, batch)
    return stem({"gain": jnp.ones((1, WIDTH))}, inputs, rng), targets


@pytest.fixture(scope="module", params=[True, False], ids=["stem", "no_stem"])
def one_after_another(request):
    block, batches = random_block(), batches_of(5)
    parts = {"stem": stem, "prepare": prepare} if request.param else {"prepare": without_stem}
    step, state, rows = (
        jax.jit(blockwise([block] * BLOCKS, **parts)),
        start(request.param, block),
        [],
    )
    for batch in batches:
        state, metrics = step(state, batch, jax.random.key(7))
        rows.append(metrics)
    return request.param, parts, state, jax.tree.map(lambda *m: np.stack(m), *rows)


def batches_of(count):
    return np.random.default_rng(0).normal(size=(count, BATCH, WIDTH)).astype(np.float32)


def assert_same(state, metrics, expected, expected_metrics):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), state, expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), metrics, expected_metrics
    )


@pytest.mark.slow
@pytest.mark.parametrize(("stages", "at_once"), [(1, 2), (2, 1), (2, 5), (4, 2), (4, 8)])
def test_equals_blockwise(one_after_another, stages, at_once):
    """With fewer batches than stages, as many, more, and a last group that is not full."""
    with_stem, parts, expected, expected_metrics = one_after_another
    block, batches = random_block(), batches_of(5)
    mesh = make_mesh((1, 1, stages), jax.devices()[:stages])
    step = jax.jit(pipelined([block] * BLOCKS, mesh=mesh, **parts))
    state, rows = start(with_stem, block), []
    for i in range(0, 5, at_once):
        count = min(at_once, 5 - i)
        group = np.full((at_once, BATCH, WIDTH), np.nan, np.float32)
        group[:count] = batches[i : i + count]
        state, metrics = step(
            state, {"batches": group, "count": jnp.int32(count)}, jax.random.key(7)
        )
        assert all(np.isnan(leaf[count:]).all() for leaf in metrics.values())
        rows.append(jax.tree.map(lambda leaf, count=count: leaf[:count], metrics))
    metrics = jax.tree.map(lambda *m: np.concatenate(m), *rows)
    assert_same(state, metrics, expected, expected_metrics)
    assert metrics["seen"].tolist() == [[1, 2, 3, 4]] * 5


def test_streamed_equals_blockwise(one_after_another):
    with_stem, parts, expected, expected_metrics = one_after_another
    block = random_block()
    state = start(with_stem, block)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda _: device, state)
    host = jax.tree.map(device.with_memory_kind, host_memory_kinds(state.blocks))
    shardings = shardings.replace(blocks=host)
    step = jax.jit(
        streamed([block] * BLOCKS, **parts),
        in_shardings=(shardings, device, device),
        out_shardings=(shardings, device),
        donate_argnums=0,
    )
    state, rows = jax.device_put(state, shardings), []
    for batch in batches_of(5):
        state, metrics = step(state, batch, jax.random.key(7))
        rows.append(metrics)
    assert state.blocks.params["w"].sharding.memory_kind == "pinned_host"
    assert state.blocks.opt_state[0].count.sharding.memory_kind == "device"
    assert_same(state, jax.tree.map(lambda *m: np.stack(m), *rows), expected, expected_metrics)


def test_one_permute_in_each_tick_and_no_gather_of_parameters():
    number, block = 8, random_block()
    state = jax.eval_shape(lambda: start(True, block))
    batch = {
        "batches": jax.ShapeDtypeStruct((number, BATCH, WIDTH), jnp.float32),
        "count": jax.ShapeDtypeStruct((), jnp.int32),
    }
    key, held = jax.eval_shape(lambda: jax.random.key(0)), []
    for stages in (1, 2, 4):
        mesh = make_mesh((1, 1, stages), jax.devices()[:stages])
        everywhere = NamedSharding(mesh, PartitionSpec())
        shardings = (state_shardings(state, mesh), everywhere, everywhere)
        step = pipelined([block] * BLOCKS, stem=stem, prepare=prepare, mesh=mesh)
        step = jax.jit(step, in_shardings=shardings, out_shardings=(shardings[0], everywhere))
        compiled = step.lower(state, batch, key).compile()
        found = read_collectives(compiled.as_text())
        # The stream, [BATCH, WIDTH] of bfloat16 and [BATCH] of int8, in each tick.
        handed_on = BATCH * (2 * WIDTH + 1)
        permutes = [Collective("collective-permute", handed_on, number + stages - 1)]
        assert [c for c in found if c.turns > 1] == (permutes if stages > 1 else [])
        # Sums bring the stem and the metrics home at the end.
        assert {c.kind for c in found if c.turns == 1} <= {"all-reduce"}
        held.append(compiled.memory_analysis().argument_size_in_bytes)
    of_blocks = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.blocks))
    # An int32 count in the optimizer state stays the only thing that could be padded.
    assert held[0] - held[1] == pytest.approx(of_blocks / 2, rel=0.02)
    assert held[0] - held[2] == pytest.approx(of_blocks * 3 / 4, rel=0.02)


@pytest.mark.parametrize("driver", [pipelined, streamed])
def test_blocks_that_differ_are_refused(driver):
    with pytest.raises(ValueError, match="must be one Block object"):
        driver([random_block(), random_block()])


def test_stages_must_divide_the_blocks():
    block = random_block()
    step = pipelined([block] * BLOCKS, mesh=make_mesh((1, 1, 3), jax.devices()[:3]))
    with pytest.raises(ValueError, match="4 blocks do not divide by 3 stages"):
        step(start(False, block), {"batches": (), "count": 1}, jax.random.key(0))
