"""Random crops, translations and flips: one image at a time or a batch."""

from typing import NamedTuple

import numpy as np

from blockjax.data.cut import Box, cut

_CHUNK = 32  # images at a time: intermediate arrays stay in the processor's cache


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
    whole: bool = False,
) -> Crops:
    """Draws random-resized crops, translations and flips.

    Args:
      count: how many.
      height: of the images, in pixels.
      width: of the images, in pixels.
      rng: all randomness comes from here.
      crop_scale: the least and the greatest share of the image's area; the aspect ratio is
        log-uniform in 3/4 ... 4/3, as for Inception (Szegedy et al., 2014). (1, 1) means the
        image's centred square, without a change of aspect.
      shift: the greatest translation along each axis, in pixels of the result.
      flip: whether to mirror every other image.
      whole: whether (1, 1) means the whole image, of whatever aspect.
    """
    low, high = crop_scale
    if not 0 < low <= high <= 1:
        raise ValueError(
            f"data.crop_scale is {tuple(crop_scale)}: it must be two numbers, 0 < low <= high <= 1."
        )
    if low == 1:
        sides = (height, width) if whole else 2 * (min(height, width),)
        height_B, width_B = (np.full(count, float(side)) for side in sides)
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


def _mirrored(image_HWC: np.ndarray) -> np.ndarray:
    mirrored_HWC = np.empty(image_HWC.shape, image_HWC.dtype)
    for channel in range(image_HWC.shape[-1]):  # three times as fast as runs of three bytes
        mirrored_HWC[:, :, channel] = image_HWC[:, ::-1, channel]
    return mirrored_HWC


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


def decode_and_crop(
    image: bytes | np.ndarray,
    size: int,
    rng: np.random.Generator,
    *,
    crop_scale: tuple[float, float],
    shift: int,
    flip: bool,
    whole: bool = False,
) -> tuple[np.ndarray, float]:
    """Decodes an image of any size and takes a random crop; see `cut` and `draw_crops`.

    Returns:
      uint8 [size, size, 3], low-pass filtered where the crop is larger; and the crop's aspect, its
      width / height before it became a square.

    Raises:
      CorruptImage: the bytes cannot be decoded.
    """
    crops = None

    def draw(height, width):
        nonlocal crops
        crops = draw_crops(
            1, height, width, rng, crop_scale=crop_scale, shift=shift, flip=flip, whole=whole
        )
        top, left = crops.top_B.item(), crops.left_B.item()
        bottom = min(top + crops.height_B.item(), height)
        right = min(left + crops.width_B.item(), width)
        return Box(top, left, bottom - top, right - left)

    image_HWC = cut(image, draw, size, size)
    aspect = crops.width_B.item() / crops.height_B.item()
    if crops.down_B.any() or crops.right_B.any():
        return _translate(image_HWC[None], crops)[0], aspect
    return _mirrored(image_HWC) if crops.flip_B.item() else image_HWC, aspect
