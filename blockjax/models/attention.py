"""Attention of several heads, in the form that is fastest on the platform a program is compiled for."""

import functools

import jax
import jax.numpy as jnp

# Bytes of logits that stay in a core's cache. Above it a CPU is faster with one head after the other.
_CACHED = 2**21
# Tokens, and bytes of all heads' logits, from which on every platform takes one head after the other to save memory.
_LONG, _LARGE = 512, 2**28


def attention(
    queries_BQHd: jax.Array, keys_BTHd: jax.Array, values_BTHd: jax.Array, causal: bool = False
) -> jax.Array:
    """Returns what the queries read, [B, Q, H, d]: softmax(queries · keys / √d) · values, the softmax in float32.

    On CPU it computes the numbers of `jax.nn.dot_product_attention`, which other platforms use, up to rounding. XLA
    there writes every intermediate to memory, [B, H, Q, T] ones too. So heads run in turns where they are large, and
    the backward pass makes logits and weights again instead of reading them. Of long sequences other platforms do the
    same: 16 heads of 16 sequences of 1,024 tokens would have logits of 1 GiB.

    Args:
      queries_BQHd: [B, Q, H, d]; B images, Q query tokens, H heads, d channels of a head.
      keys_BTHd: [B, T, H, d].
      values_BTHd: [B, T, H, d].
      causal: whether query i reads keys 0 to i only; Q is T then.
    """
    by_heads = functools.partial(_by_heads, causal=causal)
    at_once = functools.partial(jax.nn.dot_product_attention, is_causal=causal)
    is_large = keys_BTHd.shape[1] >= _LONG and _logits(queries_BQHd, keys_BTHd) > _LARGE
    return jax.lax.platform_dependent(
        queries_BQHd,
        keys_BTHd,
        values_BTHd,
        cpu=by_heads,
        default=by_heads if is_large else at_once,
    )


def _logits(queries_BQHd, keys_BTHd):
    """Returns the bytes of all heads' logits."""
    sequences, queries, heads, _ = queries_BQHd.shape
    return 4 * sequences * heads * queries * keys_BTHd.shape[1]


def cached_attention(
    queries_BQHd: jax.Array, keys_BSHd: jax.Array, values_BSHd: jax.Array, start: jax.Array
) -> jax.Array:
    """Returns what queries read at the places from `start` on, each up to its own, [B, Q, H, d].

    Args:
      queries_BQHd: of the tokens that come next.
      keys_BSHd: of all places, those of the queries among them; what lies behind them is not read.
      values_BSHd: the same.
      start: int32 scalar, the place of the first query.
    """
    places_Q = start + jnp.arange(queries_BQHd.shape[1])
    is_read_QS = jnp.arange(keys_BSHd.shape[1])[None, :] <= places_Q[:, None]
    return jax.nn.dot_product_attention(
        queries_BQHd,
        keys_BSHd.astype(queries_BQHd.dtype),
        values_BSHd.astype(queries_BQHd.dtype),
        mask=is_read_QS[None, None],
    )


def _by_heads(queries_BQHd, keys_BTHd, values_BTHd, causal):
    heads_first = tuple(jnp.moveaxis(x, 2, 0) for x in (queries_BQHd, keys_BTHd, values_BTHd))
    if _logits(queries_BQHd, keys_BTHd) > _CACHED:
        mixed = jax.lax.map(lambda head: _mixed(*head, causal), heads_first)
    else:
        mixed = _mixed(*heads_first, causal)
    return jnp.moveaxis(mixed, 0, 2)


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=3)
def _mixed(queries, keys, values, causal):
    """Attention where the axes are [..., Q, d] and [..., T, d]."""
    logits = jnp.einsum("...qd,...td->...qt", queries, keys, preferred_element_type=jnp.float32)
    logits *= queries.shape[-1] ** -0.5
    if causal:
        places_T = jnp.arange(keys.shape[-2])
        is_read_QT = (places_T[None, :] <= places_T[:, None]).reshape(
            *[1] * (logits.ndim - 2), *logits.shape[-2:]
        )
        logits = jnp.where(is_read_QT, logits, -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(values.dtype)
    return jnp.einsum("...qt,...td->...qd", weights, values)
