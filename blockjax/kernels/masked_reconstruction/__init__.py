"""The masked reconstruction loss."""

from blockjax.kernels.masked_reconstruction.api import (
    IMPLEMENTATIONS,
    MEASURED_BEST,
    masked_reconstruction_loss,
    normalize_patches,
)
from blockjax.kernels.masked_reconstruction.shapes import SHAPES, why_not

__all__ = [
    "IMPLEMENTATIONS",
    "MEASURED_BEST",
    "SHAPES",
    "masked_reconstruction_loss",
    "normalize_patches",
    "why_not",
]
