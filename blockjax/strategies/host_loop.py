"""`streamed` for devices that address no host memory: one compiled program for each block's update, and copies."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from blockjax.strategies.block import (
    Block,
    PyTree,
    block_key,
    block_update,
    join_states,
    only_block,
    prepared,
    split_states,
    with_stem,
)
from blockjax.strategies.state import TrainState, read_row, write_row


@dataclasses.dataclass(frozen=True)
class HostLoop:
    """A compiled train step with the numbers of `streamed`, for block states on the CPU backend.

    While the device updates a block, the next one's state is on its way to it and the last one's on its way back: so
    device memory holds three blocks' states, however many blocks there are.

    Attributes:
      first: the program of block 1, with the stem and the objective's part.
      later: that of any other block.
      count: blocks (K).
      shardings: where each array of the state lives between steps.
      row_shardings: where those of one block live on the devices.
    """

    first: jax.stages.Compiled
    later: jax.stages.Compiled
    count: int
    shardings: TrainState
    row_shardings: PyTree

    @property
    def input_formats(self) -> tuple[tuple[TrainState]]:
        """Where the state is taken, as `jax.stages.Compiled` says it."""
        return ((self.shardings,),)

    def __call__(
        self, state: TrainState, batch: PyTree, rng: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Takes a step; the state is donated. Metrics have shape [K]."""
        host = jax.tree.leaves(self.shardings.blocks)[0]
        stacked, stem_state, collected = state.blocks, state.stem, []
        row = self._row(stacked, 0)
        for index in range(self.count):
            if index == 0:
                stem_state, row, stream, targets, metrics = self.first(
                    stem_state, row, state.step, state.fitted, batch, rng
                )
            else:
                row, stream, metrics = self.later(
                    row, stream, targets, state.step, np.int32(index), rng
                )
            # Everything up to here only was dispatched: these copies run while the device computes.
            updated, row = row, self._row(stacked, index + 1) if index + 1 < self.count else None
            # Waits for the block before, else all blocks' states would be sent to the device at once.
            jax.block_until_ready(stacked)
            stacked = _write(stacked, jax.device_put(updated, host), index)
            collected.append(metrics)
        metrics = jax.tree.map(lambda *values: jnp.stack(values), *collected)
        return state.replace(step=state.step + 1, stem=stem_state, blocks=stacked), metrics

    def _row(self, stacked, index):
        return jax.device_put(_read(stacked, index), self.row_shardings)


_read = jax.jit(read_row)
_write = jax.jit(write_row, donate_argnums=0)


def host_loop(
    blocks: Sequence[Block],
    *,
    stem: Callable[[PyTree, PyTree, jax.Array], PyTree] | None = None,
    prepare: Callable[[jax.Array, PyTree], tuple[PyTree, PyTree]] | None = None,
) -> tuple[Callable, Callable]:
    """Makes the two functions of which a `HostLoop` consists.

    Args:
      blocks: the same `Block` object for every block, `[block] * K`.
      stem: as for `blockwise`.
      prepare: as for `blockwise`.

    Returns:
      `(stem_state, row, step, fitted, batch, rng) -> (stem_state, row, stream, targets, metrics)` for block 1, and
      `(row, stream, targets, step, index, rng) -> (row, stream, metrics)` for the block of this index, from 0; a row is
      a block's `BlockState`.

    Raises:
      ValueError: the blocks are not one object.
    """
    block = only_block(blocks, "streamed")

    def first(stem_state, row, step, fitted, batch, rng):
        inputs, targets = prepared(prepare, block_key(rng, step, 0), batch, fitted)
        rng = block_key(rng, step, 1)
        if stem is None:
            row, stream, metrics = block_update(block, row, inputs, targets, rng)
        else:
            joint, stream, metrics = block_update(
                with_stem(block, stem), join_states(stem_state, row), inputs, targets, rng
            )
            stem_state, row = split_states(joint)
        return stem_state, row, stream, targets, metrics

    def later(row, stream, targets, step, index, rng):
        return block_update(block, row, stream, targets, block_key(rng, step, index + 1))

    return first, later
