"""The baseline: the same encoder as a single block, so one loss at the end is backpropagated through every layer."""

from collections.abc import Callable

import jax

from blockjax.strategies.block import Block, PyTree
from blockjax.strategies.blockwise import blockwise
from blockjax.strategies.state import TrainState


def end_to_end(
    block: Block,
    *,
    stem: Callable[[PyTree, PyTree, jax.Array], PyTree] | None = None,
    prepare: Callable[[jax.Array, PyTree], tuple[PyTree, PyTree]] | None = None,
) -> Callable[[TrainState, PyTree, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Makes the train step of global backpropagation: block-wise training with one block that holds all layers.

    Args and result are those of `blockwise`; the state has one row, and so has every metric.
    """
    return blockwise([block], stem=stem, prepare=prepare)
