"""The redundancy-reduction loss: its zero, its noise floor, its pieces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blockjax import config as config_lib
from blockjax.objectives.two_view.barlow_twins import redundancy_loss
from tests.tiny import tiny_config, tiny_learner


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_equals_a_plain_writing():
    a, b = 5.0 + normal(0, 24, 10), normal(1, 24, 10) * 3.0
    got, metrics = redundancy_loss(jnp.asarray(a), jnp.asarray(b), 0.0051)
    a, b = a.astype(np.float64), b.astype(np.float64)
    a = (a - a.mean(axis=0)) / np.sqrt(a.var(axis=0) + 1e-5)
    b = (b - b.mean(axis=0)) / np.sqrt(b.var(axis=0) + 1e-5)
    expected, off, diagonal = 0.0, 0.0, []
    for i in range(10):
        for j in range(10):
            c = np.mean(a[:, i] * b[:, j])
            if i == j:
                diagonal.append(c)
                expected += (c - 1) ** 2
            else:
                off += c**2
                expected += 0.0051 * c**2
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["diagonal"], np.mean(diagonal), atol=1e-5)
    np.testing.assert_allclose(metrics["dead_share"], np.mean(np.array(diagonal) < 0.1), atol=1e-6)
    np.testing.assert_allclose(metrics["off_excess"], off - 10 * 9 / 24, rtol=1e-4)


def test_uncorrelated_views_that_agree_cost_nothing():
    centred = normal(0, 64, 8) - normal(0, 64, 8).mean(axis=0)
    orthonormal, _ = np.linalg.qr(centred)  # columns stay without mean
    loss, metrics = redundancy_loss(jnp.asarray(orthonormal), jnp.asarray(orthonormal), 0.0051)
    # sqrt(var + 1e-5) with var 1/64 keeps the diagonal 0.06 % below 1.
    np.testing.assert_allclose(loss, 0.0, atol=1e-4)
    assert metrics["dead_share"] == 0.0


def test_noise_floor_of_independent_dimensions():
    # λ D (D - 1) / N of the off-diagonal alone, for a batch of 256: 5.2 at 512 dimensions.
    z = jnp.asarray(normal(0, 256, 512))
    loss, metrics = redundancy_loss(z, z, 0.0051)
    np.testing.assert_allclose(loss, 0.0051 * 512 * 511 / 256, rtol=0.05)
    assert abs(float(metrics["off_excess"])) < 0.05 * 512 * 511 / 256
    # Independent views add D for the diagonal.
    loss, _ = redundancy_loss(z, jnp.asarray(normal(1, 256, 512)), 0.0051)
    np.testing.assert_allclose(loss, 512 * (1 + 1 / 256) + 0.0051 * 512 * 511 / 256, rtol=0.05)


def test_constant_embeddings_have_finite_gradients():
    gradient = jax.grad(lambda z: redundancy_loss(z, z, 0.0051)[0])(jnp.ones((8, 4)))
    assert np.isfinite(gradient).all()


def test_width_far_beyond_the_batch_is_refused():
    config = tiny_config(objective="barlow_twins", **{"head.width": 1024})
    message = "batch_size 8 is too small .* head.width 1024.*set head.width to about 32"
    with pytest.raises(ValueError, match=message):
        config_lib.resolve(config, devices=1, platform="cpu")
    objective = tiny_learner(objective="barlow_twins").objective  # the default fits the batch
    assert objective.out == 32
    assert "dead" in objective.symptoms({"dead_share": 0.5}, 0.5)[0]
    assert objective.symptoms({"dead_share": 0.1}, 0.5) == []
