"""BYOL (arXiv 2006.07733): predict what the averaged encoder makes of the other view; nothing repels."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from blockjax.models.heads import Projector, l2_normalize
from blockjax.models.vit import ViT
from blockjax.objectives.objective import SMALL
from blockjax.objectives.two_view.base import TwoView, each_view, embedding_std
from blockjax.objectives.two_view.momentum import MomentumObjective

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class BYOL(MomentumObjective, TwoView):
    """Squared distance of normalised predictions and targets, in both directions."""

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict, vit: ViT, blocks: int) -> "BYOL":
        del blocks
        return cls(
            decay=config.momentum.decay,
            decay_steps=config.momentum.steps,
            **cls.fields(config, vit),
        )

    @staticmethod
    def defaults(config: ml_collections.ConfigDict) -> dict[str, Any]:
        # Official: hidden 4096, output 256, decay 0.996 for the long run and 0.97-0.99 for short ones
        # (google-deepmind/deepmind-research, byol/configs); narrower for small images.
        small = config.model.image_size <= SMALL
        return {
            **TwoView.defaults(config),
            "head.hidden": 1024 if small else 4096,
            "head.width": 256,
            "momentum.decay": 0.99 if small else 0.996,
        }

    @staticmethod
    def check(config: ml_collections.ConfigDict) -> None:
        TwoView.check(config)
        if config.momentum.queue:
            raise ValueError(
                f"momentum.queue {config.momentum.queue}: byol compares no images with each other and has no queue; "
                "set it to 0, or objective=moco"
            )

    def _projector(self):
        return Projector((self.hidden, self.out), hidden_bias=True)

    _predictor = _projector  # of the same form

    def init_head(self, rng: jax.Array) -> PyTree:
        readout_rng, projector_rng, predictor_rng = jax.random.split(rng, 3)
        readout, vector = self._init_readout(readout_rng)
        z, projector = self._projector().init_with_output(projector_rng, vector)
        predictor = self._predictor().init(predictor_rng, z)["params"]
        return {"readout": readout, "projector": projector["params"], "predictor": predictor}

    def finish(self, params: PyTree, extra: PyTree, stream: PyTree) -> PyTree:
        """Moves the average after the update, towards the new parameters, as the official code does."""
        del stream
        extra = self.average(params, extra)
        return {**extra, "count": extra["count"] + 1}

    def loss(
        self, head: PyTree, stream: PyTree, targets: PyTree, rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`regression_loss` of the tokens [B, 2, T, D] of the trained encoder and of the averaged one."""
        del targets, rng
        target = each_view(self._project, head["target"], stream["target"])

        def predict(head, tokens):
            return self._predictor().apply(
                {"params": head["predictor"]}, self._project(head, tokens)
            )

        predicted = each_view(predict, head, stream["tokens"])
        loss = regression_loss(predicted, target)
        return loss, {"embedding_std": embedding_std(l2_normalize(predicted))}

    def chance(self, metrics: dict[str, float]) -> float:
        """Returns 4, the loss of predictions at right angles to their targets; that of a constant is 0."""
        del metrics
        return 4.0

    def symptoms(self, metrics: dict[str, float], progress: float) -> list[str]:
        del progress
        if metrics["embedding_std"] < 0.05:
            return [
                f"predictions are all alike (embedding_std {metrics['embedding_std']:.3f} of 1): collapsed, whatever "
                "the loss says; lower optimizer.base_learning_rate, raise momentum.decay, or take a larger batch_size "
                "(BatchNorm in the heads is what keeps them apart)"
            ]
        return []


def regression_loss(predicted_BVd: jax.Array, target_BVd: jax.Array) -> jax.Array:
    """2 - 2 cos of each prediction and the other view's target, both directions added, mean over images; in [0, 8]."""
    predicted = l2_normalize(predicted_BVd)
    target = l2_normalize(jax.lax.stop_gradient(target_BVd))[:, ::-1]
    return (2.0 - 2.0 * jnp.sum(predicted * target, axis=-1)).sum(axis=1).mean()
