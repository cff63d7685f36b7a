"""JPEG files like ImageNet's in size and in bytes, made of the photos in the package."""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from blockjax.data.embedded.compose import read_photos

# So that a file of 500 x 375 pixels has about 100 kB, as those of ILSVRC2012 have: Huffman decoding takes time by the
# byte.
QUALITY = 95
GRAIN = 8.0  # standard deviation, of 255; enlarged photos have no detail of their own


def made_jpegs(count: int, height: int = 375, width: int = 500, seed: int = 0) -> Iterator[bytes]:
    """Yields JPEG files: enlarged crops of eleven photos, mirrored or not, of changed gamma, with grain.

    Args:
      count: how many.
      height: in pixels.
      width: in pixels.
      seed: of all randomness; the same files each time, with the same Pillow.
    """
    rng = np.random.default_rng(seed)
    photos = [Image.fromarray(photo) for photo in read_photos()]
    for _ in range(count):
        photo = photos[rng.integers(len(photos))]
        side = rng.uniform(0.6, 1.0) * min(photo.width, photo.height * width / height)
        size = np.array([side, side * height / width])
        corner = rng.random(2) * (np.array(photo.size) - size)
        enlarged = photo.resize(
            (width, height), Image.Resampling.BICUBIC, box=(*corner, *(corner + size))
        )
        values_HWC = 255 * (np.asarray(enlarged) / 255) ** rng.uniform(0.7, 1.4)
        values_HWC += GRAIN * rng.standard_normal((height, width, 1))
        values_HWC = values_HWC[:, :: rng.choice((-1, 1))]
        file = io.BytesIO()
        Image.fromarray(values_HWC.clip(0, 255).astype(np.uint8)).save(
            file, "JPEG", quality=QUALITY
        )
        yield file.getvalue()
