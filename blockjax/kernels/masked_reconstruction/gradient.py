"""The loss with its gradient: on each device by XLA or a kernel, and its rules of differentiation."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from blockjax.kernels.masked_reconstruction import head_tpu, pallas_tpu, xla

try:
    from blockjax.kernels.masked_reconstruction import pallas_gpu
except ImportError:  # a JAX without Pallas on Triton
    pallas_gpu = None
_KERNELS: Mapping[str, ModuleType | None] = {"pallas_tpu": pallas_tpu, "pallas_gpu": pallas_gpu}
_PLATFORMS = {"pallas_tpu": "tpu", "pallas_gpu": "cuda"}
_EPSILON = 1e-6  # MAE's (facebookresearch/mae, models_mae.py)


def project(
    features: jax.Array, kernel: jax.Array, bias: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
    """Returns [..., D] @ [D, P] + [P] in the features' dtype, as `flax.linen.Dense` computes it.

    Rows where a mask [...] is 0 may hold anything; they are projected as zeros.
    """
    if mask is not None:
        # 0 * NaN is NaN, and the kernel's gradient sums over rows: so zero those that do not count before.
        features = jnp.where((mask != 0)[..., None], features, 0)
    over = (((features.ndim - 1,), (0,)), ((), ()))
    product = jax.lax.dot_general(features, kernel.astype(features.dtype), over)
    return product + jnp.expand_dims(bias.astype(features.dtype), range(features.ndim - 1))


@dataclasses.dataclass(frozen=True)
class _Static:
    """What is known when the loss is traced.

    Attributes:
      kernels: (platform, name) of each; other platforms use XLA.
      axes: of the mesh, over which the first dimension is split.
      normalize: as in `masked_reconstruction_loss`.
      interpret: whether the one kernel is to be run by the interpreter, wherever.
    """

    kernels: tuple[tuple[str, str], ...]
    axes: tuple[str, ...]
    normalize: bool
    interpret: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(static, predictions, targets, mask, affine, scale):
    return _on_mesh(static, False, predictions, targets, mask, affine, scale)[0]


def _forward(static, predictions, targets, mask, affine, scale):
    return _with_gradient(static, predictions, targets, mask, affine, scale)


def _backward(static, gradient, cotangent):
    del static
    return (cotangent * gradient.astype(jnp.float32)).astype(gradient.dtype), *[None] * 4


_loss.defvjp(_forward, _backward)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _with_gradient(static, predictions, targets, mask, affine, scale):
    """Returns loss and gradient; asked for derivatives of these, says that there are none."""
    return _on_mesh(static, True, predictions, targets, mask, affine, scale)


@_with_gradient.defjvp
def _no_second_derivative(static, primals, tangents):
    raise NotImplementedError(
        "the kernels of the masked reconstruction loss have first derivatives only; for second ones set "
        "loss.implementation to 'xla'"
    )


def _on_mesh(static, with_gradient, predictions, targets, mask, affine, scale):
    """Runs on every device's own part of the batch; `scale` is already that of the whole batch."""
    run = functools.partial(_on_device, static, with_gradient)
    if not static.axes:
        return run(predictions, targets, mask, affine, scale)

    def local(*arrays):
        loss, gradient = run(*arrays)
        return loss[None], gradient

    split, whole = PartitionSpec(static.axes), PartitionSpec()
    losses, gradient = jax.shard_map(
        local,
        in_specs=(split, split, split, whole, whole),
        out_specs=(split, split),
        axis_names=set(static.axes),
        check_vma=False,
    )(predictions, targets, mask, affine, scale)
    return losses.sum(), gradient


def _on_device(static, with_gradient, *arrays):
    branches: dict[str, Callable[..., Any]] = {
        platform: functools.partial(
            _KERNELS[name].run,
            normalize=static.normalize,
            epsilon=_EPSILON,
            with_gradient=with_gradient,
            interpret=static.interpret,
        )
        for platform, name in static.kernels
    }
    if static.interpret:
        (kernel,) = branches.values()
        return kernel(*arrays)
    default = functools.partial(_by_xla, static.normalize, with_gradient)
    return jax.lax.platform_dependent(*arrays, default=default, **branches)


def _by_xla(normalize, with_gradient, predictions, targets, mask, affine, scale):
    def loss(predictions):
        values = targets.astype(jnp.float32)
        if affine is not None:
            values = values * affine[None, :1] + affine[None, 1:]
        total = xla.masked_reconstruction_loss(predictions, values, mask, None, 1.0, normalize)
        return total * predictions.shape[-1] * scale[0]

    if with_gradient:
        return jax.value_and_grad(loss)(predictions)
    return loss(predictions), None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _projected_loss(static, features, kernel, bias, targets, mask, affine, scale):
    return _loss(static, project(features, kernel, bias, mask), targets, mask, affine, scale)


def _projected_forward(static, features, kernel, bias, targets, mask, affine, scale):
    return _projected_with_gradients(static, features, kernel, bias, targets, mask, affine, scale)


def _projected_backward(static, gradients, cotangent):
    del static
    scaled = (
        (cotangent * gradient.astype(jnp.float32)).astype(gradient.dtype) for gradient in gradients
    )
    return *scaled, *[None] * 4


_projected_loss.defvjp(_projected_forward, _projected_backward)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _projected_with_gradients(static, features, kernel, bias, targets, mask, affine, scale):
    """Returns the loss and the gradients of features, kernel and bias, each on its device's own part of the batch."""
    arrays = features, kernel, bias, targets, mask, affine, scale
    if not static.axes:
        loss, gradients = _projected_on_device(static, *arrays)
    else:

        def local(*arrays):
            loss, (of_features, *others) = _projected_on_device(static, *arrays)
            return loss[None], (of_features, *(gradient[None] for gradient in others))

        split, whole = PartitionSpec(static.axes), PartitionSpec()
        losses, (of_features, *others) = jax.shard_map(
            local,
            in_specs=(split, whole, whole, split, split, whole, whole),
            out_specs=split,
            axis_names=set(static.axes),
            check_vma=False,
        )(*arrays)
        loss, gradients = losses.sum(), (of_features, *(part.sum(axis=0) for part in others))
    dtypes = features.dtype, kernel.dtype, bias.dtype
    return loss, tuple(
        gradient.astype(dtype) for gradient, dtype in zip(gradients, dtypes, strict=True)
    )


_projected_with_gradients.defjvp(_no_second_derivative)


def _projected_on_device(static, *arrays):
    fused = functools.partial(
        head_tpu.run, normalize=static.normalize, epsilon=_EPSILON, interpret=static.interpret
    )
    if static.interpret:
        return fused(*arrays)

    def one_after_the_other(features, kernel, bias, targets, mask, affine, scale):
        alone = dataclasses.replace(static, axes=())

        def loss(features, kernel, bias):
            predictions = project(features, kernel, bias, mask)
            return _loss(alone, predictions, targets, mask, affine, scale)

        value, gradients = jax.value_and_grad(loss, (0, 1, 2))(features, kernel, bias)
        of_features, *others = gradients
        return value, (of_features, *(gradient.astype(jnp.float32) for gradient in others))

    return jax.lax.platform_dependent(*arrays, default=one_after_the_other, tpu=fused)
