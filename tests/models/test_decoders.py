"""Local decoders: what they look at, and what they must not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blockjax.models.decoders import DECODERS
from blockjax.models.position import sincos_2d


def decoder(kind):
    return DECODERS[kind](
        width=16, depth=2, heads=2, grid=(4, 4), patch_values=12, dtype=jnp.float32
    )


@pytest.fixture(params=sorted(DECODERS), scope="module")
def setup(request):
    module = decoder(request.param)
    tokens = jax.random.normal(jax.random.key(0), (2, 5, 24))
    order = jnp.stack([jax.random.permutation(jax.random.key(i), 16) for i in (1, 2)])
    visible, masked = order[:, :4], order[:, 4:]
    params = jax.jit(module.init)(jax.random.key(3), tokens, visible, masked)
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
    kind, module, params, tokens, visible, masked = setup
    out = module.apply(params, tokens, visible, masked)
    swapped = tokens[:, jnp.array([0, 4, 3, 2, 1])]
    np.testing.assert_allclose(
        module.apply(params, swapped, visible[:, ::-1], masked), out, atol=1e-5
    )
    # Self-attention tells visible tokens where they are; for cross-attention the encoder did.
    elsewhere = module.apply(params, tokens, visible[:, ::-1], masked)
    assert np.allclose(elsewhere, out, atol=1e-4) == (kind == "cross_attention")


def test_with_silent_layers_the_mask_token_is_left(setup):
    """Every attention and MLP adds to the queries; predictions have the dtype of activations."""
    _, module, params, tokens, visible, masked = setup
    silenced = []

    def silence(path, leaf):
        if getattr(path[-2], "key", None) not in ("out", "Dense_1"):
            return leaf
        silenced.append(path)
        return jnp.zeros_like(leaf)

    params = jax.tree_util.tree_map_with_path(silence, params)
    assert len(silenced) == 2 * 2 * 2  # kernel and bias of attention and MLP in two layers
    p = jax.tree.map(np.asarray, params["params"])
    x = p["mask_token"] + sincos_2d(4, 4, 16)[np.asarray(masked)]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * p["out_norm"]["scale"] + p["out_norm"]["bias"]
    expected = x @ p["pixels"]["kernel"] + p["pixels"]["bias"]
    np.testing.assert_allclose(module.apply(params, tokens, visible, masked), expected, atol=1e-5)
    half = jax.eval_shape(module.copy(dtype=jnp.bfloat16).apply, params, tokens, visible, masked)
    assert half.dtype == jnp.bfloat16


def test_the_tokens_matter(setup):
    _, module, params, tokens, visible, masked = setup
    out = module.apply(params, tokens, visible, masked)
    other = module.apply(params, tokens.at[:, 2, ::2].add(1.0), visible, masked)
    assert np.all(np.abs(other - out).max(axis=(1, 2)) > 1e-4)


def test_rematerialisation_happens_and_changes_no_number(setup):
    _, module, _, tokens, visible, masked = setup
    plain, recomputed = module, module.clone(remat="layer")
    params = plain.init(jax.random.key(0), tokens, visible, masked)
    again = recomputed.init(jax.random.key(0), tokens, visible, masked)
    jax.tree.map(np.testing.assert_array_equal, params, again)

    def compiled(decoder):
        def loss(p):
            return jnp.sum(decoder.apply(p, tokens, visible, masked) ** 2)

        return jax.jit(jax.value_and_grad(loss)).lower(params).compile()

    more, less = compiled(plain), compiled(recomputed)
    assert less.cost_analysis()["flops"] > 1.15 * more.cost_analysis()["flops"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
        less(params),
        more(params),
    )
