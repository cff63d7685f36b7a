"""The default strategy: one program, an XLA loop over the stacked block states, each updated in place."""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

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
from blockjax.strategies.rows import kept_loop
from blockjax.strategies.shared_head import (
    first_sum,
    lending,
    lent,
    returned,
    trained_head,
)
from blockjax.strategies.state import TrainState, read_row, write_row


def blockwise(
    blocks: Sequence[Block],
    *,
    stem: Callable[[PyTree, PyTree, jax.Array], PyTree] | None = None,
    prepare: Callable[[jax.Array, PyTree], tuple[PyTree, PyTree]] | None = None,
    sweep: Callable[[TrainState, PyTree], dict[str, PyTree]] | None = None,
) -> Callable[[TrainState, PyTree, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Makes a train step in which every block learns from its own local loss only.

    Consecutive blocks that are the same `Block` object run in one loop with their states in the carry: so only one
    block's activations and gradients exist at a time, and states are updated in place. (A Python loop over blocks
    would let XLA run every forward first and keep all activations; states as scanned inputs and outputs would exist
    twice.) Blocks with `Block`s of their own, as under a masking schedule, get a loop each.

    Args:
      blocks: one `Block` per block, first to last; `[block] * K` for equal ones. Their states must have equal shapes.
      stem: `(params, inputs, rng) -> stream`; it trains with block 1. None: inputs are the first stream.
      prepare: `(rng, batch) -> (inputs, targets)`, the objective's part. None: the batch is that pair already.
      sweep: `(state, inputs) -> targets`, more of them (a dict), made of all blocks before their updates.

    Returns:
      `(state, batch, rng) -> (state, metrics)`, to be jitted with the state donated. `rng` is the run's key: step and
      block are folded in here. Each metric has shape [K], a value per block.

    Examples:
      Three blocks of one dense layer each, with a readout of their own:

      >>> import optax
      >>> from blockjax.strategies import init_state
      >>> def forward(params, x, rng):
      ...     return jnp.tanh(x @ params["layer"])
      >>> def loss(params, x, target, rng):
      ...     return jnp.mean((x @ params["readout"] - target) ** 2), {}
      >>> def init(key):
      ...     return {name: jax.random.normal(key, (8, 8)) / 3 for name in ("layer", "readout")}
      >>> block = Block(forward, loss, optax.adam(1e-2))
      >>> state = init_state(block.optimizer, jax.vmap(init)(jax.random.split(jax.random.key(0), 3)))
      >>> train_step = jax.jit(blockwise([block] * 3), donate_argnums=0)
      >>> x = jax.random.normal(jax.random.key(1), (16, 8))
      >>> state, first = train_step(state, (x, jnp.sin(x)), jax.random.key(2))
      >>> for _ in range(50):
      ...     state, last = train_step(state, (x, jnp.sin(x)), jax.random.key(2))
      >>> int(state.step), last["loss"].shape, bool((last["loss"] < first["loss"]).all())
      (51, (3,), True)
    """
    blocks = tuple(blocks)

    def train_step(state, batch, rng):
        def key(block):
            return block_key(rng, state.step, block)

        inputs, targets = prepared(prepare, key(0), batch, state.fitted)
        if sweep is not None:
            targets = {**targets, **sweep(state, inputs)}
        stem_state, states, stream = state.stem, state.blocks, inputs
        head, total, last = state.head, first_sum(state.head), len(blocks) - 1
        collected = []
        start = 0
        if stem is not None:
            with jax.named_scope("block_1"):
                stem_state, states, stream, total, metrics = _update_first(
                    blocks[0],
                    stem,
                    stem_state,
                    states,
                    stream,
                    targets,
                    key(1),
                    head,
                    total,
                    last == 0,
                )
            collected.append(metrics)
            start = 1
        for _, group in itertools.groupby(blocks[start:], key=id):
            block, *others = group
            stop = start + 1 + len(others)
            # Without the barrier XLA may run this loop's forward before the last one's updates, and keep both alive.
            states, stream = jax.lax.optimization_barrier((states, stream))
            if block.cut is not None:
                stream = block.cut(stream)
            with jax.named_scope(f"blocks_{start + 1}_to_{stop}"):
                states, stream, total, metrics = _update_group(
                    block, states, stream, targets, key, start, stop, head, total, last, state.step
                )
            collected.append(metrics)
            start = stop
        metrics = jax.tree.map(lambda *parts: jnp.concatenate(parts), *collected)
        head = trained_head(blocks[0], head, total, len(blocks), state.step)
        new = state.replace(step=state.step + 1, stem=stem_state, blocks=states, head=head)
        return new, metrics

    return train_step


def _update_first(block, stem, stem_state, states, inputs, targets, rng, head, total, is_last):
    block = block if head is None else lending(block)
    joint = join_states(stem_state, lent(read_row(states, 0), head, total, is_last))
    joint, stream, metrics = block_update(with_stem(block, stem), joint, inputs, targets, rng)
    stem_state, first = split_states(joint)
    first, total = returned(block, first, head, total, is_last)
    metrics = jax.tree.map(lambda value: value[None], metrics)
    return stem_state, write_row(states, first, 0), stream, total, metrics


def _update_group(block, states, stream, targets, key, start, stop, head, total, last, step):
    block = block if head is None else lending(block)

    def body(carry, index):
        states, stream, total = carry
        row = lent(read_row(states, index), head, total, index == last)
        new, stream, metrics = block_update(block, row, stream, targets, key(index + 1))
        new, total = returned(block, new, head, total, index == last)
        return (write_row(states, new, index), stream, total), metrics

    carry, metrics = kept_loop(body, (states, stream, total), start, stop, step)
    return *carry, metrics
