import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blockjax.models import attention as attention_lib
from blockjax.models.attention import attention


def batch(images=4, queries=7, tokens=9, heads=3, channels=8, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    lengths = (queries, tokens, tokens, queries)
    return [
        (2 * jax.random.normal(key, (images, length, heads, channels))).astype(dtype)
        for key, length in zip(keys, lengths, strict=True)
    ]


@pytest.fixture(params=["all heads at once", "head by head"])
def form(request, monkeypatch):
    most = 0 if request.param == "head by head" else 2**40
    monkeypatch.setattr(attention_lib, "_CACHED", most)
    return request.param


def value_and_gradients(function, queries, keys, values, cotangent):
    out, pull = jax.vjp(function, queries, keys, values)
    return out, *pull(cotangent)


@pytest.mark.parametrize("dtype, atol", [("float32", 1e-5), ("bfloat16", 0.1)])
def test_it_is_jaxs_own_attention_with_its_gradients(form, dtype, atol):
    arrays = batch(dtype=dtype)
    expected = value_and_gradients(jax.nn.dot_product_attention, *batch())
    found = jax.jit(functools.partial(value_and_gradients, attention))(*arrays)
    for one, true in zip(found, expected, strict=True):
        assert one.dtype == dtype and one.shape == true.shape
        np.testing.assert_allclose(one.astype(jnp.float32), true, atol=atol)


def test_it_is_jaxs_own_attention_in_second_derivatives_and_under_vmap(form):
    *arrays, _ = batch()

    def squared(function, *arrays):
        return jnp.square(function(*arrays)).sum()

    def curvature(function, *arrays):
        gradient = jax.grad(squared, argnums=1)
        return jax.grad(
            lambda keys: jnp.square(gradient(function, arrays[0], keys, arrays[2])).sum()
        )(arrays[1])

    expected = curvature(jax.nn.dot_product_attention, *arrays)
    found = curvature(attention, *arrays)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    doubled = [jnp.stack([array, -array]) for array in arrays]
    np.testing.assert_allclose(
        jax.vmap(attention)(*doubled), jax.vmap(jax.nn.dot_product_attention)(*doubled), atol=1e-5
    )


@pytest.mark.parametrize("images, loops", [(1, 0), (1000, 1)])
def test_heads_run_in_turns_where_their_logits_are_many(images, loops):
    arrays = batch(images, 25, 25)[:3]
    lowered = jax.jit(attention).trace(*arrays).lower(lowering_platforms=("cpu",))
    assert lowered.as_text().count("stablehlo.while") == loops


def test_other_platforms_run_jaxs_own_attention():
    arrays = batch(1000, 25, 25)[:3]

    def program(function):
        text = jax.jit(function).trace(*arrays).lower(lowering_platforms=("tpu",)).as_text()
        # Choosing the platform's branch leaves a `case` of one branch.
        return [
            name
            for name in re.findall(r"stablehlo\.(\w+)", text)
            if name not in ("case", "return", "constant")
        ]

    assert program(attention) == program(jax.nn.dot_product_attention)


def test_the_backward_pass_keeps_no_weights():
    *arrays, _ = batch(8, 33, 33)

    def temp(function):
        def layer(tokens, _):
            return function(tokens, *arrays[1:]), None

        def loss(tokens):
            return jax.lax.scan(layer, tokens, None, length=50)[0].sum()

        step = jax.jit(jax.grad(loss))
        return step.lower(arrays[0]).compile().memory_analysis().temp_size_in_bytes

    weights = 4 * 50 * 8 * 3 * 33 * 33
    assert temp(attention) < weights < temp(jax.nn.dot_product_attention)
