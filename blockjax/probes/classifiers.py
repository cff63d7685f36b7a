"""Accuracy of trained classifiers on test images."""

import functools
from typing import Any

import jax

from blockjax.data.evaluation import evaluation_batches
from blockjax.data.sources.source import Source
from blockjax.learner.learner import Learner
from blockjax.probes.features import BATCH, put_examples
from blockjax.sharding.mesh import replicated
from blockjax.strategies.state import TrainState


def accuracies(
    learner: Learner, state: TrainState, source: Source, *, on_corrupt: str = "skip"
) -> list[dict[str, Any]]:
    """Returns the share of images that each classifier gets right, after each depth that has one.

    Args:
      learner: that of a run whose objective takes labels.
      state: trained.
      source: labelled; all of its images are read.
      on_corrupt: see `evaluation_batches`.

    Returns:
      A list of {"features": block_k, "top_1"}; end to end it is one row, of the last block.
    """
    mesh = state.step.sharding.mesh
    right, total = 0, 0
    batches = evaluation_batches(source, learner.vit.image_size, BATCH, on_corrupt=on_corrupt)
    for images, labels in batches:
        found = _predicted(
            learner, mesh, learner.backbone_params(state), put_examples(images, mesh)
        )
        predicted = jax.device_get(found)[:, : len(images)]
        right = right + (predicted == labels[None]).sum(axis=1)
        total += len(images)
    first = learner.depths - len(right) + 1
    return [
        {"features": f"block_{k}", "top_1": float(count / total)}
        for k, count in enumerate(right, start=first)
    ]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _predicted(learner: Learner, mesh, params, images_BHWC):
    """Returns the classes that each depth's classifier predicts, [K or 1, B]."""

    def at_head(head, tokens):
        return learner.objective.logits(head, tokens).argmax(axis=-1)

    backbone = learner.backbone
    _, found = backbone.read(params, backbone.vit.inputs(images_BHWC), lambda tokens: (), at_head)
    return replicated(found, mesh)
