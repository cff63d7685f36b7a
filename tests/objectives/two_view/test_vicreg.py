"""VICReg's three terms."""

import jax
import jax.numpy as jnp
import numpy as np

from blockjax.objectives.two_view.vicreg import vicreg_loss
from tests.tiny import tiny_learner


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_equals_a_plain_writing():
    a, b = 2.0 + 0.5 * normal(0, 20, 6), 1.2 * normal(1, 20, 6)
    got, metrics = vicreg_loss(jnp.asarray(a), jnp.asarray(b))
    a, b = a.astype(np.float64), b.astype(np.float64)
    invariance = np.mean((a - b) ** 2)
    variance = covariance = 0.0
    for z in (a, b):
        variance += 0.5 * np.mean(np.maximum(0.0, 1 - np.sqrt(z.var(axis=0, ddof=1) + 1e-4)))
        cov = np.cov(z.T)
        covariance += (np.sum(cov**2) - np.sum(np.diag(cov) ** 2)) / 6
    np.testing.assert_allclose(got, 25 * invariance + 25 * variance + covariance, rtol=1e-5)
    np.testing.assert_allclose(metrics["covariance"], covariance, rtol=1e-5)


def test_constant_embeddings_pay_for_their_variance():
    z = jnp.ones((8, 4))
    loss, metrics = vicreg_loss(z, z)
    np.testing.assert_allclose(loss, 25 * 0.5 * 2 * (1 - 0.01), rtol=1e-5)
    assert np.isfinite(jax.grad(lambda z: vicreg_loss(z, z)[0])(z)).all()
    objective = tiny_learner(objective="vicreg").objective
    assert "constant" in objective.symptoms({"variance": float(metrics["variance"])}, 0.5)[0]
    assert objective.symptoms({"variance": 0.3}, 0.5) == []
