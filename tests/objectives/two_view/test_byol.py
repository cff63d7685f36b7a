"""BYOL's loss, and that its targets carry no gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blockjax import config as config_lib
from blockjax.objectives.two_view.byol import regression_loss
from tests.tiny import tiny_config, tiny_learner


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_known_values():
    z = jnp.asarray(normal(0, 6, 2, 4))
    swapped = z[:, ::-1]  # a prediction is compared with the other view's target
    np.testing.assert_allclose(regression_loss(swapped, z), 0.0, atol=1e-5)
    np.testing.assert_allclose(regression_loss(-swapped, z), 8.0, rtol=1e-5)
    first = jnp.zeros((3, 2, 4)).at[..., 0].set(2.0)
    second = jnp.zeros((3, 2, 4)).at[..., 1].set(5.0)
    np.testing.assert_allclose(regression_loss(first, second), 4.0, rtol=1e-6)


def test_equals_a_plain_writing():
    p, z = normal(0, 7, 2, 5).astype(np.float64), normal(1, 7, 2, 5).astype(np.float64)
    unit = lambda x: x / np.linalg.norm(x)  # noqa: E731
    rows = [
        sum(np.sum((unit(p[i, v]) - unit(z[i, 1 - v])) ** 2) for v in range(2)) for i in range(7)
    ]
    got = regression_loss(jnp.asarray(p, jnp.float32), jnp.asarray(z, jnp.float32))
    np.testing.assert_allclose(got, np.mean(rows), rtol=1e-5)


def test_a_queue_is_refused():
    config = tiny_config(objective="byol", **{"momentum.queue": 16})
    with pytest.raises(ValueError, match=r"momentum.queue 16: byol .* set it to 0, or objective=m"):
        config_lib.resolve(config, devices=1, platform="cpu")


def test_targets_have_no_gradient():
    p, z = jnp.asarray(normal(0, 7, 2, 5)), jnp.asarray(normal(1, 7, 2, 5))
    of_prediction, of_target = jax.grad(regression_loss, argnums=(0, 1))(p, z)
    assert np.abs(of_prediction).max() > 1e-3
    np.testing.assert_array_equal(of_target, 0.0)


def test_collapse_is_named_whatever_the_loss():
    objective = tiny_learner(objective="byol").objective
    assert objective.symptoms({"loss": 0.01, "embedding_std": 0.9}, 0.5) == []
    assert "collapsed" in objective.symptoms({"loss": 0.01, "embedding_std": 0.01}, 0.1)[0]
