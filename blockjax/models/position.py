"""Fixed positions: of patches on a two-dimensional grid, and of tokens in a sequence."""

import jax
import jax.numpy as jnp
import numpy as np

ROTARY_BASE = 10000.0


def sincos_2d(rows: int, columns: int, width: int) -> np.ndarray:
    """Returns sine and cosine positions of a grid in raster order, [rows · columns, width] float32.

    The first half of the channels encodes the column, the second the row; each half is sines, then cosines, at
    frequencies 10000^(-i / (width/4)), as in MAE (arXiv 2111.06377) and MoCo v3 (arXiv 2104.02057).

    Raises:
      ValueError: width is not divisible by 4.
    """
    if width % 4:
        raise ValueError(f"2-D sin-cos positions need a width divisible by 4, not {width}")
    frequencies = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    row, column = np.divmod(np.arange(rows * columns), columns)
    parts = [
        wave(axis[:, None] * frequencies) for axis in (column, row) for wave in (np.sin, np.cos)
    ]
    return np.concatenate(parts, axis=1).astype(np.float32)


def rotated(heads_BTHd: jax.Array, start: jax.Array | int = 0) -> jax.Array:
    """Returns queries or keys turned by their places in the sequence (rotary positions, arXiv 2104.09864).

    Channel i of the first half and the same of the second are one point, turned by place · 10000^(-i / (d/2)): the
    pairs of GPT-NeoX and Llama. Computed in float32.

    Args:
      heads_BTHd: d is even.
      start: the place of the first token.
    """
    half = heads_BTHd.shape[-1] // 2
    frequencies = jnp.asarray(ROTARY_BASE ** (-np.arange(half) / half), jnp.float32)
    places_T = (start + jnp.arange(heads_BTHd.shape[1])).astype(jnp.float32)
    angles_1T1d = (places_T[:, None] * frequencies[None, :])[None, :, None, :]
    cos, sin = jnp.cos(angles_1T1d), jnp.sin(angles_1T1d)
    first, second = jnp.split(heads_BTHd.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(heads_BTHd.dtype)


def resized_positions(
    table_ND: np.ndarray, grid: tuple[int, int], to: tuple[int, int]
) -> np.ndarray:
    """Returns the positions of one grid for another one: those between them, [rows · columns of `to`, D] float32.

    Bicubic over the whole image, as MAE's fine-tuning does it (facebookresearch/mae, util/pos_embed.py).

    Args:
      table_ND: in raster order.
      grid: its rows and columns.
      to: those that are wanted.
    """
    rows, columns = (_cubic(*sizes) for sizes in zip(grid, to, strict=True))
    table = np.asarray(table_ND, np.float64).reshape(*grid, -1)
    return (
        np.einsum("ri,cj,ijd->rcd", rows, columns, table)
        .reshape(-1, table.shape[-1])
        .astype(np.float32)
    )


def _cubic(old, new):
    """Weights [new, old] of cubic convolution with a = -0.75, edges repeated: what PyTorch calls bicubic."""
    at = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for step in range(-1, 3):
        index = np.floor(at).astype(int) + step
        x = np.abs(at - index)
        near, far = (1.25 * x - 2.25) * x**2 + 1.0, -0.75 * (((x - 5.0) * x + 8.0) * x - 4.0)
        np.add.at(weights, (np.arange(new), index.clip(0, old - 1)), np.where(x <= 1.0, near, far))
    return weights
