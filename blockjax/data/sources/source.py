"""What a source of examples is, and a part of one."""

import abc
from collections.abc import Iterator, Sequence

import numpy as np


class DatasetUnavailable(ValueError):
    """A data set that cannot be read here; the message says what would make it readable."""


class Source(abc.ABC):
    """Random access to the examples of one split; can be pickled.

    `source[i]` is a dict with `image`, encoded bytes or a uint8 array ([H, W] or [H, W, channels]),
    and, if `source.labelled`, the int `label`.

    Attributes:
      description: a short text for logs.
      labelled: whether examples have labels.
      class_names: the name of each label, or None.
    """

    description: str
    labelled: bool
    class_names: list[str] | None

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> dict: ...

    def __iter__(self) -> Iterator[dict]:
        # Python would go on until `source[i]` raises IndexError, and record files raise another error.
        return map(self.__getitem__, range(len(self)))

    @property
    @abc.abstractmethod
    def labels(self) -> np.ndarray | None:
        """Labels, int32 [len(self)], or None."""

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """What to call example `index` in a message."""


class PartSource(Source):
    """Some of the examples of another source."""

    def __init__(self, whole: Source, indices: np.ndarray):
        """Takes the examples at `indices`, in their order."""
        self._whole, self._indices = whole, indices
        self.labelled, self.class_names = whole.labelled, whole.class_names
        self.description = f"{len(indices):,} examples of {whole.description}"

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict:
        return self._whole[int(self._indices[index])]

    @property
    def labels(self) -> np.ndarray | None:
        labels = self._whole.labels
        return None if labels is None else labels[self._indices]

    def name(self, index: int) -> str:
        return self._whole.name(int(self._indices[index]))


def fraction_of(source: Source, fraction: float, seed: int) -> Source:
    """Returns a share of each class's examples, at least one of each; a smaller share of the same seed is a part of it.

    Without labels it is a share of all.
    """
    if fraction == 1.0:
        return source
    labels = source.labels
    labels = np.zeros(len(source), np.int32) if labels is None else labels
    order = np.random.default_rng(seed).permutation(len(source))
    chosen = []
    for label in np.unique(labels):
        of_class = order[labels[order] == label]
        chosen.append(of_class[: max(1, round(fraction * len(of_class)))])
    return PartSource(source, np.sort(np.concatenate(chosen)))


def description_of(title: str, count: int, class_names: Sequence[str] | None) -> str:
    """Returns what logs call a source."""
    classes = f" in {len(class_names)} classes" if class_names else ""
    return f"{title}: {count:,} images{classes}"
