"""Consistency's formulas, and which of the two sides of a boundary they move."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from blockjax.strategies import Block
from blockjax.techniques.consistency import Agreement, Prediction

B, T, D = 3, 5, 8


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def plain_cosine(a, b):
    return np.sum(a * b, -1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def quadratic():
    """A block of one matrix: its gradients can be written down."""

    def forward(params, stream, rng):
        del rng
        return {**stream, "tokens": stream["tokens"] @ params["w"]}

    def loss(params, stream, targets, rng):
        del params, rng
        return jnp.mean((stream["tokens"] - targets) ** 2), {}

    return Block(forward, loss, optax.sgd(1.0))


def test_prediction_equals_a_plain_writing():
    technique = Prediction(0.3, D)
    link = jax.tree.map(
        lambda leaf: leaf + normal(5, *leaf.shape) * 0.1, technique.init_link(jax.random.key(0))
    )
    before, after = normal(1, B, T, D), normal(2, B, T, D)
    term, metrics = technique.apply(quadratic()).couple(
        {"link": link}, {"tokens": before}, {"tokens": after}, None, jax.random.key(0)
    )
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), link["consistency"])
    x = before.astype(np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = (x * p["norm"]["scale"] + p["norm"]["bias"]) @ p["down"]["kernel"] + p["down"]["bias"]
    x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    x = x @ p["up"]["kernel"] + p["up"]["bias"]
    expected = np.mean(1 - plain_cosine(x, after.astype(np.float64)))
    np.testing.assert_allclose(metrics["consistency"], expected, rtol=1e-5)
    np.testing.assert_allclose(term, 0.3 * expected, rtol=1e-5)


def test_prediction_moves_the_block_and_its_predictor():
    technique = Prediction(1.0, D)
    block = technique.apply(quadratic())
    params = {"link": technique.init_link(jax.random.key(0)), "w": jnp.asarray(normal(3, D, D))}

    def term(params, before):
        after = block.forward(params, {"tokens": before}, None)
        return block.couple(params, {"tokens": before}, after, None, jax.random.key(0))[0]

    grads = jax.grad(term)(params, jnp.asarray(normal(1, B, T, D)))
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(grads)) > 1e-4


def test_agreement_equals_a_plain_writing():
    block = Agreement(0.7).apply(quadratic())
    w, before, targets = normal(0, D, D), normal(1, B, T, D), normal(2, B, T, D)
    below = normal(3, B, T, D)
    stream = {"tokens": jnp.asarray(before), "gradient": jnp.asarray(below)}
    params = {"w": jnp.asarray(w)}

    def term(w):
        return block.couple({"w": w}, stream, None, targets, jax.random.key(0))[0]

    w64, x, y = w.astype(np.float64), before.astype(np.float64), targets.astype(np.float64)

    def plain(w64):
        own = 2 * (x @ w64 - y) @ w64.T / x.size
        flat = plain_cosine(own.reshape(B, -1), below.astype(np.float64).reshape(B, -1))
        return 0.7 * np.mean(1 - flat)

    np.testing.assert_allclose(term(params["w"]), plain(w64), rtol=1e-5)
    # The gradient of the gradient, against differences.
    direction = normal(4, D, D).astype(np.float64)
    slope = (plain(w64 + 1e-6 * direction) - plain(w64 - 1e-6 * direction)) / 2e-6
    got = np.sum(np.asarray(jax.grad(term)(params["w"])) * direction)
    np.testing.assert_allclose(got, slope, rtol=1e-3)


def test_agreement_sends_the_gradient_at_the_boundary():
    block = Agreement(0.7).apply(quadratic())
    out, targets = normal(1, B, T, D), normal(2, B, T, D)
    sent = block.leave({}, {"tokens": jnp.asarray(out)}, targets, jax.random.key(0))
    np.testing.assert_allclose(sent["gradient"], 2 * (out - targets) / out.size, rtol=1e-5)


def test_block_1_has_no_boundary_to_agree_at():
    block = Agreement(0.7).apply(quadratic())
    stream = {"tokens": jnp.asarray(normal(1, B, T, D))}
    stream |= Agreement(0.7).first(None, None, stream)
    params, targets = {"w": jnp.asarray(normal(0, D, D))}, normal(2, B, T, D)

    def term(params):
        return block.couple(params, stream, None, targets, jax.random.key(0))[0]

    value, grads = jax.value_and_grad(term)(params)
    assert value == 0.0
    np.testing.assert_array_equal(grads["w"], 0.0)


def test_agreement_does_not_depend_on_how_many_images_there_are():
    """Gradients of a mean over very many images are tiny, and must still have a direction."""
    block = Agreement(1.0).apply(quadratic())
    before, targets = normal(1, B, T, D), normal(2, B, T, D)
    below = normal(3, B, T, D)

    def term(share):
        stream = {"tokens": jnp.asarray(before), "gradient": jnp.asarray(below * share)}
        params = {"w": jnp.asarray(normal(0, D, D))}
        return block.couple(params, stream, None, targets, jax.random.key(0))[0]

    np.testing.assert_allclose(term(1e-12), term(1.0), rtol=1e-4)
