"""Learning rates of single blocks, and layers that start as the identity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blockjax import config as config_lib
from tests.tiny import images, tiny_config, tiny_learner


def moved(learner):
    """How far a step moves the stem, and each block's layers and head."""
    start = jax.jit(learner.init)(jax.random.key(0))
    new, _ = jax.jit(learner.train_step)(start, {"image": images()}, jax.random.key(1))

    def size(new, old):
        return np.asarray(
            [
                max(float(jnp.abs(a[k] - b[k]).max()) for a, b in zip(new, old, strict=True))
                for k in range(len(new[0]))
            ]
        )

    leaves = jax.tree.leaves
    parts = [
        size(leaves(new.blocks.params[name]), leaves(start.blocks.params[name]))
        for name in ("layers", "head")
    ]
    stem = max(
        float(jnp.abs(a - b).max())
        for a, b in zip(leaves(new.stem.params), leaves(start.stem.params), strict=True)
    )
    return stem, *parts


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["blockwise", "streamed"])
def test_each_block_has_its_own_rate(strategy):
    plain = moved(tiny_learner(strategy=strategy))
    rates = tiny_learner(strategy=strategy, **{"optimizer.block_rates": "0.5,1,0,2"})
    stem, layers, heads = moved(rates)
    assert stem == pytest.approx(0.5 * plain[0], rel=1e-3)
    for found, expected in ((layers, plain[1]), (heads, plain[2])):
        np.testing.assert_allclose(found / expected, [0.5, 1.0, 0.0, 2.0], rtol=1e-3)


@pytest.mark.parametrize("text", ["1,1", "1,1,1,x", "1,1,1,-1", "1,1,1,nan", "1,1,1,inf", ""])
def test_rates_that_do_not_fit_are_refused(text):
    config = tiny_config(**{"optimizer.block_rates": text})
    with pytest.raises(ValueError, match=r"block_rates .* should be 4 numbers of at least 0"):
        config_lib.resolve(config, devices=1, platform="cpu")


def test_the_end_to_end_twin_ignores_them():
    assert tiny_learner(strategy="end_to_end", **{"optimizer.block_rates": "1,2,3,4"}).rates is None


def test_layers_with_zero_residuals_start_as_the_identity():
    vit = tiny_learner(**{"model.zero_residuals": True}).vit
    params = vit.init_block(jax.random.key(0), 0, 2)
    tokens = jax.random.normal(jax.random.key(1), (2, 5, 32))
    np.testing.assert_array_equal(vit.layers(params, tokens), tokens)
    grads = jax.grad(lambda params: jnp.sum(vit.layers(params, tokens) ** 2))(params)
    for part, last in (("attention", "out"), ("mlp", "Dense_1")):
        assert float(jnp.abs(grads[part][last]["kernel"]).max()) > 0.0
