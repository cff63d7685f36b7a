"""One head for all blocks: each reads it, and its gradients are summed until the last block has passed."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from blockjax.strategies.block import Block, PyTree
from blockjax.strategies.state import BlockState


def lending(block: Block) -> Block:
    """Returns a block that reads a head which all blocks share, and adds its gradient to a sum; see `lent`."""
    optimizer = block.optimizer

    def update(grads, states, params):
        if "head" not in grads:  # the stem's
            return optimizer.update(grads, states, params)
        inner, total = states
        own = [
            {name: part for name, part in of.items() if name != "head"} for of in (grads, params)
        ]
        updates, inner = optimizer.update(own[0], inner, own[1])
        total = jax.tree.map(jnp.add, total, grads["head"])
        return {**updates, "head": jax.tree.map(jnp.zeros_like, total)}, (inner, total)

    return dataclasses.replace(
        block, optimizer=optax.GradientTransformation(optimizer.init, update)
    )


def lent(state: BlockState, head: BlockState | None, total: PyTree) -> BlockState:
    """Returns a block's state with the shared head in it, and the sum of the head's gradients so far.

    Without a shared head (None) it is the state as it is, and `returned` gives it back as it is.
    """
    if head is None:
        return state
    return BlockState({**state.params, "head": head.params}, (state.opt_state, total), state.extra)


def returned(state: BlockState, head: BlockState | None) -> tuple[BlockState, PyTree]:
    """Undoes `lent`: returns the block's own state, and the sum with its part."""
    if head is None:
        return state, None
    own = {name: part for name, part in state.params.items() if name != "head"}
    inner, total = state.opt_state
    return BlockState(own, inner, state.extra), total


def first_sum(head: BlockState | None) -> PyTree:
    """Returns the sum of a shared head's gradients before the first block."""
    return None if head is None else jax.tree.map(jnp.zeros_like, head.params)


def trained_head(
    block: Block, head: BlockState | None, total: PyTree, blocks: int
) -> BlockState | None:
    """Returns the shared head after an update with the mean of the blocks' gradients."""
    if head is None:
        return None
    grads = jax.tree.map(lambda leaf: leaf / blocks, total)
    updates, opt_state = block.optimizer.update(
        {"head": grads}, head.opt_state, {"head": head.params}
    )
    params = optax.apply_updates({"head": head.params}, updates)
    return BlockState(params["head"], opt_state, head.extra)
