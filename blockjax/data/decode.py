"""Images from bytes: decoded, resized, and what happens to those that cannot be read."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from absl import logging
from PIL import Image, ImageOps

from blockjax.data.iterator import cpu_count
from blockjax.data.sources.source import Source


def check_on_corrupt(on_corrupt: str) -> None:
    """Raises ValueError unless it is one of the two ways to treat images that cannot be read."""
    if on_corrupt not in ("skip", "error"):
        raise ValueError(f"data.on_corrupt is {on_corrupt!r}: it must be 'skip' or 'error'.")


def refuse_if(refuse: bool, name: str, error: Exception) -> None:
    """Raises ValueError for an image that cannot be read, if such images are refused."""
    if refuse:
        raise ValueError(
            f"Cannot read {name}: {error}. Repair or remove it, or set data.on_corrupt to 'skip'."
        ) from error


def check_readable(source: Source, images: int) -> None:
    """Raises `CorruptImage` where none of a source's images could be read."""
    if not images:
        raise CorruptImage(
            f"{source.description}: not one image can be read, the first is {source.name(0)}. Change "
            "data.source."
        )


def decode_all(
    source: Source,
    indices: np.ndarray,
    fit: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, int],
    on_corrupt: str,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Decodes the examples at `indices` in threads and brings them to `shape` by `fit`.

    Returns:
      Images, uint8 [N, *shape, 3], and labels, int32 [N], or None; without the unreadable ones, perhaps none.
    """
    images_NHWC = np.empty((len(indices), *shape, 3), np.uint8)
    labels_N = np.zeros(len(indices), np.int32)

    def read(place: int) -> Exception | None:
        try:
            example = source[int(indices[place])]
            images_NHWC[place] = fit(decode(example["image"]))
        except (CorruptImage, OSError) as error:
            return error
        labels_N[place] = example.get("label", 0)
        return None

    with ThreadPoolExecutor(cpu_count()) as pool:
        errors = list(pool.map(read, range(len(indices))))
    bad = [place for place, error in enumerate(errors) if error is not None]
    if bad:
        refuse_if(on_corrupt == "error", source.name(int(indices[bad[0]])), errors[bad[0]])
        names = [f"{source.name(int(indices[place]))} ({errors[place]})" for place in bad[:10]]
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        logging.warning(
            "%d of %d images cannot be read and are left out: %s%s.",
            len(bad),
            len(indices),
            ", ".join(names),
            more,
        )
        good = np.array([error is None for error in errors])
        images_NHWC, labels_N = images_NHWC[good], labels_N[good]
    return images_NHWC, labels_N if source.labelled else None


BILINEAR = Image.Resampling.BILINEAR
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


def decode(image: bytes | np.ndarray) -> np.ndarray:
    """Returns an image as uint8 RGB, [H, W, 3].

    Args:
      image: an encoded image in any mode, or a uint8 array [H, W] or [H, W, 1, 3 or 4]. An
        orientation in EXIF is applied and an alpha channel dropped; 16 bits become 8.

    Raises:
      CorruptImage: the bytes cannot be decoded.
    """
    if isinstance(image, np.ndarray):
        return array_to_rgb(image)
    return np.asarray(open_picture(image))


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


def open_picture(encoded: bytes) -> Image.Image:
    """Returns an encoded image as RGB, upright.

    Raises:
      CorruptImage: the bytes cannot be decoded.
    """
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


def array_to_rgb(image: np.ndarray) -> np.ndarray:
    """Returns uint8 [H, W] or [H, W, 1, 3 or 4] as [H, W, 3]."""
    if image.ndim == 2:
        image = image[:, :, None]
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    return np.ascontiguousarray(image[:, :, :3])
