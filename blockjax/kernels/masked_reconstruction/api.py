"""The masked reconstruction loss: validation and choice of implementation."""

import jax

from blockjax.kernels.masked_reconstruction import xla

IMPLEMENTATIONS = {"xla": xla.masked_reconstruction_loss}
normalize_patches = xla.normalize_patches


def masked_reconstruction_loss(
    predictions_BMP: jax.Array,
    targets_BMP: jax.Array,
    *,
    normalize: bool,
    implementation: str = "xla",
) -> jax.Array:
    """Mean squared error of decoded patches: over the values of a patch, then over all patches of the batch.

    Only masked patches are decoded, so every row counts (MAE, arXiv 2111.06377, section 3).

    Args:
      predictions_BMP: predicted patches, any float dtype.
      targets_BMP: patches as the encoder's input has them (standardised pixels), any float dtype; no gradient.
      normalize: whether each target patch is first given zero mean and unit variance (`normalize_patches`).
      implementation: a key of `IMPLEMENTATIONS`.

    Returns:
      A float32 scalar.

    Raises:
      ValueError: shapes differ, or the implementation is unknown.
    """
    if predictions_BMP.shape != targets_BMP.shape:
        raise ValueError(
            f"predictions {predictions_BMP.shape} and targets {targets_BMP.shape} must have one shape [B, M, P]"
        )
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"loss.implementation {implementation!r} is unknown; it may be one of {sorted(IMPLEMENTATIONS)}"
        )
    targets_BMP = jax.lax.stop_gradient(targets_BMP)
    return IMPLEMENTATIONS[implementation](predictions_BMP, targets_BMP, normalize)
