"""Language modelling as a local loss: every block predicts the next token from its own stream."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections

from blockjax.objectives.text.base import TextObjective

PyTree = Any


@dataclasses.dataclass(frozen=True)
class NextToken(TextObjective):
    """Predicts each token from those before it; the first from the separator alone."""

    causal: ClassVar[bool] = True

    @classmethod
    def check(cls, config: ml_collections.ConfigDict) -> None:
        """Raises ValueError for settings that cannot work."""
        super().check(config)
        if config.cross_block.blocks:
            raise ValueError(
                f"cross_block.blocks={config.cross_block.blocks}: heads would attend to whole sequences, later tokens "
                "among them, which next_token has to predict; set it to 0, or objective=masked_token"
            )

    def prepare(self, rng: jax.Array, batch: dict[str, jax.Array]) -> tuple[PyTree, PyTree]:
        """Shifts a batch.

        Args:
          rng: unused.
          batch: {"tokens": int32 [B, T]}.

        Returns:
          Inputs of the stem, {"tokens": [B, T]}: the separator, and all tokens but the last; targets, {"tokens": [B,
          T]}: the tokens themselves.
        """
        del rng
        tokens_BT = batch["tokens"]
        first_B1 = jnp.full_like(tokens_BT[:, :1], self.separator)
        inputs = {"tokens": jnp.concatenate([first_B1, tokens_BT[:, :-1]], axis=1)}
        return inputs, {"tokens": tokens_BT}
