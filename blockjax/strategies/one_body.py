"""For loops with one body: every block trains as block 1 does, and only there the stem is more than a dead branch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from blockjax.strategies.block import Block, PyTree, with_extra, with_stem
from blockjax.strategies.state import BlockState


def as_first(
    block: Block, stem: Callable[[PyTree, PyTree, jax.Array], PyTree], index: jax.Array
) -> Block:
    """Returns the block of this index (from 0) in the form of block 1, see `with_stem`.

    What comes in is a pair, the objective's inputs and the stream: block 1 takes the first and the others the second.
    (The inputs do not come from outside, so that microbatches cut both.)
    """

    def entered(stem_params, inputs_and_stream, rng):
        inputs, stream = inputs_and_stream
        return jax.lax.cond(index == 0, lambda: stem(stem_params, inputs, rng), lambda: stream)

    return with_stem(block, entered)


def stem_after(index: jax.Array, updated: BlockState, before: BlockState) -> BlockState:
    """Returns the stem's state after the block of this index: updated by block 1 only."""
    return jax.tree.map(lambda new, old: jnp.where(index == 0, new, old), updated, before)


def empty_stream(
    stem: Callable[[PyTree, PyTree, jax.Array], PyTree],
    state: BlockState,
    inputs: PyTree,
    rng: jax.Array,
) -> PyTree:
    """Returns zeros of the form of the first stream."""
    shape = jax.eval_shape(stem, with_extra(state.params, state.extra), inputs, rng)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)
