"""Images for evaluations: always the same ones, without augmentation."""

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from blockjax.data.cut import resize_and_center_crop
from blockjax.data.decode import (
    check_on_corrupt,
    check_readable,
    decode_all,
)
from blockjax.data.sources.source import Source


def evaluation_images(
    source: Source, image_size: int, *, limit: int | None = None, on_corrupt: str = "skip"
) -> tuple[np.ndarray, np.ndarray | None]:
    """Decodes the images of a source for an evaluation, without augmentation.

    Args:
      source: the examples.
      image_size: the side of the result; `cut.resize_and_center_crop` says what is cut off.
      limit: read no more than so many, always the same ones, from everywhere in the source.
      on_corrupt: `skip` leaves unreadable images out with a warning; `error` raises.

    Returns:
      Images, uint8 [N, image_size, image_size, 3], and labels, int32 [N], or None.

    Raises:
      ValueError: no image is readable, or one is not and `on_corrupt` is `error`.
    """
    check_on_corrupt(on_corrupt)
    indices = _evaluated(len(source), limit)
    fit = functools.partial(resize_and_center_crop, size=image_size)
    images_NHWC, labels_N = decode_all(source, indices, fit, (image_size, image_size), on_corrupt)
    check_readable(source, len(images_NHWC))
    return images_NHWC, labels_N


def evaluation_batches(
    source: Source,
    image_size: int,
    batch_size: int,
    *,
    limit: int | None = None,
    on_corrupt: str = "skip",
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yields what `evaluation_images` returns, in parts, the next one decoded meanwhile; for sources of any size.

    Args and errors are those of `evaluation_images`; `batch_size` images are a part, less where some are unreadable. A
    part without readable images is left out.
    """
    check_on_corrupt(on_corrupt)
    indices = _evaluated(len(source), limit)
    fit = functools.partial(resize_and_center_crop, size=image_size)
    shape = (image_size, image_size)

    def part(start):
        chosen = indices[start : start + batch_size]
        return decode_all(source, chosen, fit, shape, on_corrupt)

    readable = 0
    with ThreadPoolExecutor(1) as ahead:
        waiting = ahead.submit(part, 0)
        for start in range(batch_size, len(indices) + batch_size, batch_size):
            images, labels = waiting.result()
            if start < len(indices):
                waiting = ahead.submit(part, start)
            readable += len(images)
            if len(images):
                yield images, labels
    check_readable(source, readable)


def _evaluated(examples: int, limit: int | None) -> np.ndarray:
    """Returns which examples an evaluation reads, ascending."""
    if limit is None or limit >= examples:
        return np.arange(examples)
    # An even stride could meet one class only, where labels are periodic.
    return np.sort(np.random.RandomState(0).permutation(examples)[:limit])
