"""Local decoders: what turns a block's visible tokens into predicted pixels of masked patches."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from blockjax.extensions import chosen
from blockjax.models.layers import Attention, Layer, Mlp, layer_norm
from blockjax.models.position import sincos_2d


class Decoder(nn.Module):
    """The hyperparameters of a decoder.

    Attributes:
      width: of its tokens; the encoder's tokens are projected to it.
      depth: in layers.
      heads: of each layer's attention.
      grid: rows and columns of patches.
      patch_values: values of a patch (P).
      dtype: of activations.
      remat: "none", or else: recompute each layer in the backward pass, where there are several. (The backward pass
        of a single layer comes right after its forward pass: nothing would be saved.)
      learned_positions: whether positions are parameters, which start as the fixed ones.
      norm_epsilon: of every LayerNorm.
    """

    width: int
    depth: int
    heads: int
    grid: tuple[int, int]
    patch_values: int
    dtype: Any
    remat: str = "none"
    learned_positions: bool = False
    norm_epsilon: float = 1e-6

    def _rematerialized(self, layer, **options):
        return nn.remat(layer, **options) if self.remat != "none" and self.depth > 1 else layer

    def _norm(self, name):
        return layer_norm(self.dtype, name, self.norm_epsilon)

    def _positions(self):
        """Returns the positions' table, [N, width]."""
        table_ND = sincos_2d(*self.grid, self.width)
        if self.learned_positions:
            table_ND = self.param("positions", lambda _: jnp.asarray(table_ND))
        return jnp.asarray(table_ND, self.dtype)

    def _predict(self, features_BMD, project):
        layer = _dense(self.patch_values, self.dtype, "pixels")
        return layer(features_BMD) if project else features_BMD

    def _mask_tokens(self, table_ND, masked_BM):
        token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.width))
        return token.astype(self.dtype) + table_ND[masked_BM]


class CrossAttentionDecoder(Decoder):
    """Mask queries attend to the visible tokens and not to each other (CrossMAE, arXiv 2401.14391).

    A query's prediction does not depend on which other patches are decoded, so any part of the masked patches may be
    decoded in a step.
    """

    @nn.compact
    def __call__(
        self,
        tokens_BTD: jax.Array,
        visible_BV: jax.Array,
        masked_BM: jax.Array,
        project: bool = True,
    ) -> jax.Array:
        """Decodes.

        Args:
          tokens_BTD: CLS and the V visible tokens, as they leave the block.
          visible_BV: positions of the visible patches (the tokens carry them already).
          masked_BM: positions of the patches to decode.
          project: whether to predict patches; else the features are returned that the last layer, `pixels`, takes.

        Returns:
          Predicted patches [B, M, P], in the dtype of activations; or features [B, M, width].
        """
        del visible_BV
        context = self._norm("norm")(tokens_BTD)
        context = _dense(self.width, self.dtype, "embed")(context)
        context = self._norm("context_norm")(context)
        queries = self._mask_tokens(self._positions(), masked_BM)
        layer = self._rematerialized(_cross_layer, static_argnums=(3,))
        for i in range(self.depth):
            queries = layer(self, queries, context, i)
        queries = self._norm("out_norm")(queries)
        return self._predict(queries, project)


class SelfAttentionDecoder(Decoder):
    """MAE's own decoder (arXiv 2111.06377): transformer layers over visible tokens and mask tokens together."""

    @nn.compact
    def __call__(
        self,
        tokens_BTD: jax.Array,
        visible_BV: jax.Array,
        masked_BM: jax.Array,
        project: bool = True,
    ) -> jax.Array:
        """Decodes; arguments and result as in `CrossAttentionDecoder`."""
        tokens = self._norm("norm")(tokens_BTD)
        tokens = _dense(self.width, self.dtype, "embed")(tokens)
        # CLS stands first and has no position. Attention knows no order, so nothing needs to be unshuffled.
        table_ND = self._positions()
        tokens = tokens.at[:, 1:].add(table_ND[visible_BV])
        tokens = jnp.concatenate([tokens, self._mask_tokens(table_ND, masked_BM)], axis=1)
        layer = self._rematerialized(Layer)
        for i in range(self.depth):
            tokens = layer(self.heads, 4.0, self.dtype, self.norm_epsilon, name=f"layer_{i}")(
                tokens
            )
        masked = self._norm("out_norm")(tokens[:, tokens_BTD.shape[1] :])
        return self._predict(masked, project)


DECODERS = {"cross_attention": CrossAttentionDecoder, "self_attention": SelfAttentionDecoder}


def find_decoder(kind: str) -> type[Decoder]:
    """Returns the decoder of this kind, or your own, `module:Name`.

    Raises:
      ValueError: there is none; says why.
    """
    return chosen("decoder.kind", kind, DECODERS, Decoder)


def _cross_layer(decoder, queries, context, i):
    dtype = decoder.dtype
    normed = decoder._norm(f"query_norm_{i}")(queries)
    queries += Attention(decoder.heads, dtype, name=f"attention_{i}")(normed, context)
    normed = decoder._norm(f"mlp_norm_{i}")(queries)
    return queries + Mlp(4.0, dtype, name=f"mlp_{i}")(normed)


def _dense(features, dtype, name):
    return nn.Dense(features, dtype=dtype, kernel_init=nn.initializers.xavier_uniform(), name=name)
