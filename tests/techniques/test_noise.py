"""Noise between blocks: as large as it says, and in what trains only."""

import jax
import numpy as np
import optax

from blockjax.strategies import Block
from blockjax.techniques.noise import with_noise


def test_noise_is_part_of_the_spread_and_only_in_what_trains():
    block = Block(lambda params, stream, rng: stream, lambda *args: None, optax.sgd(0.1))
    assert with_noise(block, 0.0) is block
    tokens = 3.0 * jax.random.normal(jax.random.key(0), (64, 5, 32)) + 7.0
    noisy = with_noise(block, 0.25)
    out = noisy.forward({}, {"tokens": tokens, "target": tokens}, jax.random.key(1))
    added = np.asarray(out["tokens"] - tokens)
    assert abs(added.mean()) < 0.03
    np.testing.assert_allclose(added.std(), 0.25 * np.asarray(tokens).std(), rtol=0.03)
    np.testing.assert_array_equal(out["target"], tokens)
