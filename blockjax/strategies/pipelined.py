"""Blocks spread over devices: batch n trains in one stage while batch n + 1 trains in the stage before it."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from blockjax.strategies.block import (
    Block,
    PyTree,
    block_key,
    block_update,
    join_states,
    only_block,
    prepared,
    split_states,
    with_extra,
    with_stem,
)
from blockjax.strategies.rows import kept_loop
from blockjax.strategies.state import TrainState, read_row, write_row

AXIS = "block"


def pipelined(
    blocks: Sequence[Block],
    *,
    stem: Callable[[PyTree, PyTree, jax.Array], PyTree] | None = None,
    prepare: Callable[[jax.Array, PyTree], tuple[PyTree, PyTree]] | None = None,
    mesh: Mesh | None = None,
) -> Callable[[TrainState, PyTree, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Makes a train step that trains several batches, in the numbers of `blockwise` one batch after another.

    The mesh's axis `block` has S stages of K / S consecutive blocks each. In every tick each stage trains its blocks on
    its batch, and one collective permute hands the streams on. No gradient comes back, so no stage ever waits for a
    later one and none works with stale parameters. n batches take n + S - 1 ticks: a stage is busy for n / (n + S - 1)
    of the time. Other axes of the mesh split the batch and the states as everywhere.

    Args:
      blocks: the same `Block` object for every block, `[block] * K`.
      stem: as for `blockwise`. Every stage computes it, since all run one program; what the first one makes counts.
      prepare: as for `blockwise`. Every stage computes it for its own batch, which is less than handing targets on.
      mesh: has the axis `block`; None takes that of `jax.set_mesh`.

    Returns:
      `(state, batch, rng) -> (state, metrics)`, to be jitted with the state donated. `batch` is
      `{"batches": PyTree with leading axes [n, B], "count": int32 scalar}`; batches from `count` on are left out. Every
      array of the stream has the batch as its leading axis. Each metric has shape [n, K], NaN from `count` on.

    Raises:
      ValueError: the blocks are not one object; or, when called, do not divide by the stages.
    """
    block, count = only_block(blocks, "pipelined"), len(blocks)

    def train_step(state, batch, rng):
        used = mesh or jax.sharding.get_abstract_mesh()
        stages = used.shape[AXIS]
        if count % stages:
            raise ValueError(f"{count} blocks do not divide by {stages} stages (mesh axis {AXIS})")
        run = jax.shard_map(
            _Stage(block, stem, prepare, stages, count // stages),
            mesh=used,
            in_specs=(
                PartitionSpec(),
                PartitionSpec(),
                PartitionSpec(AXIS),
                PartitionSpec(),
                PartitionSpec(),
                PartitionSpec(),
            ),
            out_specs=(PartitionSpec(), PartitionSpec(AXIS), PartitionSpec(None, AXIS)),
            axis_names={AXIS},
            check_vma=False,
        )
        stem_state, states, metrics = run(
            state.step, state.stem, state.blocks, state.fitted, batch, rng
        )
        # What stage s did with batch i, it did in tick i + s.
        batches = jnp.arange(len(jax.tree.leaves(batch["batches"])[0]))
        stage_of = jnp.arange(count) // (count // stages)
        ticks = batches[:, None] + stage_of[None]
        metrics = jax.tree.map(
            lambda of_ticks: jnp.where(
                (batches < batch["count"])[:, None],
                of_ticks[ticks, jnp.arange(count)[None]],
                jnp.nan,
            ),
            metrics,
        )
        step = state.step + batch["count"]
        return state.replace(step=step, stem=stem_state, blocks=states), metrics

    return train_step


class _Stage:
    """What every device of the axis `block` does; the arrays it is given are its own part."""

    def __init__(self, block, stem, prepare, stages, rows):
        self.block, self.stem, self.prepare = block, stem, prepare
        self.stages, self.rows = stages, rows

    def __call__(self, start, stem_state, states, fitted, batch, rng):
        batches, count = batch["batches"], batch["count"]
        stage = jax.lax.axis_index(AXIS)
        number = len(jax.tree.leaves(batches)[0])

        def batch_of(index):
            """Inputs and targets of a batch."""
            batch = jax.tree.map(
                lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), batches
            )
            return prepared(self.prepare, block_key(rng, start + index, 0), batch, fitted)

        def tick(carry, tick):
            stem_state, states, stream = carry
            index = tick - stage  # of this stage's batch
            is_real = (index >= 0) & (index < count)
            inputs, targets = batch_of(jnp.clip(index, 0, number - 1))
            stem_state, states, stream, metrics = self._update(
                stem_state, states, inputs, stream, targets, is_real, rng, start, index
            )
            return (stem_state, states, _hand_on(stream, self.stages)), metrics

        shapes = jax.eval_shape(lambda: self._first_stream(stem_state, batch_of(0)[0], rng))
        stream = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        (stem_state, states, _), metrics = jax.lax.scan(
            tick, (stem_state, states, stream), jnp.arange(number + self.stages - 1)
        )
        # Only the first stage's stem has trained.
        stem_state = jax.tree.map(
            lambda leaf: jax.lax.psum(jnp.where(stage == 0, leaf, jnp.zeros_like(leaf)), AXIS),
            stem_state,
        )
        return stem_state, states, metrics

    def _first_stream(self, stem_state, inputs, rng):
        if self.stem is None:
            return inputs
        return self.stem(with_extra(stem_state.params, stem_state.extra), inputs, rng)

    def _update(self, stem_state, states, inputs, stream, targets, is_real, rng, start, index):
        """Trains this stage's blocks, one after another; without a batch, states stay as they are."""
        stage = jax.lax.axis_index(AXIS)

        def key(row):
            return block_key(rng, start + index, stage * self.rows + row + 1)

        if self.stem is None:
            stream = _where(stage == 0, inputs, stream)
            first, joint = self.block, read_row(states, 0)
            begin = stream
        else:
            first, row = with_stem(self.block, self._entered), read_row(states, 0)
            joint = join_states(stem_state, row)
            begin = inputs, stream
        new, stream, first_metrics = block_update(first, joint, begin, targets, key(0))
        new = _where(is_real, new, joint)
        if self.stem is not None:
            stem_state, new = split_states(new)
        states = write_row(states, new, 0)

        def body(carry, row):
            states, stream = carry
            old = read_row(states, row)
            new, stream, metrics = block_update(self.block, old, stream, targets, key(row))
            return (write_row(states, _where(is_real, new, old), row), stream), metrics

        (states, stream), metrics = kept_loop(body, (states, stream), 1, self.rows, start)
        metrics = jax.tree.map(
            lambda one, rest: jnp.concatenate([one[None], rest]), first_metrics, metrics
        )
        return stem_state, states, stream, metrics

    def _entered(self, params, inputs_and_stream, rng):
        inputs, stream = inputs_and_stream
        is_first = jax.lax.axis_index(AXIS) == 0
        # In later stages the stem's gradients are zero, also for a batch with which it is not finite.
        params = _where(is_first, params, jax.lax.stop_gradient(params))
        return _where(is_first, self.stem(params, inputs, rng), stream)


def _where(condition, yes, no):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _hand_on(tree, stages):
    """Sends arrays to the next stage, as the bytes of one array: one collective permute."""
    leaves, structure = jax.tree.flatten(tree)
    size = len(leaves[0])
    flat = [jax.lax.bitcast_convert_type(leaf, jnp.uint8).reshape(size, -1) for leaf in leaves]
    sent = jax.lax.ppermute(
        jnp.concatenate(flat, axis=1), AXIS, [(i, i + 1) for i in range(stages - 1)]
    )
    received, offset = [], 0
    for leaf, part in zip(leaves, flat, strict=True):
        own = sent[:, offset : offset + part.shape[1]]
        offset += part.shape[1]
        wide = (*leaf.shape, leaf.dtype.itemsize) if leaf.dtype.itemsize > 1 else leaf.shape
        received.append(jax.lax.bitcast_convert_type(own.reshape(wide), leaf.dtype))
    return jax.tree.unflatten(structure, received)
