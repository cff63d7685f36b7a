"""Which part of a folder or an array file a split names."""

import re
from collections.abc import Sequence

import numpy as np
from absl import logging

HOLD_OUT = 10  # where there is no test part, one in ten examples of each class is it
# Folders and array files name their second part in several ways.
TEST_NAMES = ("test", "val", "validation")
_SPLIT = re.compile(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")


def parse_split(split: str) -> tuple[str, tuple[str, str] | None]:
    """Splits `train[a:b]` into its name and its bounds."""
    match = _SPLIT.fullmatch(split)
    if not match:
        raise ValueError(
            f"The split {split!r} is not understood: set data.train_split and data.test_split to a "
            "name or to a slice such as 'train[:10%]'."
        )
    return match[1], None if "[" not in split else (match[2] or "", match[3] or "")


def slice_indices(count: int, bounds: tuple[str, str] | None) -> np.ndarray:
    """Returns the indices of a slice, of a fixed shuffle because files come sorted by class."""
    if bounds is None:
        return np.arange(count)

    def position(text: str) -> int | None:
        if not text:
            return None
        return round(int(text[:-1]) / 100 * count) if text.endswith("%") else int(text)

    low, high = map(position, bounds)
    return np.sort(np.random.RandomState(0).permutation(count)[low:high])


def choose_part(base: str, parts: Sequence[str], where: str) -> tuple[str, str | None]:
    """Finds what to read for the split `base` where there are `parts`, perhaps none.

    Returns:
      The part ("" where there are none), and "train" or "test" if that part has to give a tenth of
      its examples to the other side.
    """
    no_test = not set(parts) & set(TEST_NAMES)
    if no_test and base in ("train", *TEST_NAMES) and (not parts or "train" in parts):
        if base == "train":  # every run opens it
            logging.info("%s has no test part: a tenth of each class is held out.", where)
        return ("train" if parts else ""), ("train" if base == "train" else "test")
    for name in (base, *TEST_NAMES) if base in TEST_NAMES else (base,):
        if name in parts:
            return name, None
    raise ValueError(
        f"{where} has no split {base!r}; it has {', '.join(parts or ('train', 'test'))}: set "
        "data.train_split and data.test_split."
    )


def of_side(labels: np.ndarray | None, count: int, side: str | None) -> np.ndarray:
    """Returns the mask of the examples that belong to `side`, [count]; all of them where it is None."""
    if side is None:
        return np.ones(count, bool)
    test = held_out(np.zeros(count, int) if labels is None else labels, HOLD_OUT)
    return test if side == "test" else ~test


def held_out(labels: np.ndarray, every: int) -> np.ndarray:
    """Returns the mask of one in so many examples of each class, drawn at random but always the same.

    A class of fewer has one, and a class of one example none; where all classes have one they do not matter.
    """
    if len(np.unique(labels)) == len(labels):
        labels = np.zeros(len(labels), int)
    # Not every so many-th example: where labels are periodic, that meets some classes only.
    order = np.random.RandomState(0).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # class after class
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    place = np.arange(len(labels)) - np.repeat(starts, counts)  # in its class
    mask = np.zeros(len(labels), bool)
    mask[order] = (place % every == 0) & (np.repeat(counts, counts) > 1)
    return mask
