"""One head for all blocks, trained by all or by the last.

Each block reads it, and its gradients are summed until the last block has passed. With `Block.refresh` only those of
the last block count, and the others read a copy of it, as in SOLO (arXiv 2609.35440).
"""

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


def lent(
    state: BlockState,
    head: BlockState | None,
    total: PyTree,
    is_last: jax.Array | bool,
) -> BlockState:
    """Returns a block's state with the shared head or its copy in it, and the sum of the head's gradients so far.

    Without a shared head (None) it is the state as it is, and `returned` gives it back as it is.
    """
    if head is None:
        return state
    params = head.params
    if head.extra is not None:
        params = jax.tree.map(
            lambda own, copy: jnp.where(is_last, own, copy), params, head.extra["copy"]
        )
    return BlockState({**state.params, "head": params}, (state.opt_state, total), state.extra)


def returned(
    block: Block,
    state: BlockState,
    head: BlockState | None,
    before: PyTree,
    is_last: jax.Array | bool,
) -> tuple[BlockState, PyTree]:
    """Undoes `lent`: returns the block's own state, and the sum with its part, `before` that without it."""
    if head is None:
        return state, None
    own = {name: part for name, part in state.params.items() if name != "head"}
    inner, total = state.opt_state
    if block.refresh is not None:
        total = jax.tree.map(lambda new, old: jnp.where(is_last, new, old), total, before)
    return BlockState(own, inner, state.extra), total


def first_sum(head: BlockState | None) -> PyTree:
    """Returns the sum of a shared head's gradients before the first block."""
    return None if head is None else jax.tree.map(jnp.zeros_like, head.params)


def trained_head(
    block: Block, head: BlockState | None, total: PyTree, blocks: int, step: jax.Array
) -> BlockState | None:
    """Returns the shared head after the update of a step (from 0): with the blocks' mean gradient, or the last's."""
    if head is None:
        return None
    count = blocks if block.refresh is None else 1
    grads = jax.tree.map(lambda leaf: leaf / count, total)
    updates, opt_state = block.optimizer.update(
        {"head": grads}, head.opt_state, {"head": head.params}
    )
    params = optax.apply_updates({"head": head.params}, updates)["head"]
    extra = head.extra
    if extra is not None:
        is_due = (step + 1) % block.refresh == 0
        copy = jax.tree.map(lambda new, old: jnp.where(is_due, new, old), params, extra["copy"])
        extra = {**extra, "copy": copy}
    return BlockState(params, opt_state, extra)
