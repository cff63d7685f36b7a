"""Every technique in a whole train step: which gradients cross a boundary; every strategy computes the same."""

import functools

import chex
import jax
import numpy as np
import optax
import pytest

from tests.objectives.test_local_losses import learner_of, start_of, train
from tests.tiny import images

THREE = {"model.depth": 3, "blocks": 3}
TECHNIQUES = {
    "predictor": {"consistency.weight": 0.5},
    "agreement": {"consistency.weight": 0.5, "consistency.kind": "agreement"},
    "ladder": {"distillation.weight": 0.5, "distillation.ramp": 0.0},
    "ladder_average": {"distillation.weight": 0.5, "distillation.decay": 0.5},
    "top": {"distillation.weight": 0.5, "distillation.teacher": "top"},
    "top_average": {
        "distillation.weight": 0.5,
        "distillation.teacher": "top",
        "distillation.decay": 0.0,
    },
    "latest": {"cross_block.blocks": 1},
    "first": {"cross_block.blocks": 2, "cross_block.which": "first"},
}
ALL = {
    "noise": 0.25,
    **TECHNIQUES["agreement"],
    **TECHNIQUES["ladder_average"],
    **TECHNIQUES["latest"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TECHNIQUES)
def test_no_gradient_crosses_a_boundary(name, monkeypatch):
    # Adam's own derivative is infinite where a gradient is zero.
    monkeypatch.setattr("blockjax.learner.build.make_optimizer", lambda *_, **__: optax.sgd(1.0))
    learner = learner_of("mae", **THREE, **TECHNIQUES[name])
    start, batch = start_of(learner), {"image": images()}
    # What arrives as an update is the gradient: each block's must be that of its own loss by its own parameters.
    step = jax.jit(learner.train_step)
    state, metrics = step(start, batch, jax.random.key(1))
    for block in range(3):
        moved = jax.tree.map(
            lambda new, old, block=block: float(np.abs(new[block] - old[block]).max()),
            state.blocks.params,
            start.blocks.params,
        )
        assert max(jax.tree.leaves(moved["layers"])) > 0.0
        assert max(jax.tree.leaves(moved["head"])) > 0.0

    # A change of what a later block owns must leave every update before it as it was.
    for block in (1, 2):
        changed = jax.tree.map(
            lambda leaf, block=block: leaf.at[block].add(0.05), start.blocks.params
        )
        other, _ = step(
            start.replace(blocks=start.blocks.replace(params=changed)), batch, jax.random.key(1)
        )
        update = jax.tree.map(lambda new, old: new - old, state.blocks.params, start.blocks.params)
        changed_update = jax.tree.map(lambda new, old: new - old, other.blocks.params, changed)
        for below in range(block):
            of = functools.partial(jax.tree.map, lambda leaf, below=below: leaf[below])
            is_same = all(
                np.array_equal(a, b)
                for a, b in zip(
                    jax.tree.leaves(of(update)), jax.tree.leaves(of(changed_update)), strict=True
                )
            )
            # A teacher at the top is a target, and so changes the updates; nothing else may.
            assert is_same == (name != "top"), (block, below)
        if name != "top":
            chex.assert_trees_all_equal(state.stem.params, other.stem.params)
    assert all(np.isfinite(value).all() for value in metrics.values())


STAY = {"pipeline.batches": 2}


@functools.cache
def on_one_device(name):
    return train(learner_of("mae", **THREE, **(TECHNIQUES | {"all": ALL})[name]), (1, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, strategy, shape, more",
    [
        *((name, "streamed", (1, 1, 1), {}) for name in (*TECHNIQUES, "all")),
        *((name, "pipelined", (1, 1, 3), {}) for name in (*TECHNIQUES, "all") if "top" not in name),
        ("all", "blockwise", (2, 2, 1), {}),
        ("top", "blockwise", (2, 1, 1), {}),
        ("all", "streamed", (2, 1, 1), {}),
        ("all", "blockwise", (1, 1, 1), {"remat": "layer"}),
        *((name, "streamed", (1, 1, 1), STAY) for name in TECHNIQUES if "top" not in name),
    ],
)
def test_strategies_and_meshes_agree(name, strategy, shape, more):
    losses, state = on_one_device(name)
    fields = (TECHNIQUES | {"all": ALL})[name] | more
    if strategy == "pipelined":
        fields = fields | {"pipeline.batches": 3}
    learner = learner_of("mae", **THREE, **fields, strategy=strategy)
    got, other = train(learner, shape)
    np.testing.assert_allclose(got, losses, rtol=2e-4)
    for part in ("stem", "blocks"):
        own, expected = getattr(other, part).extra, getattr(state, part).extra
        chex.assert_trees_all_close(jax.device_get(own), jax.device_get(expected), atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["predictor", "ladder", "latest", "top"])
def test_microbatches_give_the_numbers_of_the_whole_batch(name):
    losses, _ = on_one_device(name)
    got, _ = train(learner_of("mae", **THREE, **TECHNIQUES[name], microbatches=2), (1, 1, 1))
    np.testing.assert_allclose(got, losses, rtol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective, name",
    [
        ("beit", "ladder"),
        ("beit", "top_average"),
        ("beit", "agreement"),
        ("simclr", "latest"),
        ("byol", "first"),
        ("jigsaw", "predictor"),
        ("rotation", "agreement"),
        ("context", "latest"),
        ("barlow_twins", "predictor"),
    ],
)
def test_with_other_objectives(objective, name):
    losses, _ = train(learner_of(objective, **THREE, **TECHNIQUES[name]), (1, 1, 1), steps=2)
    assert np.isfinite(losses).all()
    got, _ = train(
        learner_of(objective, **THREE, **TECHNIQUES[name], strategy="streamed"), (1, 1, 1), steps=2
    )
    np.testing.assert_allclose(got, losses, rtol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ladder", "latest", "agreement"])
def test_under_a_masking_schedule(name):
    schedule = {"mask.ratio": 0.25, "mask.schedule": "linear:0.75"}
    losses, _ = train(learner_of("mae", **THREE, **TECHNIQUES[name], **schedule), (1, 1, 1))
    assert np.isfinite(losses).all()
