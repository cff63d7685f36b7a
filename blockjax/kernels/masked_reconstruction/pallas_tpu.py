"""The loss and its gradient in one pass over memory, as a Mosaic kernel for TPUs."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from blockjax.kernels.masked_reconstruction.shapes import tpu_blocks


def run(
    predictions_BMP: jax.Array,
    targets_BMP: jax.Array,
    mask_BM: jax.Array | None,
    affine_2P: jax.Array | None,
    scale_1: jax.Array,
    *,
    normalize: bool,
    epsilon: float,
    with_gradient: bool,
    interpret: bool,
) -> tuple[jax.Array, jax.Array | None]:
    """Returns the loss, float32, and its gradient in the predictions' dtype, which takes their buffer.

    Args:
      predictions_BMP: float32 or bfloat16.
      targets_BMP: uint8, float32 or bfloat16.
      mask_BM: float32 weights of patches, or None for ones.
      affine_2P: targets become `targets * affine[0] + affine[1]` first, float32, or None.
      scale_1: float32, by which the sum of squares is multiplied.
      normalize: whether targets are normalised patch by patch.
      epsilon: added to variances.
      with_gradient: whether to compute one.
      interpret: whether to run on any backend, slowly.
    """
    shape, rows = tpu_blocks(predictions_BMP.shape)
    images, patches, values = shape
    blocks = pl.cdiv(patches, rows)
    row_block = pl.BlockSpec((None, rows, values), lambda b, r: (b, r, 0))
    operands = [scale_1, predictions_BMP.reshape(shape), targets_BMP.reshape(shape)]
    in_specs = [pl.BlockSpec(memory_space=pltpu.SMEM), row_block, row_block]
    if mask_BM is not None:
        # Along the lanes: with one flag a row XLA would pad the last axis to 128.
        operands.append(mask_BM.reshape(images, 1, patches))
        in_specs.append(pl.BlockSpec((None, 1, rows), lambda b, r: (b, 0, r)))
    if affine_2P is not None:
        operands.append(affine_2P)
        in_specs.append(pl.BlockSpec((2, values), lambda b, r: (0, 0)))
    # A row of partial sums for each block, so that blocks do not wait for each other.
    partial = jax.ShapeDtypeStruct((images, blocks, 1, values), jnp.float32)
    out_shape = [partial]
    out_specs = [pl.BlockSpec((None, None, 1, values), lambda b, r: (b, r, 0, 0))]
    if with_gradient:
        out_shape.append(jax.ShapeDtypeStruct(shape, predictions_BMP.dtype))
        out_specs.append(row_block)
    moved = predictions_BMP.nbytes * (1 + with_gradient) + targets_BMP.nbytes
    results = pl.pallas_call(
        functools.partial(
            _kernel,
            has_mask=mask_BM is not None,
            has_affine=affine_2P is not None,
            ragged=patches if patches % rows else None,
            normalize=normalize,
            epsilon=epsilon,
            with_gradient=with_gradient,
        ),
        grid=(images, blocks),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=out_shape,
        input_output_aliases={1: 1} if with_gradient else {},
        compiler_params=None
        if interpret
        else pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=pl.CostEstimate(
            flops=10 * predictions_BMP.size,
            transcendentals=images * patches,
            bytes_accessed=moved,
        ),
        interpret=interpret,
        name="masked_reconstruction_tpu",
    )(*operands)
    gradient = results[1].reshape(predictions_BMP.shape) if with_gradient else None
    return results[0].sum(), gradient


def _kernel(
    scale_ref,
    predictions_ref,
    targets_ref,
    *refs,
    has_mask,
    has_affine,
    ragged,
    normalize,
    epsilon,
    with_gradient,
):
    refs = list(refs)
    mask_ref = refs.pop(0) if has_mask else None
    affine_ref = refs.pop(0) if has_affine else None
    loss_ref, *gradient_refs = refs
    rows = predictions_ref.shape[0]

    targets = targets_of(targets_ref, affine_ref)
    if normalize:
        targets = normalized(targets, epsilon)
    difference = predictions_ref[...].astype(jnp.float32) - targets

    weight = None
    if has_mask:
        weight = mask_ref[...].T
    if ragged is not None:
        # Rows beyond the array hold anything, also what is no number.
        row = jax.lax.broadcasted_iota(jnp.int32, (rows, 1), 0) + pl.program_id(1) * rows
        weight = jnp.where(row < ragged, 1.0 if weight is None else weight, 0.0)
    if weight is not None:
        difference = jnp.where(weight != 0.0, difference, 0.0)
    scale = scale_ref[0] if weight is None else weight * scale_ref[0]
    scaled = difference * scale
    loss_ref[...] = (scaled * difference).sum(axis=0, keepdims=True)
    if with_gradient:
        gradient_refs[0][...] = (2.0 * scaled).astype(gradient_refs[0].dtype)


def targets_of(targets_ref, affine_ref):
    """Returns a block of targets [rows, P] as float32, standardised if there is something to do it by."""
    targets = targets_ref[...]
    if targets.dtype == jnp.uint8:
        targets = targets.astype(jnp.int32)  # Mosaic has no conversion from uint8 to floats
    targets = targets.astype(jnp.float32)
    if affine_ref is not None:
        targets = targets * affine_ref[0:1, :] + affine_ref[1:2, :]
    return targets


def normalized(targets, epsilon):
    """Gives each row of [rows, P] zero mean and unit variance."""
    values = targets.shape[1]
    centred = targets - targets.sum(axis=1, keepdims=True) / values
    variance = jnp.square(centred).sum(axis=1, keepdims=True) / (values - 1)
    return centred * jax.lax.rsqrt(variance + epsilon)
