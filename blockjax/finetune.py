"""Fine-tunes an encoder with labels: all of it, its last blocks or a classifier alone; end to end or block by block.

    python -m blockjax.finetune --config configs/finetune.py --config.backbone=runs/quickstart --workdir runs/finetune

The same as `python -m blockjax.main`, which knows the task by `objective=classification`; flags are the same.
"""

import functools
from typing import Any

import jax
import ml_collections

from blockjax.data.pipeline import evaluation_batches
from blockjax.data.sources import Source
from blockjax.features import BATCH, put_images
from blockjax.learner import Learner
from blockjax.sharding import replicated
from blockjax.state import TrainState


def count_classes(config: ml_collections.ConfigDict, train: Source, test: Source) -> int:
    """Returns the classes of a training set, or the config's `classifier.classes`.

    Raises:
      ValueError: one of the sets has no labels, or there are more classes than the config says.
    """
    data = config.data
    for source, split in ((train, data.train_split), (test, data.test_split)):
        if not source.labelled:
            raise ValueError(
                f"{data.source} [{split}] has no labels, which objective=classification learns and is tested with; use "
                "class folders, or data with labels"
            )
    names = train.class_names
    there = len(names) if names is not None else int(train.labels.max()) + 1
    said = config.classifier.classes
    if said is not None and said < there:
        raise ValueError(
            f"classifier.classes={said}, but {data.source} [{data.train_split}] has {there} classes"
        )
    return said or there


def accuracies(run: Any, state: TrainState) -> list[dict[str, Any]]:
    """Returns the share of test images that each classifier gets right, after each depth that has one.

    Args:
      run: a `blockjax.pretrain.Pretraining` of objective classification.
      state: trained.

    Returns:
      A list of {"features": block_k, "top_1"}; end to end it is one row, of the last block.
    """
    config, learner, source = run.config, run.learner, run.test_source
    mesh = state.step.sharding.mesh
    right, total = 0, 0
    batches = evaluation_batches(
        source,
        config.model.image_size,
        BATCH,
        limit=config.probe.test_examples,
        on_corrupt=config.data.on_corrupt,
    )
    for images, labels in batches:
        found = _predicted(learner, mesh, learner.backbone_params(state), put_images(images, mesh))
        predicted = jax.device_get(found)[:, : len(images)]
        right = right + (predicted == labels[None]).sum(axis=1)
        total += len(images)
    first = learner.readouts - len(right) + 1
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
    _, found = backbone.read(params, backbone.inputs(images_BHWC), lambda tokens: (), at_head)
    return replicated(found, mesh)


if __name__ == "__main__":
    from blockjax.main import main

    main()
