"""Block-wise training computes what it says: a loop of local gradients, and nothing crosses a boundary."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blockjax.strategies import (
    Block,
    block_update,
    blockwise,
    end_to_end,
    init_block_state,
    init_state,
    with_stem,
)
from tests.tiny import STEPS, images, tiny_learner


@functools.cache
def compiled(**overrides):
    """A learner with its first state and its jitted step; tests share them."""
    learner = tiny_learner(**overrides)
    return learner, jax.jit(learner.init)(jax.random.key(0)), jax.jit(learner.train_step)


def plain_update(learner, clip, params, opts, inputs, targets):
    """One block written plainly; `params` and `opts` are lists, of the stem (before block 1) and the block."""

    def loss_of(params):
        *stem, own = params
        tokens = learner.vit.stem(stem[0], inputs) if stem else inputs
        out = learner.vit.layers(own["layers"], tokens)
        return learner.objective.loss(own["head"], out, targets, None)[0], out

    (loss, out), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    if clip:
        scale = jnp.minimum(1.0, clip / optax.tree.norm(grads))
        grads = jax.tree.map(lambda grad: grad * scale, grads)
    pairs = [learner.optimizer.update(*part) for part in zip(grads, opts, params, strict=True)]
    params = [optax.apply_updates(old, new) for old, (new, _) in zip(params, pairs, strict=True)]
    return loss, out, params, [opt for _, opt in pairs]


def python_loop_step(learner, update, prepare, step, params, opts, batch, rng):
    """The same step as a Python loop, one call per block; `params` and `opts` are of the stem and all blocks."""
    step_rng = jax.random.fold_in(rng, step)
    tokens, targets = prepare(jax.random.fold_in(step_rng, 0), batch)
    losses = []
    for k in range(learner.rows):
        if k and (cut := learner.objective.cut(k)):
            tokens = cut({"tokens": tokens})["tokens"]
        own = slice(0 if k == 0 else k + 1, k + 2)
        loss, tokens, params[own], opts[own] = update(params[own], opts[own], tokens, targets)
        losses.append(loss)
    return losses


def unstack(tree, count):
    return [jax.tree.map(lambda leaf, k=k: leaf[k], tree) for k in range(count)]


def slow(overrides, name):
    return pytest.param(overrides, id=name, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param({}, id="default"),
        slow(
            {"decoder.kind": "self_attention", "loss.normalize_pixels": False, "microbatches": 2},
            "self_attention_and_microbatches",
        ),
        slow({"mask.schedule": "0.5,0.5,0.75,0.75"}, "schedule"),
        slow({"blocks": 2, "remat": "layer", "optimizer.clip": 0.1}, "remat_and_clip"),
        slow({"blocks": 1}, "one_block"),
    ],
)
def test_equals_a_python_loop_of_value_and_grad(overrides):
    learner, start, step = compiled(**overrides)
    state = start
    params = [start.stem.params, *unstack(start.blocks.params, learner.rows)]
    opts = [start.stem.opt_state, *unstack(start.blocks.opt_state, learner.rows)]
    clip = overrides.get("optimizer.clip")
    update = jax.jit(functools.partial(plain_update, learner, clip))
    prepare = jax.jit(learner.objective.prepare)
    for i in range(5):
        batch, key = {"image": images(seed=i)}, jax.random.key(1)
        state, metrics = step(state, batch, key)
        losses = python_loop_step(learner, update, prepare, i, params, opts, batch, key)
        np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-5)
    # Adam divides by the gradient's own size, so where that is rounding noise a parameter may move by the
    # learning rate times noise; 2e-4 is 5 steps x 1e-3 x 4 %.
    rows = unstack(state.blocks, learner.rows)
    got = [state.stem.params, *(row.params for row in rows)]
    chex.assert_trees_all_close(got, params, rtol=1e-4, atol=2e-4)
    # Adam hides a gradient's scale; its first moments do not.
    for opt, expected in zip(
        [state.stem.opt_state, *(r.opt_state for r in rows)], opts, strict=True
    ):
        norm, expected_norm = optax.tree.norm(opt[0].mu), optax.tree.norm(expected[0].mu)
        np.testing.assert_allclose(norm, expected_norm, rtol=1e-3)
    moved = jax.tree.map(
        lambda new, old: float(jnp.abs(new - old).max()),
        state.blocks.params["layers"]["mlp"],
        start.blocks.params["layers"]["mlp"],
    )
    # Far above the tolerance: the comparison says something.
    assert min(jax.tree.leaves(moved)) > 1e-3


def block_losses(learner, params, batch):
    """All local losses as one function of all parameters, through the real block_update."""
    block_params, stem_params = params
    inputs, targets = learner.objective.prepare(jax.random.key(3), batch)
    stream = learner.vit.stem(stem_params, inputs)
    losses = []
    for k in range(learner.rows):
        own = jax.tree.map(lambda leaf, k=k: leaf[k], block_params)
        state = init_block_state(optax.sgd(0.0), own)
        block = Block(
            lambda p, tokens, rng: learner.vit.layers(p["layers"], tokens),
            lambda p, tokens, t, rng: learner.objective.loss(p["head"], tokens, t, rng),
            optax.sgd(0.0),
        )
        _, stream, metrics = block_update(block, state, stream, targets, jax.random.key(4))
        losses.append(metrics["loss"])
    return jnp.stack(losses)


def test_gradient_between_blocks_is_exactly_zero():
    learner = tiny_learner(**{"model.depth": 2, "blocks": 2})
    state = jax.jit(learner.init)(jax.random.key(0))
    params, batch = (state.blocks.params, state.stem.params), {"image": images()}
    losses = jax.jit(jax.jacrev(lambda params: block_losses(learner, params, batch)))
    of_blocks, of_stem = losses(params)  # leaves [losses, blocks, ...] and [losses, ...]
    for k in range(2):
        for leaf in jax.tree.leaves(of_blocks):
            assert np.all(np.delete(np.asarray(leaf[k]), k, axis=0) == 0.0)
        assert max(float(jnp.abs(leaf[k, k]).max()) for leaf in jax.tree.leaves(of_blocks)) > 0.0
    # The stream that enters a block is cut, also before block 1: its stem trains inside the block.
    assert all(np.all(leaf == 0.0) for leaf in jax.tree.leaves(of_stem))


def test_stem_is_moved_by_block_1_alone():
    learner, start, step = compiled()
    batch, key = {"image": images()}, jax.random.key(1)
    moved, _ = step(start, batch, key)
    assert (
        min(
            float(jnp.abs(a - b).max())
            for a, b in zip(
                jax.tree.leaves(moved.stem.params), jax.tree.leaves(start.stem.params), strict=True
            )
        )
        > 0.0
    )

    def scaled(block, factor):
        return jax.tree.map(lambda leaf: leaf.at[block].multiply(factor), start.blocks.params)

    for other in range(1, learner.rows):
        changed = start.replace(blocks=start.blocks.replace(params=scaled(other, 1.5)))
        after, _ = step(changed, batch, key)
        chex.assert_trees_all_equal(after.stem.params, moved.stem.params)
    changed = start.replace(blocks=start.blocks.replace(params=scaled(0, 1.5)))
    after, _ = step(changed, batch, key)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(after.stem.params, moved.stem.params)


def test_end_to_end_moves_every_layer_by_the_one_loss():
    _, start, step = compiled(strategy="end_to_end")
    state, metrics = step(start, {"image": images()}, jax.random.key(1))
    assert metrics["loss"].shape == (1,)
    per_layer = jax.tree.map(
        lambda new, old: jnp.abs(new - old)[0].reshape(4, -1).max(axis=1),
        state.blocks.params["layers"],
        start.blocks.params["layers"],
    )
    assert min(float(leaf.min()) for leaf in jax.tree.leaves(per_layer)) > 0.0


def test_twins_start_from_the_same_encoder_and_masks():
    (_, a, _), (_, b, _) = compiled(), compiled(strategy="end_to_end")
    chex.assert_trees_all_equal(a.stem.params, b.stem.params)
    flat_a = jax.tree.map(lambda leaf: leaf.reshape(4, -1), a.blocks.params["layers"])
    flat_b = jax.tree.map(lambda leaf: leaf.reshape(4, -1), b.blocks.params["layers"])
    chex.assert_trees_all_equal(flat_a, flat_b)
    first = flat_a["mlp"]["Dense_0"]["kernel"]
    assert not np.array_equal(first[0], first[1])  # layers differ from each other
    head = a.blocks.params["head"]["pixels"]["kernel"]
    assert not np.array_equal(head[0], head[1])


def test_losses_fall():
    _, state, step = compiled()
    losses = []
    for i in range(STEPS):
        state, metrics = step(state, {"image": images(seed=i)}, jax.random.key(1))
        losses.append(metrics["loss"])
    assert np.all(losses[-1] < 0.9 * losses[0])


@pytest.mark.parametrize("stem", [False, True])
def test_clip_bounds_each_blocks_update(stem):
    """A stem and block 1 are bounded together."""

    def norm_of_update(clip):
        block = Block(
            lambda p, x, rng: x * p["w"],
            lambda p, x, t, rng: (jnp.sum((x - t) ** 2), {}),
            optax.sgd(1.0),
            clip,
        )
        params = {"w": jnp.full((3,), 5.0)}
        if stem:
            block = with_stem(block, lambda p, x, rng: x * p["w"])
            params = (params, params)
        state = init_block_state(block.optimizer, params)
        new, _, metrics = block_update(block, state, jnp.ones(3), jnp.zeros(3), jax.random.key(0))
        return float(optax.tree.norm(jax.tree.map(jnp.subtract, new.params, state.params))), float(
            metrics["gradient_norm"]
        )

    free, norm = norm_of_update(None)
    assert free == pytest.approx(norm, rel=1e-5) and norm > 10
    clipped, norm_before = norm_of_update(0.5)
    assert clipped == pytest.approx(0.5, rel=1e-5) and norm_before == pytest.approx(norm)


def test_every_use_of_randomness_has_its_own_key():
    """Masks, stem, forward and loss must not share a key, nor two blocks or two steps."""
    draw = jax.random.uniform

    def stem(params, prepared, rng):
        return {"prepare": prepared, "stem": draw(rng), "forward": jnp.zeros(())}

    block = Block(
        lambda params, stream, rng: stream | {"forward": draw(rng)},
        lambda params, stream, targets, rng: (jnp.sum(params["w"]), stream | {"local": draw(rng)}),
        optax.sgd(0.0),
    )
    state = init_state(block.optimizer, {"w": jnp.zeros((3, 1))}, {"w": jnp.zeros(1)})
    step = jax.jit(blockwise([block] * 3, stem=stem, prepare=lambda rng, batch: (draw(rng), None)))
    seen = set()
    for _ in range(2):
        state, metrics = step(state, None, jax.random.key(0))
        for name in ("prepare", "stem", "forward", "local"):
            seen |= set(metrics[name].tolist())
    assert len(seen) == 2 * (1 + 1 + 3 + 3)


def test_end_to_end_takes_the_same_parts_as_blockwise():
    block = Block(
        lambda p, x, rng: x * p["w"],
        lambda p, x, t, rng: (jnp.mean((x - t) ** 2), {}),
        optax.sgd(0.1),
    )
    state = init_state(block.optimizer, {"w": jnp.ones((1, 4))})
    state, metrics = end_to_end(block)(state, (jnp.ones(4), jnp.zeros(4)), jax.random.key(0))
    np.testing.assert_allclose(state.blocks.params["w"], 1 - 0.1 * 2 / 4)
    assert int(state.step) == 1 and metrics["loss"].shape == (1,)
