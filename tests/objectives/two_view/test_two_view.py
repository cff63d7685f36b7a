"""Objectives of two views: which tokens go through which head, and into which side of the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blockjax.models.heads import l2_normalize
from blockjax.objectives.two_view.barlow_twins import redundancy_loss
from blockjax.objectives.two_view.base import each_view, embedding_std
from blockjax.objectives.two_view.byol import regression_loss
from blockjax.objectives.two_view.moco import info_nce
from blockjax.objectives.two_view.simclr import nt_xent
from blockjax.objectives.two_view.vicreg import vicreg_loss
from tests.tiny import tiny_learner


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def learner_of(name, **overrides):
    small = {"head.hidden": 16, "head.width": 16, "head.expansion": 16, "mask.ratio": None}
    return tiny_learner(objective=name, **small, **overrides)


def projected(objective, head, tokens):
    """Embeddings of tokens [B, T, D], by the readout and the projector of one head."""
    vectors = objective.readout_module.apply({"params": head["readout"]}, tokens)
    return objective._projector().apply({"params": head["projector"]}, vectors)


def test_spread_is_one_for_all_directions_and_zero_for_one():
    assert float(embedding_std(l2_normalize(normal(0, 500, 2, 64)))) == pytest.approx(1.0, abs=0.02)
    assert float(embedding_std(jnp.ones((10, 2, 64)) / 8)) == pytest.approx(0.0, abs=1e-6)


def test_each_view_has_statistics_of_its_own():
    views = normal(0, 6, 2, 3) + jnp.array([5.0, -5.0])[None, :, None]
    got = each_view(lambda head, view: head * (view - view.mean(axis=0, keepdims=True)), 2.0, views)
    np.testing.assert_allclose(
        got, 2 * (views - views.mean(axis=0, keepdims=True)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simclr", "barlow_twins", "vicreg"])
def test_both_views_go_through_the_head(name):
    objective, tokens = learner_of(name).objective, normal(1, 8, 2, 5, 32)
    head = objective.init_head(jax.random.key(0))
    if name == "simclr":  # both views are one batch of its BatchNorm
        z = projected(objective, head, tokens.reshape(16, 5, 32)).reshape(8, 2, -1)
        expected, _ = nt_xent(l2_normalize(z), objective.temperature)
    else:
        first, second = (projected(objective, head, tokens[:, view]) for view in range(2))
        if name == "barlow_twins":
            expected, _ = redundancy_loss(first, second, objective.off_diagonal)
        else:
            expected, _ = vicreg_loss(first, second)
    loss, _ = objective.loss(head, tokens, {}, jax.random.key(2))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["byol", "moco"])
def test_targets_are_of_the_averaged_head_and_the_second_stream(name):
    objective = learner_of(name).objective
    head, other = (objective.init_head(jax.random.key(seed)) for seed in range(2))
    stream = {"tokens": normal(2, 8, 2, 5, 32), "target": normal(3, 8, 2, 5, 32)}

    def loss(head, target):
        return objective.loss({**head, "target": target}, stream, {}, jax.random.key(4))[0]

    def predicted(view):
        z = projected(objective, head, stream["tokens"][:, view])
        return objective._predictor().apply({"params": head["predictor"]}, z)

    predictions = jnp.stack([predicted(view) for view in range(2)], axis=1)
    targets = jnp.stack(
        [projected(objective, other, stream["target"][:, view]) for view in range(2)], axis=1
    )
    if name == "byol":
        expected = regression_loss(predictions, targets)
    else:
        queries, keys = l2_normalize(predictions), l2_normalize(targets)
        expected, _ = info_nce(queries, keys, objective.temperature)
    np.testing.assert_allclose(loss(head, other), expected, rtol=1e-4)
    of_head, of_target = jax.grad(loss, argnums=(0, 1))(head, other)
    assert all(
        max(np.abs(leaf).max() for leaf in jax.tree.leaves(part)) > 1e-4
        for part in of_head.values()
    )
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(of_target))


def test_the_second_stream_flows_through_the_averages():
    learner = learner_of("byol")
    vit, objective = learner.vit, learner.objective
    stems = [vit.init_stem(jax.random.key(seed)) for seed in range(2)]
    images = {
        "patches": normal(2, 8, 2, vit.patches, 3 * vit.patch_size**2),
        "positions": jnp.broadcast_to(jnp.arange(vit.patches), (8, 2, vit.patches)),
    }
    tokens = objective.stem(vit, {**stems[0], "target": stems[1]}, images)
    blocks = [{"layers": vit.init_block(jax.random.key(seed), 0, 4)} for seed in range(2)]
    out = objective.forward(vit, {**blocks[0], "target": blocks[1]}, tokens, jax.random.key(0))
    for name, stem, block in zip(("tokens", "target"), stems, blocks, strict=True):
        np.testing.assert_array_equal(tokens[name], vit.stem(stem, images))
        expected = vit.layers(block["layers"], tokens[name])
        np.testing.assert_allclose(out[name], expected, rtol=1e-5, atol=1e-6)
    assert np.abs(out["tokens"] - out["target"]).max() > 0.1


@pytest.mark.slow
def test_a_queue_takes_the_averaged_heads_keys_of_the_second_views():
    objective = learner_of("moco", **{"momentum.queue": 16}).objective
    head, other = (objective.init_head(jax.random.key(seed)) for seed in range(2))
    extra = objective.init_block_extra({"layers": {}, "head": head}, jax.random.key(2))
    extra["target"]["head"] = other
    stream = {"tokens": normal(3, 8, 2, 5, 32), "target": normal(4, 8, 2, 5, 32)}
    queue = objective.finish({}, extra, stream)["queue"]
    keys = l2_normalize(projected(objective, other, stream["target"][:, 1]))
    np.testing.assert_allclose(queue[:8], keys, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(queue[8:], extra["queue"][8:])
