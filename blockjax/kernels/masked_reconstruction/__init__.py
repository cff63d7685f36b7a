"""The masked reconstruction loss."""

from blockjax.kernels.masked_reconstruction.api import (
    IMPLEMENTATIONS,
    masked_reconstruction_loss,
    normalize_patches,
)

__all__ = ["IMPLEMENTATIONS", "masked_reconstruction_loss", "normalize_patches"]
