"""Images from bytes: decoded, resized, and what happens to those that cannot be read."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from absl import logging
from PIL import Image

from blockjax.data import turbo
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
    fit: Callable[[bytes | np.ndarray], np.ndarray],
    shape: tuple[int, int],
    on_corrupt: str,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Decodes the examples at `indices` in threads, each by `fit`.

    Args:
      source: the examples.
      indices: of those to decode.
      fit: makes uint8 [*shape, 3] of an image, encoded or an array.
      shape: height and width.
      on_corrupt: `skip` leaves unreadable images out with a warning; `error` raises.

    Returns:
      Images, uint8 [N, *shape, 3], and labels, int32 [N], or None; without the unreadable ones, perhaps none.
    """
    images_NHWC = np.empty((len(indices), *shape, 3), np.uint8)
    labels_N = np.zeros(len(indices), np.int32)

    def read(place: int) -> Exception | None:
        try:
            example = source[int(indices[place])]
            images_NHWC[place] = fit(example["image"])
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


_JPEG = ("JPEG", "MPO")  # the second has several pictures; the first is taken
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
    """Bytes that are not an image, or an image that is cut short."""


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
    pixels, _ = OpenImage(image).read()
    return np.asarray(pixels)


def image_shape(image: bytes | np.ndarray) -> tuple[int, int]:
    """Returns height and width, from the header where the image is encoded.

    Raises:
      CorruptImage: there is no readable header.
    """
    return image.shape[:2] if isinstance(image, np.ndarray) else OpenImage(image).shape


class OpenImage:
    """An encoded image of which only the header was read.

    Attributes:
      shape: height and width, upright.
    """

    def __init__(self, encoded: bytes):
        """Reads the header.

        Raises:
          CorruptImage: there is no readable header.
        """
        self._encoded = encoded
        self._picture, self._orientation = None, 1
        self._stored = turbo.jpeg_shape(encoded) if turbo.INSTALLED else None
        if self._stored is None:
            self._open()
            self._orientation = _orientation(self._picture)
            width, height = self._picture.size
            self._stored = height, width
        self.shape = self._stored[::-1] if self._orientation >= 5 else self._stored

    def _open(self):
        try:
            self._picture = Image.open(io.BytesIO(self._encoded))
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise nearly any type for a broken file
            raise CorruptImage(_reason(self._encoded, error)) from error

    def read(self, reduction: int = 1) -> tuple[Image.Image | np.ndarray, int]:
        """Decodes the image; to be called once.

        Args:
          reduction: 1, 2, 4 or 8: a JPEG may be decoded at that fraction of its size, as libjpeg can for less work.

        Returns:
          Upright RGB, a picture or uint8 [H, W, 3], and the reduction that it has: 1 or what was asked for. Its sides
          are those of the image divided by it, rounded up; pixel i covers the image's pixels from i times it on.

        Raises:
          CorruptImage: the bytes cannot be decoded.
        """
        height, width = self._stored
        if turbo.INSTALLED and self._is_for_turbo:
            image_HWC = turbo.decode_jpeg(self._encoded, height, width, reduction)
            if image_HWC is not None:
                return self._upright_array(image_HWC), reduction
        if self._picture is None:
            self._open()
        try:
            reduction = reduction if self._picture.format in _JPEG else 1
            if reduction > 1:
                self._picture.draft(None, (width // reduction, height // reduction))
            self._picture.load()
            picture = _picture_to_rgb(self._picture)
            if self._orientation in _UPRIGHT:
                picture = picture.transpose(_UPRIGHT[self._orientation])
            return picture, reduction
        except MemoryError:
            raise
        except Exception as error:
            raise CorruptImage(_reason(self._encoded, error)) from error

    @property
    def _is_for_turbo(self):
        picture = self._picture
        return picture is None or (picture.format in _JPEG and picture.mode in ("RGB", "L"))

    def _upright_array(self, image_HWC):
        if self._orientation not in _UPRIGHT:
            return image_HWC
        picture = Image.fromarray(image_HWC)
        return np.asarray(picture.transpose(_UPRIGHT[self._orientation]))


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
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def array_to_rgb(image: np.ndarray) -> np.ndarray:
    """Returns uint8 [H, W] or [H, W, 1, 3 or 4] as [H, W, 3]."""
    if image.ndim == 2:
        image = image[:, :, None]
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    return np.ascontiguousarray(image[:, :, :3])
