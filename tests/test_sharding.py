"""Numbers do not depend on the mesh."""

import chex
import jax
import numpy as np
import pytest

from blockjax.learner import state_formats
from blockjax.sharding import batch_sharding, make_mesh, mesh_shape, state_shardings
from tests.tiny import images, tiny_learner


@pytest.fixture(scope="module")
def on_one_device():
    return train(tiny_learner(), (1, 1, 1))


def train(learner, shape):
    devices = jax.devices()[: shape[0] * shape[1] * shape[2]]
    mesh = make_mesh(shape, devices)
    step = learner.trace(mesh, 8).lower().compile()
    assert step.output_formats[0] == state_formats(step)  # what a step returns, the next one takes
    state = learner.init_for(step, jax.random.key(0))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    key = jax.device_put(jax.random.key(1), replicated)
    for i in range(3):
        batch = jax.device_put(
            {"image": images(seed=i)},
            jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp"))),
        )
        state, metrics = step(state, batch, key)
    return state, metrics


@pytest.mark.parametrize("shape", [(4, 1, 1), (2, 2, 1)])
def test_meshes_agree_with_one_device(shape, on_one_device):
    state, metrics = train(tiny_learner(), shape)
    expected, expected_metrics = on_one_device
    np.testing.assert_allclose(metrics["loss"], expected_metrics["loss"], rtol=1e-5)
    # As with any change of summation order, Adam may move a parameter without gradient by noise.
    chex.assert_trees_all_close(
        jax.device_get(state.blocks.params), jax.device_get(expected.blocks.params), atol=3e-4
    )
    if shape[1] > 1:
        kernel = state.blocks.params["layers"]["mlp"]["Dense_0"]["kernel"]
        assert kernel.addressable_shards[0].data.size * shape[1] == kernel.size
        moment = state.blocks.opt_state[0].mu["layers"]["mlp"]["Dense_0"]["kernel"]
        assert moment.addressable_shards[0].data.size * shape[1] == moment.size


def test_the_longest_axis_that_divides_is_split():
    mesh = make_mesh((2, 2, 1))
    shapes = {"kernel": (4, 64, 256), "odd": (64, 257), "nothing_fits": (65, 257), "bias": (4, 256)}
    state = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    specs = jax.tree.map(lambda sharding: tuple(sharding.spec), state_shardings(state, mesh))
    assert specs == {
        "kernel": (None, None, "fsdp"),
        "odd": ("fsdp", None),
        "nothing_fits": (None, None),
        "bias": (None, None),
    }
    whole = state_shardings(state, make_mesh((4, 1, 1)))
    assert all(sharding.is_fully_replicated for sharding in whole.values())
    assert batch_sharding(mesh).shard_shape((8, 2)) == (2, 2)


def test_mesh_shapes():
    class Sizes(dict):
        pass

    assert mesh_shape(Sizes(data=-1, fsdp=1, block=1), 8) == (8, 1, 1)
    assert mesh_shape(Sizes(data=-1, fsdp=4, block=1), 8) == (2, 4, 1)
    assert mesh_shape(Sizes(data=2, fsdp=-1, block=1), 8) == (2, 4, 1)
    for bad in ((-1, 3, 1), (3, 1, 1), (-1, -1, 1), (0, 1, 1), (16, 1, 1)):
        with pytest.raises(ValueError, match=r"mesh.data="):
            mesh_shape(Sizes(zip(("data", "fsdp", "block"), bad, strict=True)), 8)
