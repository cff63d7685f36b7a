"""The masked reconstruction loss: validation, choice of implementation, gradient, and meshes."""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import AxisType

from blockjax.kernels.masked_reconstruction import xla
from blockjax.kernels.masked_reconstruction.gradient import (
    _KERNELS,
    _PLATFORMS,
    _loss,
    _projected_loss,
    _Static,
    project,
)
from blockjax.kernels.masked_reconstruction.shapes import why_no_head, why_not

# `pallas` is the kernel of the platform, and XLA where there is none. The last two run the kernels' bodies anywhere,
# slowly, to test them.
IMPLEMENTATIONS = ("xla", "pallas", "pallas_tpu", "pallas_gpu", "interpret_tpu", "interpret_gpu")
# What is used where none is named: by platform, what was measured to be faster than XLA on a device. Nothing was yet.
MEASURED_BEST: Mapping[str, str] = {}
_PREDICTIONS = (jnp.float32, jnp.bfloat16)
_TARGETS = (jnp.uint8, jnp.float32, jnp.bfloat16)
normalize_patches = xla.normalize_patches


def masked_reconstruction_loss(
    predictions: jax.Array,
    targets: jax.Array,
    mask: jax.Array | None = None,
    *,
    normalize: bool,
    pixels: tuple[np.ndarray, np.ndarray] | None = None,
    denominator: jax.Array | float | None = None,
    implementation: str | None = None,
    batch_axes: Sequence[str] = ("data", "fsdp"),
) -> jax.Array:
    """Squared error of predicted patches: the mean over a patch's values, then over the patches of the batch.

    MAE (arXiv 2111.06377, section 3). In float32, whatever comes in. The gradient is that of the predictions only. By a
    kernel, loss and gradient are made in one pass over memory, and the gradient takes the predictions' place.

    Args:
      predictions: [..., P], float32 or bfloat16.
      targets: [..., P], uint8, float32 or bfloat16.
      mask: [...], 1 for a patch that counts and 0 for one that does not, or other weights; None where all count, as
        where only masked patches are decoded. What does not count may be anything, also NaN; where nothing counts, the
        loss is 0.
      normalize: whether each target patch is first given zero mean and unit variance: (x − mean) / sqrt(var + 1e-6),
        var unbiased.
      pixels: mean and standard deviation [P] by which targets, pixels from 0 to 255, are standardised before all else:
        (x / 255 − mean) / std. So targets may stay uint8 in memory.
      denominator: by what the sum over patches is divided; by default the sum of the mask, at least 1.
      implementation: one of `IMPLEMENTATIONS`. A kernel is used on its own platform, for shapes that it takes (see
        `why_not`); elsewhere XLA is. By default what was measured to be best, see `MEASURED_BEST`.
      batch_axes: axes of the mesh in context (`jax.set_mesh`) over which the first dimension is split. A kernel runs on
        each device's own part. Without the mesh in context XLA would gather the whole batch on every GPU, and refuse on
        TPU.

    Returns:
      A float32 scalar.

    Raises:
      ValueError: shapes or dtypes do not fit, or the implementation is unknown.

    Examples:
      Two patches of three values, of which the first counts:

      >>> predictions, targets = jnp.zeros((2, 3)), jnp.float32([[1, 2, 2], [9, 9, 9]])
      >>> mask = jnp.float32([1, 0])
      >>> float(masked_reconstruction_loss(predictions, targets, mask, normalize=False))
      3.0
    """
    _check(predictions.shape, predictions.dtype, targets, mask, implementation)
    static, *operands = _prepare(
        predictions.shape, targets, mask, normalize, pixels, denominator, implementation, batch_axes
    )
    return _of_predictions(static, predictions, pixels, operands)


def projected_reconstruction_loss(
    features: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    targets: jax.Array,
    mask: jax.Array | None = None,
    *,
    normalize: bool,
    pixels: tuple[np.ndarray, np.ndarray] | None = None,
    denominator: jax.Array | float | None = None,
    implementation: str | None = None,
    batch_axes: Sequence[str] = ("data", "fsdp"),
) -> jax.Array:
    """`masked_reconstruction_loss` of the predictions `features @ kernel + bias`, a decoder's last layer.

    The kernel for TPUs does both, with the gradients of all three: predictions are then never stored. Elsewhere, and
    where `why_no_head` says why not, it is the layer and then the loss.

    Args:
      features: [..., D], float32 or bfloat16; the product is made in this dtype.
      kernel: [D, P].
      bias: [P].
      targets: [..., P], and all others, as in `masked_reconstruction_loss`.
      mask: [...].
      normalize: whether targets are normalised.
      pixels: statistics of pixels.
      denominator: by what is divided.
      implementation: one of `IMPLEMENTATIONS`.
      batch_axes: of the mesh in context.

    Returns:
      A float32 scalar.

    Raises:
      ValueError: shapes or dtypes do not fit, or the implementation is unknown.
    """
    shape = (*features.shape[:-1], kernel.shape[-1])
    if kernel.shape[:-1] != features.shape[-1:] or bias.shape != kernel.shape[-1:]:
        raise ValueError(
            f"features {features.shape}, kernel {kernel.shape} and bias {bias.shape} must be [..., D], [D, P] and [P]"
        )
    _check(shape, features.dtype, targets, mask, implementation)
    static, *operands = _prepare(
        shape, targets, mask, normalize, pixels, denominator, implementation, batch_axes
    )
    on_tpu = "tpu" in dict(static.kernels)
    if not on_tpu or why_no_head(shape, features.shape[-1], features.dtype.itemsize):
        return _of_predictions(static, project(features, kernel, bias, mask), pixels, operands)
    features = features.reshape(*operands[0].shape[:-1], features.shape[-1])
    return _projected_loss(static, features, kernel, bias, *operands)


def _of_predictions(static, predictions, pixels, operands):
    """Returns the loss by kernels or, where there are none, by XLA, of what `_prepare` returns."""
    if static.kernels:
        return _loss(static, predictions.reshape(operands[0].shape), *operands)
    targets, mask, denominator = operands
    return xla.masked_reconstruction_loss(
        predictions, targets, mask, pixels, denominator, static.normalize
    )


def _prepare(shape, targets, mask, normalize, pixels, denominator, implementation, batch_axes):
    """Returns `_Static` and, for kernels, targets [B, M, P], mask [B, M], affine [2, P] and scale [1].

    For XLA the latter are targets, mask and denominator.
    """
    targets = jax.lax.stop_gradient(targets)
    if mask is not None:
        mask = jax.lax.stop_gradient(mask)
    if denominator is None:
        count = math.prod(shape[:-1])
        denominator = count if mask is None else mask.astype(jnp.float32).sum()
    if isinstance(denominator, (int, float)):
        denominator = max(denominator, 1)
    else:
        denominator = jax.lax.stop_gradient(jnp.maximum(denominator, 1.0))

    axes = _split_axes(batch_axes)
    interpret = implementation in ("interpret_tpu", "interpret_gpu")
    static = _Static(_kernels(implementation, shape, axes), axes, normalize, interpret)
    if not static.kernels:
        return static, targets, mask, denominator
    whole = (shape[0], math.prod(shape[1:-1]), shape[-1])
    affine = None
    if pixels is not None:
        mean, std = (np.asarray(value, np.float32) for value in pixels)
        affine = jnp.stack([1.0 / (255.0 * std), -mean / std])
    if mask is not None:
        mask = mask.astype(jnp.float32).reshape(whole[:2])
    scale = jnp.full((1,), 1.0 / (denominator * shape[-1]), jnp.float32)
    return static, targets.reshape(whole), mask, affine, scale


def _check(shape, dtype, targets, mask, implementation):
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"loss.implementation {implementation!r} is unknown; it may be one of {', '.join(IMPLEMENTATIONS)}"
        )
    if shape != targets.shape or len(shape) < 2:
        raise ValueError(
            f"predictions {shape} and targets {targets.shape} must have one shape [..., P]"
        )
    if mask is not None and mask.shape != shape[:-1]:
        raise ValueError(
            f"mask {mask.shape} must have a weight for each patch of predictions {shape}: {shape[:-1]}"
        )
    if shape[-1] < 2:
        raise ValueError(f"patches of {shape[-1]} value have no variance; P must be at least 2")
    for name, given, dtypes in (
        ("predictions", dtype, _PREDICTIONS),
        ("targets", targets.dtype, _TARGETS),
    ):
        if given not in dtypes:  # float16 could not hold gradients divided by so many values
            raise ValueError(
                f"{name} are {given}; they may be {', '.join(jnp.dtype(dtype).name for dtype in dtypes)}"
            )


def _split_axes(batch_axes):
    """Returns those axes of the mesh in context that split the batch and are not those of a shard_map around."""
    mesh = jax.sharding.get_abstract_mesh()
    return tuple(
        axis
        for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if axis in batch_axes and kind != AxisType.Manual and mesh.shape[axis] > 1
    )


def _why_not_split(axes):
    mesh = jax.sharding.get_abstract_mesh()
    if axes and AxisType.Manual in mesh.axis_types:
        return f"XLA splits the batch over {', '.join(axes)} inside a shard_map, where newer ones cannot have another"
    return None


def _kernels(implementation, shape, axes):
    """Returns the kernels that take such predictions, ((platform, name), ...); none for plain XLA."""
    parts = math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in axes)
    if implementation is None:
        names = MEASURED_BEST.values()
    elif implementation == "pallas":
        names = _KERNELS
    else:
        names = (implementation.replace("interpret_", "pallas_"),)
    found = []
    for name in names:
        if name not in _KERNELS:
            continue
        reason = why_not(name, shape, parts=parts, device=jax.devices()[0])
        if _KERNELS[name] is None:
            reason = "this JAX has no Pallas on Triton"
        reason = reason or _why_not_split(axes)
        if reason is None:
            found.append((_PLATFORMS[name], name))
        else:
            logging.log_first_n(
                logging.WARNING, "loss.implementation %s: XLA is used, as %s", 1, name, reason
            )
    return tuple(found)
