"""MoCo: a view's key is made by the averaged encoder, and keys of other images repel. With a queue or without."""

import dataclasses
import math
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
class MoCo(MomentumObjective, TwoView):
    """Without a queue MoCo v3 (arXiv 2104.02057): predictor, both directions, negatives from the other view's keys.

    With a queue v2 (arXiv 2003.04297, facebookresearch/moco): negatives from the queue, a head of two dense layers
    without BatchNorm and without predictor, an average of constant decay. v1 (arXiv 1911.05722) has temperature 0.07
    and a head of one layer, which is not here. On purpose both views are queries, and the loss is the mean of both
    directions; in the sources only the first is. As there, only the second views' keys go into the queue, after the
    loss. Keys need no shuffling over devices, as statistics are those of the global batch.

    Attributes:
      temperature: τ.
      queue: keys in the queue; 0 for none.
      batch_size: images of a global batch.
    """

    temperature: float
    queue: int
    batch_size: int

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict, vit: ViT, blocks: int) -> "MoCo":
        del blocks
        return cls(
            temperature=config.loss.temperature,
            queue=config.momentum.queue,
            batch_size=config.batch_size,
            decay=config.momentum.decay,
            decay_steps=config.momentum.steps,
            **cls.fields(config, vit),
        )

    @staticmethod
    def defaults(config: ml_collections.ConfigDict) -> dict[str, Any]:
        small, shared = config.model.image_size <= SMALL, TwoView.defaults(config)
        if config.momentum.queue:
            # Official: hidden as wide as the features, output 128, τ 0.2, decay 0.999 and v2's views
            # (facebookresearch/moco, main_moco.py, moco/builder.py); those for CIFAR are the same without blur.
            wide = (config.head.readout or shared["head.readout"]) == "cbe_gap"
            expansion = config.head.expansion or shared["head.expansion"]
            return {
                **shared,
                "views.recipe": "cifar-simclr" if small else "moco2",
                "head.hidden": expansion if wide else config.model.width,
                "head.width": 128,
                "loss.temperature": 0.2,
                "momentum.decay": 0.999,
            }
        # Official: hidden 4096, output 256, τ 0.2, decay 0.99 (facebookresearch/moco-v3); narrower for small images.
        return {
            **shared,
            "head.hidden": 1024 if small else 4096,
            "head.width": 128 if small else 256,
            "loss.temperature": 0.2,
            "momentum.decay": 0.99,
        }

    @staticmethod
    def check(config: ml_collections.ConfigDict) -> None:
        TwoView.check(config)
        if config.momentum.queue % config.batch_size:
            near = max(1, round(config.momentum.queue / config.batch_size)) * config.batch_size
            raise ValueError(
                f"momentum.queue {config.momentum.queue} is not a multiple of batch_size {config.batch_size}, by which "
                f"it moves on; {near} would be, and 0 means no queue"
            )

    def _projector(self):
        if self.queue:
            return Projector((self.hidden, self.out), hidden_norm=False)
        return Projector((self.hidden, self.hidden, self.out), last_norm="plain")

    def _predictor(self):
        return Projector((self.hidden, self.out), last_norm="plain")

    def init_head(self, rng: jax.Array) -> PyTree:
        readout_rng, projector_rng, predictor_rng = jax.random.split(rng, 3)
        readout, vector = self._init_readout(readout_rng)
        z, projector = self._projector().init_with_output(projector_rng, vector)
        head = {"readout": readout, "projector": projector["params"]}
        if not self.queue:
            head["predictor"] = self._predictor().init(predictor_rng, z)["params"]
        return head

    def init_block_extra(self, params: PyTree, rng: jax.Array) -> PyTree:
        extra = super().init_block_extra(params, rng)
        if self.queue:
            extra["queue"] = l2_normalize(jax.random.normal(rng, (self.queue, self.out)))
        return extra

    def begin(self, params: PyTree, extra: PyTree) -> PyTree:
        """Moves the average before the keys are made, with the parameters before the step, as MoCo's code does."""
        return self.average(params, extra)

    def finish(self, params: PyTree, extra: PyTree, stream: PyTree) -> PyTree:
        """Counts the step and, with a queue, replaces its oldest keys by those of this batch."""
        del params
        extra = {**extra, "count": extra["count"] + 1}
        if "queue" in extra:
            keys = self._keys(extra["target"]["head"], stream["target"])[:, 1]
            start = (extra["count"] - 1) * len(keys) % self.queue
            extra["queue"] = jax.lax.dynamic_update_slice_in_dim(extra["queue"], keys, start, 0)
        return extra

    def _keys(self, head, tokens):
        return l2_normalize(each_view(self._project, head, tokens))

    def loss(
        self, head: PyTree, stream: PyTree, targets: PyTree, rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of queries from the trained encoder and keys from the averaged one; both parts are [B, 2, T, D]."""
        del targets, rng
        keys = jax.lax.stop_gradient(self._keys(head["target"], stream["target"]))

        def query(head, tokens):
            z = self._project(head, tokens)
            if not self.queue:
                z = self._predictor().apply({"params": head["predictor"]}, z)
            return z

        queries = l2_normalize(each_view(query, head, stream["tokens"]))
        if self.queue:
            loss, accuracy = info_nce_queue(queries, keys, head["queue"], self.temperature)
        else:
            loss, accuracy = info_nce(queries, keys, self.temperature)
        return loss, {"accuracy": accuracy, "embedding_std": embedding_std(queries)}

    def chance(self, metrics: dict[str, float]) -> float:
        del metrics
        if self.queue:
            return math.log(1 + self.queue)
        return 4 * self.temperature * math.log(self.batch_size)

    def symptoms(self, metrics: dict[str, float], progress: float) -> list[str]:
        chance = self.chance(metrics)
        if progress > 0.25 and (metrics["loss"] > chance - 0.01 or metrics["embedding_std"] < 0.05):
            return [
                f"queries are all alike (the loss of equal embeddings is {chance:.2f}): collapsed; lower "
                "optimizer.base_learning_rate, or set model.freeze_embedding=True"
            ]
        return []


def info_nce(
    queries_BVd: jax.Array, keys_BVd: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """MoCo v3's loss: 2 τ · cross-entropy of each query over the other view's keys, both directions added.

    Args:
      queries_BVd: of length 1, [B, 2, d].
      keys_BVd: the same, without gradient.
      temperature: τ.

    Returns:
      The loss, and the share of queries whose own key is the nearest.
    """
    total, hits = 0.0, 0.0
    labels = jnp.arange(len(queries_BVd))
    for view in range(2):
        logits = queries_BVd[:, view] @ keys_BVd[:, 1 - view].T / temperature
        total += 2 * temperature * -jnp.diagonal(jax.nn.log_softmax(logits, axis=-1)).mean()
        hits += jnp.mean(jnp.argmax(logits, axis=-1) == labels) / 2
    return total, hits


def info_nce_queue(
    queries_BVd: jax.Array, keys_BVd: jax.Array, queue_Qd: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """MoCo's loss with a queue: cross-entropy of each query over its own key and the queue, mean of both directions."""
    positive = jnp.einsum("bvd,bvd->bv", queries_BVd, keys_BVd[:, ::-1])[..., None]
    negative = queries_BVd @ queue_Qd.T
    logits = jnp.concatenate([positive, negative], axis=-1) / temperature
    loss = -jax.nn.log_softmax(logits, axis=-1)[..., 0].mean()
    return loss, jnp.mean(jnp.argmax(logits, axis=-1) == 0)
