"""What training carries from step to step: parameters and optimizer state of the stem and of every block."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

PyTree = Any


@flax.struct.dataclass
class BlockState:
    """All that a block (or the stem) owns: its parameters, its optimizer's state, and what else it keeps.

    `extra` is what the block carries from step to step without training it by gradients, such as a moving average of
    its parameters or a queue: a dict, or None.
    """

    params: PyTree
    opt_state: PyTree
    extra: PyTree = None


@flax.struct.dataclass
class TrainState:
    """The whole state of a run.

    Attributes:
      step: int32 scalar, the number of steps done.
      stem: the stem's `BlockState`, or None where there is no stem to train.
      blocks: a `BlockState` whose every leaf has a leading axis of size K, one row per block.
      head: that of all blocks, where they share one; None where each has its own.
      fitted: what the objective fitted to the data before training, such as a tokenizer; None where nothing is.
    """

    step: jax.Array
    stem: BlockState | None
    blocks: BlockState
    fitted: PyTree = None
    head: BlockState | None = None


def init_block_state(
    optimizer: optax.GradientTransformation, params: PyTree, extra: PyTree = None
) -> BlockState:
    """Returns the state of one block before its first update."""
    return BlockState(params=params, opt_state=optimizer.init(params), extra=extra)


def init_state(
    optimizer: optax.GradientTransformation, blocks: PyTree, stem: PyTree | None = None
) -> TrainState:
    """Returns the state before the first step.

    Args:
      optimizer: that of the blocks; each block, and the stem, gets a state of its own.
      blocks: parameters of all blocks, every leaf with a leading axis of size K.
      stem: the stem's parameters, if there is one.

    Examples:
      >>> state = init_state(optax.adam(1e-3), {"kernel": jnp.zeros((4, 8, 8))})
      >>> jax.tree.map(jnp.shape, state.blocks.params), int(state.step)
      ({'kernel': (4, 8, 8)}, 0)
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        stem=None if stem is None else init_block_state(optimizer, stem),
        blocks=jax.vmap(lambda params: init_block_state(optimizer, params))(blocks),
    )


def read_row(stacked: PyTree, index: jax.Array | int) -> PyTree:
    """Returns one block's part of stacked arrays."""
    return jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), stacked
    )


def write_row(stacked: PyTree, row: PyTree, index: jax.Array | int) -> PyTree:
    """Returns stacked arrays with one block's part replaced, in place inside a loop."""
    return jax.tree.map(
        lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new, index, 0), stacked, row
    )
