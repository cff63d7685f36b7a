"""Generation through the cache gives what whole forward passes do, and draws by probability."""

import jax
import numpy as np
import pytest

from blockjax.models.generate import generate
from tests.tiny_text import made_model

# Of the model: a head for each block or one for all, the embedding as readout, and Llama's parts.
KINDS = {
    "rotary": {},
    "learned, tied": {"positions": "learned", "tied": True},
    "shared, as Llama": {
        **{"heads": 1, "shared": True, "norm": "rms_norm", "mlp": "swiglu", "bias": False},
    },
}
PROMPT = [38, 3, 1, 4, 1, 5]  # after the separator


def whole_passes(model, params, prompt, count, temperature, rng):
    """Returns new tokens, each by a pass over all before it: the likeliest by logits and noise."""
    tokens = list(prompt)
    logits_of = jax.jit(model)
    for place in range(count):
        padded = np.zeros((1, model.encoder.context), np.int32)
        padded[0, : len(tokens)] = tokens
        logits_V = np.array(logits_of(params, padded))[0, len(tokens) - 1]
        logits_V[model.mask] = -np.inf
        noise_V = jax.random.gumbel(jax.random.fold_in(rng, place), logits_V.shape)
        tokens.append(int((logits_V + temperature * noise_V).argmax()))
    return tokens[len(prompt) :]


def drawn(model, params, prompt=PROMPT, padding=(0, 0), rows=1, seed=0, **options):
    rngs = jax.random.split(jax.random.key(seed), rows)
    padded = np.array([*prompt, *padding], np.int32)
    options = {"most": 1, "temperature": 0.0} | options
    return np.asarray(generate(model, params, padded, rngs, length=len(prompt), **options))


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_changes_nothing(kind, blocks):
    """To the last place of the context, greedily and with noise; what stands behind the prompt is not read."""
    model, params = made_model(**KINDS[kind])
    model, params = model.first(params, blocks)
    most = model.encoder.context + 1 - len(PROMPT)
    rngs = jax.random.split(jax.random.key(0), 2)
    for temperature in (0.0, 1.5):
        expected = [whole_passes(model, params, PROMPT, most, temperature, rng) for rng in rngs]
        assert model.separator not in np.array(expected)
        found = drawn(model, params, padding=(7, 39), rows=2, most=most, temperature=temperature)
        assert found.shape == (2, 16) and found.dtype == np.int32
        np.testing.assert_array_equal(found[:, :most], expected)
        assert (found[:, most:] == model.separator).all()
    assert len(set(expected[0])) > 5 and expected[0] != expected[1]  # else it shows little
    shorter = drawn(model, params, rows=2, most=3, temperature=1.5)
    np.testing.assert_array_equal(shorter[0, :4], [*expected[0][:3], model.separator])


def test_tokens_are_drawn_by_probability():
    model, params = made_model(vocabulary=6, context=8)
    prompt = [4, 0, 2]
    logits_V = np.asarray(model(params, np.array([prompt])))[0, -1, :-1]  # without the mask
    for temperature, top_k in ((1.0, None), (2.5, None), (1.0, 2)):
        kept_V = (
            logits_V
            if top_k is None
            else np.where(logits_V < np.sort(logits_V)[-2], -np.inf, logits_V)
        )
        expected_V = jax.nn.softmax(kept_V / temperature)
        found = drawn(model, params, prompt, rows=4000, temperature=temperature, top_k=top_k)[:, 0]
        shares_V = np.bincount(found, minlength=6) / len(found)
        np.testing.assert_allclose(shares_V[:-1], expected_V, atol=0.03)
        assert shares_V[-1] == 0


def test_a_sequence_ends_at_the_separator():
    """Others go on; and each is the same whatever stands beside it."""
    model, params = made_model(vocabulary=6, context=8)
    found = drawn(model, params, [4, 0], rows=64, temperature=2.0, most=7)
    ends = (found == model.separator).argmax(axis=1)
    assert ends.min() == 0 and ends.max() == 7
    for row, end in zip(found, ends, strict=True):
        assert (row[end:] == model.separator).all() and (row[:end] < model.separator).all()
    few = drawn(model, params, [4, 0], rows=64, temperature=2.0, most=3)
    np.testing.assert_array_equal(few[:, :3], found[:, :3])
    other = drawn(model, params, [4, 0], rows=64, temperature=2.0, most=7, seed=1)
    assert (other != found).any()


def test_numbers_need_no_other_program():
    model, params = made_model(vocabulary=7, context=8)
    before = generate._cache_size()
    drawn(model, params, [5, 0, 2], padding=(0,), most=2)
    drawn(model, params, [5, 0], padding=(0, 0), most=5, temperature=0.5)
    assert generate._cache_size() == before + 1


def test_depths_without_a_head():
    model, params = made_model(heads=1)
    assert model.first(params, 2)[0] == model
    with pytest.raises(
        ValueError, match=r"1 blocks: the model was trained end to end, .* give 2, or"
    ):
        model.first(params, 1)
    for blocks in (0, 3):
        with pytest.raises(ValueError, match=f"{blocks} blocks: the model has 2; give 1 to 2"):
            model.first(params, blocks)
