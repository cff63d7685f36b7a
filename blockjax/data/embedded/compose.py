"""Composes the embedded data set: every digit is blended with a random crop of a photo."""

import io
from importlib import resources

import numpy as np
from PIL import Image

IMAGE_SIZE = 32
TRAIN_COUNT = 4000  # digits 0-3999 train, the other 1000 test

# The composer draws a position in this list, so its order is part of the data set.
PHOTOS = (
    "astronaut",
    "camera",
    "cell",
    "chelsea",
    "coffee",
    "brick",
    "grass",
    "gravel",
    "hubble_deep_field",
    "retina",
    "rocket",
)


def _read(name: str) -> bytes:
    return (resources.files(__package__) / name).read_bytes()


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """Returns the digits, uint8 [5000, 28, 28], and their labels, uint8 [5000]."""
    with np.load(io.BytesIO(_read("digits.npz")), allow_pickle=False) as digits:
        return digits["image"], digits["label"]


def read_photos() -> list[np.ndarray]:
    """Returns the photos, uint8 [H, W, 3] each."""
    files = [io.BytesIO(_read(f"{name}.jpg")) for name in PHOTOS]
    return [np.asarray(Image.open(file).convert("RGB")) for file in files]


def _resize(image: np.ndarray) -> np.ndarray:
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def compose() -> tuple[np.ndarray, np.ndarray]:
    """Composes all images, always the same ones.

    The blend |background - digit| is that of MNIST-M (Ganin and Lempitsky, 2015). Training
    images see the left 60 % of the photos and test images the right 35 %, so the two parts
    share neither digits nor background pixels.

    Returns:
      Images, uint8 [5000, 32, 32, 3], and labels, uint8 [5000]; the first `TRAIN_COUNT` of both
      are for training.
    """
    digits_BHW, labels_B = read_digits()
    photos = read_photos()
    rng = np.random.RandomState(0)
    images_BHWC = np.empty((len(digits_BHW), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for i, digit_HW in enumerate(digits_BHW):
        photo_HWC = photos[rng.randint(len(photos))]
        height, width, _ = photo_HWC.shape
        low, high = (0, int(0.60 * width)) if i < TRAIN_COUNT else (int(0.65 * width), width)
        side = rng.randint(24, 65)
        top = rng.randint(height - side + 1)
        left = low + rng.randint(high - low - side + 1)
        background_HWC = _resize(photo_HWC[top : top + side, left : left + side])
        digit_HW1 = _resize(digit_HW)[:, :, None]
        images_BHWC[i] = np.abs(background_HWC.astype(np.int16) - digit_HW1)
    return images_BHWC, labels_B
