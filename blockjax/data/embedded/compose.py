"""Composes the embedded data set: every digit is blended with a random crop of a photo."""

import io
from importlib import resources

import numpy as np
from PIL import Image

IMAGE_SIZE = 32
TRAIN_COUNT = 4000  # digits 0-3999 train, the other 1000 test
CROP = (24, 64)  # sides of a photo's crop, smallest and largest

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


def resized(image: np.ndarray, side: int) -> np.ndarray:
    """Returns an image, uint8 [H, W] or [H, W, 3], with `side` pixels a side."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))


def background(
    rng: np.random.RandomState,
    photos: list[np.ndarray],
    sides: tuple[int, int],
    size: int,
    *,
    is_train: bool,
) -> np.ndarray:
    """Returns a square crop of a photo, both drawn, uint8 [size, size, 3].

    Training images see the left 60 % of the photos and test images the right 35 %, so the two parts share no pixel.

    Args:
      rng: a photo's index, the crop's side, its top and its left are drawn, in this order.
      photos: uint8 [H, W, 3] each.
      sides: the crop's smallest and largest side in pixels.
      size: to which it is resized.
      is_train: which part the image is of.
    """
    photo_HWC = photos[rng.randint(len(photos))]
    height, width, _ = photo_HWC.shape
    low, high = (0, int(0.60 * width)) if is_train else (int(0.65 * width), width)
    side = rng.randint(sides[0], sides[1] + 1)
    top = rng.randint(height - side + 1)
    left = low + rng.randint(high - low - side + 1)
    return resized(photo_HWC[top : top + side, left : left + side], size)


def compose() -> tuple[np.ndarray, np.ndarray]:
    """Composes all images, always the same ones.

    The blend |background - digit| is that of MNIST-M (Ganin and Lempitsky, 2015). Training and test
    images share neither digits nor background pixels.

    Returns:
      Images, uint8 [5000, 32, 32, 3], and labels, uint8 [5000]; the first `TRAIN_COUNT` of both
      are for training.
    """
    digits_BHW, labels_B = read_digits()
    photos = read_photos()
    rng = np.random.RandomState(0)
    images_BHWC = np.empty((len(digits_BHW), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for i, digit_HW in enumerate(digits_BHW):
        photo_HWC = background(rng, photos, CROP, IMAGE_SIZE, is_train=i < TRAIN_COUNT)
        digit_HW1 = resized(digit_HW, IMAGE_SIZE)[:, :, None]
        images_BHWC[i] = np.abs(photo_HWC.astype(np.int16) - digit_HW1)
    return images_BHWC, labels_B
