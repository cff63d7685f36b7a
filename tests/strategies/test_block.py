"""What a block may do with its stream: make something of what enters, couple what enters with what leaves, and send on
more than it made.

Under every driver alike, also in front of block 1, where a stem makes what enters, and for a stream of several parts.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blockjax.sharding.mesh import make_mesh
from blockjax.strategies import (
    Block,
    block_key,
    block_update,
    blockwise,
    host_loop,
    host_memory_kinds,
    init_block_state,
    init_state,
    pipelined,
    streamed,
    with_stem,
)
from blockjax.strategies.block import join_states, split_states

WIDTH, BLOCKS, BATCH, STEPS = 4, 4, 6, 3
KEY = jax.random.key(7)


def enter(params, stream, rng):
    noise = 0.1 * jax.random.normal(rng, (WIDTH,))
    return {**stream, "tokens": stream["tokens"] * params["gate"] + noise[None]}


def forward(params, stream, rng):
    del rng
    return {**stream, "tokens": stream["tokens"] @ params["w"], "other": stream["other"] + 1}


def loss(params, stream, targets, rng):
    del params, rng
    error = jnp.mean((stream["tokens"] - targets) ** 2)
    return error, {"other": stream["other"].mean(dtype=jnp.float32)}


def couple(params, before, after, targets, rng):
    product = jnp.mean(params["link"] * before["tokens"] * after["tokens"] * targets)
    product += jnp.mean(after["tokens"].mean(axis=-1) * before["sent"])
    return 2.0 * product, {"coupled": product, "drawn": jax.random.uniform(rng)}


def leave(params, stream, targets, rng):
    made = jnp.sum(stream["tokens"] * params["gate"] * targets, axis=-1)
    return {"sent": 0.5 * stream["sent"] + made + jax.random.uniform(rng)}


def stem(params, inputs, rng):
    noise = 0.1 * jax.random.normal(rng, (WIDTH,))
    tokens = jnp.tanh(inputs * params["gain"] + noise[None])
    count = len(inputs)
    return {"tokens": tokens, "other": jnp.zeros(count, jnp.int32), "sent": jnp.ones(count)}


def prepare(rng, batch):
    return batch + jax.random.normal(rng, (1, WIDTH)), jnp.sin(batch)


BLOCK = Block(forward, loss, optax.sgd(0.3), enter=enter, couple=couple, leave=leave)
STEM = {"gain": jnp.full((1, WIDTH), 0.7)}
batches = np.random.default_rng(0).normal(size=(STEPS, BATCH, WIDTH)).astype(np.float32)


def block_params():
    w = jax.random.normal(jax.random.key(0), (BLOCKS, WIDTH, WIDTH)) / 2
    ones = jnp.ones((BLOCKS, 1, WIDTH))
    return {"w": w, "gate": 1.1 * ones, "link": 0.9 * ones}


def row_of(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


@pytest.mark.parametrize("has_stem", [False, True], ids=["block", "block_1"])
def test_gradients_of_what_enters_and_of_what_is_coupled(has_stem):
    """As a plain formula has them in which `before` is a number that no parameter made."""
    own, key = row_of(block_params(), 0), jax.random.key(3)
    targets = jnp.sin(batches[1])
    if has_stem:
        block, params, stream = with_stem(BLOCK, stem), (STEM, own), jnp.asarray(batches[0])
    else:
        block, params, stream = BLOCK, own, stem(STEM, batches[0], key)
    keys = {}

    def entered(params):
        x = stream
        if has_stem:
            params_stem, params = params
            x = stem(params_stem, x, keys["stem"])
        return enter(params, x, keys["enter"])

    def spy(name, function):  # which keys there are is the block's affair
        def wrapped(*args):
            keys[name] = args[-1]
            return function(*args)

        return wrapped

    hooks = {"enter": enter, "couple": couple, "leave": leave}
    watched = dataclasses.replace(BLOCK, **{name: spy(name, hook) for name, hook in hooks.items()})
    if has_stem:
        watched = with_stem(watched, spy("stem", stem))

    def updated(block):
        state = init_block_state(block.optimizer, params)
        return block_update(block, state, stream, targets, key)

    updated(watched)
    state, out, metrics = updated(block)

    before = jax.lax.stop_gradient(entered(params))

    def total(params):
        block_own = params[1] if has_stem else params
        after = forward(block_own, entered(params), None)
        coupling, more = couple(block_own, before, after, targets, keys["couple"])
        local, own_metrics = loss(block_own, after, targets, None)
        return local + coupling, ({**own_metrics, **more}, after)

    (value, (expected, after)), grads = jax.value_and_grad(total, has_aux=True)(params)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    for name, number in expected.items():
        np.testing.assert_allclose(metrics[name], number, rtol=1e-6)
    sent = leave(own, after, targets, keys["leave"])
    chex.assert_trees_all_close(out, {**after, **sent}, rtol=1e-6)
    moved = jax.tree.map(lambda old, new: (old - new) / 0.3, params, state.params)
    chex.assert_trees_all_close(moved, grads, rtol=1e-4, atol=1e-6)
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads)) > 1e-3


def plain_loop(block, has_stem):
    """The drivers' steps as a Python loop of block updates, each with its `block_key`."""
    state, rows = first_state(block, has_stem), []
    stem_state, states = state.stem, [row_of(state.blocks, k) for k in range(BLOCKS)]
    update = jax.jit(block_update, static_argnums=0)
    for step, batch in enumerate(batches):
        stream, targets = parts(has_stem)["prepare"](block_key(KEY, step, 0), batch)
        collected = []
        for k in range(BLOCKS):
            key = block_key(KEY, step, k + 1)
            if k == 0 and has_stem:
                joint = join_states(stem_state, states[0])
                joint, stream, metrics = update(with_stem(block, stem), joint, stream, targets, key)
                stem_state, states[0] = split_states(joint)
            else:
                states[k], stream, metrics = update(block, states[k], stream, targets, key)
            collected.append(metrics)
        rows.append(jax.tree.map(lambda *values: np.stack(values), *collected))
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
    return stem_state, stacked, jax.tree.map(lambda *values: np.stack(values), *rows)


def parts(has_stem):
    if has_stem:
        return {"stem": stem, "prepare": prepare}

    def without(rng, batch):
        inputs, targets = prepare(rng, batch)
        return stem(STEM, inputs, rng), targets

    return {"prepare": without}


def first_state(block, has_stem):
    return init_state(block.optimizer, block_params(), STEM if has_stem else None)


def one_by_one(step, state):
    rows = []
    for batch in batches:
        state, metrics = step(state, batch, KEY)
        rows.append(metrics)
    return state.stem, state.blocks, jax.tree.map(lambda *values: np.stack(values), *rows)


def by_blockwise(block, has_stem):
    step = jax.jit(blockwise([block] * BLOCKS, **parts(has_stem)))
    return one_by_one(step, first_state(block, has_stem))


def by_streamed(block, has_stem):
    state = first_state(block, has_stem)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda _: device, state)
    host = jax.tree.map(device.with_memory_kind, host_memory_kinds(state.blocks))
    shardings = shardings.replace(blocks=host)
    step = jax.jit(
        streamed([block] * BLOCKS, **parts(has_stem)),
        in_shardings=(shardings, device, device),
        out_shardings=(shardings, device),
    )
    return one_by_one(step, jax.device_put(state, shardings))


def by_pipelined(block, has_stem):
    mesh = make_mesh((1, 1, 2), jax.devices()[:2])
    step = jax.jit(pipelined([block] * BLOCKS, mesh=mesh, **parts(has_stem)))
    group = {"batches": batches, "count": jnp.int32(STEPS)}
    state, metrics = step(first_state(block, has_stem), group, KEY)
    return state.stem, state.blocks, metrics


def by_host_loop(block, has_stem):
    first, later = map(jax.jit, host_loop([block] * BLOCKS, **parts(has_stem)))

    def step(state, batch, rng):
        stem_state, row, stream, targets, metrics = first(
            state.stem, row_of(state.blocks, 0), state.step, None, batch, rng
        )
        rows, collected = [row], [metrics]
        for k in range(1, BLOCKS):
            row = row_of(state.blocks, k)
            row, stream, metrics = later(row, stream, targets, state.step, np.int32(k), rng)
            rows.append(row)
            collected.append(metrics)
        stacked, metrics = (
            jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) for trees in (rows, collected)
        )
        return state.replace(step=state.step + 1, stem=stem_state, blocks=stacked), metrics

    return one_by_one(step, first_state(block, has_stem))


@pytest.mark.parametrize(("has_stem", "microbatches"), [(True, 1), (True, 2), (False, 1)])
def test_every_driver_does_the_same(has_stem, microbatches):
    block = dataclasses.replace(BLOCK, microbatches=microbatches)
    expected = plain_loop(block, has_stem)
    assert np.unique(expected[2]["drawn"]).size == STEPS * BLOCKS
    np.testing.assert_allclose(expected[2]["other"], [[1, 2, 3, 4]] * STEPS)
    for driver in (by_blockwise, by_streamed, by_pipelined, by_host_loop):
        found = driver(block, has_stem)
        chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)
