"""The masked reconstruction loss in plain JAX, for every backend; differentiable as often as wanted."""

import jax
import jax.numpy as jnp


def masked_reconstruction_loss(
    predictions: jax.Array,
    targets: jax.Array,
    mask: jax.Array | None,
    pixels: tuple[jax.Array, jax.Array] | None,
    denominator: jax.Array | float,
    normalize: bool,
) -> jax.Array:
    """See `api.masked_reconstruction_loss`; computed in float32."""
    targets = targets.astype(jnp.float32)
    if pixels is not None:
        mean, std = (jnp.expand_dims(value, tuple(range(targets.ndim - 1))) for value in pixels)
        targets = (targets / 255.0 - mean) / std
    if normalize:
        targets, _, _ = normalize_patches(targets)
    difference = predictions.astype(jnp.float32) - targets
    if mask is not None:
        # Before it is squared: the gradient of a square that is not counted, but not finite, would not be finite.
        difference = jnp.where((mask != 0)[..., None], difference, 0.0)
    squares = jnp.square(difference)
    if mask is None:
        return squares.sum() / (denominator * predictions.shape[-1])
    return (squares.mean(axis=-1) * mask.astype(jnp.float32)).sum() / denominator


def normalize_patches(patches_BNP: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gives each patch zero mean and unit variance: (x − mean) / sqrt(var + 1e-6), var unbiased (P − 1), as in MAE.

    Returns:
      The normalised patches [B, N, P], and mean and standard deviation [B, N, 1] that undo it.
    """
    mean = jnp.mean(patches_BNP, axis=-1, keepdims=True)
    std = jnp.sqrt(jnp.var(patches_BNP, axis=-1, keepdims=True, ddof=1) + 1e-6)
    return (patches_BNP - mean) / std, mean, std
