"""Masked language modelling (BERT, arXiv 1810.04805) as a local loss."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections

from blockjax.objectives.masked.masking import random_order
from blockjax.objectives.text.base import TextObjective

PyTree = Any

# Of the chosen tokens so many become the mask, and so many any token; the rest stay (arXiv 1810.04805, section 3.1).
_MASKED, _RANDOM = 0.8, 0.1


@dataclasses.dataclass(frozen=True)
class MaskedToken(TextObjective):
    """Predicts chosen tokens, most of them masked, from all others.

    Attributes:
      ratio: share of a sequence's tokens that are chosen; the same number in each.
    """

    ratio: float = 0.15

    causal: ClassVar[bool] = False

    @classmethod
    def _own(cls, config):
        return {"ratio": config.mask.ratio}

    @staticmethod
    def defaults(config: ml_collections.ConfigDict) -> dict[str, Any]:
        del config
        return {"mask.ratio": 0.15}

    @classmethod
    def predicted_tokens(cls, config: ml_collections.ConfigDict) -> int:
        """Returns how many tokens of a sequence are chosen."""
        return _chosen(config.mask.ratio, config.model.context)

    def prepare(self, rng: jax.Array, batch: dict[str, jax.Array]) -> tuple[PyTree, PyTree]:
        """Masks a batch.

        Args:
          rng: a key for this step.
          batch: {"tokens": int32 [B, T]}.

        Returns:
          Inputs of the stem, {"tokens": [B, T]}; targets, {"tokens": [B, M], "positions": [B, M]}, of the chosen.
        """
        tokens_BT = batch["tokens"]
        sequences, length = tokens_BT.shape
        order_rng, fate_rng, token_rng = jax.random.split(rng, 3)
        positions_BM = random_order(order_rng, sequences, length)[:, : _chosen(self.ratio, length)]
        chosen_BM = jnp.take_along_axis(tokens_BT, positions_BM, axis=1)
        fate_BM = jax.random.uniform(fate_rng, chosen_BM.shape)
        any_BM = jax.random.randint(token_rng, chosen_BM.shape, 0, self.separator, chosen_BM.dtype)
        put_BM = jnp.where(fate_BM < _MASKED, self.mask, chosen_BM)
        put_BM = jnp.where((fate_BM >= _MASKED) & (fate_BM < _MASKED + _RANDOM), any_BM, put_BM)
        rows_B1 = jnp.arange(sequences)[:, None]
        inputs = {"tokens": tokens_BT.at[rows_B1, positions_BM].set(put_BM)}
        return inputs, {"tokens": chosen_BM, "positions": positions_BM}

    def _predicting(self, tokens_BTD, targets):
        return jnp.take_along_axis(tokens_BTD, targets["positions"][:, :, None], axis=1)


def _chosen(ratio, length):
    return max(1, round(ratio * length))
