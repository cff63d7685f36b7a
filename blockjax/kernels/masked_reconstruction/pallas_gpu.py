"""The loss and its gradient in one pass over memory, as a Triton kernel for NVIDIA GPUs.

JAX will drop Pallas' Triton backend at some time; all of it that the project uses is in this file.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from blockjax.kernels.masked_reconstruction.shapes import gpu_blocks


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
    """Does what `pallas_tpu.run` does; patches with weight 0 are not even read."""
    values = predictions_BMP.shape[-1]
    count = predictions_BMP.size // values
    rows, columns, chunks = gpu_blocks(values)
    operands = [
        scale_1,
        predictions_BMP.reshape(count, values),
        targets_BMP.reshape(count, values),
    ]
    if mask_BM is not None:
        operands.append(mask_BM.reshape(count))
    if affine_2P is not None:
        operands.append(affine_2P)
    out_shape = [jax.ShapeDtypeStruct((count,), jnp.float32)]
    if with_gradient:
        out_shape.append(jax.ShapeDtypeStruct((count, values), predictions_BMP.dtype))
    results = pl.pallas_call(
        functools.partial(
            _kernel,
            has_mask=mask_BM is not None,
            has_affine=affine_2P is not None,
            count=count,
            values=values,
            rows=rows,
            columns=columns,
            chunks=chunks,
            normalize=normalize,
            epsilon=epsilon,
            with_gradient=with_gradient,
        ),
        grid=(pl.cdiv(count, rows),),
        in_specs=[pl.no_block_spec] * len(operands),
        out_specs=[pl.no_block_spec] * len(out_shape),
        out_shape=out_shape,
        input_output_aliases={1: 1} if with_gradient else {},
        # On a device these also choose the backend.
        compiler_params=None if interpret else pltriton.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="masked_reconstruction_gpu",
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
    count,
    values,
    rows,
    columns,
    chunks,
    normalize,
    epsilon,
    with_gradient,
):
    refs = list(refs)
    mask_ref = refs.pop(0) if has_mask else None
    affine_ref = refs.pop(0) if has_affine else None
    loss_ref, *gradient_refs = refs
    row = pl.program_id(0) * rows + jax.lax.iota(jnp.int32, rows)
    exists = row < count
    weight = exists.astype(jnp.float32)
    if has_mask:
        weight = pltriton.load(mask_ref.at[row], mask=exists, other=0.0)
    counts = exists & (weight != 0.0)
    scale = weight * scale_ref[0]

    # A row is read once, chunk by chunk, into registers; the sweeps below run over these. Nothing beyond an array's end
    # is read or written, and a gradient of 0 is written also where nothing is read.
    wheres, targets, predictions = [], [], []
    for k in range(chunks):
        column = k * columns + jax.lax.iota(jnp.int32, columns)
        at = row[:, None], column[None, :]
        within = column < values
        read = counts[:, None] & within[None, :]
        target = pltriton.load(targets_ref.at[at], mask=read, other=0).astype(jnp.float32)
        if has_affine:
            # A constant index would not do under a mask.
            zero = jnp.zeros((columns,), jnp.int32)
            times = pltriton.load(affine_ref.at[zero, column], mask=within, other=0.0)
            plus = pltriton.load(affine_ref.at[zero + 1, column], mask=within, other=0.0)
            target = jnp.where(read, target * times[None, :] + plus[None, :], 0.0)
        prediction = pltriton.load(predictions_ref.at[at], mask=read, other=0)
        wheres.append((at, read, exists[:, None] & within[None, :]))
        targets.append(target)
        predictions.append(prediction.astype(jnp.float32))

    if normalize:
        mean = sum(target.sum(axis=1) for target in targets) / values
        targets = [
            jnp.where(read, target - mean[:, None], 0.0)
            for target, (_, read, _) in zip(targets, wheres, strict=True)
        ]
        variance = sum((target * target).sum(axis=1) for target in targets) / (values - 1)
        inverse = jax.lax.rsqrt(variance + epsilon)
        targets = [target * inverse[:, None] for target in targets]

    total = jnp.zeros((rows,), jnp.float32)
    for prediction, target, (at, read, write) in zip(predictions, targets, wheres, strict=True):
        difference = jnp.where(read, prediction - target, 0.0)
        total += (difference * difference).sum(axis=1)
        if with_gradient:
            gradient = difference * (2.0 * scale)[:, None]
            gradient_ref = gradient_refs[0]
            pltriton.store(gradient_ref.at[at], gradient.astype(gradient_ref.dtype), mask=write)
    pltriton.store(loss_ref.at[row], total * scale, mask=exists)
