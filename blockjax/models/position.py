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
