"""A run's data: its sources, their classes, and training batches on the devices."""

import ml_collections
import numpy as np

from blockjax.config.modality import is_text
from blockjax.data.iterator import Groups, TrainIterator
from blockjax.data.prefetch import DevicePrefetch
from blockjax.data.sources import open_source
from blockjax.data.sources.source import Source, fraction_of
from blockjax.data.sources.text import open_text
from blockjax.data.text_batches import text_train_batches
from blockjax.data.train import train_batches
from blockjax.learner.placement import Placement
from blockjax.objectives import find_task
from blockjax.sharding.mesh import process_rows


def open_sources(config: ml_collections.ConfigDict) -> tuple[Source, Source]:
    """Opens what a resolved config trains on and is tested with.

    Returns:
      The training set, as far as `data.fraction` goes, and the test set.

    Raises:
      ValueError: one of them cannot be read.
    """
    data = config.data
    train, test = (_opened(config, split) for split in (data.train_split, data.test_split))
    return fraction_of(train, data.fraction, config.seed), test


def _opened(config, split):
    data, model = config.data, config.model
    if not is_text(config):
        return open_source(data.source, split, data.dir)
    source = open_text(
        data.source, split, context=model.context, tokenizer=data.tokenizer, data_dir=data.dir
    )
    tokens = source.tokenizer
    if tokens.vocabulary != model.vocabulary:
        raise ValueError(
            f"model.vocabulary={model.vocabulary}, but there are {tokens.vocabulary} tokens with separator and mask "
            f"({tokens.name}); leave model.vocabulary out, or set data.tokenizer to a file with that many"
        )
    return source


def count_classes(config: ml_collections.ConfigDict, train: Source, test: Source) -> int | None:
    """Returns the classes of a training set, or the config's `classifier.classes`; None where they are not needed.

    Raises:
      ValueError: one of the sets has no labels, or there are more classes than the config says.
    """
    data, said = config.data, config.classifier.classes
    if not find_task(config.objective).takes_labels:
        return said
    for source, split in ((train, data.train_split), (test, data.test_split)):
        if not source.labelled:
            raise ValueError(
                f"{data.source} [{split}] has no labels, which objective=classification learns and is tested with; use "
                "class folders, or data with labels"
            )
    there, tested = _classes(train), _classes(test)
    bounds = find_task(config.objective).bounds
    bounds["classifier.classes"].check(f"the number of classes of {data.source}", there)
    if tested > max(there, said or 0):
        raise ValueError(
            f"{data.source} [{data.test_split}] has {tested} classes, and [{data.train_split}] only {there}; set "
            f"classifier.classes={tested}, or choose another data.test_split"
        )
    if said is not None and said < there:
        raise ValueError(
            f"classifier.classes={said}, but {data.source} [{data.train_split}] has {there} classes"
        )
    return said or there


def _classes(source):
    names = source.class_names
    return len(names) if names is not None else int(source.labels.max()) + 1


def device_batches(
    config: ml_collections.ConfigDict, source: Source, placement: Placement, steps: int
) -> DevicePrefetch:
    """Returns a run's training batches on the devices, each call's as the train step takes them.

    Args:
      config: resolved.
      source: the training set.
      placement: that of the train step.
      steps: how many batches there are in all.
    """
    rows = process_rows(placement.mesh, config.batch_size)
    batches, at_once = host_batches(config, source, rows), placement.learner.batches
    groups = Groups(batches, at_once or 1, steps)
    return DevicePrefetch(groups, placement.place, size=2 if at_once is None else 1)


def host_batches(
    config: ml_collections.ConfigDict, source: Source, rows: np.ndarray | None = None
) -> TrainIterator:
    """Returns the training batches of a resolved config on the host, see `train_batches`."""
    data, side = config.data, config.model.image_size
    if is_text(config):
        return text_train_batches(
            source,
            batch_size=config.batch_size,
            seed=config.seed,
            rows=rows,
            workers=data.workers,
        )
    stretched = find_task(config.objective).stretched_size(side)
    return train_batches(
        source,
        batch_size=config.batch_size,
        image_size=stretched or side,
        seed=config.seed,
        flip=data.flip,
        crop_scale=tuple(data.crop_scale),
        shift=data.shift,
        workers=data.workers,
        on_corrupt=data.on_corrupt,
        rows=rows,
        stretch=stretched is not None,
    )
