"""The heart of blockjax: one gradient-isolated update of one block. It knows neither ViT nor any objective."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from blockjax.strategies.microbatches import accumulated
from blockjax.strategies.state import BlockState

PyTree = Any

# Folded into a block's key for what enters it; so large that no split of the key gives the same.
_ENTER = 2**32 - 1
_COUPLE = 2**32 - 2
_LEAVE = 2**32 - 3


def block_key(rng: jax.Array, step: jax.Array | int, block: jax.Array | int) -> jax.Array:
    """Returns the key of one block in one step: the same under every strategy and on every mesh.

    Args:
      rng: the run's key.
      step: from 0.
      block: from 1; 0 is the objective's `prepare`.

    Examples:
      >>> run = jax.random.key(0)
      >>> bool(block_key(run, step=3, block=1) == block_key(run, step=3, block=2))
      False
    """
    return jax.random.fold_in(jax.random.fold_in(rng, step), block)


@dataclasses.dataclass(frozen=True)
class Block:
    """What a block computes and how it learns. Blocks that are one object share one compiled loop body.

    Attributes:
      forward: `(params, stream, rng) -> stream`.
      loss: `(params, stream, targets, rng) -> (scalar, metrics)`, the local loss on the stream that leaves the block;
        `metrics` is a dict of scalars.
      optimizer: any optax transformation; it sees this block's gradients only.
      clip: largest global norm of this block's gradients; None leaves them alone.
      microbatches: parts of the batch that run one after another, their gradients averaged before the update: less
        memory, more time, and the numbers of the whole batch where the loss is a mean over images. The leading axis of
        every array of the stream and the targets must be the batch.
      enter: `(params, stream, rng) -> stream`, what the block makes of the stream that comes in before `forward` sees
        it; None leaves it as it is. The stem is block 1's.
      couple: `(params, before, after, targets, rng) -> (scalar, metrics)`, added to the local loss; `before` is the
        stream that entered the block, behind a stopped gradient, and `after` the one that leaves it.
      leave: `(params, stream, targets, rng) -> parts`, which replace those of the same names in the stream (a dict)
        that is sent on, after the loss; behind a stopped gradient.
      watch: names of parts of the parameters (a dict) whose gradients' norms are metrics, `gradient_norm_NAME`.
      cut: `stream -> stream`, applied by the driver before the first of a run of such blocks, where the stream changes
        its shape (a masking schedule drops tokens there); None where it does not.
      split: `(params, stream, rng) -> (read, sent)`, in place of `forward`: the stream that the losses read, and the
        one that is sent on. None: both are what `forward` makes.
      refresh: of a head that all blocks share: None trains it by the mean of their gradients; else it is trained by the
        last block's, and the others read a copy of it that is made anew every so many steps.
      begin: `(params, extra) -> extra`, applied to what a block keeps beside its parameters before they are used in a
        step; `finish`: `(params, extra, stream) -> extra`, applied after the update, to the new parameters and the
        stream that left the block. A block whose state has an `extra` (a dict, as its parameters then are) finds it in
        the `params` that `forward` and `loss` get, beside what is trained. In front of block 1 both are applied to the
        stem as well, with the stem's parameters, its extra, and None for the stream.
    """

    forward: Callable[[PyTree, PyTree, jax.Array], PyTree]
    loss: Callable[[PyTree, PyTree, PyTree, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
    optimizer: optax.GradientTransformation
    clip: float | None = None
    microbatches: int = 1
    enter: Callable[[PyTree, PyTree, jax.Array], PyTree] | None = None
    couple: (
        Callable[
            [PyTree, PyTree, PyTree, PyTree, jax.Array], tuple[jax.Array, dict[str, jax.Array]]
        ]
        | None
    ) = None
    leave: Callable[[PyTree, PyTree, PyTree, jax.Array], dict[str, PyTree]] | None = None
    watch: tuple[str, ...] = ()
    cut: Callable[[PyTree], PyTree] | None = None
    split: Callable[[PyTree, PyTree, jax.Array], tuple[PyTree, PyTree]] | None = None
    refresh: int | None = None
    begin: Callable[[PyTree, PyTree], PyTree] | None = None
    finish: Callable[[PyTree, PyTree, PyTree], PyTree] | None = None


def block_update(
    block: Block, state: BlockState, stream: PyTree, targets: PyTree, rng: jax.Array
) -> tuple[BlockState, PyTree, dict[str, jax.Array]]:
    """Trains one block on one batch.

    The gradient stops at the stream that comes in, and only this block's parameters are differentiated, so nothing but
    activations crosses a block boundary. The stream that goes out was made by the parameters before their update.

    Args:
      block: what the block computes and how it learns.
      state: its parameters and optimizer state.
      stream: what the block before it sent on; of block 1 with a stem the objective's inputs.
      targets: what the objective made of the batch, shared by all blocks.
      rng: a key for this step and block.

    Returns:
      The new state, the outgoing stream, and metrics: `loss`, `gradient_norm` (before clipping) and the loss's own.

    Examples:
      A block that scales its stream, and is told to double it:

      >>> from blockjax.strategies import init_block_state
      >>> block = Block(
      ...     forward=lambda params, stream, rng: params["scale"] * stream,
      ...     loss=lambda params, stream, targets, rng: (jnp.mean((stream - targets) ** 2), {}),
      ...     optimizer=optax.sgd(0.25),
      ... )
      >>> state = init_block_state(block.optimizer, {"scale": jnp.float32(1.0)})
      >>> x = jnp.ones(4)
      >>> state, out, metrics = block_update(block, state, x, 2 * x, jax.random.key(0))
      >>> float(metrics["loss"]), float(state.params["scale"])
      (1.0, 1.5)
    """
    stream = jax.lax.stop_gradient(stream)
    extra = _begun(block, state)

    def local_loss(params, stream, targets, rng):
        loss, out, metrics = _passed(block, extra, params, stream, targets, rng)
        return loss, (out, metrics)

    gradient = jax.value_and_grad(local_loss, has_aux=True)
    if block.microbatches > 1:
        gradient = accumulated(gradient, block.microbatches)
    (loss, (out, metrics)), grads = gradient(state.params, stream, targets, rng)
    state, metrics = _updated(block, state, extra, grads, out, {**metrics, "loss": loss})
    return state, out, metrics


def block_forward(
    block: Block, state: BlockState, stream: PyTree, targets: PyTree, rng: jax.Array
) -> PyTree:
    """Returns the stream that `block_update` sends on, without training the block."""
    extra = _begun(block, state)

    def passed(params, stream, targets, rng):
        _, out, _ = _passed(block, extra, params, stream, targets, rng)
        return (jnp.zeros(()), (out, {})), {}

    if block.microbatches > 1:
        passed = accumulated(passed, block.microbatches)
    return passed(state.params, stream, targets, rng)[0][1][0]


def block_backward(
    block: Block,
    state: BlockState,
    stream: PyTree,
    targets: PyTree,
    rng: jax.Array,
    cotangent: PyTree,
    *,
    share: jax.Array | float = 1.0,
    passes_on: bool = True,
) -> tuple[BlockState, PyTree, dict[str, jax.Array]]:
    """Trains one block on its local loss and on what comes back from above.

    Args:
      block: as in `block_update`.
      state: as in `block_update`.
      stream: what came in.
      targets: as in `block_update`.
      rng: as in `block_update`, with which the stream that goes out is that of `block_forward`.
      cotangent: of the arrays of that stream that are numbers, see `cotangent_of`.
      share: of the local loss's gradient that reaches what lies before the head; the head gets all of it.
      passes_on: whether the cotangent of what came in has the part that is due to `cotangent`, or only the local
        loss's.

    Returns:
      The new state, the cotangent of what came in, and metrics as in `block_update`.
    """
    extra, parts = _begun(block, state), block.microbatches

    def gradient(params, streams, targets, rng):
        stream, cotangent = streams
        numbers, rebuilt = _numbers(stream)

        def pulled(params, numbers):
            loss, out, metrics = _passed(
                block, extra, params, rebuilt(numbers), targets, rng, share
            )
            return (loss, _numbers(out)[0]), (out, metrics)

        (loss, _), pull, (out, metrics) = jax.vjp(pulled, params, numbers, has_aux=True)
        above = [parts * part for part in cotangent]
        grads, of_stream = pull((jnp.ones_like(loss), above))
        if not passes_on:
            _, of_stream = pull((jnp.ones_like(loss), [jnp.zeros_like(part) for part in above]))
        of_stream = [part / parts for part in of_stream]
        return (loss, ((out, of_stream), metrics)), grads

    if parts > 1:
        gradient = accumulated(gradient, parts)
    (loss, ((out, of_stream), metrics)), grads = gradient(
        state.params, (stream, cotangent), targets, rng
    )
    state, metrics = _updated(block, state, extra, grads, out, {**metrics, "loss": loss})
    return state, of_stream, metrics


def cotangent_of(stream: PyTree) -> list[jax.Array]:
    """Returns zeros for the arrays of a stream that are numbers and not indices."""
    return [jnp.zeros(leaf.shape, leaf.dtype) for leaf in _numbers(stream)[0]]


def _numbers(stream):
    """Returns the arrays of a stream that have a gradient, and what puts them back between the others."""
    leaves, structure = jax.tree.flatten(stream)
    has_gradient = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]
    others = [None if has else leaf for leaf, has in zip(leaves, has_gradient, strict=True)]

    def rebuilt(numbers):
        numbers = iter(numbers)
        return structure.unflatten([next(numbers) if leaf is None else leaf for leaf in others])

    return [leaf for leaf, has in zip(leaves, has_gradient, strict=True) if has], rebuilt


def _begun(block, state):
    return state.extra if block.begin is None else block.begin(state.params, state.extra)


def _passed(block, extra, params, stream, targets, rng, share=None):
    """Returns a block's whole loss, the stream that it sends on, and metrics."""
    params = with_extra(params, extra)
    forward_rng, loss_rng = jax.random.split(rng)
    if block.enter is not None:
        stream = block.enter(params, stream, jax.random.fold_in(forward_rng, _ENTER))
    with jax.named_scope("forward"):
        if block.split is None:
            read = out = block.forward(params, stream, forward_rng)
        else:
            read, out = block.split(params, stream, forward_rng)
    if share is not None:
        read = shared(read, share)
    with jax.named_scope("local_loss"):
        loss, metrics = block.loss(params, read, targets, loss_rng)
    if block.couple is not None:
        with jax.named_scope("couple"):
            before = jax.lax.stop_gradient(stream)
            coupling, more = block.couple(
                params, before, read, targets, jax.random.fold_in(loss_rng, _COUPLE)
            )
        loss, metrics = loss + coupling, {**metrics, **more}
    if block.leave is not None:
        with jax.named_scope("leave"):
            made = jax.lax.stop_gradient((params, out))
            sent = block.leave(*made, targets, jax.random.fold_in(loss_rng, _LEAVE))
        out = {**out, **jax.lax.stop_gradient(sent)}
    return loss, out, metrics


def shared(stream: PyTree, share: jax.Array | float) -> PyTree:
    """Returns the same stream, through which a share (0 to 1) of the gradient passes."""
    numbers, rebuilt = _numbers(stream)

    def partly(part):
        through = jnp.asarray(share, part.dtype)
        return through * part + (1 - through) * jax.lax.stop_gradient(part)

    return rebuilt(list(map(partly, numbers)))


def _updated(block, state, extra, grads, out, metrics):
    """Returns a block's state after its update, and the metrics with those of its gradients."""
    metrics["gradient_norm"] = optax.tree.norm(grads)
    own = grads[1] if isinstance(grads, tuple) else grads  # beside the stem's
    metrics |= {f"gradient_norm_{name}": optax.tree.norm(own[name]) for name in block.watch}
    if block.clip is not None:
        grads, _ = optax.clip_by_global_norm(block.clip).update(grads, optax.EmptyState())
    # XLA otherwise fuses each weight gradient into the whole-stack update, schedules it last, and keeps activations
    # alive.
    grads = jax.lax.optimization_barrier(grads)
    with jax.named_scope("optimizer"):
        updates, opt_state = block.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
    if block.finish is not None:
        extra = block.finish(params, extra, out)
    return BlockState(params, opt_state, extra), metrics


def with_stem(block: Block, stem: Callable[[PyTree, PyTree, jax.Array], PyTree]) -> Block:
    """Returns block 1 as it trains: the stem makes the stream that enters `block`, under one local loss.

    Its parameters and optimizer states are `(stem, block)` pairs; the two are clipped together and updated each with
    its own optimizer state, so that block 1's part has the same structure as every other block's.
    """

    def enter(params, inputs, rng):
        with jax.named_scope("stem"):
            stream = stem(params[0], inputs, rng)
        return stream if block.enter is None else block.enter(params[1], stream, rng)

    def forward(params, stream, rng):
        return block.forward(params[1], stream, rng)

    def split(params, stream, rng):
        return block.split(params[1], stream, rng)

    def loss(params, stream, targets, rng):
        return block.loss(params[1], stream, targets, rng)

    def couple(params, before, after, targets, rng):
        return block.couple(params[1], before, after, targets, rng)

    def leave(params, stream, targets, rng):
        return block.leave(params[1], stream, targets, rng)

    def init(params):
        return tuple(block.optimizer.init(part) for part in params)

    def update(grads, opt_states, params=None):
        parts = params if params is not None else (None, None)
        updates = [
            block.optimizer.update(*part) for part in zip(grads, opt_states, parts, strict=True)
        ]
        return tuple(u for u, _ in updates), tuple(s for _, s in updates)

    def begin(params, extra):
        return tuple(map(block.begin, params, extra))

    def finish(params, extra, stream):
        return tuple(map(block.finish, params, extra, (None, stream)))

    return dataclasses.replace(
        block,
        enter=enter,
        forward=forward,
        split=block.split and split,
        loss=loss,
        couple=block.couple and couple,
        leave=block.leave and leave,
        optimizer=optax.GradientTransformation(init, update),
        begin=block.begin and begin,
        finish=block.finish and finish,
    )


def join_states(stem_state: BlockState, state: BlockState) -> BlockState:
    """Returns the state of a block that `with_stem` made, of the stem's and block 1's own."""
    return BlockState(
        (stem_state.params, state.params),
        (stem_state.opt_state, state.opt_state),
        (stem_state.extra, state.extra),
    )


def split_states(joint: BlockState) -> tuple[BlockState, BlockState]:
    """Undoes `join_states`."""
    stem_state, state = zip(joint.params, joint.opt_state, joint.extra, strict=True)
    return BlockState(*stem_state), BlockState(*state)


def prepared(
    prepare: Callable[..., tuple[PyTree, PyTree]] | None,
    rng: jax.Array,
    batch: PyTree,
    fitted: PyTree,
) -> tuple[PyTree, PyTree]:
    """Returns a batch's inputs and targets, as every driver makes them.

    `prepare` is `(rng, batch) -> (inputs, targets)`, and takes what the objective fitted as a third argument where
    there is such a thing. Where it is None, the batch is that pair already.
    """
    if prepare is None:
        return batch
    return prepare(rng, batch) if fitted is None else prepare(rng, batch, fitted)


def only_block(blocks: Sequence[Block], strategy: str) -> Block:
    """Returns the one object that all `blocks` are.

    Raises:
      ValueError: they differ, which a strategy with a single loop cannot run.
    """
    if any(other is not blocks[0] for other in blocks):
        raise ValueError(
            f"{strategy} runs all blocks in one loop, on streams of one shape, so they must be one Block object; "
            "use blockwise for blocks that differ"
        )
    return blocks[0]


def with_extra(params: PyTree, extra: PyTree) -> PyTree:
    """Returns what a block's functions see: its parameters and what it keeps beside them, pairs for stem and block."""
    if isinstance(params, tuple) and isinstance(extra, tuple):
        return tuple(map(with_extra, params, extra))
    return params if extra is None else {**params, **extra}
