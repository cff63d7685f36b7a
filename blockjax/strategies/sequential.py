"""One block after the other: each trains for its part of the steps, on what frozen blocks below make."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from blockjax.sharding.memory_spaces import to_device, to_host
from blockjax.strategies.block import (
    Block,
    PyTree,
    block_forward,
    block_key,
    block_update,
    join_states,
    only_block,
    prepared,
    split_states,
)
from blockjax.strategies.one_body import as_first, empty_stream, stem_after
from blockjax.strategies.state import TrainState, read_row, write_row


def trained_block(step: jax.Array | int, steps: int, blocks: int) -> jax.Array | int:
    """Returns which block (from 0) trains in a step (from 0) of a run of so many."""
    return step * blocks // steps


def sequential(
    blocks: Sequence[Block],
    *,
    stem: Callable[[PyTree, PyTree, jax.Array], PyTree],
    prepare: Callable[[jax.Array, PyTree], tuple[PyTree, PyTree]] | None = None,
    steps: int,
    in_host_memory: bool = False,
) -> Callable[[TrainState, PyTree, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Makes a train step that trains one block, see `trained_block`; blocks above it do not run.

    Args:
      blocks: the same `Block` object for every block, `[block] * K`.
      stem: as for `blockwise`.
      prepare: as for `blockwise`.
      steps: of the run.
      in_host_memory: whether the blocks' states live there, as under `streamed`.

    Returns:
      `(state, batch, rng) -> (state, metrics)`; metrics [K] are NaN but for the block that trains.

    Raises:
      ValueError: the blocks are not one object.
    """
    block, count = only_block(blocks, "schedule=sequential"), len(blocks)

    def train_step(state, batch, rng):
        inputs, targets = prepared(prepare, block_key(rng, state.step, 0), batch, state.fitted)
        chosen = trained_block(state.step, steps, count)

        def joint(index):
            return as_first(block, stem, index), block_key(rng, state.step, index + 1)

        def forward(row, stream, index):
            both, key = joint(index)
            return block_forward(both, join_states(state.stem, row), (inputs, stream), targets, key)

        def update(row, stream, index):
            both, key = joint(index)
            new, _, metrics = block_update(
                both, join_states(state.stem, row), (inputs, stream), targets, key
            )
            new_stem, row = split_states(new)
            return stem_after(index, new_stem, state.stem), row, metrics

        stream = empty_stream(stem, state.stem, inputs, rng)
        run = _from_host if in_host_memory else _in_place
        new_stem, states, metrics = run(forward, update, state, stream, chosen, count)
        is_chosen = jnp.arange(count) == chosen
        metrics = jax.tree.map(lambda value: jnp.where(is_chosen, value, jnp.nan), metrics)
        return state.replace(step=state.step + 1, stem=new_stem, blocks=states), metrics

    return train_step


def _in_place(forward, update, state, stream, chosen, count):
    def below(index, stream):
        return forward(read_row(state.blocks, index), stream, index)

    stream = jax.lax.fori_loop(0, chosen, below, stream)
    new_stem, row, metrics = update(read_row(state.blocks, chosen), stream, chosen)
    metrics = jax.tree.map(lambda value: jnp.broadcast_to(value, (count,)), metrics)
    return new_stem, write_row(state.blocks, row, chosen), metrics


def _from_host(forward, update, state, stream, chosen, count):
    """All rows pass through the device, whichever trains: a loop cannot choose among arrays in host memory."""
    example = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), state.blocks)
    shapes = jax.eval_shape(update, example, stream, chosen)[2]
    none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def one(carry, index_and_row):
        new_stem, stream = carry
        index, row = index_and_row[0], to_device(index_and_row[1])

        def is_below():
            return new_stem, forward(row, stream, index), row, none

        def is_chosen():
            new_stem, new, metrics = update(row, stream, index)
            return new_stem, stream, new, metrics

        def is_above():
            return new_stem, stream, row, none

        branch = jnp.clip(index - chosen + 1, 0, 2)
        new_stem, stream, row, metrics = jax.lax.switch(branch, [is_below, is_chosen, is_above])
        return (new_stem, stream), (to_host(row), metrics)

    (new_stem, _), (states, metrics) = jax.lax.scan(
        one, (state.stem, stream), (jnp.arange(count), state.blocks)
    )
    return new_stem, states, metrics
