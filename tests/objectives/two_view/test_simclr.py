"""NT-Xent is what the paper says, and SimCLR's head sees both views as one batch."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from blockjax.objectives.two_view.simclr import nt_xent
from tests.tiny import tiny_learner


def unit(seed, *shape):
    x = np.random.default_rng(seed).normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def plain_nt_xent(first, second, temperature):
    """One view after another, in float64."""
    views, losses = np.concatenate([first, second]), []
    count = len(first)
    for i in range(2 * count):
        similarity = views @ views[i] / temperature
        others = np.delete(similarity, i)
        top = others.max()
        normaliser = top + np.log(np.exp(others - top).sum())
        losses.append(normaliser - similarity[(i + count) % (2 * count)])
    return np.mean(losses)


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_equals_a_plain_writing(temperature):
    z = unit(0, 16, 2, 12)
    got, _ = nt_xent(jnp.asarray(z, jnp.float32), temperature)
    np.testing.assert_allclose(got, plain_nt_xent(z[:, 0], z[:, 1], temperature), rtol=1e-5)


def test_equal_embeddings_give_the_logarithm_of_the_other_views():
    z = jnp.ones((8, 2, 4)) / 2.0
    loss, _ = nt_xent(z, 0.1)
    np.testing.assert_allclose(loss, math.log(2 * 8 - 1), rtol=1e-6)


def test_random_embeddings_start_where_the_literature_says():
    # 256 images, 128 dimensions, τ 0.2: 6.34; one draw is off by 0.03.
    draws = [nt_xent(jnp.asarray(unit(s, 256, 2, 128), jnp.float32), 0.2) for s in range(16)]
    np.testing.assert_allclose(np.mean([loss for loss, _ in draws]), 6.34, atol=0.015)
    assert max(accuracy for _, accuracy in draws) < 0.05


def test_partners_that_agree_are_found():
    z = np.repeat(unit(0, 8, 1, 32), 2, axis=1)
    loss, accuracy = nt_xent(jnp.asarray(z, jnp.float32), 0.1)
    assert accuracy == 1.0
    assert loss < 1.0


def test_collapse_is_named():
    objective = tiny_learner(objective="simclr").objective
    chance = math.log(2 * 8 - 1)
    healthy = {"loss": 1.0, "accuracy": 0.9, "embedding_std": 1.0}
    assert objective.symptoms(healthy, 0.9) == []
    (sign,) = objective.symptoms({**healthy, "loss": chance}, 0.9)
    assert "collapsed" in sign
    assert objective.symptoms({**healthy, "loss": chance}, 0.1) == []  # normal early on
