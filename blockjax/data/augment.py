"""Decoding, cropping and flipping of images in numpy and Pillow: one at a time or a batch."""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

BILINEAR = Image.Resampling.BILINEAR
_CHUNK = 32  # images at a time: intermediate arrays stay in the processor's cache
_ORIENTATION = 0x0112  # the EXIF tag; its values that are not upright:
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class CorruptImage(ValueError):
    """Bytes that are no image, or an image that is cut short."""


class Crops(NamedTuple):
    """A crop for each image of a batch, in source pixels, and what happens to it afterwards."""

    top_B: np.ndarray  # float
    left_B: np.ndarray
    height_B: np.ndarray
    width_B: np.ndarray
    down_B: np.ndarray  # int, a translation in pixels of the result
    right_B: np.ndarray
    flip_B: np.ndarray  # bool

    def rows(self, rows: np.ndarray | slice) -> "Crops":
        """Returns the crops of some of the batch's images."""
        return Crops(*(field[rows] for field in self))


def draw_crops(
    count: int,
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    crop_scale: tuple[float, float],
    shift: int,
    flip: bool,
) -> Crops:
    """Draws random-resized crops, translations and flips.

    Args:
      count: how many.
      height: of the images, in pixels.
      width: of the images, in pixels.
      rng: all randomness comes from here.
      crop_scale: the least and the greatest share of the image's area; the aspect ratio is
        log-uniform in 3/4 ... 4/3, as for Inception (Szegedy et al., 2014). (1, 1) means the
        whole image, or its centred square, without a change of aspect.
      shift: the greatest translation along each axis, in pixels of the result.
      flip: whether to mirror every other image.
    """
    low, high = crop_scale
    if not 0 < low <= high <= 1:
        raise ValueError(
            f"data.crop_scale is {tuple(crop_scale)}: it must be two numbers, 0 < low <= high <= 1."
        )
    if low == 1:
        height_B = width_B = np.full(count, float(min(height, width)))
        top_B, left_B = (height - height_B) / 2, (width - width_B) / 2
    else:
        area_B = rng.uniform(low, high, count) * height * width
        aspect_B = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), count))
        height_B = np.minimum(np.sqrt(area_B / aspect_B), height)
        width_B = np.minimum(np.sqrt(area_B * aspect_B), width)
        top_B = rng.random(count) * (height - height_B)
        left_B = rng.random(count) * (width - width_B)
    down_B, right_B = rng.integers(-shift, shift + 1, (2, count))
    flip_B = (rng.random(count) < 0.5) & flip
    return Crops(top_B, left_B, height_B, width_B, down_B, right_B, flip_B)


def augment_batch(
    images_BHWC: np.ndarray,
    size: int,
    rng: np.random.Generator,
    *,
    crop_scale: tuple[float, float],
    shift: int,
    flip: bool,
) -> np.ndarray:
    """Crops, translates and flips small images at random; `draw_crops` has the arguments.

    Args:
      images_BHWC: uint8, three channels.
      size: the side of the result.
      rng: all randomness comes from here.
      crop_scale: see `draw_crops`.
      shift: see `draw_crops`.
      flip: see `draw_crops`.

    Returns:
      uint8 [B, size, size, 3].
    """
    count, height, width, _ = images_BHWC.shape
    crops = draw_crops(count, height, width, rng, crop_scale=crop_scale, shift=shift, flip=flip)
    return apply_crops(images_BHWC, crops, size)


def apply_crops(images_BHWC: np.ndarray, crops: Crops, size: int) -> np.ndarray:
    """Cuts out `crops` and resizes them, bilinear and without low-pass filter.

    Translated images repeat their edge. Where crops are whole images that have the right size
    already, pixels are moved and never mixed.

    Args:
      images_BHWC: uint8, three channels.
      crops: one for each image.
      size: the side of the result.

    Returns:
      uint8 [B, size, size, 3].
    """
    count, height, width, channels = images_BHWC.shape
    if height == width == size and np.all(crops.height_B == size) and np.all(crops.width_B == size):
        return _translate(images_BHWC, crops)
    out_BHWC = np.empty((count, size, size, channels), np.uint8)
    for start in range(0, count, _CHUNK):
        stop = start + _CHUNK
        out_BHWC[start:stop] = _resample(
            images_BHWC[start:stop], crops.rows(slice(start, stop)), size
        )
    return out_BHWC


def _resample(images_BHWC: np.ndarray, crops: Crops, size: int) -> np.ndarray:
    count, height, width, channels = images_BHWC.shape
    # One axis after the other. Each time the rows that are gathered and mixed are contiguous.
    flat = images_BHWC.reshape(count, height, width * channels)
    never_B = np.zeros(count, bool)
    rows = _sample_positions(crops.top_B, crops.height_B, crops.down_B, never_B, height, size)
    flat = _mix(flat, *rows).reshape(count, size, width, channels).swapaxes(1, 2)
    flat = flat.reshape(count, width, size * channels)
    columns = _sample_positions(
        crops.left_B, crops.width_B, crops.right_B, crops.flip_B, width, size
    )
    return _mix(flat, *columns).reshape(count, size, size, channels).swapaxes(1, 2)


def _translate(images_BHWC: np.ndarray, crops: Crops) -> np.ndarray:
    size = images_BHWC.shape[1]
    reach = int(max(np.abs(crops.down_B).max(), np.abs(crops.right_B).max()))
    padded = np.pad(images_BHWC, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    out_BHWC = np.empty_like(images_BHWC)
    tops, lefts = (reach - crops.down_B).tolist(), (reach - crops.right_B).tolist()
    for i, (top, left, flip) in enumerate(zip(tops, lefts, crops.flip_B.tolist(), strict=True)):
        image = padded[i, top : top + size, left : left + size]
        out_BHWC[i] = image[:, ::-1] if flip else image
    return out_BHWC


def _sample_positions(start_B, extent_B, move_B, reverse_B, limit, size):
    """Returns both neighbours of every sample, [B, size], and the weight of the second in 1/128."""
    steps_S = np.arange(size) + 0.5
    steps_BS = np.where(reverse_B[:, None], size - steps_S, steps_S) - move_B[:, None]
    position_BS = start_B[:, None] + steps_BS / size * extent_B[:, None] - 0.5
    position_BS = position_BS.clip(0, limit - 1)
    first_BS = position_BS.astype(np.intp)
    second_BS = np.minimum(first_BS + 1, limit - 1)
    return first_BS, second_BS, np.rint((position_BS - first_BS) * 128).astype(np.uint16)


def _mix(images_BLN, first_BS, second_BS, weight_BS):
    # 255 * 128 fits into 16 bits, and 16-bit integers are twice as fast as floats.
    batch_B1 = np.arange(len(images_BLN))[:, None]
    weight_BS1 = weight_BS[:, :, None]
    mixed_BSN = images_BLN[batch_B1, first_BS] * (128 - weight_BS1)
    mixed_BSN += images_BLN[batch_B1, second_BS] * weight_BS1
    mixed_BSN += 64
    mixed_BSN >>= 7
    return mixed_BSN.astype(np.uint8)


def decode(image: bytes | np.ndarray) -> np.ndarray:
    """Returns an image as uint8 RGB, [H, W, 3].

    Args:
      image: an encoded image in any mode, or a uint8 array [H, W] or [H, W, 1, 3 or 4]. An
        orientation in EXIF is applied and an alpha channel dropped; 16 bits become 8.

    Raises:
      CorruptImage: the bytes cannot be decoded.
    """
    if isinstance(image, np.ndarray):
        return _array_to_rgb(image)
    return np.asarray(_open(image))


def decode_and_crop(
    image: bytes | np.ndarray,
    size: int,
    rng: np.random.Generator,
    *,
    crop_scale: tuple[float, float],
    shift: int,
    flip: bool,
) -> np.ndarray:
    """Decodes an image of any size and takes a random crop; see `decode` and `draw_crops`.

    Returns:
      uint8 [size, size, 3], low-pass filtered where the crop is larger.

    Raises:
      CorruptImage: the bytes cannot be decoded.
    """
    picture = _open(image) if isinstance(image, bytes) else Image.fromarray(_array_to_rgb(image))
    width, height = picture.size
    crops = draw_crops(1, height, width, rng, crop_scale=crop_scale, shift=shift, flip=flip)
    top, left = crops.top_B.item(), crops.left_B.item()
    right = min(left + crops.width_B.item(), width)
    bottom = min(top + crops.height_B.item(), height)
    picture = picture.resize((size, size), BILINEAR, box=(left, top, right, bottom))
    return _translate(np.asarray(picture)[None], crops)[0]


def resize_and_center_crop(image_HWC: np.ndarray, size: int) -> np.ndarray:
    """Returns the view of an image that evaluations use: its centre, without randomness.

    An image that has the right size stays as it is. Images of at most 64 pixels keep all of their
    shorter side. From larger ones a margin is cut off, 224 of 256 pixels remain, as is usual for
    ImageNet.

    Args:
      image_HWC: uint8, three channels.
      size: the side of the result.

    Returns:
      uint8 [size, size, 3].
    """
    height, width, _ = image_HWC.shape
    if height == width == size:
        return image_HWC
    shorter = min(height, width)
    side = shorter if shorter <= 64 else shorter * size / round(size * 256 / 224)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(Image.fromarray(image_HWC).resize((size, size), BILINEAR, box=box))


def fit(image_HWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes an image to [height, width, 3]; its centre, where the aspect differs."""
    if image_HWC.shape[:2] == (height, width):
        return image_HWC
    return np.asarray(ImageOps.fit(Image.fromarray(image_HWC), (width, height), BILINEAR))


def image_shape(image: bytes | np.ndarray) -> tuple[int, int]:
    """Returns height and width, from the header where the image is encoded.

    Raises:
      CorruptImage: there is no readable header.
    """
    if isinstance(image, np.ndarray):
        return image.shape[:2]
    picture = _open_header(image)
    width, height = picture.size
    return (width, height) if _orientation(picture) >= 5 else (height, width)


def _open_header(encoded: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(encoded))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly any type for a broken file
        raise CorruptImage(_reason(encoded, error)) from error


def _open(encoded: bytes) -> Image.Image:
    picture = _open_header(encoded)
    try:
        picture.load()
        orientation = _orientation(picture)
        picture = _picture_to_rgb(picture)
        return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture
    except MemoryError:
        raise
    except Exception as error:
        raise CorruptImage(_reason(encoded, error)) from error


def _reason(encoded: bytes, error: Exception) -> str:
    if not encoded:
        return "the file is empty"
    # Pillow names the buffer that it was given, which tells nobody anything.
    return "not an image" if "BytesIO" in str(error) else f"{type(error).__name__}: {error}"


def _orientation(picture: Image.Image) -> int:
    try:
        return picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # a broken EXIF block does not spoil the pixels
        return 1


def _picture_to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # Pillow clips 16 bits where they should be scaled
        values_HW = np.asarray(picture)
        picture = Image.fromarray((values_HW >> 8).clip(0, 255).astype(np.uint8))
    elif picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def _array_to_rgb(image: np.ndarray) -> np.ndarray:
    if image.ndim == 2:
        image = image[:, :, None]
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    return np.ascontiguousarray(image[:, :, :3])
