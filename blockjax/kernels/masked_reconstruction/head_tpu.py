"""The decoder's last projection, the loss and all their gradients in one Mosaic kernel for TPUs.

Predictions are made tile by tile in the chip's fast memory and never leave it: of all that is [tokens, P], only targets
are moved.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from blockjax.kernels.masked_reconstruction.pallas_tpu import normalized, targets_of
from blockjax.kernels.masked_reconstruction.shapes import head_rows


def run(
    features_BMD: jax.Array,
    kernel_DP: jax.Array,
    bias_P: jax.Array,
    targets_BMP: jax.Array,
    mask_BM: jax.Array | None,
    affine_2P: jax.Array | None,
    scale_1: jax.Array,
    *,
    normalize: bool,
    epsilon: float,
    interpret: bool,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    """Returns the loss and its gradients: of the features in their dtype, of the kernel and of the bias in float32.

    Args:
      features_BMD: float32 or bfloat16; the products are made of this dtype, and summed in float32.
      kernel_DP: of the projection.
      bias_P: of the projection.
      targets_BMP: and all others, see `pallas_tpu.run`.
      mask_BM: weights of patches, float32, or None.
      affine_2P: of targets, float32, or None.
      scale_1: float32.
      normalize: whether targets are normalised patch by patch.
      epsilon: added to variances.
      interpret: whether to run on any backend, slowly.
    """
    width, values = kernel_DP.shape
    count = targets_BMP.size // values
    rows = head_rows(count, width, values, features_BMD.dtype.itemsize)
    tiles = pl.cdiv(count, rows)

    def tile(columns):
        return pl.BlockSpec((rows, columns), lambda i: (i, 0))

    def whole(*shape):
        return pl.BlockSpec(shape, lambda i: (0,) * len(shape))

    operands = [
        scale_1,
        features_BMD.reshape(count, width),
        targets_BMP.reshape(count, values),
        kernel_DP.astype(features_BMD.dtype),
        bias_P.astype(jnp.float32).reshape(1, values),
    ]
    in_specs = [
        pl.BlockSpec(memory_space=pltpu.SMEM),
        tile(width),
        tile(values),
        whole(width, values),
        whole(1, values),
    ]
    if mask_BM is not None:
        operands.append(mask_BM.reshape(1, count))
        in_specs.append(pl.BlockSpec((1, rows), lambda i: (0, i)))
    if affine_2P is not None:
        operands.append(affine_2P)
        in_specs.append(whole(2, values))
    of = jax.ShapeDtypeStruct
    moved = 2 * features_BMD.nbytes + targets_BMP.nbytes + 2 * width * values * 4
    loss, features, kernel, bias = pl.pallas_call(
        functools.partial(
            _kernel,
            has_mask=mask_BM is not None,
            has_affine=affine_2P is not None,
            ragged=count if count % rows else None,
            normalize=normalize,
            epsilon=epsilon,
        ),
        grid=(tiles,),
        in_specs=in_specs,
        out_specs=[whole(1, values), tile(width), whole(width, values), whole(1, values)],
        out_shape=[
            of((1, values), jnp.float32),
            of((count, width), features_BMD.dtype),
            of((width, values), jnp.float32),
            of((1, values), jnp.float32),
        ],
        input_output_aliases={1: 1},
        # Tiles add to the same sums, so they follow one another.
        compiler_params=None
        if interpret
        else pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        cost_estimate=pl.CostEstimate(
            flops=6 * count * width * values, transcendentals=count, bytes_accessed=moved
        ),
        interpret=interpret,
        name="masked_reconstruction_tpu_head",
    )(*operands)
    return loss.sum(), (features.reshape(features_BMD.shape), kernel, bias[0])


def _kernel(
    scale_ref,
    features_ref,
    targets_ref,
    kernel_ref,
    bias_ref,
    *refs,
    has_mask,
    has_affine,
    ragged,
    normalize,
    epsilon,
):
    refs = list(refs)
    mask_ref = refs.pop(0) if has_mask else None
    affine_ref = refs.pop(0) if has_affine else None
    loss_ref, features_gradient_ref, kernel_gradient_ref, bias_gradient_ref = refs
    rows = features_ref.shape[0]

    @pl.when(pl.program_id(0) == 0)
    def _():
        for ref in (loss_ref, kernel_gradient_ref, bias_gradient_ref):
            ref[...] = jnp.zeros_like(ref)

    features = features_ref[...]
    targets = targets_of(targets_ref, affine_ref)
    if normalize:
        targets = normalized(targets, epsilon)
    weight = mask_ref[...].T if has_mask else None
    if ragged is not None:
        row = jax.lax.broadcasted_iota(jnp.int32, (rows, 1), 0) + pl.program_id(0) * rows
        weight = jnp.where(row < ragged, 1.0 if weight is None else weight, 0.0)
    if weight is not None:
        # In a sum over rows 0 times what is no number would be none.
        features = jnp.where(weight != 0.0, features, jnp.zeros_like(features))

    def product(a, b, over):
        return jax.lax.dot_general(
            a, b, (over, ((), ())), preferred_element_type=jnp.float32, precision=_precision(a)
        )

    difference = product(features, kernel_ref[...], ((1,), (0,))) + bias_ref[...] - targets
    if weight is not None:
        difference = jnp.where(weight != 0.0, difference, 0.0)
    scaled = difference * (scale_ref[0] if weight is None else weight * scale_ref[0])
    loss_ref[...] += (scaled * difference).sum(axis=0, keepdims=True)
    gradient = 2.0 * scaled
    bias_gradient_ref[...] += gradient.sum(axis=0, keepdims=True)
    gradient = gradient.astype(features.dtype)
    kernel_gradient_ref[...] += product(features, gradient, ((0,), (0,)))
    features_gradient_ref[...] = product(gradient, kernel_ref[...], ((1,), (1,))).astype(
        features_gradient_ref.dtype
    )


def _precision(array):
    return jax.lax.Precision.HIGHEST if array.dtype == jnp.float32 else None
