"""Barlow Twins (arXiv 2103.03230): two views agree in each dimension, and dimensions are uncorrelated."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections

from blockjax.checks import Bound
from blockjax.models.heads import BatchNorm, Projector
from blockjax.models.vit import ViT
from blockjax.objectives.two_view.base import TwoView, each_view

PyTree = Any

# λ (D - 1) / N of the paper's setting (0.0051 · 8191 / 2048) is 0.02: the noise of the correlations of N images beside
# the D ones on the diagonal. At so many times that, noise is most of the loss.
_NOISE_LIMIT = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class BarlowTwins(TwoView):
    """Redundancy reduction on the output of a three-layer projector.

    Attributes:
      off_diagonal: λ, the weight of the correlations between dimensions.
    """

    off_diagonal: float

    bounds: ClassVar[dict[str, Bound]] = {**TwoView.bounds, "loss.off_diagonal": Bound(0, 1e6)}

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict, vit: ViT, blocks: int) -> "BarlowTwins":
        del blocks
        return cls(off_diagonal=config.loss.off_diagonal, **cls.fields(config, vit))

    @staticmethod
    def defaults(config: ml_collections.ConfigDict) -> dict[str, Any]:
        # Official: 8192 wide at a batch of 2048, λ 0.0051 (facebookresearch/barlowtwins): four times the batch.
        width = min(8192, 4 * config.batch_size)
        return {
            **TwoView.defaults(config),
            "head.hidden": width,
            "head.width": width,
            "loss.off_diagonal": 0.0051,
        }

    @staticmethod
    def check(config: ml_collections.ConfigDict) -> None:
        TwoView.check(config)
        noise = config.loss.off_diagonal * (config.head.width - 1) / config.batch_size
        if noise > _NOISE_LIMIT:
            raise ValueError(
                f"batch_size {config.batch_size} is too small for Barlow Twins with head.width {config.head.width}: "
                f"the noise of so few images' correlations would be most of the loss; set head.width to about "
                f"{4 * config.batch_size}, or batch_size to at least {config.head.width // 4}"
            )

    def _projector(self):
        return Projector((self.hidden, self.hidden, self.out), last_norm="plain")

    def loss(
        self, head: PyTree, stream: jax.Array, targets: PyTree, rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`redundancy_loss` of tokens [B, 2, T, D]."""
        del targets, rng
        z = each_view(self._project, head, stream)
        return redundancy_loss(z[:, 0], z[:, 1], self.off_diagonal)

    def chance(self, metrics: dict[str, float]) -> float:
        del metrics
        return float(self.out)

    def symptoms(self, metrics: dict[str, float], progress: float) -> list[str]:
        if progress > 0.25 and metrics["dead_share"] > 0.25:
            return [
                f"{metrics['dead_share']:.0%} of the dimensions are dead (the views do not agree in them): lower "
                "optimizer.base_learning_rate or head.width"
            ]
        return []


def redundancy_loss(
    first_BD: jax.Array, second_BD: jax.Array, off_diagonal: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Σ (C_ii - 1)² + λ Σ_{i≠j} C_ij², for C the correlations of two views' embeddings over the global batch.

    Args:
      first_BD: embeddings of the first views; normalised here over the batch, in float32.
      second_BD: those of the second views.
      off_diagonal: λ.

    Returns:
      The loss; `diagonal`, the mean of C_ii; `dead_share`, the part of dimensions with C_ii below 0.1; and
      `off_excess`, Σ_{i≠j} C_ij² beyond the D (D - 1) / N that uncorrelated dimensions give by chance.
    """
    count, width = first_BD.shape
    plain = BatchNorm(use_scale=False, use_bias=False)
    first, second = plain.apply({}, first_BD), plain.apply({}, second_BD)
    correlation = first.T @ second / count
    diagonal = jnp.diagonal(correlation)
    off = jnp.square(correlation).sum() - jnp.square(diagonal).sum()
    loss = jnp.square(diagonal - 1.0).sum() + off_diagonal * off
    return loss, {
        "diagonal": diagonal.mean(),
        "dead_share": jnp.mean(diagonal < 0.1),
        "off_excess": off - width * (width - 1) / count,
    }
