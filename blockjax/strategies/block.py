"""The heart of blockjax: one gradient-isolated update of one block. It knows neither ViT nor any objective."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from blockjax.state import BlockState

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Block:
    """What a block computes and how it learns. Blocks that are one object share one compiled loop body.

    Attributes:
      forward: `(params, stream, rng) -> stream`.
      loss: `(params, stream, targets, rng) -> (scalar, metrics)`, the local loss on the stream that leaves the block;
        `metrics` is a dict of scalars.
      optimizer: any optax transformation; it sees this block's gradients only.
      clip: largest global norm of this block's gradients; None leaves them alone.
      enter: `stream -> stream`, applied before the first of a run of such blocks, where the stream changes its shape
        (a masking schedule drops tokens there); None where it does not.
    """

    forward: Callable[[PyTree, PyTree, jax.Array], PyTree]
    loss: Callable[[PyTree, PyTree, PyTree, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
    optimizer: optax.GradientTransformation
    clip: float | None = None
    enter: Callable[[PyTree], PyTree] | None = None


def block_update(
    block: Block, state: BlockState, stream: PyTree, targets: PyTree, rng: jax.Array
) -> tuple[BlockState, PyTree, dict[str, jax.Array]]:
    """Trains one block on one batch.

    The gradient stops at the stream that comes in, and only this block's parameters are differentiated, so nothing but
    activations crosses a block boundary. The stream that goes out was made by the parameters before their update.

    Args:
      block: what the block computes and how it learns.
      state: its parameters and optimizer state.
      stream: what the block before it sent on.
      targets: what the objective made of the batch, shared by all blocks.
      rng: a key for this step and block.

    Returns:
      The new state, the outgoing stream, and metrics: `loss`, `gradient_norm` (before clipping) and the loss's own.
    """
    stream = jax.lax.stop_gradient(stream)
    forward_rng, loss_rng = jax.random.split(rng)

    def local_loss(params):
        out = block.forward(params, stream, forward_rng)
        loss, metrics = block.loss(params, out, targets, loss_rng)
        return loss, (out, metrics)

    (loss, (out, metrics)), grads = jax.value_and_grad(local_loss, has_aux=True)(state.params)
    norm = optax.tree.norm(grads)
    if block.clip is not None:
        grads, _ = optax.clip_by_global_norm(block.clip).update(grads, optax.EmptyState())
    updates, opt_state = block.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {**metrics, "loss": loss, "gradient_norm": norm}
    return BlockState(params, opt_state), out, metrics


def with_stem(block: Block, stem: Callable[[PyTree, PyTree, jax.Array], PyTree]) -> Block:
    """Returns block 1 as it trains: the stem in front of `block`, under one local loss.

    Its parameters and optimizer states are `(stem, block)` pairs; the two are clipped together and updated each with
    its own optimizer state, so that block 1's part has the same structure as every other block's.
    """

    def forward(params, inputs, rng):
        stem_params, block_params = params
        stem_rng, block_rng = jax.random.split(rng)
        return block.forward(block_params, stem(stem_params, inputs, stem_rng), block_rng)

    def loss(params, stream, targets, rng):
        return block.loss(params[1], stream, targets, rng)

    def init(params):
        return tuple(block.optimizer.init(part) for part in params)

    def update(grads, opt_states, params=None):
        parts = params if params is not None else (None, None)
        updates = [
            block.optimizer.update(*part) for part in zip(grads, opt_states, parts, strict=True)
        ]
        return tuple(u for u, _ in updates), tuple(s for _, s in updates)

    return Block(forward, loss, optax.GradientTransformation(init, update), block.clip)
