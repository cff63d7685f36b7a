"""Blocks whose boundaries lie in their middle: the upper half of each learns with the lower half of the next."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from blockjax.strategies.block import Block, PyTree, shared


def shifted(
    block: Block, halves: Callable[[PyTree], tuple[PyTree, PyTree]], is_last: jax.Array
) -> Block:
    """Returns `block` with its local loss in its middle, where the gradient from above stops.

    So a gradient that is passed on from block to block, as `backpropagated` does, trains the upper half of one and the
    lower half of the next on the next one's loss. The last block keeps its loss at its end, else its upper half would
    have none: the last part is half a block longer than the others, and the first, half a block, shorter.

    Args:
      block: as it trains on boundaries at its ends.
      halves: `params -> (lower, upper)`, with which `block.forward` runs one half of the layers.
      is_last: whether this is the last block.
    """

    def split(params, stream, rng):
        lower, upper = halves(params)
        middle = block.forward(lower, stream, rng)
        # The last block's gradient passes its middle.
        through = shared(middle, jnp.asarray(is_last, jnp.float32))
        end = block.forward(upper, through, jax.random.fold_in(rng, 1))
        read = jax.tree.map(lambda end, middle: jnp.where(is_last, end, middle), end, middle)
        return read, end

    return dataclasses.replace(block, split=split)
