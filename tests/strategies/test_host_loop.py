"""Block states on the CPU, for devices that address no host memory: the numbers of `blockwise`, three states at a time.

Such devices are played by CPUs that are said to address none; the states live on the first CPU.
"""

import functools
import gc
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blockjax.learner.placement import Placement
from blockjax.memory.profiles import compile_step
from blockjax.sharding.memory_spaces import addresses_host_memory
from blockjax.sharding.mesh import make_mesh
from blockjax.strategies import Block, HostLoop, blockwise, host_loop, init_state
from tests.tiny import images, tiny_learner

KEY = jax.random.key(1)


@pytest.fixture(autouse=True)
def no_host_memory(monkeypatch):
    monkeypatch.setattr("blockjax.learner.placement.addresses_host_memory", lambda device: False)


def mesh_of(*shape):
    return make_mesh(shape, jax.devices()[1 : 1 + int(np.prod(shape))])


def started(placement):
    step, profile = compile_step(placement, 8)
    state = placement.init_for(step, jax.random.key(0))
    if state.fitted is not None:
        fitted = np.asarray(jax.random.normal(jax.random.key(9), state.fitted.shape))
        state = state.replace(fitted=jax.device_put(fitted, state.fitted.sharding))
    return step, state, profile


def train(placement, steps=3):
    step, state, _ = started(placement)
    everywhere = jax.sharding.NamedSharding(placement.mesh, jax.sharding.PartitionSpec())
    key, rows = jax.device_put(KEY, everywhere), []
    for i in range(steps):
        batch = placement.place([{"image": images(seed=i)}])
        state, metrics = step(state, batch, key)
        rows.append(metrics)
    return state, jax.tree.map(lambda *values: np.stack(values), *rows)


@functools.cache
def trained_by_blockwise(**overrides):  # on the host: other tests count what devices hold
    return jax.device_get(train(Placement(tiny_learner(**overrides), mesh_of(1, 1, 1))))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 1)])
@pytest.mark.parametrize(
    "objective", ["beit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mae", "moco"))]
)
def test_equals_blockwise(objective, shape, monkeypatch):
    # Adam would make large steps of what is left of gradients that are zero.
    momentum = optax.sgd(1e-3, momentum=0.9)
    monkeypatch.setattr("blockjax.learner.build.make_optimizer", lambda *_, **__: momentum)
    overrides = {"objective": objective, "model.depth": 3, "blocks": 3, "noise": 0.25}
    mesh = mesh_of(*shape)
    placement = Placement(tiny_learner(strategy="streamed", **overrides), mesh)
    state, metrics = train(placement)
    expected, expected_metrics = trained_by_blockwise(**overrides)
    chex.assert_trees_all_close(metrics, expected_metrics, rtol=2e-4, atol=1e-5)
    assert int(state.step) == 3
    for part in ("stem", "blocks"):
        got, want = jax.device_get((getattr(state, part), getattr(expected, part)))
        chex.assert_trees_all_close(got, want, rtol=1e-4, atol=2e-5)
    spec = placement.row_shardings.params["layers"]["mlp"]["Dense_0"]["kernel"].spec
    assert spec == jax.sharding.PartitionSpec(None, None, "fsdp" if shape[1] > 1 else None)
    assert {*jax.tree.leaves(state.blocks)[0].devices()} == {jax.devices("cpu")[0]}
    assert state.step.devices() == {*mesh.devices.flat}


def test_three_states_at_a_time():
    learner = tiny_learner(strategy="streamed", **{"model.depth": 6, "blocks": 6})
    placement = Placement(learner, mesh_of(1, 1, 1))
    step, state, profile = started(placement)
    assert isinstance(step, HostLoop)
    row = learner.abstract_row()
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(row))
    held, seen = [], step.later

    def later(*args):
        out = seen(*args)
        gc.collect()
        device = placement.mesh.devices.flat[0]
        held.append(sum(a.nbytes for a in jax.live_arrays() if a.devices() == {device}))
        return out

    object.__setattr__(step, "later", later)
    batch = placement.place([{"image": images()}])
    key = jax.device_put(KEY, jax.tree.leaves(state.step.sharding)[0])
    state, _ = step(state, batch, key)
    assert len(held) == 5
    assert max(held) - min(held) < size / 2  # the last block's next state is none
    assert max(held) < profile.argument
    assert profile.host == 6 * size


def test_a_block_of_ones_own_waits_before_it_sends_more(monkeypatch):
    """Between CPUs every copy waits; on other devices all blocks' states would be sent at once."""

    def forward(params, x, rng):
        return x * params["w"]

    def loss(params, x, target, rng):
        return jnp.mean((x - target) ** 2), {}

    block = Block(forward, loss, optax.sgd(0.1))
    state = init_state(block.optimizer, {"w": 1.0 + jnp.arange(15.0).reshape(5, 3)})
    first, later = map(jax.jit, host_loop([block] * 5))
    events, wait = [], jax.block_until_ready

    def waited(arrays):
        events.append("wait")
        return wait(arrays)

    def watched(*args):
        events.append("later")
        return later(*args)

    monkeypatch.setattr(jax, "block_until_ready", waited)
    host, device = (jax.sharding.SingleDeviceSharding(jax.devices()[i]) for i in (0, 1))
    shardings = jax.tree.map(lambda _: device, state)
    shardings = shardings.replace(blocks=jax.tree.map(lambda _: host, state.blocks))
    row_shardings = jax.tree.map(lambda _: device, state.blocks)
    step = HostLoop(first, watched, 5, shardings, row_shardings)
    batch = jax.device_put((jnp.ones(3), jnp.full(3, 2.0)), device)
    state = jax.device_put(state, shardings)
    expected, _ = jax.jit(blockwise([block] * 5))(*jax.device_put((state, batch, KEY), host))
    state, metrics = step(state, batch, jax.device_put(KEY, device))
    assert events == ["wait", *["later", "wait"] * 4]
    np.testing.assert_allclose(state.blocks.params["w"], expected.blocks.params["w"])
    assert metrics["loss"].shape == (5,)


def test_devices_that_address_no_host_memory():
    def device(*kinds):
        memories = [SimpleNamespace(kind=kind) for kind in kinds]
        return SimpleNamespace(device_kind="abacus", addressable_memories=lambda: memories)

    assert addresses_host_memory(device("device", "pinned_host"))
    assert addresses_host_memory(device())
    assert not addresses_host_memory(device("beads", "device"))


def test_clear_errors_where_states_cannot_be_kept(monkeypatch):
    learner, mesh = tiny_learner(strategy="streamed"), mesh_of(1, 1, 1)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 2)
        with pytest.raises(ValueError, match="one process only; set strategy=blockwise"):
            _ = Placement(learner, mesh).shardings

    def no_cpu(platform):
        raise RuntimeError(f"Unknown backend {platform}")

    monkeypatch.setattr(jax, "devices", no_cpu)
    with pytest.raises(ValueError, match="add cpu to JAX_PLATFORMS, or set strategy=blockwise"):
        _ = Placement(learner, mesh).shardings


@pytest.mark.parametrize(
    "fields",
    [
        {"hybrid.every": 2},
        {"hybrid.share": 0.5},
        {"overlap.window": 2},
        {"schedule": "sequential"},
        {"head.shared": True},
        {"distillation.weight": 0.5, "distillation.teacher": "top"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_it_cannot_do_is_refused(fields):
    placement = Placement(tiny_learner(strategy="streamed", **fields), mesh_of(1, 1, 1))
    with pytest.raises(ValueError, match=r"does not address .* set strategy=blockwise"):
        _ = placement.shardings
