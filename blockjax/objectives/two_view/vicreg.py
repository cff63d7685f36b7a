"""VICReg (arXiv 2105.04906): views agree, every dimension keeps its variance, and dimensions are uncorrelated."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from blockjax.models.heads import Projector
from blockjax.models.vit import ViT
from blockjax.objectives.two_view.base import TwoView, each_view

PyTree = Any

# Weights of the three terms (facebookresearch/vicreg).
INVARIANCE, VARIANCE, COVARIANCE = 25.0, 25.0, 1.0
_EPSILON = 1e-4  # added to variances (the same code)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VICReg(TwoView):
    """Variance, invariance and covariance of the output of a three-layer projector."""

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict, vit: ViT, blocks: int) -> "VICReg":
        del blocks
        return cls(**cls.fields(config, vit))

    @staticmethod
    def defaults(config: ml_collections.ConfigDict) -> dict[str, Any]:
        # Official: 8192 wide at a batch of 2048 (facebookresearch/vicreg).
        width = min(8192, 4 * config.batch_size)
        return {
            **TwoView.defaults(config),
            "head.hidden": width,
            "head.width": width,
        }

    def _projector(self):
        return Projector((self.hidden, self.hidden, self.out), hidden_bias=True)

    def loss(
        self, head: PyTree, stream: jax.Array, targets: PyTree, rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`vicreg_loss` of tokens [B, 2, T, D]."""
        del targets, rng
        z = each_view(self._project, head, stream)
        return vicreg_loss(z[:, 0], z[:, 1])

    def chance(self, metrics: dict[str, float]) -> float:
        del metrics
        return VARIANCE * (1.0 - math.sqrt(_EPSILON))

    def symptoms(self, metrics: dict[str, float], progress: float) -> list[str]:
        if progress > 0.25 and metrics["variance"] > 0.9:
            return [
                f"the variance term is {metrics['variance']:.2f} of 1: embeddings are nearly constant; lower "
                "optimizer.base_learning_rate, or lengthen optimizer.warmup_steps"
            ]
        return []


def vicreg_loss(
    first_BD: jax.Array, second_BD: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """25 · invariance + 25 · variance + covariance, over the global batch.

    Args:
      first_BD: embeddings of the first views.
      second_BD: those of the second views.

    Returns:
      The loss; and its terms `invariance` (mean squared difference), `variance` (half the sum over views of the mean of
      relu(1 - sqrt(var + 1e-4)), from 0 to 0.99) and `covariance` (sum over views of Σ_{i≠j} cov² / D).
    """
    first, second = first_BD.astype(jnp.float32), second_BD.astype(jnp.float32)
    count, width = first.shape
    invariance = jnp.square(first - second).mean()
    variance = covariance = 0.0
    for z in (first, second):
        z = z - z.mean(axis=0, keepdims=True)
        variances = jnp.square(z).sum(axis=0) / (count - 1)
        variance += jax.nn.relu(1.0 - jnp.sqrt(variances + _EPSILON)).mean() / 2
        products = z.T @ z / (count - 1)
        off = jnp.square(products).sum() - jnp.square(jnp.diagonal(products)).sum()
        covariance += off / width
    loss = INVARIANCE * invariance + VARIANCE * variance + COVARIANCE * covariance
    return loss, {"invariance": invariance, "variance": variance, "covariance": covariance}
