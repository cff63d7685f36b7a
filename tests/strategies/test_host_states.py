"""`end_to_end` with its layers' optimizer states in host memory."""

import jax
import numpy as np
import pytest

from blockjax import config as config_lib
from blockjax.config.variants import vary
from blockjax.learner.placement import Placement
from blockjax.memory.profiles import compile_step
from blockjax.sharding.mesh import make_mesh
from tests.objectives.test_local_losses import learner_of, train
from tests.tiny import tiny_config

FIELDS = {"model.depth": 2, "blocks": 2, "strategy": "end_to_end"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape, fields",
    [
        ((1, 1, 1), {"optimizer.layer_decay": 0.5}),
        ((1, 1, 1), {"optimizer.name": "muon", "optimizer.clip": 0.1}),
        ((1, 4, 1), {"remat": "layer"}),
    ],
)
def test_changes_no_number(shape, fields):
    """Layers are updated one after another, each by its own state and rate."""
    losses, state = train(learner_of("mae", **FIELDS, **fields), (1, 1, 1))
    learner = learner_of("mae", **FIELDS, **fields, **{"optimizer.in_host_memory": True})
    got, other = train(learner, shape)
    np.testing.assert_allclose(got, losses, rtol=2e-4)
    kernels = [run.blocks.params["layers"]["mlp"]["Dense_0"]["kernel"] for run in (other, state)]
    np.testing.assert_allclose(*map(jax.device_get, kernels), atol=1e-3)


@pytest.mark.slow
def test_only_the_layers_moments_live_there():
    learner = learner_of("mae", **FIELDS, **{"optimizer.in_host_memory": True})
    placement = Placement(learner, make_mesh((1, 1, 1), jax.devices()[:1]))
    step, profile = compile_step(placement, 8)
    state = placement.init_for(step, jax.random.key(0))
    there = [leaf for leaf in jax.tree.leaves(state) if leaf.sharding.memory_kind == "pinned_host"]
    layers = jax.tree.leaves(learner.abstract_state().blocks.params["layers"])
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in layers)
    assert sum(leaf.nbytes for leaf in there) == 2 * size
    assert profile.host_link == pytest.approx(2 * 2 * size, abs=100)  # counts stay on the device
    alone = Placement(learner_of("mae", **FIELDS), make_mesh((1, 1, 1), jax.devices()[:1]))
    whole = compile_step(alone, 8)[1]
    # Beside moments there are counts, one for each layer.
    assert profile.optimizer == pytest.approx(whole.optimizer - 2 * size, abs=100)


def test_refusals(monkeypatch):
    config = tiny_config(**{"optimizer.in_host_memory": True})
    with pytest.raises(ValueError, match=r"strategy=blockwise keeps all .* strategy=streamed"):
        config_lib.resolve(config, devices=1, platform="cpu")
    assert vary(config, "end_to_end+host_states").optimizer.in_host_memory
    assert not vary(config, "blockwise").optimizer.in_host_memory
    monkeypatch.setattr("blockjax.learner.placement.addresses_host_memory", lambda device: False)
    learner = learner_of("mae", **FIELDS, **{"optimizer.in_host_memory": True})
    with pytest.raises(ValueError, match=r"set optimizer.in_host_memory=False"):
        _ = Placement(learner, make_mesh((1, 1, 1), jax.devices()[:1])).shardings
