"""Fixed positions of patches on a two-dimensional grid."""

import numpy as np


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
