"""A block stays for M batches: it trains on one after another before the next block does."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from blockjax.sharding.memory_spaces import to_device, to_host
from blockjax.sharding.mesh import row_by_row
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
from blockjax.strategies.rows import rows_in_place, streamed_rows
from blockjax.strategies.state import TrainState, read_row, write_row


def staying(
    blocks: Sequence[Block],
    *,
    stem: Callable[[PyTree, PyTree, jax.Array], PyTree],
    prepare: Callable[[jax.Array, PyTree], tuple[PyTree, PyTree]] | None = None,
    gather: Callable[[PyTree], PyTree] = lambda row: row,
    in_host_memory: bool = False,
    streams_in_host_memory: bool = False,
) -> Callable[[TrainState, PyTree, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Makes a train step of M batches, in the numbers of `blockwise` one batch after another.

    No gradient comes back to a block from later ones, so it may train on all M batches before the next one begins: that
    one finds what it would have found, the streams that each batch left before the update on it. So a block's state is
    fetched once for M batches, from host memory or from the other devices that hold parts of it. In exchange M streams
    are kept, and every block makes inputs and targets of each batch anew.

    Args:
      blocks: the same `Block` object for every block, `[block] * K`.
      stem: as for `blockwise`.
      prepare: as for `blockwise`.
      gather: applied to a block's state when it begins its stay, after each of its updates, and when it goes; and to
        the stem's.
      in_host_memory: whether the blocks' states live there, as under `streamed`.
      streams_in_host_memory: whether the M streams wait there, and one at a time is on the device.

    Returns:
      `(state, batch, rng) -> (state, metrics)`, to be jitted with the state donated. `batch` is
      `{"batches": PyTree with leading axes [M, B], "count": int32 scalar}`; batches from `count` on are left out. Every
      array of the stream has the batch as its leading axis. Each metric has shape [M, K], NaN from `count` on.

    Raises:
      ValueError: the blocks are not one object.
    """
    block, count = only_block(blocks, "a block that stays for several batches"), len(blocks)

    def train_step(state, batch, rng):
        batches, taken = batch["batches"], batch["count"]
        number = len(jax.tree.leaves(batches)[0])

        def batch_of(index):
            key = block_key(rng, state.step + index, 0)
            one = jax.tree.map(row_by_row, read_row(batches, index))
            return prepared(prepare, key, one, state.fitted)

        def visit(carry, row, block_index, _):
            stem_state, streams = carry

            def one(carry, index_and_stream):
                (stem_state, row, streams), (index, stream) = carry, index_and_stream
                stream = read_row(streams, index) if stream is None else to_device(stream)
                inputs, targets = batch_of(index)
                before = join_states(stem_state, row)
                updated, stream, metrics = block_update(
                    as_first(block, stem, block_index),
                    before,
                    (inputs, stream),
                    targets,
                    block_key(rng, state.step + index, block_index + 1),
                )
                is_taken = index < taken
                # Selected as the update is made: a branch could not update the state in place.
                after = jax.tree.map(
                    lambda new, old: jnp.where(is_taken, new, old), updated, before
                )
                new_stem, row = split_states(after)
                stem_state = gather(stem_after(block_index, new_stem, stem_state))
                metrics = jax.tree.map(lambda value: jnp.where(is_taken, value, jnp.nan), metrics)
                row = gather(row)
                if streams_in_host_memory:
                    return (stem_state, row, None), (metrics, to_host(stream))
                return (stem_state, row, write_row(streams, stream, index)), (metrics, None)

            waiting = streams if streams_in_host_memory else None
            held = None if streams_in_host_memory else streams
            (stem_state, row, held), (metrics, waiting) = jax.lax.scan(
                one, (stem_state, gather(row), held), (jnp.arange(number), waiting)
            )
            streams = waiting if streams_in_host_memory else held
            return (gather(stem_state), streams), gather(row), metrics

        inputs, _ = jax.eval_shape(batch_of, 0)
        stream = empty_stream(stem, state.stem, inputs, rng)
        if streams_in_host_memory:
            streams = jax.lax.map(lambda _: to_host(stream), jnp.arange(number))
        else:
            streams = jax.tree.map(
                lambda leaf: jnp.zeros((number, *leaf.shape), leaf.dtype), stream
            )
        loop = streamed_rows if in_host_memory else rows_in_place
        carry = gather(state.stem), streams
        (stem_state, _), states, metrics = loop(visit, carry, state.blocks, count)
        metrics = jax.tree.map(jnp.transpose, metrics)
        stem_state = gather(stem_state)
        return state.replace(step=state.step + taken, stem=stem_state, blocks=states), metrics

    return train_step
