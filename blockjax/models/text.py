"""The encoder of text as pure functions: a token stem, and the layers of `encoder.py`.

Axis letters, here and in all array names: B sequences, T tokens of a sequence, D width, V vocabulary.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from blockjax.models.encoder import Encoder
from blockjax.models.layers import Layer

PyTree = Any

# (width, depth, heads): of GPT-2 (openai/gpt-2, and its report's table 2).
TEXT_PRESETS = {
    "gpt2": (768, 12, 12),
    "gpt2-medium": (1024, 24, 16),
    "gpt2-large": (1280, 36, 20),
    "gpt2-xl": (1600, 48, 25),
}
POSITIONS = ("rotary", "learned")


class TokenStem(nn.Module):
    """An embedding of token ids; with `context` also learned positions of so many places."""

    vocabulary: int
    width: int
    dtype: Any
    context: int | None = None

    @nn.compact
    def __call__(self, tokens_BT: jax.Array, start: jax.Array | int = 0) -> jax.Array:
        normal = nn.initializers.normal(0.02)
        table_VD = self.param("embedding", normal, (self.vocabulary, self.width))
        tokens_BTD = table_VD.astype(self.dtype)[tokens_BT]
        if self.context is not None:
            places_CD = self.param("positions", normal, (self.context, self.width))
            here_TD = jax.lax.dynamic_slice_in_dim(places_CD, start, tokens_BT.shape[1])
            tokens_BTD = tokens_BTD + here_TD[None].astype(self.dtype)
        return tokens_BTD


@dataclasses.dataclass(frozen=True)
class TextEncoder(Encoder):
    """The hyperparameters of an encoder of text, and its pure functions; see `Encoder`.

    Attributes:
      vocabulary: token ids are from 0 to this, exclusive (V).
      context: tokens of a sequence, at most (T).
      causal: whether a token reads itself and those before it only.
      positions: "rotary", or "learned".
      norm, mlp, bias: of `Layer`.
    """

    vocabulary: int
    context: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32
    remat: str = "none"
    unroll: int = 1
    causal: bool = True
    positions: str = "rotary"
    norm: str = "layer_norm"
    mlp: str = "gelu"
    bias: bool = True
    norm_epsilon: float = 1e-6
    zero_residuals: bool = False

    def _stem(self):
        learned = self.context if self.positions == "learned" else None
        return TokenStem(self.vocabulary, self.width, self.dtype, learned)

    def _layer(self):
        return Layer(
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            dtype=self.dtype,
            norm_epsilon=self.norm_epsilon,
            causal=self.causal,
            rotary=self.positions == "rotary",
            bias=self.bias,
            norm=self.norm,
            mlp=self.mlp,
        )

    def init_stem(self, rng: jax.Array) -> PyTree:
        """Returns the stem's parameters, float32."""
        return self._stem().init(rng, jnp.zeros((1, 1), jnp.int32))["params"]

    def inputs(self, examples: jax.Array) -> dict[str, jax.Array]:
        """Returns the stem's inputs of token ids [B, T].

        Raises:
          ValueError: sequences longer than the context.
        """
        if examples.shape[-1] > self.context:
            raise ValueError(
                f"tokens of shape {examples.shape}: this encoder takes sequences of at most {self.context}; cut them"
            )
        return {"tokens": examples}

    def stem(self, params: PyTree, inputs: dict[str, jax.Array]) -> jax.Array:
        """Embeds token ids.

        Args:
          params: from `init_stem`.
          inputs: {"tokens": int [B, T]}, and "start", the place of the first of them, where it is not 0.

        Returns:
          Tokens [B, T, D].
        """
        return self._stem().apply({"params": params}, inputs["tokens"], inputs.get("start", 0))

    def empty_cache(self, sequences: int, layers: int) -> PyTree:
        """Returns the cache of so many layers before the first token, leaves [layers, ...]; see `cached_layers`."""
        shape = (layers, sequences, self.context, self.heads, self.width // self.heads)
        empty = jnp.zeros(shape, self.dtype)
        length = jnp.zeros((layers,), jnp.int32)
        return {"attention": {"keys": empty, "values": empty, "length": length}}

    def cached_layers(
        self, params: PyTree, tokens_BTD: jax.Array, cache: PyTree
    ) -> tuple[jax.Array, PyTree]:
        """Runs layers on the tokens that come next; those before are in the cache.

        Args:
          params: leaves [L, ...].
          tokens_BTD: of the next places; with what is cached no more than the context.
          cache: from `empty_cache`, or from the call before.

        Returns:
          The tokens that leave the layers, and the cache with these.
        """
        layer = self._layer()

        def one(tokens, row):
            layer_params, layer_cache = row
            variables = {"params": layer_params, "cache": layer_cache}
            tokens, changed = layer.apply(variables, tokens, mutable=["cache"])
            return tokens, changed["cache"]

        return jax.lax.scan(one, tokens_BTD, (params, cache))
