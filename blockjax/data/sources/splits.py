"""Which part of a folder or an array file a split names."""

import hashlib
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


def choose_part(
    base: str, parts: Sequence[str], where: str, held_out: str = "a tenth of each class"
) -> tuple[str, str | None]:
    """Finds what to read for the split `base` where there are `parts`, perhaps none.

    Args:
      base: the split that is asked for, without a slice.
      parts: those that there are.
      where: whose parts, for messages.
      held_out: what a test part is made of where there is none, for the log.

    Returns:
      The part ("" where there are none), and "train" or "test" if that part has to give a tenth of
      its examples to the other side.
    """
    no_test = not set(parts) & set(TEST_NAMES)
    if no_test and base in ("train", *TEST_NAMES) and (not parts or "train" in parts):
        if base == "train":  # every run opens it
            logging.info("%s has no test part: %s is held out.", where, held_out)
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


def held_out_by_name(names: Sequence[str], every: int) -> np.ndarray:
    """Returns the mask of about one in so many examples, chosen by a hash of each one's name: others change nothing.

    Of two or more there is at least one on each side.
    """
    # SHA-256, as Python's own hash differs from process to process.
    hashes = np.array(
        [int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big") for name in names]
    )
    mask = hashes < 2**56 // every
    if len(names) > 1:
        mask[np.argmin(hashes)], mask[np.argmax(hashes)] = True, False
    return mask
