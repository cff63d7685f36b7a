"""Composes scenes: sixteen digits on a photo, derived from one symbol by a grammar; the label is that symbol."""

import numpy as np

from blockjax.data.embedded.compose import (
    CROP,
    TRAIN_COUNT,
    background,
    read_digits,
    read_photos,
    resized,
)

IMAGE_SIZE = 32
CELL = 8  # side of a digit in pixels
TRAIN_SCENES, TEST_SCENES = 40_000, 2_000
SYMBOLS = 10  # on every level; those of the lowest are the digits
LEVELS = 4
PRODUCTIONS = 2  # of every symbol

_MARGIN = 3  # pixels around the digits that are cut off before they shrink
_DIM = 0.3  # of the photo's brightness


def compose_scenes() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Composes all scenes, always the same ones.

    The grammar is a random hierarchy model (Cagnetta, Petrini, Tomasini, Favero and Wyart, arXiv 2307.02129): a symbol
    becomes one of two pairs of symbols, and so on over four levels, until sixteen digits are left. To name the
    symbol at the top, a network has to undo one level after the other, so depth pays. The first pair are the upper and
    the lower half of the scene, the next ones the left and the right half of that, and so on; the last ones are
    neighbours in a row. Digits are blended as in `compose`; training and test scenes share neither digits nor
    background pixels.

    Returns:
      {"train", "test": images, uint8 [N, 32, 32, 3], and labels, uint8 [N]}.
    """
    digits_BHW, classes_B = read_digits()
    digits_BHW = np.stack(
        [resized(digit[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN], CELL) for digit in digits_BHW]
    )
    photos = read_photos()
    rng = np.random.RandomState(1)
    rules = draw_rules(rng)
    found = {}
    for part, count in (("train", TRAIN_SCENES), ("test", TEST_SCENES)):
        is_train = part == "train"
        chosen = slice(None, TRAIN_COUNT) if is_train else slice(TRAIN_COUNT, None)
        pools = [
            np.flatnonzero(classes_B[chosen] == digit) + (chosen.start or 0)
            for digit in range(SYMBOLS)
        ]
        images_BHWC = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        labels = rng.randint(SYMBOLS, size=count).astype(np.uint8)
        for i, label in enumerate(labels):
            classes = place(derive(rng, rules, label))
            cells = digits_BHW[[rng.choice(pools[digit]) for digit in classes.ravel()]]
            rows, columns = classes.shape
            cells = cells.reshape(rows, columns, CELL, CELL).transpose(0, 2, 1, 3)
            digits_HW = cells.reshape(IMAGE_SIZE, IMAGE_SIZE).astype(np.int16)
            photo_HWC = background(rng, photos, CROP, IMAGE_SIZE, is_train=is_train)
            dimmed_HWC = (_DIM * photo_HWC).astype(np.int16)
            images_BHWC[i] = np.abs(dimmed_HWC - digits_HW[:, :, None])
        found[part] = images_BHWC, labels
    return found


def draw_rules(rng: np.random.RandomState) -> np.ndarray:
    """Draws a grammar in which no pair comes from two symbols.

    Returns:
      Symbols, int [LEVELS, SYMBOLS, PRODUCTIONS, 2], the highest level first.
    """
    pairs = [
        rng.permutation(SYMBOLS**2)[: SYMBOLS * PRODUCTIONS].reshape(SYMBOLS, PRODUCTIONS)
        for _ in range(LEVELS)
    ]
    return np.stack(np.divmod(np.stack(pairs), SYMBOLS), axis=-1)


def derive(rng: np.random.RandomState, rules: np.ndarray, symbol: int) -> np.ndarray:
    """Returns what `symbol` becomes by `rules`, int [2 ** levels]; productions are equally likely."""
    symbols = np.array([symbol])
    for level in rules:
        symbols = level[symbols, rng.randint(PRODUCTIONS, size=len(symbols))].reshape(-1)
    return symbols


def place(symbols: np.ndarray) -> np.ndarray:
    """Returns the 16 symbols in rows and columns, [4, 4]: halves lie upon one another, quarters side by side, etc."""
    return symbols.reshape(2, 2, 2, 2).transpose(0, 2, 1, 3).reshape(4, 4)
