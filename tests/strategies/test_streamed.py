"""Block states in host memory: with real blocks, the numbers of `blockwise`."""

import chex
import jax
import optax
import pytest

from blockjax.learner.placement import Placement
from blockjax.memory.profiles import compile_step
from blockjax.sharding.mesh import make_mesh
from tests.tiny import images, tiny_learner


def train(strategy, **overrides):
    learner = tiny_learner(strategy=strategy, **{"model.depth": 2, "blocks": 2, **overrides})
    placement = Placement(learner, make_mesh((1, 1, 1), jax.devices()[:1]))
    step, _ = compile_step(placement, 8)
    state, rows = placement.init_for(step, jax.random.key(0)), []
    for i in range(2):
        batch = placement.place([{"image": images(seed=i)}])
        state, metrics = step(state, batch, jax.random.key(1))
        rows.append(metrics)
    return jax.device_get((state, rows))


@pytest.mark.slow  # a toy in test_block.py is quick
def test_equals_blockwise_with_microbatches(monkeypatch):
    """The stem's inputs are cut into the same parts of the batch as the stream."""
    # Adam would make large steps of what is left of gradients that are zero.
    momentum = optax.sgd(1e-3, momentum=0.9)
    monkeypatch.setattr("blockjax.learner.build.make_optimizer", lambda *_, **__: momentum)
    state, metrics = train("streamed", microbatches=2)
    expected, expected_metrics = train("blockwise", microbatches=2)
    chex.assert_trees_all_close(metrics, expected_metrics, rtol=2e-4, atol=1e-5)
    chex.assert_trees_all_close(state, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"pipeline.batches": 2}, "pipeline.batches=2"),
        ({"hybrid.every": 2}, "hybrid.every=2"),
        ({"overlap.window": 2}, "overlap.window=2"),
        ({"overlap.alternate": True, "model.depth": 4}, "overlap.alternate=True"),
        ({"head.shared": True}, "head.shared=True"),
        ({"schedule": "sequential"}, "schedule=sequential"),
        (
            {"distillation.weight": 0.5, "distillation.teacher": "top"},
            "distillation.teacher=top",
        ),
    ],
)
def test_what_devices_without_host_memory_cannot_do(fields, named, monkeypatch):
    """There a program for each block's update takes the place of one for all."""
    monkeypatch.setattr("blockjax.learner.placement.addresses_host_memory", lambda device: False)
    learner = tiny_learner(strategy="streamed", **{"model.depth": 2, "blocks": 2, **fields})
    placement = Placement(learner, make_mesh((1, 1, 1), jax.devices()[:1]))
    with pytest.raises(ValueError, match=rf"^{named} with states in host memory takes one program"):
        _ = placement.shardings
