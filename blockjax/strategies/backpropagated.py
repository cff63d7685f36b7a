"""Steps in which gradients cross boundaries: all of them, or one."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from blockjax.strategies.block import (
    Block,
    PyTree,
    block_backward,
    block_forward,
    block_key,
    cotangent_of,
    join_states,
    only_block,
    prepared,
    split_states,
)
from blockjax.strategies.halves import shifted
from blockjax.strategies.one_body import as_first, empty_stream, stem_after
from blockjax.strategies.rows import rows_in_place, streamed_rows
from blockjax.strategies.state import TrainState


def backpropagated(
    blocks: Sequence[Block],
    *,
    stem: Callable[[PyTree, PyTree, jax.Array], PyTree],
    prepare: Callable[[jax.Array, PyTree], tuple[PyTree, PyTree]] | None = None,
    sweep: Callable[[TrainState, PyTree], dict[str, PyTree]] | None = None,
    every_loss: bool = False,
    one_boundary: bool = False,
    halves: Callable[[PyTree], tuple[PyTree, PyTree]] | None = None,
    in_host_memory: bool = False,
) -> Callable[[TrainState, PyTree, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Makes a train step that goes forward through all blocks and keeps their K streams, then back through them.

    Each block's activations are computed again on the way back, and it is updated there. So the step needs one block's
    activations and gradients, and K streams; a forward pass more than global backpropagation without recomputing, as
    much as with it.

    Args:
      blocks: the same `Block` object for every block, `[block] * K`.
      stem: as for `blockwise`.
      prepare: as for `blockwise`.
      sweep: as for `blockwise`.
      every_loss: whether every local loss is backpropagated, or the last block's only; then the other heads learn, from
        the stream as it is.
      one_boundary: whether a gradient stops after the block below the one of its loss: windows of two blocks, as in
        LoCo (arXiv 2008.01342) and HPFF (arXiv 2407.05638). It costs a second pass back through each block's layers.
      halves: `params -> (lower, upper)`, the parameters of a block's halves; boundaries then lie between them, see
        `shifted`.
      in_host_memory: whether the blocks' states live there, as under `streamed`.

    Returns:
      `(state, batch, rng) -> (state, metrics)`, as `blockwise` and `streamed` return it.

    Raises:
      ValueError: the blocks are not one object.
    """
    block, count = only_block(blocks, "backpropagation across blocks"), len(blocks)

    def train_step(state, batch, rng):
        inputs, targets = prepared(prepare, block_key(rng, state.step, 0), batch, state.fitted)
        if sweep is not None:
            targets = {**targets, **sweep(state, inputs)}

        def joint(index):
            own = block if halves is None else shifted(block, halves, index == count - 1)
            return as_first(own, stem, index), block_key(rng, state.step, index + 1)

        def forward(stream, row, index, _):
            both, key = joint(index)
            out = block_forward(both, join_states(state.stem, row), (inputs, stream), targets, key)
            return out, None, stream

        def backward(carry, row, index, stream):
            stem_state, cotangent = carry
            both, key = joint(index)
            updated, of_streams, metrics = block_backward(
                both,
                join_states(state.stem, row),
                (inputs, stream),
                targets,
                key,
                cotangent,
                share=1.0 if every_loss else (index == count - 1).astype(jnp.float32),
                passes_on=not one_boundary,
            )
            updated, row = split_states(updated)
            stem_state = stem_after(index, updated, stem_state)
            # Those of the inputs come first.
            return (stem_state, of_streams[-len(cotangent) :]), row, metrics

        first = empty_stream(stem, state.stem, inputs, rng)
        loop = streamed_rows if in_host_memory else rows_in_place
        _, _, streams = loop(forward, first, state.blocks, count)
        carry = state.stem, cotangent_of(first)
        (stem_state, _), states, metrics = loop(
            backward, carry, state.blocks, count, streams, reverse=True
        )
        return state.replace(step=state.step + 1, stem=stem_state, blocks=states), metrics

    return train_step
