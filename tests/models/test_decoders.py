"""Local decoders: what they look at, and what they must not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blockjax.models.decoders import DECODERS


def decoder(kind):
    return DECODERS[kind](
        width=16, depth=2, heads=2, grid=(4, 4), patch_values=12, dtype=jnp.float32
    )


@pytest.fixture(params=sorted(DECODERS))
def setup(request):
    module = decoder(request.param)
    tokens = jax.random.normal(jax.random.key(0), (2, 5, 24))
    order = jnp.stack([jax.random.permutation(jax.random.key(i), 16) for i in (1, 2)])
    visible, masked = order[:, :4], order[:, 4:]
    params = module.init(jax.random.key(3), tokens, visible, masked)
    params = jax.tree.map(
        lambda p: p + 0.05 * jax.random.normal(jax.random.key(4), p.shape), params
    )
    return request.param, module, params, tokens, visible, masked


def test_predictions_belong_to_their_positions(setup):
    _, module, params, tokens, visible, masked = setup
    out = module.apply(params, tokens, visible, masked)
    assert out.shape == (2, 12, 12) and out.dtype == jnp.float32
    reversed_ = module.apply(params, tokens, visible, masked[:, ::-1])
    np.testing.assert_allclose(reversed_, out[:, ::-1], atol=1e-5)
    assert not np.allclose(out[:, 0], out[:, 1], atol=1e-3)


def test_a_part_of_the_masked_patches(setup):
    kind, module, params, tokens, visible, masked = setup
    whole = module.apply(params, tokens, visible, masked)
    part = module.apply(params, tokens, visible, masked[:, :5])
    if kind == "cross_attention":  # queries do not see each other
        np.testing.assert_allclose(part, whole[:, :5], atol=1e-5)
    else:
        assert not np.allclose(part, whole[:, :5], atol=1e-4)


def test_the_order_of_visible_tokens_does_not_matter(setup):
    _, module, params, tokens, visible, masked = setup
    out = module.apply(params, tokens, visible, masked)
    swapped = tokens[:, jnp.array([0, 4, 3, 2, 1])]
    np.testing.assert_allclose(
        module.apply(params, swapped, visible[:, ::-1], masked), out, atol=1e-5
    )


def test_the_tokens_matter(setup):
    _, module, params, tokens, visible, masked = setup
    out = module.apply(params, tokens, visible, masked)
    other = module.apply(params, tokens.at[:, 2, ::2].add(1.0), visible, masked)
    assert np.all(np.abs(other - out).max(axis=(1, 2)) > 1e-4)
