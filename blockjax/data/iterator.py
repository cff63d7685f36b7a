"""The order of the examples, and the batches at its positions made ahead.

One order is defined for all processes and all batch sizes: epoch after epoch of seeded permutations. Batch and
augmentation follow from the position in that order alone, so a position is all that a checkpoint has to hold.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator

import grain
import numpy as np
from absl import flags

_END = 2**60  # positions end here, which is never


def cpu_count() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(size)


@dataclasses.dataclass(frozen=True)
class Order:
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


class TrainIterator(Iterator[dict[str, np.ndarray]]):
    """Endless training batches, made ahead by threads or worker processes.

    A batch of images is a dict with `image`, uint8 [B, S, S, 3]; for labelled sources `label`, int32 [B]; and
    for stretched images `aspect`, float32 [B]. One of text has `tokens`, int32 [B, context].

    Attributes:
      batches: makes the batch at a position.
    """

    def __init__(
        self,
        batches: Callable[[int], dict],
        order: Order,
        workers: int,
        examples: str = "readable images",
        fields: str = "data.source",
    ):
        """Starts nothing yet; `train_batches` and `text_train_batches` are the functions to call.

        Args:
          batches: makes the batch at a position.
          order: where the positions are.
          workers: how many processes make batches; 0 means threads of this one.
          examples: what the order is of, for messages.
          fields: what decides how many there are, for messages.
        """
        self.batches, self._order, self._workers = batches, order, workers
        self._examples, self._fields = examples, fields
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
        threads = max(1, min(8, cpu_count() // max(1, self._workers)))
        # Each thread makes a batch of its own; fewer buffered batches would leave threads idle.
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        dataset = positions.map(self.batches).to_iter_dataset(options)
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
          ValueError: the place is in the order of another seed or of another number of examples.
        """
        now = self.get_state()
        for key, what, field in (
            ("seed", "the seed", "config.seed"),
            ("size", f"the number of {self._examples}", self._fields),
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
