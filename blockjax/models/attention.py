"""Attention of several heads, in the form that is fastest on the platform a program is compiled for."""

import functools

import jax
import jax.numpy as jnp

# Bytes of logits that stay in a core's cache. Above it a CPU is faster with one head after the other.
_CACHED = 2**21


def attention(queries_BQHd: jax.Array, keys_BTHd: jax.Array, values_BTHd: jax.Array) -> jax.Array:
    """Returns what the queries read, [B, Q, H, d]: softmax(queries · keys / √d) · values, the softmax in float32.

    On CPU it computes the numbers of `jax.nn.dot_product_attention`, which other platforms use, up to rounding. XLA
    there writes every intermediate to memory, [B, H, Q, T] ones too. So heads run in turns where they are large, and
    the backward pass makes logits and weights again instead of reading them.

    Args:
      queries_BQHd: [B, Q, H, d]; B images, Q query tokens, H heads, d channels of a head.
      keys_BTHd: [B, T, H, d].
      values_BTHd: [B, T, H, d].
    """
    return jax.lax.platform_dependent(
        queries_BQHd,
        keys_BTHd,
        values_BTHd,
        cpu=_by_heads,
        default=jax.nn.dot_product_attention,
    )


def _by_heads(queries_BQHd, keys_BTHd, values_BTHd):
    images, queries, heads, _ = queries_BQHd.shape
    heads_first = tuple(jnp.moveaxis(x, 2, 0) for x in (queries_BQHd, keys_BTHd, values_BTHd))
    if 4 * images * heads * queries * keys_BTHd.shape[1] > _CACHED:
        mixed = jax.lax.map(lambda head: _mixed(*head), heads_first)
    else:
        mixed = _mixed(*heads_first)
    return jnp.moveaxis(mixed, 0, 2)


@functools.partial(jax.checkpoint, prevent_cse=False)
def _mixed(queries, keys, values):
    """Attention where the axes are [..., Q, d] and [..., T, d]."""
    logits = jnp.einsum("...qd,...td->...qt", queries, keys, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits * queries.shape[-1] ** -0.5, axis=-1).astype(values.dtype)
    return jnp.einsum("...qt,...td->...qd", weights, values)
