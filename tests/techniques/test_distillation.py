"""Distillation: the loss, the weights of the blocks, and who teaches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blockjax.strategies import block_key
from tests.objectives.test_local_losses import start_of
from tests.tiny import images, tiny_learner

LADDER = {"distillation.weight": 0.4, "distillation.ramp": 0.0}
KEY = jax.random.key(1)


def learner_of(**overrides):
    return tiny_learner(**{"model.depth": 3, "blocks": 3, **overrides})


def metrics_of(learner, state=None):
    state = start_of(learner) if state is None else state
    return jax.device_get(jax.jit(learner.train_step)(state, {"image": images()}, KEY)[1])


def layers_of(state, block):
    return jax.tree.map(lambda leaf: leaf[block], state.blocks.params["layers"])


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["ladder", "top"])
def test_distance_to_what_the_teacher_makes_of_the_whole_image(teacher):
    """Once with the drivers and once by hand: encoder, decoder and readout one after another."""
    learner = learner_of(**LADDER, **{"distillation.teacher": teacher})
    state, batch = start_of(learner), {"image": images()}
    metrics = metrics_of(learner, state)
    vit, objective = learner.vit, learner.objective
    inputs, targets = objective.prepare(block_key(KEY, 0, 0), batch)
    tokens = vit.stem(state.stem.params, inputs)
    whole = [vit.stem(state.stem.params, vit.inputs(batch["image"]))]
    for block in range(3):
        whole.append(vit.layers(layers_of(state, block), whole[-1]))
    for block in range(3):
        tokens = vit.layers(layers_of(state, block), tokens)
        params = jax.tree.map(lambda leaf, block=block: leaf[block], state.blocks.params)
        local, _ = objective.loss(params["head"], tokens, targets, None)
        np.testing.assert_allclose(metrics["local_loss"][block], local, rtol=1e-5)
        features, own = objective.predicted(params["head"], tokens, targets)
        link = params["link"]["distillation"]
        found = (
            np.asarray(features, np.float64) @ np.asarray(link["kernel"])
            + np.asarray(link["bias"])[None, None]
        )
        taught = np.asarray(whole[block if teacher == "ladder" else 3], np.float64)[:, 1:]
        wanted = np.take_along_axis(taught, np.asarray(own["positions"])[:, :, None], axis=1)
        wanted -= wanted.mean(-1, keepdims=True)
        wanted /= np.sqrt((wanted**2).mean(-1, keepdims=True) + 1e-6)
        distance = np.mean(np.abs(found - wanted))
        np.testing.assert_allclose(metrics["distillation"][block], distance, rtol=1e-4)
        share = 0.4 * ((block > 0) if teacher == "ladder" else 1 - block / 2)
        np.testing.assert_allclose(
            metrics["loss"][block], (1 - share) * local + share * distance, rtol=1e-4
        )


@pytest.mark.slow
def test_the_weight_ramps_up():
    learner = learner_of(**{**LADDER, "distillation.ramp": 0.2})  # 4 of 20 steps
    step, state, shares = jax.jit(learner.train_step), start_of(learner), []
    for _ in range(5):
        state, metrics = step(state, {"image": images()}, KEY)
        local, distance, loss = (
            np.asarray(metrics[name])[1] for name in ("local_loss", "distillation", "loss")
        )
        shares.append((loss - local) / (distance - local))
    np.testing.assert_allclose(shares, [0.1, 0.2, 0.3, 0.4, 0.4], rtol=1e-3)


@pytest.mark.slow
def test_an_average_follows_stem_and_layers():
    learner = learner_of(**LADDER, **{"distillation.decay": 0.75})
    step, state = jax.jit(learner.train_step), start_of(learner)
    stem, layers = state.stem.params, state.blocks.params["layers"]
    for _ in range(2):
        state, _ = step(state, {"image": images()}, KEY)
        move = lambda old, new: 0.75 * old + 0.25 * new  # noqa: E731
        stem = jax.tree.map(move, stem, state.stem.params)
        layers = jax.tree.map(move, layers, state.blocks.params["layers"])
    found = state.stem.extra["distillation"]["average"], state.blocks.extra["distillation"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found[0], stem)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found[1]["average"], layers
    )


def test_a_run_that_starts_from_weights_teaches_with_them():
    technique = learner_of(**LADDER, **{"distillation.decay": 0.75}).techniques[0]
    params = {"layers": {"w": jnp.ones(3)}}
    extra = technique.init_extra(jax.tree.map(jnp.zeros_like, params), jnp.int32(0))
    got = technique.extra_from(params, extra)["distillation"]
    np.testing.assert_array_equal(got["average"]["w"], 1.0)
