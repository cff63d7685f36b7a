"""Cross entropy over a vocabulary, of which logits of a part of the tokens stand in memory at a time."""

import jax
import jax.numpy as jnp
import optax

# Logits that are there at a time, 64 MiB of them in float32: enough rows for a matrix unit at 32,000 words.
_LOGITS = 2**24


def cross_entropy(
    features_BTD: jax.Array, readout_DV: jax.Array, targets_BT: jax.Array, chunk: int | None = None
) -> jax.Array:
    """Returns each token's -log softmax(features · readout)[target], [B, T] float32, in nats.

    Logits are made for some tokens of all sequences at a time, and made again in the backward pass; so [B, T, V] never
    stands in memory whole, and a batch may be split over devices.

    Args:
      features_BTD: in the dtype of the matrix product; sums and the softmax are float32.
      readout_DV: float32.
      targets_BT: int.
      chunk: tokens of each sequence at a time, a divisor of T; None: as many as make 2^24 logits.
    """
    sequences, tokens, _ = features_BTD.shape
    chunk = chunk or chunk_of(sequences, tokens, readout_DV.shape[1])

    @jax.checkpoint
    def of_chunk(features_BCD, targets_BC):
        logits_BCV = jnp.einsum(
            "bcd,dv->bcv",
            features_BCD,
            readout_DV.astype(features_BCD.dtype),
            preferred_element_type=jnp.float32,
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits_BCV, targets_BC)

    if chunk == tokens:
        return of_chunk(features_BTD, targets_BT)
    parts = jax.tree.map(
        lambda leaf: jnp.moveaxis(leaf.reshape(sequences, -1, chunk, *leaf.shape[2:]), 1, 0),
        (features_BTD, targets_BT),
    )
    losses_NBC = jax.lax.map(lambda part: of_chunk(*part), parts)
    return jnp.moveaxis(losses_NBC, 0, 1).reshape(sequences, tokens)


def chunk_of(sequences: int, tokens: int, vocabulary: int) -> int:
    """Returns how many tokens of each sequence `cross_entropy` takes at a time: the most that divide and fit."""
    most = max(1, _LOGITS // (sequences * vocabulary))
    return max(n for n in range(1, min(tokens, most) + 1) if tokens % n == 0)
