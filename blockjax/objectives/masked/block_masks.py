"""BEiT's block-wise masks: unions of rectangles, of an exact size, drawn on the device."""

import math

import jax
import jax.numpy as jnp

# From BEiT (arXiv 2106.08254, algorithm 1; microsoft/unilm, beit/masking_generator.py).
_LOG_ASPECT = math.log(1 / 0.3)  # aspect ratios are from 0.3 to 1 / 0.3
_TRIES = 10  # for each rectangle; if none fits, there are no more rectangles
# BEiT masks rectangles of at least 16 patches of 14 x 14.
_BEIT_MIN_SHARE = 16 / 196
# Proposals for an image in all. BEiT has no such limit; with 40 % masked, one mask in 1000 would get more from it.
_PROPOSALS = 32


def min_block_area(patches: int) -> int:
    """Returns the smallest rectangle's area: 16 of 196 patches as in BEiT, the same share of other grids."""
    return max(1, round(_BEIT_MIN_SHARE * patches))


def block_masks(
    rng: jax.Array, images: int, grid: tuple[int, int], count: int, min_area: int
) -> jax.Array:
    """Masks the same number of patches of every image, as a union of rectangles wherever possible.

    BEiT's rule: a rectangle's area is uniform between `min_area` and what is left to mask, its aspect ratio
    log-uniform from 0.3 to 1/0.3, its place uniform; it is taken if it masks at least one more patch and not too many;
    the first of ten that can be taken is, and if none can, the mask is as it is. That leaves up to a third of BEiT's
    masks a few patches short. Here random patches make up for these, so that all arrays have static shapes.

    Args:
      rng: a key.
      images: B.
      grid: rows and columns of patches.
      count: patches to mask, of rows · columns.
      min_area: of a rectangle, before it is rounded to whole rows and columns.

    Returns:
      True where a patch is masked, bool [B, rows · columns] in raster order, `count` of them in every row.
    """
    rectangles_rng, patches_rng = jax.random.split(rng)
    masks_BN = _rectangles(rectangles_rng, images, grid, count, min_area)
    # Masked patches come first, and both kinds in random order.
    chosen_BM = jax.lax.top_k(masks_BN + jax.random.uniform(patches_rng, masks_BN.shape), count)[1]
    return (chosen_BM[:, :, None] == jnp.arange(masks_BN.shape[1])[None, None]).any(axis=1)


def _rectangles(rng, images, grid, count, min_area):
    """Returns the unions of rectangles, of up to `count` patches, bool [B, N]."""
    rows, columns = grid
    row_R, column_C = jnp.arange(rows)[None], jnp.arange(columns)[None]

    def propose(carry, uniform_4B):
        masks_BRC, left_B, failed_B = carry
        area, aspect, top, first = uniform_4B
        area = min_area + area * (left_B - min_area)
        aspect = jnp.exp(_LOG_ASPECT * (2 * aspect - 1))
        height = jnp.round(jnp.sqrt(area * aspect))
        width = jnp.round(jnp.sqrt(area / aspect))
        top = jnp.floor(top * (rows - height + 1))[:, None]
        first = jnp.floor(first * (columns - width + 1))[:, None]
        in_rows_BR = (row_R >= top) & (row_R < top + height[:, None])
        in_columns_BC = (column_C >= first) & (column_C < first + width[:, None])
        new_BRC = in_rows_BR[:, :, None] & in_columns_BC[:, None, :] & ~masks_BRC
        new_B = new_BRC.sum(axis=(1, 2))
        fits_B = (height < rows) & (width < columns) & (new_B > 0) & (new_B <= left_B)
        fits_B &= failed_B < _TRIES
        masks_BRC |= new_BRC & fits_B[:, None, None]
        failed_B = jnp.where(failed_B < _TRIES, jnp.where(fits_B, 0, failed_B + 1), failed_B)
        return (masks_BRC, left_B - jnp.where(fits_B, new_B, 0), failed_B), None

    start = (
        jnp.zeros((images, rows, columns), bool),
        jnp.full(images, count, jnp.int32),
        jnp.zeros(images, jnp.int32),
    )
    uniform = jax.random.uniform(rng, (_PROPOSALS, 4, images))
    (masks_BRC, _, _), _ = jax.lax.scan(propose, start, uniform)
    return masks_BRC.reshape(images, rows * columns)
