"""Block-wise training computes what it says: a loop of local gradients, and nothing crosses a boundary."""

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
)
from tests.tiny import STEPS, images, run_steps, tiny_learner


def python_loop_step(learner, state, batch, rng):
    """The same step written plainly: a Python loop of jax.value_and_grad, one call per block, nothing shared."""
    step_rng = jax.random.fold_in(rng, state["step"])
    inputs, targets = learner.objective.prepare(jax.random.fold_in(step_rng, 0), batch)
    losses, tokens = [], None
    for k, params in enumerate(state["blocks"]):
        params = (state["stem"], params) if k == 0 else params

        def loss_of(params, tokens=tokens, k=k):
            own = params[1] if k == 0 else params
            inside = learner.vit.stem(params[0], inputs) if k == 0 else tokens
            if k and learner.objective.enter(k):
                inside = learner.objective.enter(k)(inside)
            out = learner.vit.layers(own["layers"], inside)
            return learner.objective.loss(own["head"], out, targets, rng)[0], out

        (loss, tokens), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        losses.append(loss)
        parts = [("stem", None), ("blocks", 0)] if k == 0 else [("blocks", k)]
        grads = grads if k == 0 else (grads,)
        for (name, index), grad in zip(parts, grads, strict=True):
            old = state[name] if index is None else state[name][index]
            opt = state[name + "_opt"] if index is None else state[name + "_opt"][index]
            updates, opt = learner.optimizer.update(grad, opt, old)
            new = optax.apply_updates(old, updates)
            if index is None:
                state[name], state[name + "_opt"] = new, opt
            else:
                state[name][index], state[name + "_opt"][index] = new, opt
    state["step"] += 1
    return state, jnp.stack(losses)


def unstack(tree, count):
    return [jax.tree.map(lambda leaf, k=k: leaf[k], tree) for k in range(count)]


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"decoder.kind": "self_attention", "loss.normalize_pixels": False},
        {"mask.schedule": "0.5,0.5,0.75,0.75"},
        {"blocks": 2, "remat": "layer"},
        {"blocks": 1},
    ],
    ids=["default", "self_attention", "schedule", "remat", "one_block"],
)
def test_equals_a_python_loop_of_value_and_grad(overrides):
    learner = tiny_learner(**overrides)
    state = jax.jit(learner.init)(jax.random.key(0))
    plain = {
        "step": 0,
        "stem": state.stem.params,
        "stem_opt": state.stem.opt_state,
        "blocks": unstack(state.blocks.params, learner.rows),
        "blocks_opt": unstack(state.blocks.opt_state, learner.rows),
    }
    step = jax.jit(learner.train_step)
    plain_step = jax.jit(lambda state, batch, key: python_loop_step(learner, state, batch, key))
    for i in range(5):
        batch, key = {"image": images(seed=i)}, jax.random.key(1)
        state, metrics = step(state, batch, key)
        plain, losses = plain_step(plain, batch, key)
        np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-5)
    # Adam divides by the gradient's own size, so where that is rounding noise a parameter may move by the
    # learning rate times noise; 2e-4 is 5 steps x 1e-3 x 4 %.
    chex.assert_trees_all_close(state.stem.params, plain["stem"], rtol=1e-4, atol=2e-4)
    chex.assert_trees_all_close(
        unstack(state.blocks.params, learner.rows), plain["blocks"], rtol=1e-4, atol=2e-4
    )
    start = jax.jit(learner.init)(jax.random.key(0)).blocks.params["layers"]["mlp"]
    moved = jax.tree.map(
        lambda new, old: float(jnp.abs(new - old).max()),
        state.blocks.params["layers"]["mlp"],
        start,
    )
    assert (
        min(jax.tree.leaves(moved)) > 1e-3
    )  # far above the tolerance: the comparison says something


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
    learner = tiny_learner()
    state = jax.jit(learner.init)(jax.random.key(0))
    params, batch = (state.blocks.params, state.stem.params), {"image": images()}
    for k in range(learner.rows):
        grads, _ = jax.grad(lambda p, k=k: block_losses(learner, p, batch)[k])(params)
        for leaf in jax.tree.leaves(grads):
            others = np.delete(np.asarray(leaf), k, axis=0)
            assert np.all(others == 0.0)
        assert max(float(jnp.abs(leaf[k]).max()) for leaf in jax.tree.leaves(grads)) > 0.0


def test_stem_is_moved_by_block_1_alone():
    learner = tiny_learner()
    start = jax.jit(learner.init)(jax.random.key(0))
    step = jax.jit(learner.train_step)
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
    learner = tiny_learner(strategy="end_to_end")
    start = jax.jit(learner.init)(jax.random.key(0))
    state, metrics = run_steps(learner, 2)
    assert metrics["loss"].shape == (1,)
    per_layer = jax.tree.map(
        lambda new, old: jnp.abs(new - old)[0].reshape(4, -1).max(axis=1),
        state.blocks.params["layers"],
        start.blocks.params["layers"],
    )
    assert min(float(leaf.min()) for leaf in jax.tree.leaves(per_layer)) > 0.0


def test_twins_start_from_the_same_encoder_and_masks():
    ours, baseline = tiny_learner(), tiny_learner(strategy="end_to_end")
    a = jax.jit(ours.init)(jax.random.key(0))
    b = jax.jit(baseline.init)(jax.random.key(0))
    chex.assert_trees_all_equal(a.stem.params, b.stem.params)
    flat_a = jax.tree.map(lambda leaf: leaf.reshape(4, -1), a.blocks.params["layers"])
    flat_b = jax.tree.map(lambda leaf: leaf.reshape(4, -1), b.blocks.params["layers"])
    chex.assert_trees_all_equal(flat_a, flat_b)
    first = flat_a["mlp"]["Dense_0"]["kernel"]
    assert not np.array_equal(first[0], first[1])  # layers differ from each other


def test_losses_fall():
    learner = tiny_learner(**{"loss.normalize_pixels": False})
    _, first = run_steps(learner, 1)
    _, last = run_steps(learner, STEPS)
    assert np.all(last["loss"] < 0.9 * first["loss"])


def test_clip_bounds_each_blocks_update():
    def norm_of_update(clip):
        block = Block(
            lambda p, x, rng: x * p["w"],
            lambda p, x, t, rng: (jnp.sum((x - t) ** 2), {}),
            optax.sgd(1.0),
            clip,
        )
        state = init_block_state(block.optimizer, {"w": jnp.full((3,), 5.0)})
        new, _, metrics = block_update(block, state, jnp.ones(3), jnp.zeros(3), jax.random.key(0))
        return float(optax.tree.norm(jax.tree.map(jnp.subtract, new.params, state.params))), float(
            metrics["gradient_norm"]
        )

    free, norm = norm_of_update(None)
    assert free == pytest.approx(norm, rel=1e-5) and norm > 10
    clipped, norm_before = norm_of_update(0.5)
    assert clipped == pytest.approx(0.5, rel=1e-5) and norm_before == pytest.approx(norm)


def test_every_block_has_its_own_randomness():
    """A dropout-like forward must not use one key for all blocks or all steps."""

    def forward(params, x, rng):
        return x + jax.random.normal(rng, x.shape)

    def loss(params, x, target, rng):
        return jnp.sum(params["w"]), {"seen": x[0]}

    block = Block(forward, loss, optax.sgd(0.0))
    state = init_state(block.optimizer, {"w": jnp.zeros((3, 1))})
    step = jax.jit(blockwise([block] * 3))
    seen = []
    for _ in range(2):
        state, metrics = step(state, (jnp.zeros(1), None), jax.random.key(0))
        seen += np.diff(np.asarray(metrics["seen"]), prepend=0.0).tolist()
    assert len(set(np.round(seen, 6))) == 6


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
