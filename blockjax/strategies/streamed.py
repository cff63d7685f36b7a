"""Block states in host memory: one program, in which each passes through the device for its own update only."""

from collections.abc import Callable, Sequence

import jax

from blockjax.strategies.block import (
    Block,
    PyTree,
    block_key,
    block_update,
    join_states,
    only_block,
    prepared,
    split_states,
)
from blockjax.strategies.one_body import as_first, empty_stream, stem_after
from blockjax.strategies.rows import streamed_rows
from blockjax.strategies.shared_head import (
    first_sum,
    lending,
    lent,
    returned,
    trained_head,
)
from blockjax.strategies.state import TrainState


def streamed(
    blocks: Sequence[Block],
    *,
    stem: Callable[[PyTree, PyTree, jax.Array], PyTree] | None = None,
    prepare: Callable[[jax.Array, PyTree], tuple[PyTree, PyTree]] | None = None,
    sweep: Callable[[TrainState, PyTree], dict[str, PyTree]] | None = None,
) -> Callable[[TrainState, PyTree, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Makes the train step of `blockwise`, with the same numbers, for block states that live in host memory.

    Device memory holds the stem, the batch and about two blocks' states, however many blocks there are; each step moves
    every state to the device and back.

    Args:
      blocks: the same `Block` object for every block, `[block] * K`.
      stem: as for `blockwise`.
      prepare: as for `blockwise`.
      sweep: as for `blockwise`; each block's parameters come to the device once more.

    Returns:
      `(state, batch, rng) -> (state, metrics)`, to be jitted with the state donated and `state.blocks` in the memory
      kinds of `host_memory_kinds` in both `in_shardings` and `out_shardings`.

    Raises:
      ValueError: the blocks are not one object.
    """
    block, count = only_block(blocks, "streamed"), len(blocks)

    def train_step(state, batch, rng):
        inputs, targets = prepared(prepare, block_key(rng, state.step, 0), batch, state.fitted)
        if sweep is not None:
            targets = {**targets, **sweep(state, inputs)}

        head = state.head
        own = block if head is None else lending(block)

        def body(carry, row, index, _):
            stem_state, stream, total = carry
            is_last = index == count - 1
            row = lent(row, head, total, is_last)
            block_rng = block_key(rng, state.step, index + 1)
            if stem is None:
                row, stream, metrics = block_update(own, row, stream, targets, block_rng)
                row, total = returned(own, row, head, total, is_last)
                return (stem_state, stream, total), row, metrics

            # To choose between two whole updates would cost memory: a branch cannot update a block's state in place.
            joint, stream, metrics = block_update(
                as_first(own, stem, index),
                join_states(stem_state, row),
                (inputs, stream),
                targets,
                block_rng,
            )
            updated, row = split_states(joint)
            row, total = returned(own, row, head, total, is_last)
            stem_state = stem_after(index, updated, stem_state)
            return (stem_state, stream, total), row, metrics

        stream = inputs if stem is None else empty_stream(stem, state.stem, inputs, rng)
        (stem_state, _, total), states, metrics = streamed_rows(
            body, (state.stem, stream, first_sum(head)), state.blocks, count
        )
        head = trained_head(block, head, total, count, state.step)
        new = state.replace(step=state.step + 1, stem=stem_state, blocks=states, head=head)
        return new, metrics

    return train_step
