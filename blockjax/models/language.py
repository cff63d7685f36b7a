"""A trained encoder of text without what trained it: a pure function from tokens to logits, at each of its depths.

Axis letters, here and in all array names: B sequences, T tokens of a sequence, D width, V vocabulary, K blocks.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from blockjax.models.layers import norm_layer
from blockjax.models.text import TextEncoder

PyTree = Any


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """An encoder of text in blocks, with what makes logits of the tokens that leave them.

    Its parameters are a dict: "stem"; "layers", every leaf [K, layers per block, ...]; and "heads", every leaf with a
    leading axis of K, or of 1 where there is one head. A head has a "norm", and a "readout" [D, V] where the embedding
    is not the readout.

    Attributes:
      encoder: all layers.
      blocks: into how many it is cut (K).
      heads: how many there are: K, or 1.
      shared: whether one head is that of all blocks, not of the last one only.
      tied: whether the stem's embedding is the readout.
    """

    encoder: TextEncoder
    blocks: int
    heads: int
    shared: bool = False
    tied: bool = False

    @property
    def separator(self) -> int:
        """The token in front of each document."""
        return self.encoder.vocabulary - 2

    @property
    def mask(self) -> int:
        """The token that stands for masked ones."""
        return self.encoder.vocabulary - 1

    def __call__(self, params: PyTree, tokens_BT: jax.Array) -> jax.Array:
        """Returns the logits that the last block's head makes of tokens, [B, T, V] float32.

        Those of next tokens, where the encoder is causal: in training the first token read is the separator.

        Args:
          params: see above.
          tokens_BT: int32, no more than the context.

        Raises:
          ValueError: sequences longer than the context.
        """
        encoder = self.encoder
        tokens_BTD = encoder.stem(params["stem"], encoder.inputs(tokens_BT))
        return self.logits(params, encoder.layers(merged(params["layers"]), tokens_BTD))

    def logits(self, params: PyTree, tokens_BTD: jax.Array) -> jax.Array:
        """Returns the logits of tokens as they leave the last block, [B, T, V] float32."""
        encoder = self.encoder
        head = jax.tree.map(lambda leaf: leaf[-1], params["heads"])
        norm = norm_layer(encoder.norm, encoder.dtype, epsilon=encoder.norm_epsilon)
        features_BTD = norm.apply({"params": head["norm"]}, tokens_BTD)
        readout_DV = params["stem"]["embedding"].T if self.tied else head["readout"]["kernel"]
        return jnp.einsum(
            "btd,dv->btv",
            features_BTD,
            readout_DV.astype(features_BTD.dtype),
            preferred_element_type=jnp.float32,
        )

    def first(self, params: PyTree, blocks: int) -> tuple["LanguageModel", PyTree]:
        """Returns the model that ends with block `blocks`, and its parameters.

        Raises:
          ValueError: there is no such block, or it has no head.
        """
        if not 1 <= blocks <= self.blocks:
            raise ValueError(
                f"{blocks} blocks: the model has {self.blocks}; give 1 to {self.blocks}"
            )
        if blocks < self.blocks and self.heads < self.blocks and not self.shared:
            raise ValueError(
                f"{blocks} blocks: the model was trained end to end, so only the last of its {self.blocks} depths has "
                f"a head; give {self.blocks}, or train with strategy=blockwise"
            )
        heads = min(blocks, self.heads)
        depth = self.encoder.depth // self.blocks * blocks
        model = dataclasses.replace(
            self, encoder=dataclasses.replace(self.encoder, depth=depth), blocks=blocks, heads=heads
        )
        return model, {
            "stem": params["stem"],
            "layers": jax.tree.map(lambda leaf: leaf[:blocks], params["layers"]),
            "heads": jax.tree.map(lambda leaf: leaf[:heads], params["heads"]),
        }


def merged(layers: PyTree) -> PyTree:
    """Returns the layers of all blocks one after another: leaves [K, layers per block, ...] to [depth, ...]."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), layers)
