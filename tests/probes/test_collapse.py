"""How features differ from image to image: what is healthy, and what a collapse looks like."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blockjax.probes.collapse import monitor, spread, symptoms
from blockjax.probes.features import array_features
from tests.tiny import images, tiny_learner


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def floats(tree):
    return {name: float(value) for name, value in tree.items()}


def test_features_in_all_directions_are_healthy():
    found = floats(spread(jnp.asarray(normal(0, 4096, 192))))
    assert found["feature_std"] == pytest.approx(1.0, abs=0.01)
    assert found["effective_rank"] == pytest.approx(190.9, abs=0.5)
    assert found["cosine"] == pytest.approx(0.0, abs=0.01)
    assert symptoms(found) == []


def test_rank_is_that_of_the_features():
    found = floats(spread(jnp.asarray(normal(0, 4096, 8) @ normal(1, 8, 192))))
    assert found["effective_rank"] == pytest.approx(7.9, abs=0.2)


def test_a_constant_with_noise_is_a_collapse():
    # Centred, the noise would have full rank and hide it.
    constant = normal(0, 1, 192) + 1e-3 * normal(1, 4096, 192)
    found = floats(spread(jnp.asarray(constant)))
    assert found["effective_rank"] < 1.3
    assert found["feature_std"] < 0.01
    assert found["cosine"] > 0.999
    assert "collapsed" in symptoms(found)[0]


@pytest.mark.parametrize("strategy", ["blockwise", "end_to_end"])
def test_every_readout_depth_is_looked_at(strategy):
    learner = tiny_learner(strategy=strategy)
    state = jax.jit(learner.init)(jax.random.key(0))
    batch = images()
    found = monitor(learner, None, state, batch)
    features = array_features(learner.backbone, learner.backbone_params(state), batch, pool=1)
    assert len(features) == 4
    for k, block in enumerate(features):
        for name, value in spread(jnp.asarray(block)).items():
            np.testing.assert_allclose(found[name][k], value, rtol=1e-3, atol=1e-4)


def test_larger_images_are_looked_at_as_large_as_the_encoder_takes_them():
    learner = tiny_learner(**{"model.depth": 1, "blocks": 1})
    state, batch = jax.jit(learner.init)(jax.random.key(0)), images()
    found = monitor(learner, None, state, batch.repeat(2, axis=1).repeat(2, axis=2))
    params = learner.backbone_params(state)
    (features,) = array_features(learner.backbone, params, batch, pool=1)
    for name, value in spread(jnp.asarray(features)).items():
        np.testing.assert_allclose(found[name][0], value, rtol=0.1)
