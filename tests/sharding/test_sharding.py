"""Numbers depend neither on the mesh nor on how the blocks are driven."""

import dataclasses
import logging
import math

import chex
import jax
import numpy as np
import pytest

from blockjax.learner.placement import Placement, state_formats
from blockjax.sharding.mesh import (
    batch_sharding,
    make_mesh,
    mesh_shape,
    process_parts,
    process_rows,
    put_rows,
)
from blockjax.sharding.rules import state_shardings
from tests.tiny import images, tiny_learner

STEPS = 5


@pytest.fixture(scope="module")
def on_one_device():
    return train(tiny_learner(), (1, 1, 1))


def train(learner, shape):
    """Returns the state after five steps, and the losses [5, K]."""
    mesh = make_mesh(shape, jax.devices()[: shape[0] * shape[1] * shape[2]])
    placement = Placement(learner, mesh)
    step = placement.compile(8).call
    assert step.output_formats[0] == state_formats(step)  # what a step returns, the next one takes
    state = placement.init_for(step, jax.random.key(0))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    key = jax.device_put(jax.random.key(1), replicated)
    at_once = learner.batches or 1
    losses = []
    for i in range(0, STEPS, at_once):
        batches = [{"image": images(seed=j)} for j in range(i, min(i + at_once, STEPS))]
        state, metrics = step(state, placement.place(batches), key)
        losses.append(np.reshape(metrics["loss"], (at_once, -1))[: len(batches)])
    return state, np.concatenate(losses)


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy, shape",
    [
        ("blockwise", (8, 1, 1)),
        ("blockwise", (1, 4, 1)),
        ("blockwise", (2, 2, 1)),
        ("streamed", (1, 1, 1)),
        ("streamed", (4, 2, 1)),
        ("pipelined", (1, 1, 4)),
        ("pipelined", (4, 1, 2)),
        ("pipelined", (2, 2, 2)),
    ],
)
def test_strategies_and_meshes_agree_with_one_device(strategy, shape, on_one_device):
    # Two batches at once, of five: the last call gets one only.
    learner = tiny_learner(strategy=strategy, **{"pipeline.batches": 2})
    state, losses = train(learner, shape)
    expected, expected_losses = on_one_device
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert int(state.step) == STEPS
    # As with any change of summation order, Adam may move a parameter without gradient by noise.
    for part in ("stem", "blocks"):
        got, want = getattr(state, part), getattr(expected, part)
        chex.assert_trees_all_close(
            jax.device_get(got.params), jax.device_get(want.params), atol=5e-4
        )
        np.testing.assert_array_equal(got.opt_state[0].count, want.opt_state[0].count)
    # Of an optimizer state every device holds a part of its own.
    for tree, parts in (
        (state.blocks.params, shape[1] * shape[2]),
        (state.blocks.opt_state[0].mu, math.prod(shape)),
    ):
        kernel = tree["layers"]["mlp"]["Dense_0"]["kernel"]
        assert kernel.addressable_shards[0].data.size * parts == kernel.size
        host = "pinned_host" if strategy == "streamed" else "device"
        assert kernel.sharding.memory_kind == host


def test_streamed_states_are_born_on_the_host_one_by_one():
    learner = tiny_learner(strategy="streamed")
    steps = jax.make_jaxpr(learner.init)(jax.random.key(0)).eqns
    (loop,) = [e for e in steps if e.primitive.name == "scan" and e.params["length"] == 4]
    spaces = {"number": set(), "array": set()}
    for row in loop.params["jaxpr"].out_avals:
        spaces["array" if row.ndim else "number"].add(row.memory_space)
    assert spaces == {"number": {jax.memory.Space.Device}, "array": {jax.memory.Space.Host}}


def test_states_are_split_by_the_table(caplog):
    learner = tiny_learner(**{"model.width": 36, "model.heads": 2})  # 36 divides by 4, 9 does not
    state = learner.abstract_state()

    def specs(shape, moments_as_layers=True):
        mesh = jax.sharding.AbstractMesh(shape, ("data", "fsdp", "block"))
        found = jax.tree.map(lambda sharding: sharding.spec, state_shardings(state, mesh))
        layers, head = found.blocks.params["layers"], found.blocks.params["head"]
        moments = found.blocks.opt_state[0].mu["layers"]
        assert (moments == layers) == moments_as_layers
        return layers, head, found.stem.params, found

    layers, head, stem, found = specs((1, 2, 2))
    assert tuple(layers["mlp"]["Dense_0"]["kernel"]) == ("block", None, None, "fsdp")
    assert tuple(layers["mlp"]["Dense_1"]["kernel"]) == ("block", None, "fsdp", None)
    assert tuple(layers["attention"]["query"]["kernel"]) == ("block", None, "fsdp", None)
    assert tuple(layers["norm_1"]["scale"]) == ("block", None, None)
    assert tuple(head["pixels"]["kernel"]) == ("block", None, "fsdp")
    assert tuple(stem["embed"]["kernel"]) == ("fsdp", None)
    assert tuple(found.blocks.opt_state[0].count) == ("block",)
    assert tuple(found.step) == ()
    # 9 divides 36 and not 192: the other dimension is taken.
    _, _, stem, _ = specs((1, 9, 1))
    assert tuple(stem["embed"]["kernel"]) == (None, "fsdp")
    # 8 divides 144 and 192 and not 36.
    with caplog.at_level(logging.WARNING, logger="absl"):
        layers, head, stem, _ = specs((1, 8, 1))
    assert tuple(layers["mlp"]["Dense_0"]["kernel"]) == (None, None, None, "fsdp")
    assert tuple(layers["attention"]["query"]["kernel"]) == (None, None, None, None)
    assert "mesh.fsdp=8 divides no dimension of" in caplog.text
    assert "layers/attention/query/kernel (4, 1, 36, 36)" in caplog.text
    _, _, _, found = specs((4, 1, 1), moments_as_layers=False)
    whole = jax.tree.leaves(
        (found.stem.params, found.blocks.params),
        is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec),
    )
    assert not any(axis for spec in whole for axis in spec)
    # Optimizer states are split over all axes: over one dimension, or over both where that divides.
    mu = found.blocks.opt_state[0].mu["layers"]
    assert tuple(mu["mlp"]["Dense_0"]["kernel"]) == (None, None, None, "data")
    assert tuple(mu["norm_1"]["scale"]) == (None, None, None)
    _, _, _, found = specs((6, 48, 1), moments_as_layers=False)
    mu = found.blocks.opt_state[0].mu["layers"]
    assert tuple(mu["mlp"]["Dense_0"]["kernel"]) == (None, None, "data", "fsdp")  # 36 x 144
    _, _, _, found = specs((2, 2, 2), moments_as_layers=False)
    mu = found.blocks.opt_state[0].nu["layers"]
    assert tuple(mu["mlp"]["Dense_0"]["kernel"]) == ("block", None, None, ("fsdp", "data"))


@dataclasses.dataclass(frozen=True)
class Chip:
    id: int
    coords: tuple[int, int, int]
    platform: str = "tpu"
    device_kind: str = "TPU v5"
    process_index: int = 0
    core_on_chip: int = 0


def test_an_axis_may_be_a_part_of_a_torus_axis():
    """A cube of 4 x 4 x 4 chips, and axes that are no product of its sides."""
    chips = [Chip(i, (i % 4, i // 4 % 4, i // 16)) for i in range(64)]
    mesh = make_mesh((8, 4, 2), chips)
    assert mesh.shape == {"data": 8, "fsdp": 4, "block": 2}
    assert {chip.id for chip in mesh.devices.flat} == set(range(64))


def test_the_rows_of_processes_are_those_that_the_mesh_gives_their_devices():
    """Four hosts of 2 x 2 chips: along a ring through all chips, a host's chips do not follow one another."""
    chips = [
        Chip(
            i, (i % 4, i // 4, 0), device_kind="TPU v5 lite", process_index=i % 4 // 2 + i // 8 * 2
        )
        for i in range(16)
    ]
    for shape in ((16, 1, 1), (4, 4, 1), (4, 1, 4), (1, 1, 16)):
        mesh = make_mesh(shape, chips)
        parts = {process: process_parts(mesh, process) for process in range(4)}
        split = range(shape[0] * shape[1])
        assert set(split) == set().union(*parts.values())
        for part, holders in enumerate(mesh.devices.reshape(len(split), -1)):
            for process, own in parts.items():
                held = any(chip.process_index == process for chip in holders)
                assert (part in own) == held
    assert process_parts(make_mesh((16, 1, 1), chips), 0) != [0, 1, 2, 3]


def test_rows_of_a_process_that_do_not_follow_one_another(monkeypatch):
    mesh, batch = make_mesh((4, 1, 1)), np.arange(8 * 3).reshape(8, 3)
    monkeypatch.setattr("blockjax.sharding.mesh.process_parts", lambda mesh, process: [1, 3])
    rows = process_rows(mesh, 8)
    assert rows.tolist() == [2, 3, 6, 7]

    def devices_of_the_process(shape, where, part):
        assert shape == (8, 3)
        for own in (slice(2, 4), slice(6, 8)):
            np.testing.assert_array_equal(part((own, slice(None))), batch[own])

    monkeypatch.setattr(jax, "make_array_from_callback", devices_of_the_process)
    put_rows(mesh, batch[rows])


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 2, 4)])
def test_rows_arrive_where_they_belong(shape):
    mesh, batch = make_mesh(shape), np.arange(8 * 3).reshape(8, 3)
    np.testing.assert_array_equal(process_rows(mesh, 8), np.arange(8))
    array = put_rows(mesh, batch)
    assert array.sharding.is_equivalent_to(batch_sharding(mesh), 2)
    np.testing.assert_array_equal(array, batch)
    stacked = np.stack([batch, batch + 100])
    np.testing.assert_array_equal(put_rows(mesh, stacked, axis=1), stacked)


def test_the_batch_is_split_over_data_and_fsdp():
    assert batch_sharding(make_mesh((2, 2, 1))).shard_shape((8, 2)) == (2, 2)


def test_mesh_shapes():
    assert mesh_shape(dict(data=-1, fsdp=1, block=1), 8) == (8, 1, 1)
    assert mesh_shape(dict(data=-1, fsdp=4, block=1), 8) == (2, 4, 1)
    assert mesh_shape(dict(data=2, fsdp=-1, block=1), 8) == (2, 4, 1)
    for bad, message in (
        ((3, 1, 1), "mesh.data=3, .* does not fit 8 devices; .* must multiply to that, or set"),
        ((16, 1, 1), "must multiply to that"),
        ((-1, 3, 1), "mesh.fsdp=3, .* does not fit 8 devices; .* must divide that"),
        ((-1, -1, 1), "at most one is -1"),
        ((0, 1, 1), "sizes are at least 1"),
        ((-2, 1, 1), "sizes are at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            mesh_shape(dict(zip(("data", "fsdp", "block"), bad, strict=True)), 8)
