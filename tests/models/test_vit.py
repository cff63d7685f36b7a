"""The encoder: positions, layers and stacking."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blockjax.models.encoder import regroup
from blockjax.models.layers import Attention, Layer, Mlp, gelu
from blockjax.models.position import sincos_2d
from blockjax.models.vit import PRESETS, ViT


def vit(**fields):
    return ViT(**{"image_size": 32, "patch_size": 8, "width": 32, "depth": 4, "heads": 2, **fields})


def test_positions_tell_rows_from_columns():
    table = sincos_2d(3, 5, 16)
    assert table.shape == (15, 16)
    same_row, same_column = table[[0, 1]], table[[0, 5]]
    np.testing.assert_array_equal(same_row[0, 8:], same_row[1, 8:])
    assert not np.allclose(same_row[0, :8], same_row[1, :8])
    np.testing.assert_array_equal(same_column[0, :8], same_column[1, :8])
    np.testing.assert_allclose(table[7, :4], np.sin(2 * 10000.0 ** (-np.arange(4) / 4)), rtol=1e-6)
    np.testing.assert_allclose(table[7, 12:], np.cos(1 * 10000.0 ** (-np.arange(4) / 4)), rtol=1e-6)
    assert len(np.unique(table.round(5), axis=0)) == 15
    with pytest.raises(ValueError, match="divisible by 4, not 18"):
        sincos_2d(2, 2, 18)


def test_positions_belong_to_patches_not_to_slots():
    model = vit()
    stem = model.init_stem(jax.random.key(0))
    patches = jax.random.normal(jax.random.key(1), (2, 16, 192))
    order = jnp.stack([jax.random.permutation(jax.random.key(i), 16) for i in range(2)])
    whole = model.stem(
        stem, {"patches": patches, "positions": jnp.broadcast_to(jnp.arange(16), (2, 16))}
    )
    shuffled = model.stem(
        stem,
        {"patches": jnp.take_along_axis(patches, order[:, :, None], 1), "positions": order},
    )
    np.testing.assert_allclose(
        shuffled[:, 1:], jnp.take_along_axis(whole[:, 1:], order[:, :, None], 1), atol=1e-6
    )
    nowhere = model.stem(stem, {"patches": patches, "positions": jnp.zeros((2, 16), jnp.int32)})
    table = sincos_2d(4, 4, 32)
    np.testing.assert_allclose((whole - nowhere)[0, 1:], table - table[:1], atol=1e-5)


def test_attention_against_numpy():
    queries = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    context = np.random.default_rng(1).normal(size=(2, 5, 8)).astype(np.float32)
    module = Attention(2, jnp.float32)
    params = module.init(jax.random.key(0), queries, context)["params"]
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(1), p.shape), params)
    p = jax.tree.map(np.asarray, params)

    def split(name, tokens):
        out = tokens @ p[name]["kernel"] + p[name]["bias"]
        return out.reshape(2, -1, 2, 4).transpose(0, 2, 1, 3)

    q, k, v = split("query", queries), split("key", context), split("value", context)
    logits = q @ k.transpose(0, 1, 3, 2) / np.sqrt(4)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    mixed = (weights @ v).transpose(0, 2, 1, 3).reshape(2, 3, 8)
    expected = mixed @ p["out"]["kernel"] + p["out"]["bias"]
    np.testing.assert_allclose(
        module.apply({"params": params}, queries, context), expected, atol=1e-5
    )


def test_layer_against_numpy():
    """Pre-norm with epsilon 1e-6, residual connections, and the exact GELU."""
    tokens = 1e-3 * np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    module = Layer(2, 4.0, jnp.float32)
    params = module.init(jax.random.key(0), tokens)["params"]
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(1), p.shape), params)

    p = jax.tree.map(np.asarray, params)

    def norm(name, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * p[name]["scale"] + p[name]["bias"]

    def dense(name, x):
        return x @ p["mlp"][name]["kernel"] + p["mlp"][name]["bias"]

    normed = norm("norm_1", tokens)
    attention = Attention(2, jnp.float32)
    mixed = attention.apply({"params": params["attention"]}, normed, normed)
    expected = tokens + np.asarray(mixed)
    hidden = dense("Dense_0", norm("norm_2", expected))
    hidden = hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2
    expected += dense("Dense_1", hidden)
    np.testing.assert_allclose(module.apply({"params": params}, tokens), expected, atol=1e-5)


@pytest.mark.parametrize("dtype, atol", [("float32", 1e-6), ("bfloat16", 0.02)])
def test_gelu_against_the_error_function(dtype, atol):
    x = jnp.linspace(-6, 6, 241).astype(dtype)
    expected = [value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in x.tolist()]
    assert gelu(x).dtype == dtype
    np.testing.assert_allclose(gelu(x).astype(jnp.float32), expected, atol=atol)


def test_an_mlps_backward_pass_keeps_what_enters_and_leaves_the_gelu_only():
    tokens, module = jnp.ones((8, 32, 16)), Mlp(8.0, jnp.float32)
    params = module.init(jax.random.key(0), tokens)["params"]

    def loss(params):
        layer = lambda tokens, _: (module.apply({"params": params}, tokens), None)  # noqa: E731
        return jax.lax.scan(layer, tokens, None, length=40)[0].sum()

    temp = jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes
    hidden = 40 * 8 * 32 * 128 * 4
    assert 2 * hidden < temp < 2.7 * hidden


def test_query_key_and_value_start_as_one_xavier_matrix():
    module = Attention(2, jnp.float32)
    params = module.init(jax.random.key(0), jnp.zeros((1, 1, 64)), jnp.zeros((1, 1, 64)))["params"]
    for name, outputs in {"query": 3 * 64, "key": 3 * 64, "value": 3 * 64, "out": 64}.items():
        limit = math.sqrt(6 / (64 + outputs))
        assert 0.99 * limit < np.abs(params[name]["kernel"]).max() <= limit


@pytest.mark.parametrize(
    "fields",
    [
        {"remat": "layer"},
        {"unroll": 2},
        {"remat": "nested"},
        {"remat": "nested", "unroll": 2},
        {"remat": "offload"},
    ],
)
def test_remat_and_unroll_change_no_number(fields):
    plain, other = vit(), vit(**fields)
    params = jax.tree.map(lambda leaf: leaf[0], plain.init_layers(jax.random.key(0), 1))
    tokens = jax.random.normal(jax.random.key(1), (2, 5, 32))

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_grad(model):
        return jax.value_and_grad(lambda p: jnp.sum(model.layers(p, tokens) ** 2))(params)

    (a, grads_a), (b, grads_b) = value_and_grad(plain), value_and_grad(other)
    np.testing.assert_allclose(a, b, rtol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3), grads_a, grads_b
    )
    of_plain, text = (
        str(jax.make_jaxpr(lambda p, m=m: m.layers(p, tokens))(params)) for m in (plain, other)
    )
    kinds = {"layer": 1, "nested": 2, "offload": 1}
    more = text.count("prevent_cse=") - of_plain.count("prevent_cse=")
    assert more == kinds.get(fields.get("remat"), 0)
    assert f"unroll={fields.get('unroll', 1)}" in text


def test_blocks_are_consecutive_layers():
    model = vit()
    two, four = model.init_layers(jax.random.key(0), 2), model.init_layers(jax.random.key(0), 4)
    jax.tree.map(np.testing.assert_array_equal, regroup(two, 4, stacked=2), four)
    tokens = jax.random.normal(jax.random.key(1), (1, 5, 32))
    halves = tokens
    for k in range(2):
        halves = model.layers(jax.tree.map(lambda leaf, k=k: leaf[k], two), halves)
    whole = model.layers(jax.tree.map(lambda leaf: leaf.reshape(4, *leaf.shape[2:]), two), tokens)
    np.testing.assert_allclose(halves, whole, atol=1e-5)


def test_presets_have_the_published_sizes():
    millions = {"ti": 5.5, "s": 21.7, "b": 85.8, "l": 303.3, "h": 630.8}  # without a classifier
    for name, (width, depth, heads) in PRESETS.items():
        model = ViT(224, 14 if name == "h" else 16, width, depth, heads)
        shapes = jax.eval_shape(
            lambda m=model: (m.init_stem(jax.random.key(0)), m.init_layers(jax.random.key(0), 1))
        )
        count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) / 1e6
        assert count == pytest.approx(millions[name], rel=0.01)


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
    model = vit(dtype=jnp.bfloat16)
    stem = model.init_stem(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(stem)} == {jnp.dtype("float32")}
    tokens = model.stem(stem, {"patches": jnp.ones((1, 2, 192)), "positions": jnp.array([[0, 3]])})
    assert tokens.dtype == jnp.bfloat16


@pytest.mark.parametrize(("layers", "unroll"), [(1, 1), (2, 2), (2, 1)])
def test_the_compiler_keeps_rematerialisation(layers, unroll):
    """It would merge what is computed twice in one stretch of code; only a loop keeps the two apart by itself."""
    tokens = jax.random.normal(jax.random.key(1), (2, 5, 32))

    def barred(remat):
        model = vit(remat=remat, depth=layers, unroll=unroll)
        params = jax.tree.map(lambda leaf: leaf[0], model.init_layers(jax.random.key(0), 1))
        return str(jax.make_jaxpr(model.layers)(params, tokens)).count("prevent_cse=True")

    assert barred("layer") - barred("none") == (layers == unroll)


def tiny(**fields):
    return ViT(image_size=16, patch_size=4, width=16, depth=2, heads=2, **fields)


def test_views_of_an_image_are_images_of_their_own():
    vit = tiny()
    stem, layers = vit.init_stem(jax.random.key(0)), vit.init_layers(jax.random.key(1), 1)
    patches = jax.random.normal(jax.random.key(2), (3, 2, 5, 48))
    positions = jax.random.randint(jax.random.key(3), (3, 2, 5), 0, 16)
    row = jax.tree.map(lambda leaf: leaf[0], layers)

    def encode(patches, positions):
        return vit.layers(row, vit.stem(stem, {"patches": patches, "positions": positions}))

    both = encode(patches, positions)
    assert both.shape == (3, 2, 6, 16)
    for view in range(2):
        alone = encode(patches[:, view], positions[:, view])
        np.testing.assert_allclose(both[:, view], alone, rtol=1e-5, atol=1e-5)


def test_mask_token_hides_the_patch_but_not_its_place():
    vit = tiny(mask_token=True)
    params = vit.init_stem(jax.random.key(0))
    patches = jax.random.normal(jax.random.key(2), (1, 4, 48))
    inputs = {"patches": patches, "positions": jnp.array([[3, 1, 7, 7]])}
    masked = {**inputs, "masked": jnp.array([[False, True, True, False]])}
    tokens = vit.stem(params, masked)
    other = vit.stem(params, {**masked, "patches": patches.at[:, 1:3].multiply(-5.0)})
    np.testing.assert_array_equal(tokens, other)
    plain = vit.stem(params, inputs)
    np.testing.assert_array_equal(tokens[:, [0, 1, 4]], plain[:, [0, 1, 4]])
    table = sincos_2d(4, 4, 16)
    token = params["mask_token"][0, 0]
    np.testing.assert_allclose(tokens[0, 2], token + table[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tokens[0, 3], token + table[7], rtol=1e-5, atol=1e-6)
    assert "mask_token" not in tiny().init_stem(jax.random.key(0))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_embedding_gets_no_gradient(frozen):
    vit = tiny(freeze_embedding=frozen)
    params = vit.init_stem(jax.random.key(0))
    inputs = {"patches": jnp.ones((1, 2, 48)), "positions": jnp.array([[0, 1]])}
    grads = jax.grad(lambda params: jnp.square(vit.stem(params, inputs)).sum())(params)
    assert bool(np.asarray(grads["embed"]["kernel"]).any()) == (not frozen)
    assert np.asarray(grads["cls"]).any()


def test_what_the_backward_pass_finds():
    """Inputs of all layers, or of groups of them, or names of what waits in host memory."""
    tokens = jnp.ones((2, 5, 32))

    def kept(remat):
        model = vit(remat=remat, depth=9)
        params = jax.tree.map(lambda leaf: leaf[0], model.init_layers(jax.random.key(0), 1))
        jaxpr = jax.make_jaxpr(lambda p: jax.vjp(lambda t: model.layers(p, t), tokens)[1])(params)
        return str([variable.aval for variable in jaxpr.jaxpr.outvars])

    assert "float32[9,2,5,32]" in kept("layer")
    assert "float32[9,2,5,32]" not in kept("nested") and "float32[3,2,5,32]" in kept("nested")
    assert "float32<host>[9,2,5,32]" in kept("offload")
    assert "float32[9,2,5,32]" not in kept("offload")
