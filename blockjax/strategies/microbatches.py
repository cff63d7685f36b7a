"""A batch's gradient as a loop over parts of the batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def accumulated(gradient: Callable, microbatches: int) -> Callable:
    """Returns `gradient` as a loop over microbatches.

    Microbatch i takes every image whose index is i modulo their number: so a batch that is split over devices needs no
    transfers, as each device's images fall evenly into all microbatches.

    Args:
      gradient: `(params, stream, targets, rng) -> ((loss, (out, metrics)), grads)`; the leading axis of every array of
        `stream`, `targets` and `out` is the batch.
      microbatches: their number, by which the batch can be divided.

    Returns:
      The same function: the means of losses, metrics and gradients over microbatches, and `out` of the whole batch.
    """

    def whole(params, stream, targets, rng):
        cut = jax.tree.map(
            lambda leaf: leaf.reshape(-1, microbatches, *leaf.shape[1:]), (stream, targets)
        )

        def part(i):
            stream, targets = jax.tree.map(
                lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, axis=1, keepdims=False), cut
            )
            ((loss, (out, metrics)), grads) = gradient(
                params, stream, targets, jax.random.fold_in(rng, i)
            )
            return (loss, metrics, grads), out

        def body(total, i):
            value, out = part(i)
            return jax.tree.map(jnp.add, total, value), out

        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(part, 0)[0]
        )
        total, outs = jax.lax.scan(body, zeros, jnp.arange(microbatches))
        loss, metrics, grads = jax.tree.map(lambda leaf: leaf / microbatches, total)
        out = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1).reshape(-1, *leaf.shape[2:]), outs)
        return (loss, (out, metrics)), grads

    return whole
