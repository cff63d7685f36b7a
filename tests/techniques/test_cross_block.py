"""Heads that attend to earlier blocks: the formula, what is kept, and what is stopped."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blockjax.strategies import Block
from blockjax.techniques.cross_block import CrossBlock

B, T, D = 2, 3, 8


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def summed():
    """A block whose loss is the weighted sum of what its head reads."""

    def loss(params, stream, targets, rng):
        del params, rng
        return jnp.sum(stream["tokens"] * targets), {}

    return Block(lambda params, stream, rng: stream, loss, optax.sgd(1.0))


def stream_of(tokens, earlier, filled):
    count = jnp.full((B, 1, 1), filled, jnp.int32)
    return {
        "tokens": jnp.asarray(tokens),
        "earlier": tuple(map(jnp.asarray, earlier)),
        "earlier_count": count,
    }


@pytest.mark.parametrize("filled", [0, 1, 2, 5])
def test_equals_a_plain_writing(filled):
    technique = CrossBlock(2, "latest", D)
    link = technique.init_link(jax.random.key(0))
    tokens, earlier, weights = (
        normal(1, B, T, D),
        [normal(2, B, T, D), normal(3, B, T, D)],
        normal(4, B, T, D),
    )
    stream = stream_of(tokens, earlier, filled)
    got, _ = technique.apply(summed()).loss({"link": link}, stream, weights, jax.random.key(0))

    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), link["cross_block"])
    assert p["gate"] == np.float64(np.float32(0.1))

    def normed(x):
        x = x.astype(np.float64)
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)

    expected = tokens.astype(np.float64)
    there = earlier[:filled]
    if there:
        scores = [
            np.sum((normed(tokens) @ p["query"]["kernel"]) * (normed(e) @ p["key"]["kernel"]), -1)
            for e in there
        ]
        shares = np.exp(np.stack(scores) / np.sqrt(D))
        shares /= shares.sum(0)
        read = sum(
            s[..., None] * (normed(e) @ p["value"]["kernel"])
            for s, e in zip(shares, there, strict=True)
        )
        expected = expected + p["gate"] * read
    np.testing.assert_allclose(got, np.sum(expected * weights), rtol=1e-5)


def test_earlier_blocks_get_no_gradient_and_the_head_does():
    technique = CrossBlock(1, "latest", D)
    block = technique.apply(summed())
    link = technique.init_link(jax.random.key(0))

    def value(link, tokens, earlier):
        stream = stream_of(tokens, [earlier], 1)
        return block.loss({"link": link}, stream, normal(4, B, T, D), jax.random.key(0))[0]

    arguments = link, jnp.asarray(normal(1, B, T, D)), jnp.asarray(normal(2, B, T, D))
    of_link, of_tokens, of_earlier = jax.grad(value, argnums=(0, 1, 2))(*arguments)
    np.testing.assert_array_equal(of_earlier, 0.0)
    assert np.abs(of_tokens).max() > 0
    # With one block there is nothing to choose from, so queries and keys learn nothing.
    assert np.abs(of_link["cross_block"]["value"]["kernel"]).max() > 0
    assert np.abs(of_link["cross_block"]["gate"]).max() > 0


@pytest.mark.parametrize(
    "which, kept", [("latest", [[1], [2, 1], [3, 2]]), ("first", [[1], [1, 2], [1, 2]])]
)
def test_keeps_the_latest_or_the_first(which, kept):
    technique = CrossBlock(2, which, D)
    block = technique.apply(summed())
    stream = {"tokens": jnp.zeros((B, T, D))}
    stream |= technique.first(None, None, stream)
    for number, expected in enumerate(kept, start=1):
        stream["tokens"] = jnp.full((B, T, D), float(number))
        stream |= block.leave(None, stream, None, jax.random.key(0))
        assert int(stream["earlier_count"][0, 0, 0]) == number
        found = [float(part[0, 0, 0]) for part in stream["earlier"]]
        assert found[: len(expected)] == expected
