"""The encoder of text: causality, positions, and the cache of keys and values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blockjax.models.attention import attention
from blockjax.models.layers import Layer
from blockjax.models.position import rotated
from blockjax.models.text import TextEncoder

LLAMA = {"norm": "rms_norm", "mlp": "swiglu", "bias": False}
KINDS = [{}, LLAMA, {"positions": "learned"}]


def encoder_of(**fields):
    sizes = {"vocabulary": 50, "context": 12, "width": 16, "depth": 3, "heads": 2}
    return TextEncoder(**{**sizes, **fields})


def made(encoder):
    stem = encoder.init_stem(jax.random.key(0))
    layers = jax.tree.map(lambda leaf: leaf[0], encoder.init_layers(jax.random.key(1), 1))
    tokens = jax.random.randint(jax.random.key(2), (2, 12), 0, 50)
    return stem, layers, tokens


def run(encoder, stem, layers, tokens):
    return encoder.layers(layers, encoder.stem(stem, encoder.inputs(tokens)))


@pytest.mark.parametrize("fields", KINDS)
@pytest.mark.parametrize("causal", [True, False])
def test_later_tokens_change_earlier_ones_only_where_attention_is_not_causal(fields, causal):
    encoder = encoder_of(**fields, causal=causal)
    stem, layers, tokens = made(encoder)
    other = tokens.at[:, 7].set((tokens[:, 7] + 1) % 50)
    change = np.abs(run(encoder, stem, layers, tokens) - run(encoder, stem, layers, other))
    assert (change[:, 7:].max(axis=-1) > 1e-3).all()
    if causal:
        assert not change[:, :7].any()
    else:
        assert (change[:, :7].max(axis=-1) > 1e-4).all()


def test_attention_head_by_head_is_causal_too(monkeypatch):
    monkeypatch.setattr("blockjax.models.attention._CACHED", 0)
    encoder = encoder_of()
    stem, layers, tokens = made(encoder)
    by_heads = run(encoder, stem, layers, tokens)
    monkeypatch.setattr("blockjax.models.attention._CACHED", 2**40)
    jax.clear_caches()
    np.testing.assert_allclose(run(encoder, stem, layers, tokens), by_heads, atol=1e-5)


def test_causal_attention_is_that_of_jax():
    query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 5, 3, 4))
    expected = jax.nn.dot_product_attention(query, key, value, is_causal=True)
    np.testing.assert_allclose(attention(query, key, value, causal=True), expected, atol=1e-6)


def test_accelerators_form_is_causal(monkeypatch):
    monkeypatch.setattr(
        "jax.lax.platform_dependent", lambda *arrays, cpu, default: default(*arrays)
    )
    query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 5, 3, 4))
    expected = jax.nn.dot_product_attention(query, key, value, is_causal=True)
    np.testing.assert_array_equal(attention(query, key, value, causal=True), expected)
    assert np.abs(attention(query, key, value) - expected).max() > 0.1


@pytest.mark.parametrize("fields", KINDS)
def test_tokens_one_by_one_leave_a_cache_as_all_at_once_leave_the_layers(fields):
    encoder = encoder_of(**fields)
    stem, layers, tokens = made(encoder)
    cache, parts = encoder.empty_cache(2, 3), []
    for start, stop in [(0, 5), (5, 6), (6, 9), (9, 10), (10, 12)]:
        entered = encoder.stem(stem, {"tokens": tokens[:, start:stop], "start": start})
        part, cache = encoder.cached_layers(layers, entered, cache)
        parts.append(part)
    whole = run(encoder, stem, layers, tokens)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-5)
    assert cache["attention"]["length"].tolist() == [12, 12, 12]


def test_rotation_turns_pairs_by_their_place():
    vectors = jax.random.normal(jax.random.key(0), (1, 3, 1, 4))
    found = np.asarray(rotated(vectors, 5))[0, :, 0]
    for place, (a, b, c, d) in zip((5, 6, 7), np.asarray(vectors)[0, :, 0], strict=True):
        fast, slow = place, place * 10000 ** (-1 / 2)
        first, second = complex(a, c) * np.exp(1j * fast), complex(b, d) * np.exp(1j * slow)
        expected = [first.real, second.real, first.imag, second.imag]
        np.testing.assert_allclose(found[place - 5], expected, atol=1e-5)
    # What queries read of keys depends on how far apart they are only.
    near = [jnp.vdot(rotated(vectors[:, :1], p), rotated(vectors[:, 1:2], p + 2)) for p in (0, 9)]
    np.testing.assert_allclose(*near, atol=1e-4)


def test_llamas_layer_has_its_parts_and_no_biases():
    layer = Layer(2, 2.5, jnp.float32, rotary=True, causal=True, **LLAMA)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 3, 16)))["params"]
    shapes = jax.tree.map(jnp.shape, params)
    square = {"kernel": (16, 16)}
    assert shapes == {
        "attention": dict.fromkeys(("query", "key", "value", "out"), square),
        "mlp": {
            "gate": {"kernel": (16, 40)},
            "up": {"kernel": (16, 40)},
            "down": {"kernel": (40, 16)},
        },
        "norm_1": {"scale": (16,)},
        "norm_2": {"scale": (16,)},
    }
    # SwiGLU, and the root of the mean square without the mean.
    x = jax.random.normal(jax.random.key(1), (1, 1, 16)) + 3.0
    alone = {**params, "attention": jax.tree.map(jnp.zeros_like, params["attention"])}
    normed = x / jnp.sqrt((x**2).mean() + 1e-6)
    gate, up, down = (alone["mlp"][name]["kernel"] for name in ("gate", "up", "down"))
    hidden = (normed @ gate) * jax.nn.sigmoid(normed @ gate) * (normed @ up)
    np.testing.assert_allclose(layer.apply({"params": alone}, x), x + hidden @ down, rtol=1e-5)


@pytest.mark.parametrize(("mlp", "last"), [("gelu", "Dense_1"), ("swiglu", "down")])
def test_residuals_that_start_at_zero_leave_tokens_as_they_are(mlp, last):
    encoder = encoder_of(mlp=mlp, zero_residuals=True)
    stem, layers, tokens = made(encoder)
    is_zero = {name: not part["kernel"].any() for name, part in layers["mlp"].items()}
    assert [name for name, zero in is_zero.items() if zero] == [last]
    entered = encoder.stem(stem, encoder.inputs(tokens))
    np.testing.assert_array_equal(encoder.layers(layers, entered), entered)


def test_sequences_beyond_the_context_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 13\).*at most 12"):
        encoder_of().inputs(jnp.zeros((2, 13), jnp.int32))


@pytest.mark.parametrize(
    ("tokens", "sequences", "loops"), [(1024, 16, 1), (1024, 2, 0), (256, 256, 0)]
)
def test_accelerators_take_heads_in_turns_where_sequences_are_long(tokens, sequences, loops):
    shape = jax.ShapeDtypeStruct((sequences, tokens, 16, 64), jnp.bfloat16)
    traced = jax.jit(lambda q, k, v: attention(q, k, v, causal=True)).trace(shape, shape, shape)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("stablehlo.while") == loops
