"""The masked reconstruction loss."""

from blockjax.kernels.masked_reconstruction.api import (
    IMPLEMENTATIONS,
    MEASURED_BEST,
    masked_reconstruction_loss,
    normalize_patches,
    projected_reconstruction_loss,
)
from blockjax.kernels.masked_reconstruction.shapes import SHAPES, why_no_head, why_not

__all__ = [
    "IMPLEMENTATIONS",
    "MEASURED_BEST",
    "SHAPES",
    "masked_reconstruction_loss",
    "normalize_patches",
    "projected_reconstruction_loss",
    "why_no_head",
    "why_not",
]
