"""The masked reconstruction loss in plain JAX, for every backend."""

import jax
import jax.numpy as jnp


def masked_reconstruction_loss(
    predictions_BMP: jax.Array, targets_BMP: jax.Array, normalize: bool
) -> jax.Array:
    """See `api.masked_reconstruction_loss`; computed in float32."""
    targets_BMP = targets_BMP.astype(jnp.float32)
    if normalize:
        targets_BMP, _, _ = normalize_patches(targets_BMP)
    return jnp.mean(jnp.square(predictions_BMP.astype(jnp.float32) - targets_BMP))


def normalize_patches(patches_BNP: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gives each patch zero mean and unit variance: (x − mean) / sqrt(var + 1e-6), var unbiased (P − 1), as in MAE.

    Returns:
      The normalised patches [B, N, P], and mean and standard deviation [B, N, 1] that undo it.
    """
    mean = jnp.mean(patches_BNP, axis=-1, keepdims=True)
    std = jnp.sqrt(jnp.var(patches_BNP, axis=-1, keepdims=True, ddof=1) + 1e-6)
    return (patches_BNP - mean) / std, mean, std
