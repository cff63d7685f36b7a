"""MoCo's losses: version 3, and the older one with a queue."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blockjax import config as config_lib
from blockjax.objectives.two_view.moco import info_nce, info_nce_queue
from tests.tiny import STEPS, tiny_config, tiny_learner


def unit(seed, *shape):
    x = np.random.default_rng(seed).normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def cross_entropy(logits, label):
    logits = logits.astype(np.float64)
    return np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[label]


@pytest.mark.parametrize("temperature", [0.1, 0.2, 1.0])
def test_equals_a_plain_writing(temperature):
    q, k = unit(0, 9, 2, 8), unit(1, 9, 2, 8)
    k[:6, ::-1] = q[:6]  # six of nine find their own key at once
    got, accuracy = info_nce(jnp.asarray(q), jnp.asarray(k), temperature)
    expected, nearest = 0.0, []
    for here, there in ((0, 1), (1, 0)):  # the other view's keys only
        nearest += [np.argmax(k[:, there] @ q[i, here]) == i for i in range(9)]
        rows = [cross_entropy(k[:, there] @ q[i, here] / temperature, i) for i in range(9)]
        expected += 2 * temperature * np.mean(rows)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert 0.6 < np.mean(nearest) < 1.0
    np.testing.assert_allclose(accuracy, np.mean(nearest), rtol=1e-6)


def test_equal_embeddings_give_four_tau_log_n():
    z = jnp.ones((256, 2, 4)) / 2.0
    loss, _ = info_nce(z, z, 0.2)
    np.testing.assert_allclose(loss, 4 * 0.2 * math.log(256), rtol=1e-5)
    np.testing.assert_allclose(loss, 4.436, atol=1e-3)


def test_queue_equals_a_plain_writing():
    q, k, queue = unit(0, 5, 2, 8), unit(1, 5, 2, 8), unit(2, 20, 8)
    k[:2, ::-1] = q[:2]
    got, accuracy = info_nce_queue(jnp.asarray(q), jnp.asarray(k), jnp.asarray(queue), 0.07)
    logits = [
        np.concatenate([[q[i, v] @ k[i, 1 - v]], queue @ q[i, v]]) / 0.07
        for i in range(5)
        for v in range(2)
    ]
    np.testing.assert_allclose(got, np.mean([cross_entropy(row, 0) for row in logits]), rtol=1e-5)
    nearest = np.mean([np.argmax(row) == 0 for row in logits])
    assert 0.3 < nearest < 1.0
    np.testing.assert_allclose(accuracy, nearest, rtol=1e-6)


def test_equal_embeddings_with_a_queue_give_the_logarithm_of_its_size():
    z, queue = jnp.ones((4, 2, 4)) / 2.0, jnp.ones((31, 4)) / 2.0
    loss, _ = info_nce_queue(z, z, queue, 0.07)
    np.testing.assert_allclose(loss, math.log(32), rtol=1e-5)


def test_a_queue_brings_the_head_and_the_average_of_version_2():
    objective = tiny_learner(objective="moco", **{"momentum.queue": 16}).objective
    head = jax.eval_shape(objective.init_head, jax.random.key(0))
    wide = head["readout"]["expand"]["kernel"].shape[1]
    shapes = {name: layer["kernel"].shape for name, layer in head["projector"].items()}
    assert shapes == {"dense_0": (wide, wide), "dense_out": (wide, 128)}
    assert all(set(layer) == {"kernel", "bias"} for layer in head["projector"].values())
    assert (objective.decay, objective.decay_steps) == (0.999, None)
    assert (objective.temperature, objective.recipe) == (0.2, "cifar-simclr")
    alone = tiny_learner(objective="moco", **{"momentum.queue": 16, "head.readout": "gap"})
    assert alone.objective.hidden == 32


def test_without_a_queue_it_stays_version_3():
    objective = tiny_learner(objective="moco").objective
    head = jax.eval_shape(objective.init_head, jax.random.key(0))
    projector = {"dense_0", "norm_0", "dense_1", "norm_1", "dense_out"}
    assert set(head["projector"]) == projector
    assert set(head["predictor"]) == {"dense_0", "norm_0", "dense_out"}
    assert (objective.decay, objective.decay_steps) == (0.99, STEPS)
    assert (objective.temperature, objective.hidden, objective.out) == (0.2, 1024, 128)


def test_queue_that_is_no_multiple_of_the_batch_is_refused():
    config = tiny_config(objective="moco", **{"momentum.queue": 20})
    with pytest.raises(ValueError, match=r"queue 20 is not a multiple of batch_size 8.*; 16 would"):
        config_lib.resolve(config, devices=1, platform="cpu")


def test_collapse_is_named():
    objective = tiny_learner(objective="moco").objective
    healthy = {"loss": 0.5, "accuracy": 0.9, "embedding_std": 1.0}
    assert objective.symptoms(healthy, 0.9) == []
    assert objective.symptoms({**healthy, "embedding_std": 0.01}, 0.9)
    assert objective.symptoms({**healthy, "loss": 0.8 * math.log(8)}, 0.9)
