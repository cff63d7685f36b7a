"""Text from a language model, token by token; what was read before stays in a cache."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from blockjax.models.language import LanguageModel, merged

PyTree = Any


@functools.partial(jax.jit, static_argnames=("model", "top_k"))
def generate(
    model: LanguageModel,
    params: PyTree,
    prompt_P: jax.Array,
    rngs_B: jax.Array,
    *,
    length: jax.Array | int,
    most: jax.Array | int,
    temperature: jax.Array | float = 1.0,
    top_k: int | None = None,
) -> jax.Array:
    """Continues a prompt until each sequence has come to the separator.

    The prompt is read in one call, once for all sequences; then a loop runs a step for one token of each. The program
    depends on the shapes of its arguments and on `top_k`; numbers may change without another one.

    Args:
      model: causal.
      params: see `LanguageModel`.
      prompt_P: int32, the separator and what follows it; what stands from `length` on is not read.
      rngs_B: a key for each sequence; folded with 0, 1, ... it is that of its new tokens.
      length: of the prompt, from 1 to P.
      most: tokens of a sequence at most, from 1; length + most - 1 is no more than the context.
      temperature: that divides logits; 0: the most likely token.
      top_k: only so many of the most likely tokens are drawn, and what is as likely as the last of them.

    Returns:
      int32 [B, context]: the new tokens, and the separator from the first one that was drawn, or from `most`, on.
    """
    encoder, layers = model.encoder, merged(params["layers"])
    depth, sequences = encoder.depth, len(rngs_B)

    def read(tokens_BT, start, cache):
        inputs = {**encoder.inputs(tokens_BT), "start": start}
        return encoder.cached_layers(layers, encoder.stem(params["stem"], inputs), cache)

    def draw(tokens_B1D, place):
        return _drawn(
            model, model.logits(params, tokens_B1D)[:, 0], rngs_B, place, temperature, top_k
        )

    tokens_1PD, cache = read(prompt_P[None], 0, encoder.empty_cache(1, depth))
    last_11D = jax.lax.dynamic_slice_in_dim(tokens_1PD, length - 1, 1, axis=1)
    held = cache["attention"]
    # What was read behind the prompt is overwritten before anything reads it.
    cache = {
        "attention": {
            "keys": jnp.repeat(held["keys"], sequences, axis=1),
            "values": jnp.repeat(held["values"], sequences, axis=1),
            "length": jnp.full_like(held["length"], length),
        }
    }
    first_B = draw(jnp.repeat(last_11D, sequences, axis=0), 0)
    written_BN = jnp.full((sequences, encoder.context), model.separator, jnp.int32)

    def goes_on(state):
        place, _, _, last_B = state
        return (place < most) & jnp.any(last_B != model.separator)

    def step(state):
        place, written_BN, cache, last_B = state
        tokens_B1D, cache = read(last_B[:, None], length + place - 1, cache)
        next_B = jnp.where(last_B == model.separator, model.separator, draw(tokens_B1D, place))
        return place + 1, written_BN.at[:, place].set(next_B), cache, next_B

    state = (jnp.int32(1), written_BN.at[:, 0].set(first_B), cache, first_B)
    return jax.lax.while_loop(goes_on, step, state)[1]


def _drawn(model, logits_BV, rngs_B, place, temperature, top_k):
    """Returns one token of each sequence, [B]: by its probability, as the argmax of logits and Gumbel noise."""
    logits_BV = logits_BV.at[:, model.mask].set(-jnp.inf)
    if top_k is not None:
        least_B1 = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)

    def noise(rng):
        return jax.random.gumbel(jax.random.fold_in(rng, place), logits_BV.shape[1:])

    return jnp.argmax(logits_BV + temperature * jax.vmap(noise)(rngs_B), axis=-1).astype(jnp.int32)
