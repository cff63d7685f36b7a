"""Readouts and projectors: what they average, and over what they normalise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blockjax.models.heads import READOUTS, BatchNorm, Projector, Readout, l2_normalize


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_batch_norm_is_over_all_axes_but_the_last():
    x = 3.0 + 2.0 * normal(0, 6, 5, 4)
    module = BatchNorm()
    scale, bias = normal(1, 4), normal(2, 4)
    got = module.apply({"params": {"scale": scale, "bias": bias}}, x)
    wide = x.astype(np.float64)
    mean, var = wide.mean(axis=(0, 1)), wide.var(axis=(0, 1))
    np.testing.assert_allclose(
        got, (wide - mean) / np.sqrt(var + 1e-5) * scale + bias, rtol=1e-4, atol=1e-5
    )
    assert BatchNorm(use_scale=False, use_bias=False).init(jax.random.key(0), x) == {}


def test_batch_norm_keeps_its_digits_where_the_mean_is_large():
    # With variance as a difference of means of squares this is wrong by tens of per cent.
    x = 30.0 + 0.01 * normal(0, 256, 3)
    got = BatchNorm(use_scale=False, use_bias=False).apply({}, x)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(axis=0)) / np.sqrt(wide.var(axis=0) + 1e-5)
    np.testing.assert_allclose(got, expected, rtol=1e-2, atol=1e-3)


def test_batch_norm_with_given_statistics_treats_each_image_alone():
    x = jnp.asarray(3.0 + 2.0 * normal(0, 6, 5, 4))
    module = BatchNorm(use_scale=False, use_bias=False)
    whole, kept = module.apply({}, x, mutable=["statistics"])
    alone = [module.apply(kept, x[i : i + 1]) for i in range(6)]
    np.testing.assert_allclose(np.concatenate(alone), whole, atol=1e-5)
    assert not np.allclose(module.apply({}, x[:1]), whole[:1], atol=1e-2)


def test_batch_norm_of_a_constant_has_finite_gradients():
    module = BatchNorm(use_scale=False, use_bias=False)
    gradient = jax.grad(lambda x: jnp.square(module.apply({}, x)).sum())(jnp.ones((4, 3)))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("kind", READOUTS)
def test_readouts_read_the_tokens_they_say(kind):
    tokens = jnp.asarray(normal(0, 2, 3, 5, 8))
    module = Readout(kind, 12, jnp.float32)
    params = module.init(jax.random.key(0), tokens)
    vector = module.apply(params, tokens)
    assert vector.shape == (2, 3, 12 if kind == "cbe_gap" else 8)
    changed_cls = module.apply(params, tokens.at[..., 0, :].multiply(-1.0))
    changed_patch = module.apply(params, tokens.at[..., 4, :].multiply(-1.0))
    assert np.array_equal(changed_cls, vector) == (kind != "cls")
    assert np.array_equal(changed_patch, vector) == (kind == "cls")


def test_readout_widens_each_token_before_it_averages():
    tokens = jnp.asarray(normal(0, 2, 5, 8))
    module = Readout("cbe_gap", 12, jnp.float32)
    params = module.init(jax.random.key(0), tokens)["params"]
    patches = np.asarray(tokens, np.float64)[:, 1:]
    patches = patches - patches.mean(axis=-1, keepdims=True)
    patches /= np.sqrt((patches**2).mean(axis=-1, keepdims=True) + 1e-6)
    wide = patches @ np.asarray(params["expand"]["kernel"], np.float64)
    wide = (wide - wide.mean(axis=(0, 1))) / np.sqrt(wide.var(axis=(0, 1)) + 1e-5)
    expected = np.maximum(wide, 0.0).mean(axis=1)
    np.testing.assert_allclose(
        module.apply({"params": params}, tokens), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("last", ["none", "plain", "scale"])
def test_projector_has_the_parameters_it_says(last):
    x = jnp.asarray(normal(0, 16, 8))
    module = Projector((10, 10, 6), hidden_bias=last == "none", last_norm=last)
    params = module.init(jax.random.key(0), x)["params"]
    assert params["dense_1"]["kernel"].shape == (10, 10)
    assert ("bias" in params["dense_0"]) == (last == "none")
    assert set(params["dense_out"]) == {"kernel"}
    assert set(params.get("norm_out", {})) == ({"scale"} if last == "scale" else set())
    out = np.asarray(module.apply({"params": params}, x))
    assert out.shape == (16, 6)
    is_normalised = np.allclose(out.mean(axis=0), 0.0, atol=1e-5)
    assert is_normalised == (last != "none")


def test_projector_without_norms_is_a_plain_mlp():
    x = normal(0, 16, 8)
    module = Projector((10, 6), hidden_norm=False)
    params = module.init(jax.random.key(0), jnp.asarray(x))["params"]
    assert set(params) == {"dense_0", "dense_out"}
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    dense = [[np.asarray(params[name][part]) for part in ("kernel", "bias")] for name in params]
    expected = np.maximum(x @ dense[0][0] + dense[0][1], 0.0) @ dense[1][0] + dense[1][1]
    np.testing.assert_allclose(module.apply({"params": params}, x), expected, rtol=1e-4, atol=1e-5)


def test_l2_normalize_of_nothing_is_nothing():
    x = np.stack([[3.0, 4.0], [0.0, 0.0]]).astype(np.float32)
    np.testing.assert_allclose(l2_normalize(x), [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    gradient = jax.grad(lambda x: l2_normalize(x).sum())(jnp.zeros((1, 2)))
    assert np.isfinite(gradient).all()
