"""A transformer layer and its parts.

Axis letters, here and in all array names: B images or sequences, T tokens, Q query tokens, D width, H heads, d channels
of a head.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from blockjax.models.attention import attention, cached_attention
from blockjax.models.position import rotated

# Xavier-uniform over query, key and value as one [D, 3 D] matrix, as in MAE: variance 2 / (D + 3 D).
_QKV_INIT = nn.initializers.variance_scaling(0.5, "fan_in", "uniform")
XAVIER = nn.initializers.xavier_uniform()


class Attention(nn.Module):
    """Multi-head attention from query tokens to context tokens; softmax in float32.

    Kernels are [D, D] matrices: arrays with a small head axis would be padded, and copied into another layout, on TPU.

    With a collection "cache" ("keys" and "values", [B, S, H, d], and "length", int32: how many of the S places are
    filled) tokens are the next ones of causal self-attention: they read what the cache holds, and are added to it.

    Attributes:
      heads: how many.
      dtype: of activations.
      causal: whether a token reads itself and those before it only.
      rotary: whether queries and keys are turned by their places in the sequence.
      bias: whether dense layers have one.
    """

    heads: int
    dtype: Any
    causal: bool = False
    rotary: bool = False
    bias: bool = True

    @nn.compact
    def __call__(self, queries_BQD: jax.Array, context_BTD: jax.Array) -> jax.Array:
        width = queries_BQD.shape[-1]

        def dense(name, init):
            return nn.Dense(
                width, use_bias=self.bias, dtype=self.dtype, kernel_init=init, name=name
            )

        def project(name, tokens):
            out = dense(name, _QKV_INIT)(tokens)
            return out.reshape(*out.shape[:2], self.heads, width // self.heads)

        query, key, value = (
            project("query", queries_BQD),
            project("key", context_BTD),
            project("value", context_BTD),
        )
        is_cached = self.has_variable("cache", "keys")
        start = self.get_variable("cache", "length") if is_cached else 0
        if self.rotary:
            query, key = rotated(query, start), rotated(key, start)
        if is_cached:
            mixed_BQHd = self._over_cache(query, key, value, start)
        else:
            mixed_BQHd = attention(query, key, value, causal=self.causal)
        mixed_BQD = mixed_BQHd.reshape(*mixed_BQHd.shape[:2], width)
        return dense("out", XAVIER)(mixed_BQD)

    def _over_cache(self, query_BQHd, key_BQHd, value_BQHd, start):
        held = {"keys": key_BQHd, "values": value_BQHd}
        for name, new in held.items():
            old = self.get_variable("cache", name)
            held[name] = jax.lax.dynamic_update_slice(old, new.astype(old.dtype), (0, start, 0, 0))
            self.put_variable("cache", name, held[name])
        self.put_variable("cache", "length", start + query_BQHd.shape[1])
        return cached_attention(query_BQHd, held["keys"], held["values"], start)


class Mlp(nn.Module):
    """Two dense layers with the exact GELU between them."""

    ratio: float
    dtype: Any
    bias: bool = True

    @nn.compact
    def __call__(self, tokens_BTD: jax.Array) -> jax.Array:
        width = tokens_BTD.shape[-1]
        dense = functools.partial(
            nn.Dense, use_bias=self.bias, dtype=self.dtype, kernel_init=XAVIER
        )
        hidden = dense(int(width * self.ratio))(tokens_BTD)
        return dense(width)(gelu(hidden))


class GatedMlp(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate) * up)."""

    ratio: float
    dtype: Any
    bias: bool = True

    @nn.compact
    def __call__(self, tokens_BTD: jax.Array) -> jax.Array:
        width = tokens_BTD.shape[-1]
        dense = functools.partial(
            nn.Dense, use_bias=self.bias, dtype=self.dtype, kernel_init=XAVIER
        )
        hidden = int(width * self.ratio)
        gate = dense(hidden, name="gate")(tokens_BTD)
        return dense(width, name="down")(nn.silu(gate) * dense(hidden, name="up")(tokens_BTD))


def gelu(x: jax.Array) -> jax.Array:
    """Returns x · Φ(x), the exact GELU (arXiv 1606.08415).

    On CPU, where XLA writes every intermediate to memory, the backward pass keeps x only; and `erf` costs less than the
    `erfc` that Flax takes.
    """
    exact = functools.partial(nn.gelu, approximate=False)
    return jax.lax.platform_dependent(x, cpu=_frugal_gelu, default=exact)


@functools.partial(jax.checkpoint, prevent_cse=False)
def _frugal_gelu(x):
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def layer_norm(dtype: Any, name: str | None = None, epsilon: float = 1e-6) -> nn.LayerNorm:
    """Returns the LayerNorm used everywhere; statistics in float32."""
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, name=name)


# By config name: of normalisations, and of MLPs each with the name of its last matrix.
NORMS = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm}
MLPS = {"gelu": (Mlp, "Dense_1"), "swiglu": (GatedMlp, "down")}


def norm_layer(kind: str, dtype: Any, name: str | None = None, epsilon: float = 1e-6) -> nn.Module:
    """Returns a normalisation of `NORMS`; statistics in float32."""
    return NORMS[kind](epsilon=epsilon, dtype=dtype, name=name)


class Layer(nn.Module):
    """A pre-norm transformer layer.

    Attributes:
      heads: of the attention.
      mlp_ratio: hidden units of the MLP, as a multiple of the width.
      dtype: of activations.
      norm_epsilon: of both normalisations.
      causal, rotary, bias: see `Attention`; `bias` is the MLP's, too.
      norm: one of `NORMS`.
      mlp: one of `MLPS`.
    """

    heads: int
    mlp_ratio: float
    dtype: Any
    norm_epsilon: float = 1e-6
    causal: bool = False
    rotary: bool = False
    bias: bool = True
    norm: str = "layer_norm"
    mlp: str = "gelu"

    @nn.compact
    def __call__(self, tokens_BTD: jax.Array, scale_2B: jax.Array | None = None) -> jax.Array:
        """Runs the layer; `scale_2B` multiplies what its attention and its MLP add, image by image."""

        def scaled(branch_BTD, index):
            if scale_2B is None:
                return branch_BTD
            return branch_BTD * scale_2B[index][:, None, None].astype(branch_BTD.dtype)

        normed = norm_layer(self.norm, self.dtype, "norm_1", self.norm_epsilon)(tokens_BTD)
        attend = Attention(
            self.heads, self.dtype, self.causal, self.rotary, self.bias, name="attention"
        )
        tokens_BTD = tokens_BTD + scaled(attend(normed, normed), 0)
        normed = norm_layer(self.norm, self.dtype, "norm_2", self.norm_epsilon)(tokens_BTD)
        mlp, _ = MLPS[self.mlp]
        branch = mlp(self.mlp_ratio, self.dtype, self.bias, name="mlp")(normed)
        return tokens_BTD + scaled(branch, 1)
