"""The baseline with layers in host memory: end to end, and on the device no more than one layer at a time."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from blockjax.sharding.memory_spaces import to_device, to_host
from blockjax.strategies.block import (
    Block,
    PyTree,
    block_backward,
    block_forward,
    block_key,
    cotangent_of,
    prepared,
)
from blockjax.strategies.rows import streamed_rows
from blockjax.strategies.state import BlockState, TrainState


def streamed_end_to_end(
    block: Block,
    layers: int,
    *,
    stem: Callable[[PyTree, PyTree, jax.Array], PyTree],
    prepare: Callable[[jax.Array, PyTree], tuple[PyTree, PyTree]] | None = None,
) -> Callable[[TrainState, PyTree, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Makes the train step of `end_to_end`, with the same numbers, for layers' states that live in host memory.

    Two passes, as in L2L (arXiv 2002.05645) and ZeRO-Infinity (arXiv 2104.07857): forward, each layer's parameters come
    to the device and its input goes to host memory; back, input and state come, the layer runs again, and is updated
    before the next gradient is made. So parameters cross the link twice, optimizer states once each way, inputs once
    each way. Gradients are never there together, hence no clipping by their global norm.

    Args:
      block: what a layer computes, and the loss at the end, of parameters {"layers": leaves [1, ...]} and {"head"}.
      layers: their number.
      stem: as for `blockwise`.
      prepare: as for `blockwise`.

    Returns:
      `(state, batch, rng) -> (state, metrics)`, to be jitted with the state donated and `state.blocks` in the memory
      kinds of `host_memory_kinds` in both `in_shardings` and `out_shardings`. The state has a row for each layer, and
      the head in `state.head`. Metrics are those of `end_to_end`, of shape [1].
    """

    def no_loss(params, stream, targets, rng):
        del params, stream, targets, rng
        return jnp.zeros(()), {}

    layer = dataclasses.replace(block, loss=no_loss)
    first = dataclasses.replace(layer, forward=stem)
    last = dataclasses.replace(block, forward=lambda params, stream, rng: stream)

    def train_step(state, batch, rng):
        inputs, targets = prepared(prepare, block_key(rng, state.step, 0), batch, state.fitted)
        key = block_key(rng, state.step, 1)

        def forward(stream, params, index, _):
            del index
            out = block_forward(layer, BlockState(params, None), stream, targets, key)
            return out, None, to_host(stream)

        def backward(cotangent, row, index, stream):
            del index
            row, cotangent, metrics = block_backward(
                layer, row, to_device(stream), targets, key, cotangent
            )
            return cotangent, row, metrics["gradient_norm"]

        stream = block_forward(first, state.stem, inputs, targets, key)
        stream, _, streams = streamed_rows(forward, stream, state.blocks.params, layers)
        head = BlockState({"head": state.head.params}, state.head.opt_state)
        head, cotangent, metrics = block_backward(
            last, head, stream, targets, key, cotangent_of(stream)
        )
        cotangent, states, norms = streamed_rows(
            backward, cotangent, state.blocks, layers, streams, reverse=True
        )
        stem_state, _, of_stem = block_backward(first, state.stem, inputs, targets, key, cotangent)
        norms = jnp.concatenate(
            [norms, jnp.stack([metrics["gradient_norm"], of_stem["gradient_norm"]])]
        )
        metrics = {**metrics, "gradient_norm": jnp.sqrt(jnp.sum(norms**2))}
        new = state.replace(
            step=state.step + 1,
            stem=stem_state,
            blocks=states,
            head=BlockState(head.params["head"], head.opt_state),
        )
        return new, jax.tree.map(lambda value: value[None], metrics)

    return train_step
