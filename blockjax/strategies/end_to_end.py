"""The baseline: the same encoder as a single block, so one loss at the end is backpropagated through every layer."""

from collections.abc import Callable

import jax

from blockjax.strategies.block import (
    Block,
    PyTree,
    block_key,
    block_update,
    join_states,
    prepared,
    split_states,
    with_stem,
)
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

    def train_step(state, batch, rng):
        inputs, targets = prepared(prepare, block_key(rng, state.step, 0), batch, state.fitted)
        row, key = jax.tree.map(lambda leaf: leaf[0], state.blocks), block_key(rng, state.step, 1)
        stem_state = state.stem
        if stem is None:
            row, _, metrics = block_update(block, row, inputs, targets, key)
        else:
            joint = join_states(stem_state, row)
            joint, _, metrics = block_update(with_stem(block, stem), joint, inputs, targets, key)
            stem_state, row = split_states(joint)
        row, metrics = jax.tree.map(lambda leaf: leaf[None], (row, metrics))
        return state.replace(step=state.step + 1, stem=stem_state, blocks=row), metrics

    return train_step
