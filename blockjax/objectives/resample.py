"""Windows of images, cut out and resized on the device as matrix products."""

import math

import jax
import jax.numpy as jnp

from blockjax.objectives.objective import SMALL

_HIGHEST = jax.lax.Precision.HIGHEST  # fewer bits would be coarser than the 8 of a pixel
_PARTS = 16  # of a batch of images above `SMALL`, one after another: as floats they are never there together


def crop_and_resize(
    images_BHWC: jax.Array,
    top_B: jax.Array,
    left_B: jax.Array,
    height_B: jax.Array,
    width_B: jax.Array,
    size: int,
    flip_B: jax.Array | None = None,
) -> jax.Array:
    """Cuts a window out of each image and resizes it bilinearly, low-pass filtered where it shrinks.

    The weights are those of Pillow's `resize(box=..., resample=BILINEAR)`: a triangle that is two pixels wide in the
    coarser of the two grids, normalised over the pixels that exist. So pixels just outside the window contribute to its
    border, unless the window has whole coordinates and exactly `size` pixels. Resizing along an axis is a matrix
    product, which accelerators do faster than gathering pixels.

    Args:
      images_BHWC: any numbers; the result has their unit.
      top_B: the window's first row, float, in pixels; 0 is the upper border of the image. Beyond a border of the image
        its last pixels go on.
      left_B: the same for columns.
      height_B: the window's height, float, in pixels.
      width_B: the window's width.
      size: the side of the result, in pixels.
      flip_B: bool, whether to mirror the result from left to right; None mirrors nothing.

    Returns:
      float32 [B, size, size, C].
    """
    count, height, width, _ = images_BHWC.shape
    windows = top_B, left_B, height_B, width_B, flip_B
    parts = _parts(count) if max(height, width) > SMALL else 1
    if parts == 1:
        return _crop_and_resize(images_BHWC, *windows, size)
    # A part is every so many-th image: where the batch is split over devices, each has its share of every part.
    images, *windows = jax.tree.map(
        lambda x: x.reshape(count // parts, parts, *x.shape[1:]), [images_BHWC, *windows]
    )

    def fill(i, found):
        part = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False), [images, *windows]
        )
        made = _crop_and_resize(*part, size)
        return jax.lax.dynamic_update_index_in_dim(found, made, i, axis=1)

    found = jnp.zeros((*images.shape[:2], size, size, images.shape[-1]))
    return jax.lax.fori_loop(0, parts, fill, found).reshape(count, *found.shape[2:])


def _parts(count):
    sizes = jax.sharding.get_abstract_mesh().shape
    devices = sizes.get("data", 1) * sizes.get("fsdp", 1)
    return 1 if count % devices else math.gcd(count // devices, _PARTS)


def _crop_and_resize(images_BHWC, top_B, left_B, height_B, width_B, flip_B, size):
    _, height, width, _ = images_BHWC.shape
    rows_BSH = _interpolation(top_B, height_B, height, size)
    columns_BSW = _interpolation(left_B, width_B, width, size, flip_B)
    return mix_axes(rows_BSH, columns_BSW, images_BHWC.astype(jnp.float32))


def _interpolation(start_B, length_B, source, size, reverse_B=None):
    """Returns the share of each source pixel in each pixel of the result, [B, size, source]."""
    position_BS = jnp.arange(size)[None] + 0.5
    if reverse_B is not None:
        position_BS = jnp.where(reverse_B[:, None], size - position_BS, position_BS)
    step_B1 = (length_B / size)[:, None]
    centre_BS = jnp.clip(start_B[:, None] + position_BS * step_B1, 0.5, source - 0.5)
    distance_BSN = jnp.abs(centre_BS[:, :, None] - (jnp.arange(source) + 0.5)[None, None])
    reach_B11 = jnp.maximum(step_B1, 1.0)[:, :, None]
    weights_BSN = jnp.maximum(1.0 - distance_BSN / reach_B11, 0.0)
    return weights_BSN / weights_BSN.sum(axis=2, keepdims=True)


def mix_axes(rows_BSH: jax.Array, columns_BTW: jax.Array, images_BHWC: jax.Array) -> jax.Array:
    """Returns images whose rows and columns are weighted sums of the given ones, [B, S, T, C]."""
    images_BSWC = jnp.einsum("bsh,bhwc->bswc", rows_BSH, images_BHWC, precision=_HIGHEST)
    return jnp.einsum("btw,bswc->bstc", columns_BTW, images_BSWC, precision=_HIGHEST)
