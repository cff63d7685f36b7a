"""Batches of images for training and evaluation: seeded, sharded, resumable.

One order of examples is defined for all processes and all batch sizes: epoch after epoch of seeded
permutations. Batch and augmentation follow from the position in that order alone, so a position is
all that a checkpoint has to hold.
"""

import contextlib
import dataclasses
import functools
import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import numpy as np
from absl import flags, logging

from blockjax.data import augment
from blockjax.data.sources import Source

# Images up to this side are decoded once and kept in memory, if all of them fit.
SMALL_SIDE = 96
SMALL_BYTES = 2**31

_END = 2**60  # positions end here, which is never
_AUGMENT = 1  # keeps the random numbers of crops apart from those of the order


def _cpu_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(size)


@dataclasses.dataclass(frozen=True)
class _Order:
    """Which examples a process reads at which position.

    The batch at position p is the examples p ... p + batch_size of the order, and the process reads
    the given rows of it.
    """

    size: int
    seed: int
    batch_size: int
    rows_B: np.ndarray

    def positions(self, position: int) -> np.ndarray:
        """Returns the positions that this process reads, [B]."""
        return position + self.rows_B

    def indices(self, position: int) -> np.ndarray:
        """Returns the examples at these positions, [B]."""
        epochs_B, offsets_B = np.divmod(self.positions(position), self.size)
        indices_B = np.empty_like(offsets_B)
        for epoch in np.unique(epochs_B):
            here_B = epochs_B == epoch
            indices_B[here_B] = _permutation(self.seed, int(epoch), self.size)[offsets_B[here_B]]
        return indices_B


@dataclasses.dataclass(frozen=True)
class _Augmentation:
    image_size: int
    seed: int
    crop_scale: tuple[float, float]
    shift: int
    flip: bool

    @property
    def draws(self) -> dict[str, Any]:
        return {"crop_scale": self.crop_scale, "shift": self.shift, "flip": self.flip}

    def rng(self, position: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, int(position), _AUGMENT))


class _MemoryBatches:
    """Makes batches of decoded images that lie in memory."""

    def __init__(self, images_NHWC, labels_N, order: _Order, augmentation: _Augmentation):
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

    def __init__(self, source: Source, order: _Order, augmentation: _Augmentation, on_corrupt: str):
        self._source, self._on_corrupt = source, on_corrupt
        self._order, self._augmentation = order, augmentation
        self._corrupt: set[int] = set()

    def __call__(self, position: int) -> dict[str, np.ndarray]:
        size = self._augmentation.image_size
        count = len(self._order.rows_B)
        batch = {"image": np.empty((count, size, size, 3), np.uint8)}
        if self._source.labelled:
            batch["label"] = np.empty(count, np.int32)
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
                image_HWC = augment.decode_and_crop(
                    example["image"], augmentation.image_size, rng, **augmentation.draws
                )
                return example | {"image": image_HWC}
            except (augment.CorruptImage, OSError) as error:
                _refuse_if(self._on_corrupt == "error", self._source.name(candidate), error)
                if candidate not in self._corrupt:
                    logging.warning(
                        "Cannot read %s (%s): the next image takes its place.",
                        self._source.name(candidate),
                        error,
                    )
                self._corrupt.add(candidate)
        raise augment.CorruptImage(_none_readable(self._source))


class TrainIterator(Iterator[dict[str, np.ndarray]]):
    """Endless training batches, made ahead by threads or worker processes.

    A batch is a dict with `image`, uint8 [B, S, S, 3], and, for labelled sources, `label`, int32
    [B].
    """

    def __init__(self, batches: Callable[[int], dict], order: _Order, workers: int):
        """Starts nothing yet; `train_batches` is the function to call.

        Args:
          batches: makes the batch at a position.
          order: where the positions are.
          workers: how many processes make batches; 0 means threads of this one.
        """
        self._batches, self._order, self._workers = batches, order, workers
        self._position = 0
        self._iterator = None

    def __next__(self) -> dict[str, np.ndarray]:
        if self._iterator is None:
            self._iterator = self._start()
        try:
            batch = next(self._iterator)
        except BaseException:
            self.close()  # grain would go on behind the batch that is missing
            raise
        self._position += self._order.batch_size
        return batch

    def _start(self) -> Iterator[dict[str, np.ndarray]]:
        positions = grain.MapDataset.range(self._position, _END, self._order.batch_size)
        threads = max(1, min(8, _cpu_count() // max(1, self._workers)))
        # Each thread makes a batch of its own; fewer buffered batches would leave threads idle.
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        dataset = positions.map(self._batches).to_iter_dataset(options)
        if self._workers:
            if not flags.FLAGS.is_parsed():  # outside of absl.app; grain's workers read flags
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers))
        return iter(dataset)

    def get_state(self) -> dict[str, int]:
        """Returns the place after the last batch, for `set_state`; JSON can hold it.

        It does not depend on the number of processes and workers or on the batch size.
        """
        return {"position": self._position, "seed": self._order.seed, "size": self._order.size}

    def set_state(self, state: dict[str, int]) -> None:
        """Continues from a place, with the very batches that would have come.

        Raises:
          ValueError: the place is in the order of another seed or of another number of images.
        """
        now = self.get_state()
        for key, what, field in (
            ("seed", "the seed", "config.seed"),
            ("size", "the number of readable images", "data.source"),
        ):
            if state[key] != now[key]:
                raise ValueError(
                    f"The order of the training data cannot be continued: {what} was {state[key]} "
                    f"when it was saved and is {now[key]} now. Restore {field}, or start anew in "
                    "another workdir."
                )
        self.close()
        self._position = int(state["position"])

    def close(self) -> None:
        """Stops threads and workers; the next batch would start them again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


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
) -> TrainIterator:
    """Makes the training batches of this process: shuffled, augmented, without end.

    Every epoch has an order of its own and contains every example once, over all processes.
    Small images of one size are decoded now and kept in memory; others are decoded as they come.

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

    Raises:
      ValueError: no image is readable, or one is not and `on_corrupt` is `error`; at once for
        small images, from the iterator for others.
    """
    _check_on_corrupt(on_corrupt)
    augmentation = _Augmentation(image_size, seed, tuple(crop_scale), shift, flip)
    rows_B = np.arange(batch_size) if rows is None else np.asarray(rows)
    order = _Order(len(source), seed, batch_size, rows_B)
    shape = _memory_shape(source, image_size)
    if shape is None:
        return TrainIterator(
            _DecodedBatches(source, order, augmentation, on_corrupt), order, workers
        )
    if augmentation.crop_scale[0] == 1:
        shape = (image_size, image_size)  # what is left of augmentation moves whole pixels
    fit = functools.partial(augment.fit, height=shape[0], width=shape[1])
    images_NHWC, labels_N = _decode_all(source, np.arange(len(source)), fit, shape, on_corrupt)
    order = dataclasses.replace(order, size=len(images_NHWC))
    logging.info("%s; kept in memory as %s.", source.description, images_NHWC.shape)
    return TrainIterator(_MemoryBatches(images_NHWC, labels_N, order, augmentation), order, 0)


def evaluation_images(
    source: Source, image_size: int, *, limit: int | None = None, on_corrupt: str = "skip"
) -> tuple[np.ndarray, np.ndarray | None]:
    """Decodes the images of a source for an evaluation, without augmentation.

    Args:
      source: the examples.
      image_size: the side of the result; `augment.resize_and_center_crop` says what is cut off.
      limit: read no more than so many, always the same ones, from everywhere in the source.
      on_corrupt: `skip` leaves unreadable images out with a warning; `error` raises.

    Returns:
      Images, uint8 [N, image_size, image_size, 3], and labels, int32 [N], or None.

    Raises:
      ValueError: no image is readable, or one is not and `on_corrupt` is `error`.
    """
    _check_on_corrupt(on_corrupt)
    indices = _evaluated(len(source), limit)
    fit = functools.partial(augment.resize_and_center_crop, size=image_size)
    return _decode_all(source, indices, fit, (image_size, image_size), on_corrupt)


def evaluation_batches(
    source: Source,
    image_size: int,
    batch_size: int,
    *,
    limit: int | None = None,
    on_corrupt: str = "skip",
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yields what `evaluation_images` returns, in parts, the next one decoded meanwhile; for sources of any size.

    Args and errors are those of `evaluation_images`; `batch_size` images are a part, less where some are unreadable.
    """
    _check_on_corrupt(on_corrupt)
    indices = _evaluated(len(source), limit)
    fit = functools.partial(augment.resize_and_center_crop, size=image_size)
    shape = (image_size, image_size)

    def part(start):
        chosen = indices[start : start + batch_size]
        return _decode_all(source, chosen, fit, shape, on_corrupt)

    with ThreadPoolExecutor(1) as ahead:
        waiting = ahead.submit(part, 0)
        for start in range(batch_size, len(indices) + batch_size, batch_size):
            ready = waiting.result()
            if start < len(indices):
                waiting = ahead.submit(part, start)
            yield ready


def _evaluated(examples: int, limit: int | None) -> np.ndarray:
    """Returns which examples an evaluation reads, ascending."""
    if limit is None or limit >= examples:
        return np.arange(examples)
    # An even stride could meet one class only, where labels are periodic.
    return np.sort(np.random.RandomState(0).permutation(examples)[:limit])


class Groups(Iterator[list[dict]]):
    """Several host batches at a time."""

    def __init__(self, iterator: TrainIterator, size: int, total: int):
        """Starts nothing yet.

        Args:
          iterator: host batches, with `get_state`, `set_state` and `close`.
          size: how many batches are a group.
          total: how many are handed out in all; the last group may be smaller.
        """
        self._iterator, self._size, self._left = iterator, size, total
        self.get_state, self.set_state = iterator.get_state, iterator.set_state
        self.close = iterator.close

    def __next__(self) -> list[dict]:
        group = [next(self._iterator) for _ in range(min(self._size, self._left))]
        if not group:
            raise StopIteration
        self._left -= len(group)
        return group


class DevicePrefetch(Iterator[Any]):
    """Puts batches on the device ahead of time, in a thread of its own."""

    def __init__(self, iterator: TrainIterator, put: Callable[[dict], Any], size: int = 2):
        """Starts nothing yet.

        Args:
          iterator: host batches, with `get_state`, `set_state` and `close`.
          put: turns a host batch into a device batch; need not wait for the copy.
          size: how many device batches wait at most.
        """
        self._iterator, self._put, self._size = iterator, put, size
        self._state = iterator.get_state()
        self._thread = None

    def __next__(self) -> Any:
        if self._thread is None:
            self._start()
        batch, state, error = self._ready.get()
        if error is not None:
            self._join()
            raise error
        self._room.release()
        self._state = state
        return batch

    def _start(self) -> None:
        self._ready = queue.SimpleQueue()
        self._room = threading.Semaphore(self._size)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, daemon=True, name="device-prefetch")
        self._thread.start()

    def _fill(self) -> None:
        try:
            while self._room.acquire() and not self._stop.is_set():
                batch = self._put(next(self._iterator))
                self._ready.put((batch, self._iterator.get_state(), None))
        except BaseException as error:  # the thread that asks for the batch has to see it
            self._ready.put((None, None, error))

    def _join(self) -> None:
        if self._thread is not None:
            self._stop.set()
            self._room.release()
            self._thread.join()
            self._thread = self._ready = None

    def get_state(self) -> dict[str, Any]:
        """Returns the state after the last batch that was handed out, not after the waiting ones."""
        return self._state

    def set_state(self, state: dict[str, Any]) -> None:
        """Drops the waiting batches and continues from a state of `get_state`."""
        self._join()
        self._iterator.set_state(state)
        self._state = self._iterator.get_state()

    def close(self) -> None:
        """Stops the thread and closes the iterator; the next batch would start them again."""
        self.set_state(self._state)
        self._iterator.close()


def _check_on_corrupt(on_corrupt: str) -> None:
    if on_corrupt not in ("skip", "error"):
        raise ValueError(f"data.on_corrupt is {on_corrupt!r}: it must be 'skip' or 'error'.")


def _refuse_if(refuse: bool, name: str, error: Exception) -> None:
    if refuse:
        raise ValueError(
            f"Cannot read {name}: {error}. Repair or remove it, or set data.on_corrupt to 'skip'."
        ) from error


def _none_readable(source: Source) -> str:
    return (
        f"{source.description}: not one image can be read, the first is {source.name(0)}. Change "
        "data.source."
    )


def _memory_shape(source: Source, image_size: int) -> tuple[int, int] | None:
    """Returns height and width to keep images in, or None if they are not small or not alike."""
    shapes = set()
    for index in np.linspace(0, len(source) - 1, min(32, len(source))).astype(int).tolist():
        with contextlib.suppress(augment.CorruptImage, OSError):
            shapes.add(augment.image_shape(source[index]["image"]))
    if len(shapes) != 1 or max(shape := shapes.pop()) > SMALL_SIDE:
        return None
    # Crops are not low-pass filtered, so images are brought near the size of their crops first.
    shrink = min(1, 2 * image_size / min(shape))
    height, width = (round(side * shrink) for side in shape)
    return (height, width) if len(source) * height * width * 3 < SMALL_BYTES else None


def _decode_all(
    source: Source,
    indices: np.ndarray,
    fit: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, int],
    on_corrupt: str,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Decodes the examples at `indices` in threads and brings them to `shape` by `fit`.

    Returns:
      Images, uint8 [N, *shape, 3], and labels, int32 [N], or None; without the unreadable ones.
    """
    images_NHWC = np.empty((len(indices), *shape, 3), np.uint8)
    labels_N = np.zeros(len(indices), np.int32)

    def read(place: int) -> Exception | None:
        try:
            example = source[int(indices[place])]
            images_NHWC[place] = fit(augment.decode(example["image"]))
        except (augment.CorruptImage, OSError) as error:
            return error
        labels_N[place] = example.get("label", 0)
        return None

    with ThreadPoolExecutor(_cpu_count()) as pool:
        errors = list(pool.map(read, range(len(indices))))
    bad = [place for place, error in enumerate(errors) if error is not None]
    if len(bad) == len(indices):
        raise augment.CorruptImage(_none_readable(source))
    if bad:
        _refuse_if(on_corrupt == "error", source.name(int(indices[bad[0]])), errors[bad[0]])
        names = [f"{source.name(int(indices[place]))} ({errors[place]})" for place in bad[:10]]
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        logging.warning(
            "%d of %d images cannot be read and are left out: %s%s.",
            len(bad),
            len(indices),
            ", ".join(names),
            more,
        )
        good = np.array([error is None for error in errors])
        images_NHWC, labels_N = images_NHWC[good], labels_N[good]
    return images_NHWC, labels_N if source.labelled else None
