"""Heads that attend to earlier blocks: what a block's loss reads, not what the next block gets."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from blockjax.strategies import Block
from blockjax.techniques.technique import Technique, also_leaving

PyTree = Any

WHICH = ("latest", "first")
_GATE = 0.1  # so much of what earlier blocks say is added at the start
_KEY_WIDTH = 64  # at most, of queries and keys


class DepthAttention(nn.Module):
    """Each token attends over what earlier blocks made of it; softmax in float32.

    As Block AttnRes (arXiv 2603.15031) reads earlier blocks, but in front of a head only, with queries from the token.

    Attributes:
      dtype: of dense layers.
    """

    dtype: Any

    @nn.compact
    def __call__(
        self, tokens: jax.Array, earlier: tuple[jax.Array, ...], filled: jax.Array
    ) -> jax.Array:
        """Returns tokens + gate · Σ_i softmax_i(q(tokens) · k(earlier_i) / √d) v(earlier_i).

        Args:
          tokens: [..., D].
          earlier: M arrays like it.
          filled: bool, [..., M] or what broadcasts to it: which of them there are; without any, tokens stay as they
            are.
        """
        width = tokens.shape[-1]
        keys = min(width, _KEY_WIDTH)

        def dense(features, name):
            init = nn.initializers.xavier_uniform()
            return nn.Dense(features, False, self.dtype, kernel_init=init, name=name)

        normed = nn.LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype)
        stacked = jnp.stack([normed(tokens_of) for tokens_of in earlier], axis=-2)
        query, key = dense(keys, "query")(normed(tokens)), dense(keys, "key")(stacked)
        scores = jnp.einsum("...k,...mk->...m", query, key).astype(jnp.float32) / math.sqrt(keys)
        # Finite, as there may be none at all.
        weights = jax.nn.softmax(jnp.where(filled, scores, -1e30), axis=-1)
        weights = jnp.where(filled, weights, 0.0).astype(stacked.dtype)
        read = jnp.einsum("...m,...md->...d", weights, dense(width, "value")(stacked))
        gate = self.param("gate", nn.initializers.constant(_GATE), (1, 1))
        return tokens + (gate[0, 0] * read).astype(tokens.dtype)


@dataclasses.dataclass(frozen=True)
class CrossBlock(Technique):
    """Lets every head read `DepthAttention` of its block's tokens over those of earlier blocks, which are stopped.

    The encoder that is exported stays a plain Vision Transformer. A head that can read earlier blocks may bypass its
    own: its gradient then vanishes, which the metric `gradient_norm_layers` shows.

    Attributes:
      blocks: how many earlier blocks (M); each is one stream more.
      which: "latest" or "first" of them.
      width: the encoder's (D).
      dtype: of dense layers.
    """

    blocks: int
    which: str
    width: int
    dtype: Any = jnp.float32

    feeds_heads: ClassVar[bool] = True

    def init_link(self, rng: jax.Array) -> PyTree:
        tokens = jnp.zeros((1, self.width))
        module = DepthAttention(self.dtype)
        filled = jnp.ones((1, self.blocks), bool)
        return {"cross_block": module.init(rng, tokens, (tokens,) * self.blocks, filled)["params"]}

    def first(self, params: PyTree, inputs: PyTree, stream: PyTree) -> dict[str, PyTree]:
        del params, inputs
        tokens = stream["tokens"]
        # All parts of a stream end in tokens and channels, so that a masking schedule cuts them alike.
        count = jnp.zeros((len(tokens), *(1,) * (tokens.ndim - 1)), jnp.int32)
        return {"earlier": (jnp.zeros_like(tokens),) * self.blocks, "earlier_count": count}

    def read(self, params: PyTree, stream: PyTree) -> jax.Array:
        count = stream["earlier_count"]
        number = jnp.arange(self.blocks).reshape((1,) * (count.ndim - 1) + (-1,))
        return DepthAttention(self.dtype).apply(
            {"params": params["link"]["cross_block"]},
            stream["tokens"],
            jax.lax.stop_gradient(stream["earlier"]),
            number < count,
        )

    def sent(self, stream: PyTree) -> dict[str, PyTree]:
        tokens, earlier, count = (stream[name] for name in ("tokens", "earlier", "earlier_count"))
        if self.which == "latest":
            earlier = (tokens, *earlier[:-1])
        else:
            earlier = tuple(jnp.where(count == i, tokens, kept) for i, kept in enumerate(earlier))
        return {"earlier": earlier, "earlier_count": count + 1}

    def apply(self, block: Block) -> Block:
        def loss(params, stream, targets, rng):
            stream = {**stream, "tokens": self.read(params, stream)}
            return block.loss(params, stream, targets, rng)

        def leave(params, stream, targets, rng):
            del params, targets, rng
            return self.sent(stream)

        watch = (*block.watch, "layers")
        return also_leaving(dataclasses.replace(block, loss=loss, watch=watch), leave)
