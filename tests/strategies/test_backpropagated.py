"""Gradients that cross all boundaries, or one: against `jax.grad` of the composed functions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blockjax.strategies import (
    Block,
    backpropagated,
    blockwise,
    host_memory_kinds,
    init_state,
)

WIDTH, BLOCKS, BATCH, RATE = 4, 4, 6, 0.3
KEY = jax.random.key(7)


def forward(params, stream, rng):
    noise = 0.1 * jax.random.normal(rng, (1, WIDTH))
    return {**stream, "tokens": jnp.tanh(stream["tokens"] @ params["w"] + noise)}


def loss(params, stream, targets, rng):
    noise = 0.1 * jax.random.normal(rng, (1, WIDTH))
    return jnp.mean((stream["tokens"] @ params["head"] - targets + noise) ** 2), {}


def leave(params, stream, targets, rng):
    del params, targets, rng
    return {"sent": stream["tokens"], "count": stream["count"] + 1}


def couple(params, before, after, targets, rng):
    del params, targets, rng
    return 0.1 * jnp.mean(before["sent"] * after["tokens"]), {"count": before["count"][0] * 1.0}


def stem(params, inputs, rng):
    del rng
    tokens = jnp.tanh(inputs["values"] * params["gain"])
    return {
        "tokens": tokens,
        "sent": jnp.zeros_like(tokens),
        "count": jnp.zeros(len(tokens), jnp.int32),
    }


def prepare(rng, batch):
    values = batch + jax.random.normal(rng, (1, WIDTH))
    return {"values": values, "index": jnp.arange(len(batch))}, jnp.sin(batch)


BATCHES = np.random.default_rng(0).normal(size=(3, BATCH, WIDTH)).astype(np.float32)


def block_of(microbatches=1, optimizer=None):
    return Block(
        forward,
        loss,
        optimizer or optax.sgd(RATE),
        microbatches=microbatches,
        couple=couple,
        leave=leave,
    )


def start(optimizer=None):
    w = jax.random.normal(jax.random.key(0), (BLOCKS, WIDTH, WIDTH)) / 2
    head = jax.random.normal(jax.random.key(1), (BLOCKS, WIDTH, WIDTH)) / 2
    params = {"w": w, "head": head}
    return init_state(optimizer or optax.sgd(RATE), params, {"gain": jnp.full((1, WIDTH), 0.7)})


def plain_gradients(state, batch, every_loss, one_boundary):
    """The gradient of one scalar, whose stopped gradients are written into the sums."""
    stop = jax.lax.stop_gradient

    def key(block):
        return jax.random.fold_in(jax.random.fold_in(KEY, 0), block)

    inputs, targets = prepare(key(0), batch)

    def one(params, block, tokens, sent):
        """The block's loss and what leaves it."""
        own = jax.tree.map(lambda leaf: leaf[block], params)
        forward_rng, loss_rng = jax.random.split(key(block + 1))
        tokens = forward(own, {"tokens": tokens}, forward_rng)["tokens"]
        read = tokens if every_loss or block == BLOCKS - 1 else stop(tokens)
        term = loss(own, {"tokens": read}, targets, loss_rng)[0]
        return term + 0.1 * jnp.mean(stop(sent) * read), tokens

    def total(stem_params, params):
        tokens = stem(stem_params, inputs, None)["tokens"]
        sent, value = jnp.zeros_like(tokens), 0.0
        for block in range(BLOCKS):
            term, tokens = one(params, block, tokens, sent)
            value, sent = value + term, stop(tokens)
        return value

    if not one_boundary:
        return jax.grad(total, argnums=(0, 1))(state.stem.params, state.blocks.params)

    # Windows: the gradient of block b's parameters is that of its own loss and of the next block's.
    def window(stem_params, params, top):
        tokens = stem(stem_params, inputs, None)["tokens"]
        sent = jnp.zeros_like(tokens)
        for block in range(top + 1):
            if block < top - 1:
                fixed = stop((stem_params, params))
                start_of = stem(fixed[0], inputs, None)["tokens"] if block == 0 else tokens
                tokens = stop(one(fixed[1], block, start_of, sent)[1])
            else:
                value, tokens = one(params, block, tokens, sent)
            sent = stop(tokens)
        return value

    found = jax.tree.map(jnp.zeros_like, (state.stem.params, state.blocks.params))
    for top in range(BLOCKS):
        grads = jax.grad(window, argnums=(0, 1))(state.stem.params, state.blocks.params, top)
        if top > 1:  # the stem is block 1's
            grads = (jax.tree.map(jnp.zeros_like, grads[0]), grads[1])
        found = jax.tree.map(jnp.add, found, grads)
    return found


def step_of(microbatches=1, optimizer=None, **options):
    blocks = [block_of(microbatches, optimizer)] * BLOCKS
    return backpropagated(blocks, stem=stem, prepare=prepare, **options)


@pytest.mark.parametrize(
    "every_loss, one_boundary", [(False, False), (True, False), (True, True), (False, True)]
)
def test_gradients(every_loss, one_boundary):
    state = start()
    step = jax.jit(step_of(every_loss=every_loss, one_boundary=one_boundary))
    new, metrics = step(state, BATCHES[0], KEY)
    old = state.stem.params, state.blocks.params
    moved = jax.tree.map(lambda a, b: (a - b) / RATE, old, (new.stem.params, new.blocks.params))
    expected = plain_gradients(state, BATCHES[0], every_loss, one_boundary)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-6), moved, expected
    )
    np.testing.assert_array_equal(metrics["count"], [0, 1, 2, 3])
    if every_loss or not one_boundary:
        assert float(np.abs(expected[0]["gain"]).max()) > 0.0


def test_losses_and_streams_are_those_of_blockwise():
    blocks = [block_of()] * BLOCKS
    _, expected = jax.jit(blockwise(blocks, stem=stem, prepare=prepare))(start(), BATCHES[0], KEY)
    _, got = jax.jit(step_of())(start(), BATCHES[0], KEY)
    np.testing.assert_allclose(got["loss"], expected["loss"], rtol=1e-6)


def test_heads_below_the_last_still_learn_from_their_own_loss():
    """As under `blockwise`, where no gradient comes from above either."""
    blocks = [block_of()] * BLOCKS
    expected, _ = jax.jit(blockwise(blocks, stem=stem, prepare=prepare))(start(), BATCHES[0], KEY)
    got, _ = jax.jit(step_of())(start(), BATCHES[0], KEY)
    np.testing.assert_allclose(got.blocks.params["head"], expected.blocks.params["head"], rtol=1e-5)
    assert np.abs(got.blocks.params["w"] - expected.blocks.params["w"]).max() > 1e-4


@pytest.mark.parametrize("one_boundary", [False, True])
def test_states_in_host_memory_and_microbatches_change_nothing(one_boundary):
    adam = optax.adamw(0.05)

    def run(in_host_memory, microbatches=1):
        state = start(adam)
        options = {"every_loss": True, "one_boundary": one_boundary}
        step = step_of(microbatches, adam, in_host_memory=in_host_memory, **options)
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shardings = jax.tree.map(lambda _: device, state)
        if in_host_memory:
            host = jax.tree.map(device.with_memory_kind, host_memory_kinds(state.blocks))
            shardings = shardings.replace(blocks=host)
        step = jax.jit(
            step, in_shardings=(shardings, device, device), out_shardings=(shardings, device)
        )
        state, losses = jax.device_put(state, shardings), []
        for batch in BATCHES:
            state, metrics = step(state, batch, KEY)
            losses.append(metrics["loss"])
        return state, np.stack(losses)

    expected, losses = run(False)
    got, found = run(True)
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got.blocks, expected.blocks
    )
    assert np.isfinite(run(False, 2)[1]).all()


def test_microbatches_average_gradients():
    """Without noise, which is drawn anew for each part."""
    quiet = {"forward": forward, "loss": loss}

    def make(microbatches):
        block = Block(
            lambda params, stream, rng: quiet["forward"](params, stream, KEY),
            lambda params, stream, targets, rng: quiet["loss"](params, stream, targets, KEY),
            optax.sgd(RATE),
            microbatches=microbatches,
        )
        step = backpropagated([block] * BLOCKS, stem=stem, prepare=prepare, every_loss=True)
        return jax.jit(step)(start(), BATCHES[0], KEY)

    (whole, one), (parts, two) = make(1), make(3)
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        (whole.stem.params, whole.blocks.params),
        (parts.stem.params, parts.blocks.params),
    )


def halves_of(params):
    lower, upper = params["w"][:1], params["w"][1:]
    return {**params, "w": lower}, {**params, "w": upper}


def deep_forward(params, stream, rng):
    for w in params["w"]:
        stream = forward({"w": w}, stream, rng)
    return stream


def test_boundaries_in_the_middle_of_blocks():
    """Each loss trains the lower half of its block and the upper half of the one below; the last one also its own."""
    block = Block(deep_forward, loss, optax.sgd(RATE), couple=couple, leave=leave)
    w = jax.random.normal(jax.random.key(0), (BLOCKS, 2, WIDTH, WIDTH)) / 2
    head = jax.random.normal(jax.random.key(1), (BLOCKS, WIDTH, WIDTH)) / 2
    state = init_state(optax.sgd(RATE), {"w": w, "head": head}, {"gain": jnp.full((1, WIDTH), 0.7)})
    made = backpropagated(
        [block] * BLOCKS, stem=stem, prepare=prepare, every_loss=True, halves=halves_of
    )
    new, _ = jax.jit(made)(state, BATCHES[0], KEY)

    def key(index):
        return jax.random.fold_in(jax.random.fold_in(KEY, 0), index)

    stop = jax.lax.stop_gradient

    def total(stem_params, params):
        inputs, targets = prepare(key(0), BATCHES[0])
        tokens = stem(stem_params, inputs, None)["tokens"]
        sent, value = jnp.zeros_like(tokens), 0.0
        for index in range(BLOCKS):
            forward_rng, loss_rng = jax.random.split(key(index + 1))
            lower, upper = params["w"][index]
            middle = forward({"w": lower}, {"tokens": tokens}, forward_rng)["tokens"]
            is_last = index == BLOCKS - 1
            upper_rng = jax.random.fold_in(forward_rng, 1)
            below = middle if is_last else stop(middle)
            tokens = forward({"w": upper}, {"tokens": below}, upper_rng)["tokens"]
            read = tokens if is_last else middle
            own = {"head": params["head"][index]}
            value += loss(own, {"tokens": read}, targets, loss_rng)[0]
            value += 0.1 * jnp.mean(stop(sent) * read)
            sent = stop(tokens)
        return value

    expected = jax.grad(total, argnums=(0, 1))(state.stem.params, state.blocks.params)
    old = state.stem.params, state.blocks.params
    moved = jax.tree.map(lambda a, b: (a - b) / RATE, old, (new.stem.params, new.blocks.params))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-6), moved, expected
    )
    assert all(np.abs(part).max() > 1e-4 for half in moved[1]["w"] for part in half)
