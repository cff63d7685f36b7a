"""Composes scenes: several digits at random places and scales on a photo, labelled by how they stand to each other."""

import numpy as np
from PIL import Image

from blockjax.data.embedded.compose import TRAIN_COUNT, read_digits, read_photos

IMAGE_SIZE = 64
TRAIN_SCENES, TEST_SCENES = 20_000, 2_000

_DIGITS = (3, 5)  # at least and at most, in a scene
_LARGEST = (24, 30)  # side of the largest digit in pixels
_SMALLEST = 12
_RATIO = 0.72  # of the second largest to the largest, at most
_CROP = (48, 128)  # side of the photo's crop
_OVERLAP = 2  # pixels by which frames of digits may overlap
_TRIES = 30  # for a digit's place, before the whole scene is placed anew


def compose_scenes() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Composes all scenes, always the same ones.

    The label is the class of the largest digit: to find it, digits have to be told from the photo, compared with each
    other and recognised. Digits are blended as in `compose`; training and test scenes share neither digits nor
    background pixels.

    Returns:
      {"train", "test": images, uint8 [N, 64, 64, 3], and labels, uint8 [N]}.
    """
    digits_BHW, labels_B = read_digits()
    photos = read_photos()
    rng = np.random.RandomState(1)
    found = {}
    for part, count in (("train", TRAIN_SCENES), ("test", TEST_SCENES)):
        is_train = part == "train"
        chosen = slice(None, TRAIN_COUNT) if is_train else slice(TRAIN_COUNT, None)
        pools = [
            np.flatnonzero(labels_B[chosen] == label) + (chosen.start or 0) for label in range(10)
        ]
        images_BHWC = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        labels = np.empty(count, np.uint8)
        for i in range(count):
            images_BHWC[i], labels[i] = _scene(rng, digits_BHW, pools, photos, is_train)
        found[part] = images_BHWC, labels
    return found


def _scene(rng, digits_BHW, pools, photos, is_train):
    photo_HWC = photos[rng.randint(len(photos))]
    height, width, _ = photo_HWC.shape
    low, high = (0, int(0.60 * width)) if is_train else (int(0.65 * width), width)
    side = rng.randint(_CROP[0], min(height, high - low, _CROP[1]) + 1)
    top = rng.randint(height - side + 1)
    left = low + rng.randint(high - low - side + 1)
    scene_HWC = _resized(photo_HWC[top : top + side, left : left + side], IMAGE_SIZE)
    scene_HWC = scene_HWC.astype(np.int16)
    largest = rng.randint(_LARGEST[0], _LARGEST[1] + 1)
    others = rng.randint(_DIGITS[0], _DIGITS[1] + 1) - 1
    sizes = [largest, *rng.randint(_SMALLEST, int(_RATIO * largest) + 1, size=others)]
    sizes.sort(reverse=True)  # large ones find their place first
    labels = rng.randint(10, size=len(sizes))
    for label, size, (row, column) in zip(labels, sizes, _places(rng, sizes), strict=True):
        digit_HW = _resized(digits_BHW[rng.choice(pools[label])], size).astype(np.int16)
        rows, columns = slice(row, row + size), slice(column, column + size)
        scene_HWC[rows, columns] = np.abs(scene_HWC[rows, columns] - digit_HW[:, :, None])
    return scene_HWC.astype(np.uint8), labels[0]


def _places(rng, sizes):
    """Returns the top left corners of frames of these sizes, which hardly overlap."""
    while True:
        frames = []
        for size in sizes:
            for _ in range(_TRIES):
                row, column = rng.randint(IMAGE_SIZE - size + 1, size=2)
                if not any(_overlap(row, column, size, *frame) for frame in frames):
                    frames.append((row, column, size))
                    break
        if len(frames) == len(sizes):
            return [(row, column) for row, column, _ in frames]


def _overlap(row, column, size, other_row, other_column, other_size):
    return (
        row + size > other_row + _OVERLAP
        and other_row + other_size > row + _OVERLAP
        and column + size > other_column + _OVERLAP
        and other_column + other_size > column + _OVERLAP
    )


def _resized(image, side):
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
