"""A part of an image at the size that is wanted: decoded no larger than needed, then resized.

Training, evaluations and images in memory all cut by `cut`.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from blockjax.data import turbo
from blockjax.data.decode import BILINEAR, OpenImage, array_to_rgb

REDUCTIONS = (1, 2, 4, 8)  # of JPEGs while they are decoded


class Box(NamedTuple):
    """A part of an image, in pixels of it; may begin and end between two."""

    top: float
    left: float
    height: float
    width: float


def cut(
    image: bytes | np.ndarray, choose: Callable[[int, int], Box], height: int, width: int
) -> np.ndarray:
    """Cuts a box out of an image and resizes it, bilinear, low-pass filtered where the box is larger.

    A JPEG whose box is at least 2, 4 or 8 times as large is decoded at that fraction of its size, in which libjpeg
    leaves out the highest frequencies of each 8 x 8 block: less time, about the same low-pass.

    Args:
      image: encoded, or an array; see `decode`.
      choose: returns the box, given height and width of the whole image, upright.
      height: of the result.
      width: of the result.

    Returns:
      uint8 [height, width, 3], perhaps read-only; a view of the image where it is an array and nothing changes.

    Raises:
      CorruptImage: the bytes cannot be decoded.
    """
    if isinstance(image, np.ndarray):
        box, reduction, pixels = choose(*image.shape[:2]), 1, array_to_rgb(image)
        shape = image.shape[:2]
    else:
        opened = OpenImage(image)
        shape = opened.shape
        box = choose(*shape)
        times = max(1, min(box.height / height, box.width / width))
        pixels, reduction = opened.read(max(k for k in REDUCTIONS if k <= times))
    if shape == (height, width) and box == (0, 0, height, width):
        return np.asarray(pixels)
    box = Box(*(length / reduction for length in box))
    if turbo.INSTALLED:
        return turbo.resize(np.asarray(pixels), box, height, width)
    picture = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    return np.asarray(picture.resize((width, height), BILINEAR, box=corners))


def resize_and_center_crop(image: bytes | np.ndarray, size: int) -> np.ndarray:
    """Returns the view of an image that evaluations use: its centre, without randomness.

    An image that has the right size stays as it is. Images of at most 64 pixels keep all of their
    shorter side. From larger ones a margin is cut off, 224 of 256 pixels remain, as is usual for
    ImageNet.

    Args:
      image: encoded, or an array; see `decode`.
      size: the side of the result.

    Returns:
      uint8 [size, size, 3].
    """

    def centre(height, width):
        shorter = min(height, width)
        side = shorter
        if shorter > 64 and not height == width == size:
            side = shorter * size / round(size * 256 / 224)
        return _central(height, width, side, side)

    return cut(image, centre, size, size)


def fit(image: bytes | np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes an image to [height, width, 3]; its centre, where the aspect differs."""

    def centre(of_height, of_width):
        scale = min(of_height / height, of_width / width)
        return _central(of_height, of_width, scale * height, scale * width)

    return cut(image, centre, height, width)


def _central(height, width, box_height, box_width):
    box_height, box_width = min(box_height, height), min(box_width, width)  # rounding
    return Box((height - box_height) / 2, (width - box_width) / 2, box_height, box_width)
