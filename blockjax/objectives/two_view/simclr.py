"""SimCLR (arXiv 2002.05709): an image's two views attract each other, all other views of the batch repel."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from blockjax.models.heads import Projector, l2_normalize
from blockjax.models.vit import ViT
from blockjax.objectives.objective import SMALL
from blockjax.objectives.two_view.base import TwoView, embedding_std

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimCLR(TwoView):
    """NT-Xent on the output of a three-layer projector.

    Attributes:
      temperature: τ.
      batch_size: images of a global batch, for `symptoms` only.
    """

    temperature: float
    batch_size: int

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict, vit: ViT, blocks: int) -> "SimCLR":
        del blocks
        return cls(
            temperature=config.loss.temperature,
            batch_size=config.batch_size,
            **cls.fields(config, vit),
        )

    @staticmethod
    def defaults(config: ml_collections.ConfigDict) -> dict[str, Any]:
        # Official widths (google-research/simclr): hidden as wide as the input, output 128; τ 0.1 at a batch of 4096,
        # 0.5 on small images; 0.2 is the usual middle for a batch of some hundreds.
        small = config.model.image_size <= SMALL
        return {
            **TwoView.defaults(config),
            "head.hidden": 512 if small else 2048,
            "head.width": 128,
            "loss.temperature": 0.2 if small else 0.1,
            "views.recipe": "cifar-simclr" if small else "simclr",
        }

    def _projector(self):
        return Projector((self.hidden, self.hidden, self.out), last_norm="scale")

    def loss(
        self, head: PyTree, stream: jax.Array, targets: PyTree, rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """NT-Xent of tokens [B, 2, T, D]; with `accuracy`, the share of views whose partner is the nearest."""
        del targets, rng
        # Both views go through BatchNorm as one batch, as in the official code.
        z = l2_normalize(self._project(head, stream))
        loss, accuracy = nt_xent(z, self.temperature)
        return loss, {"accuracy": accuracy, "embedding_std": embedding_std(z)}

    def chance(self, metrics: dict[str, float]) -> float:
        del metrics
        return math.log(2 * self.batch_size - 1)

    def symptoms(self, metrics: dict[str, float], progress: float) -> list[str]:
        chance = self.chance(metrics)
        if progress > 0.25 and metrics["loss"] > chance - 0.01:
            return [
                f"the loss is that of embeddings which are all equal, log(2 batch - 1) = {chance:.2f}: collapsed; "
                "lower optimizer.base_learning_rate, or lengthen optimizer.warmup_steps"
            ]
        return []


def nt_xent(z_BVd: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
    """Normalised temperature-scaled cross-entropy over 2 B views: half of what the official code's sum gives.

    Args:
      z_BVd: embeddings of length 1, [B, 2, d].
      temperature: τ.

    Returns:
      The mean over views of -log softmax over the 2 B - 1 other views, at the partner; and the share of views whose
      partner is the nearest.
    """
    count = 2 * len(z_BVd)
    z = z_BVd.astype(jnp.float32).reshape(
        count, -1
    )  # view by view of an image: partners are i and i ^ 1
    logits = z @ z.T / temperature
    logits = jnp.where(jnp.eye(count, dtype=bool), -1e9, logits)
    partner = jnp.arange(count) ^ 1
    log_p = jax.nn.log_softmax(logits, axis=-1)
    loss = -jnp.take_along_axis(log_p, partner[:, None], axis=1).mean()
    return loss, jnp.mean(jnp.argmax(logits, axis=-1) == partner)
