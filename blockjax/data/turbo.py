"""JPEG decoding and resizing with SIMD, where `pip install 'blockjax[turbo]'` was done; else Pillow does both.

simplejpeg has libjpeg-turbo, as Pillow has, with less around it: its pixels are Pillow's. cykooz-resizer has Pillow's
filters; its pixels differ by one level at most.
"""

import math

import numpy as np
from PIL import Image

try:
    import simplejpeg
    from cykooz_resizer import (
        CropBox,
        FilterType,
        ImageData,
        PixelType,
        ResizeAlg,
        ResizeOptions,
        Resizer,
    )
except ImportError:
    INSTALLED = False
else:
    INSTALLED = True
    _BILINEAR = ResizeAlg.convolution(FilterType.bilinear)


_COLOURS = ("YCbCr", "RGB", "Gray")  # that become RGB as Pillow does it
_APP1, _SCAN = 0xE1, 0xDA  # markers


def jpeg_shape(encoded: bytes) -> tuple[int, int] | None:
    """Returns height and width of a JPEG in colour or grey that says nothing of its orientation; None for all else."""
    if not encoded.startswith(b"\xff\xd8") or _has_metadata(encoded):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return None
    # Pillow warns of larger ones, or refuses them.
    if colours not in _COLOURS or height * width > (Image.MAX_IMAGE_PIXELS or math.inf):
        return None
    return height, width


def _has_metadata(encoded):
    """Whether EXIF or XMP, which may have an orientation, is before the pixels, or what is there is not understood."""
    start = 2
    while encoded[start : start + 1] == b"\xff" and len(encoded) >= start + 4:
        marker = encoded[start + 1]
        if marker in (_APP1, _SCAN):
            return marker == _APP1
        start += 2 + int.from_bytes(encoded[start + 2 : start + 4], "big")
    return True


def decode_jpeg(encoded: bytes, height: int, width: int, reduction: int) -> np.ndarray | None:
    """Decodes a JPEG in colour or grey, as it is stored.

    Args:
      encoded: the file.
      height: of the stored image.
      width: of the stored image.
      reduction: 1, 2, 4 or 8; sides are divided by it, and rounded up.

    Returns:
      uint8 RGB [H, W, 3]; None where anything is wrong with the file, which Pillow may still read.
    """
    try:
        return simplejpeg.decode_jpeg(
            encoded,
            "RGB",
            min_height=-(-height // reduction),
            min_width=-(-width // reduction),
            min_factor=reduction,
        )
    except ValueError:
        return None


def resize(
    image_HWC: np.ndarray, box: tuple[float, float, float, float], height: int, width: int
) -> np.ndarray:
    """Resizes a part of an image by Pillow's bilinear filter, which is a low-pass where the result is smaller.

    Args:
      image_HWC: uint8, three channels.
      box: top, left, height and width of the part, within the image.
      height: of the result.
      width: of the result.

    Returns:
      uint8 [height, width, 3], read-only.
    """
    top, left, box_height, box_width = box
    # Only what the filter reaches is copied.
    rows = _reach(top, box_height, height, image_HWC.shape[0])
    columns = _reach(left, box_width, width, image_HWC.shape[1])
    part_HWC = image_HWC[rows, columns]
    source = ImageData(part_HWC.shape[1], part_HWC.shape[0], PixelType.U8x3, part_HWC.tobytes())
    target = ImageData(width, height, PixelType.U8x3)
    options = ResizeOptions(
        resize_alg=_BILINEAR,
        use_alpha=False,
        crop_box=CropBox(
            left - columns.start,
            top - rows.start,
            min(box_width, image_HWC.shape[1] - left),
            min(box_height, image_HWC.shape[0] - top),
        ),
    )
    Resizer().resize(source, target, options)  # not shared: threads may call this at a time
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(height, width, 3)


def _reach(start, extent, size, limit):
    """Returns the pixels that a bilinear filter reads of a box along an axis."""
    reach = max(extent / size, 1)
    return slice(max(0, int(start - reach)), min(limit, math.ceil(start + extent + reach) + 1))
