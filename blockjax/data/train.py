"""Training batches: shuffled, augmented, sharded over processes, resumable."""

import contextlib
import dataclasses
import functools
from typing import Any

import numpy as np
from absl import logging

from blockjax.data import augment
from blockjax.data.cut import fit
from blockjax.data.decode import (
    CorruptImage,
    check_on_corrupt,
    check_readable,
    decode_all,
    image_shape,
    refuse_if,
)
from blockjax.data.iterator import Order, TrainIterator
from blockjax.data.sources.source import Source

# Images up to this side are decoded once and kept in memory, if all of them fit.
SMALL_SIDE = 96
SMALL_BYTES = 2**31
_AUGMENT = 1  # keeps the random numbers of crops apart from those of the order


@dataclasses.dataclass(frozen=True)
class _Augmentation:
    image_size: int
    seed: int
    crop_scale: tuple[float, float]
    shift: int
    flip: bool
    stretch: bool

    @property
    def draws(self) -> dict[str, Any]:
        return {"crop_scale": self.crop_scale, "shift": self.shift, "flip": self.flip}

    def rng(self, position: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, int(position), _AUGMENT))


class _MemoryBatches:
    """Makes batches of decoded images that lie in memory."""

    def __init__(self, images_NHWC, labels_N, order: Order, augmentation: _Augmentation):
        self._images_NHWC, self._labels_N = images_NHWC, labels_N
        self._order, self._augmentation = order, augmentation

    def __call__(self, position: int) -> dict[str, np.ndarray]:
        order, augmentation = self._order, self._augmentation
        indices_B = order.indices(position)
        # Drawn for the whole batch: how many processes there are makes no difference.
        crops = augment.draw_crops(
            order.batch_size,
            *self._images_NHWC.shape[1:3],
            augmentation.rng(position),
            **augmentation.draws,
        )
        crops = crops.rows(order.rows_B)
        images_BHWC = self._images_NHWC[indices_B]
        batch = {"image": augment.apply_crops(images_BHWC, crops, augmentation.image_size)}
        if self._labels_N is not None:
            batch["label"] = self._labels_N[indices_B]
        return batch


class _DecodedBatches:
    """Makes batches of images that are read and decoded when they are needed."""

    def __init__(self, source: Source, order: Order, augmentation: _Augmentation, on_corrupt: str):
        self._source, self._on_corrupt = source, on_corrupt
        self._order, self._augmentation = order, augmentation
        self._corrupt: set[int] = set()

    def __call__(self, position: int) -> dict[str, np.ndarray]:
        size = self._augmentation.image_size
        count = len(self._order.rows_B)
        batch = {"image": np.empty((count, size, size, 3), np.uint8)}
        if self._source.labelled:
            batch["label"] = np.empty(count, np.int32)
        if self._augmentation.stretch:
            batch["aspect"] = np.empty(count, np.float32)
        positions_B, indices_B = self._order.positions(position), self._order.indices(position)
        for i, (place, index) in enumerate(zip(positions_B, indices_B, strict=True)):
            example = self._read(int(index), int(place))
            for key, values in batch.items():
                values[i] = example[key]
        return batch

    def _read(self, index: int, position: int) -> dict[str, Any]:
        """Returns the first readable example from `index` on, cropped."""
        augmentation, count = self._augmentation, len(self._source)
        for step in range(count):
            candidate = (index + step) % count
            if candidate in self._corrupt:
                continue
            try:
                example = self._source[candidate]
                rng = augmentation.rng(position)
                image_HWC, aspect = augment.decode_and_crop(
                    example["image"],
                    augmentation.image_size,
                    rng,
                    **augmentation.draws,
                    whole=augmentation.stretch,
                )
                return example | {"image": image_HWC, "aspect": aspect}
            except (CorruptImage, OSError) as error:
                refuse_if(self._on_corrupt == "error", self._source.name(candidate), error)
                if candidate not in self._corrupt:
                    logging.warning(
                        "Cannot read %s (%s): the next image takes its place.",
                        self._source.name(candidate),
                        error,
                    )
                self._corrupt.add(candidate)
        check_readable(self._source, 0)


def train_batches(
    source: Source,
    *,
    batch_size: int,
    image_size: int,
    seed: int,
    flip: bool,
    crop_scale: tuple[float, float],
    shift: int,
    workers: int = 0,
    on_corrupt: str = "skip",
    rows: np.ndarray | None = None,
    stretch: bool = False,
) -> TrainIterator:
    """Makes the training batches of this process: shuffled, augmented, without end.

    Every epoch has an order of its own and contains every example once, over all processes.
    Small images of one size are decoded now and kept in memory; others are decoded as they come,
    and so are all that are stretched.

    Args:
      source: the examples.
      batch_size: of all processes together.
      image_size: the side of the images in a batch.
      seed: of order and augmentation.
      flip: mirror every other image.
      crop_scale: least and greatest share of the area; (1, 1) for no random-resized crops.
      shift: the greatest translation, in pixels of the batch.
      workers: processes that decode; 0 means threads. Images in memory need none.
      on_corrupt: `skip` warns and takes the next readable image instead; `error` raises.
      rows: which images of each batch this process makes, [B]; default all.
      stretch: keep all of an image, or of its random crop, where it is not square: batches have its
        "aspect" too, by which windows can be cut as if it was not stretched.

    Raises:
      ValueError: no image is readable, or one is not and `on_corrupt` is `error`; at once for
        small images, from the iterator for others.
    """
    check_on_corrupt(on_corrupt)
    augmentation = _Augmentation(image_size, seed, tuple(crop_scale), shift, flip, stretch)
    rows_B = np.arange(batch_size) if rows is None else np.asarray(rows)
    order = Order(len(source), seed, batch_size, rows_B)
    shape = None if stretch else _memory_shape(source, image_size)
    if shape is None:
        return TrainIterator(
            _DecodedBatches(source, order, augmentation, on_corrupt), order, workers
        )
    if augmentation.crop_scale[0] == 1:
        shape = (image_size, image_size)  # what is left of augmentation moves whole pixels
    to_shape = functools.partial(fit, height=shape[0], width=shape[1])
    images_NHWC, labels_N = decode_all(source, np.arange(len(source)), to_shape, shape, on_corrupt)
    check_readable(source, len(images_NHWC))
    order = dataclasses.replace(order, size=len(images_NHWC))
    logging.info("%s; kept in memory as %s.", source.description, images_NHWC.shape)
    return TrainIterator(_MemoryBatches(images_NHWC, labels_N, order, augmentation), order, 0)


def _memory_shape(source: Source, image_size: int) -> tuple[int, int] | None:
    """Returns height and width to keep images in, or None if they are not small or not alike."""
    shapes = set()
    for index in np.linspace(0, len(source) - 1, min(32, len(source))).astype(int).tolist():
        with contextlib.suppress(CorruptImage, OSError):
            shapes.add(image_shape(source[index]["image"]))
    if len(shapes) != 1 or max(shape := shapes.pop()) > SMALL_SIDE:
        return None
    # Crops are not low-pass filtered, so images are brought near the size of their crops first.
    shrink = min(1, 2 * image_size / min(shape))
    height, width = (round(side * shrink) for side in shape)
    return (height, width) if len(source) * height * width * 3 < SMALL_BYTES else None
