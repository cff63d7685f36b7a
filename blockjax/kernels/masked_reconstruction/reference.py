"""The masked reconstruction loss as its formula reads, with its gradient, in float32: what the others are tested by."""

import jax
import jax.numpy as jnp
import numpy as np


def loss_and_gradient(
    predictions: jax.Array,
    targets: jax.Array,
    mask: jax.Array | None = None,
    *,
    normalize: bool,
    pixels: tuple[np.ndarray, np.ndarray] | None = None,
    denominator: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns the loss and its gradient with respect to the predictions, both float32; arguments as in `api`."""
    predictions = predictions.astype(jnp.float32)
    targets = targets.astype(jnp.float32)
    if pixels is not None:
        mean, std = (jnp.broadcast_to(value, targets.shape) for value in pixels)
        targets = (targets / 255.0 - mean) / std
    weights = jnp.ones(targets.shape[:-1]) if mask is None else mask.astype(jnp.float32)
    values = targets.shape[-1]
    if normalize:
        centred = targets - targets.sum(axis=-1, keepdims=True) / values
        variance = jnp.square(centred).sum(axis=-1, keepdims=True) / (values - 1)
        targets = centred / jnp.sqrt(variance + 1e-6)
    counts = (weights != 0.0)[..., None]
    difference = jnp.where(counts, predictions - targets, 0.0)
    total = weights.sum() if denominator is None else denominator
    weights = weights[..., None] / (jnp.maximum(total, 1.0) * values)
    return (weights * jnp.square(difference)).sum(), 2.0 * weights * difference
