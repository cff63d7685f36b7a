"""Distillation between blocks: from visible patches, a head also predicts what another block makes of whole images."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from blockjax.models.vit import ViT
from blockjax.objectives import Objective
from blockjax.sharding.memory_spaces import to_device
from blockjax.sharding.rules import split_as_parameters
from blockjax.strategies import Block, TrainState
from blockjax.techniques.technique import Technique, also_leaving

PyTree = Any

TEACHERS = ("ladder", "top")


@dataclasses.dataclass(frozen=True)
class Distillation(Technique):
    """Makes a block's loss (1 - α) · L + α · mean of abs(ẑ - LN(sg t)) over the patches that its head predicts.

    L is the objective's own loss, ẑ a dense layer on the features of which the head's last layer makes its prediction,
    t the tokens of the same patches as the teacher makes them of the whole image, LN a LayerNorm without parameters.
    The teacher is the block below ("ladder"; block 1 has none) or the top block ("top", which has none itself, and
    teaches the lowest block most). No gradient of a block's loss reaches its target, so it cannot collapse by it.

    Targets of hidden layers: data2vec (arXiv 2202.03555), and of a frozen layer below LayerLock (arXiv 2509.10156).

    Attributes:
      objective: makes the features, see `Objective.predicted`.
      vit: the encoder, as the teacher uses it.
      blocks: K.
      teacher: "ladder" or "top".
      weight: α, after the ramp.
      ramp: steps over which α rises from 0.
      decay: of the moving average of parameters with which the teacher works; None: the parameters themselves.
    """

    objective: Objective
    vit: ViT
    blocks: int
    teacher: str
    weight: float
    ramp: int
    decay: float | None = None

    has_extra: ClassVar[bool] = True

    @property
    def sweeps(self) -> bool:
        return self.teacher == "top"

    def init_link(self, rng: jax.Array) -> PyTree:
        features = jnp.zeros((1, self.objective.predicted_width))
        return {"distillation": self._readout().init(rng, features)["params"]}

    def init_extra(self, params: PyTree, index: jax.Array) -> PyTree:
        is_ladder = self.teacher == "ladder"
        share = (index > 0).astype(float) if is_ladder else 1.0 - index / max(1, self.blocks - 1)
        extra = {"count": jnp.zeros((), jnp.int32), "weight": self.weight * jnp.float32(share)}
        if self.decay is not None:
            extra["average"] = params["layers"]
        return {"distillation": extra}

    def init_stem_extra(self, params: PyTree) -> PyTree:
        return {"distillation": {} if self.decay is None else {"average": params}}

    def extra_from(self, params: PyTree, extra: PyTree) -> PyTree:
        kept = extra["distillation"]
        if self.decay is not None:
            start = params["layers"] if "count" in kept else params
            kept = {**kept, "average": jax.tree.map(jnp.copy, start)}
        return {**extra, "distillation": kept}

    def inputs(self, batch: PyTree) -> dict[str, PyTree]:
        return {"whole": self.vit.inputs(batch["image"])}

    def first(self, params: PyTree, inputs: PyTree, stream: PyTree) -> dict[str, PyTree]:
        del stream
        return {"teacher": self._whole(params, inputs)} if self.teacher == "ladder" else {}

    def targets(self, state: TrainState, inputs: PyTree) -> dict[str, PyTree]:
        """Sweeps forward through all blocks, which costs a read of all parameters, and no update."""
        if self.teacher == "ladder":
            return {}

        def one(tokens, row):
            params, extra = to_device(row)
            return self._through(params, extra, tokens), None

        stem = {**state.stem.params, **(state.stem.extra or {})}
        layers = {"layers": state.blocks.params["layers"]}
        kept = None if self.decay is None else state.blocks.extra
        tokens, _ = jax.lax.scan(one, self._whole(stem, inputs), (layers, kept))
        return {"top": jax.lax.stop_gradient(tokens)}

    def _whole(self, params, inputs):
        own = params if self.decay is None else params["distillation"]["average"]
        return jax.lax.stop_gradient(self.vit.stem(own, inputs["whole"]))

    def _through(self, params, extra, tokens):
        layers = params["layers"] if self.decay is None else extra["distillation"]["average"]
        return self.vit.layers(layers, tokens)

    def _readout(self):
        return nn.Dense(self.vit.width, dtype=self.vit.dtype)

    def apply(self, block: Block) -> Block:
        objective = self.objective

        def loss(params, stream, targets, rng):
            del rng
            params = split_as_parameters(params)
            features, own = objective.predicted(params["head"], stream["tokens"], targets)
            local, metrics = objective.loss_of(params["head"], features, own)
            teacher = targets["top"] if self.teacher == "top" else stream["teacher"]
            wanted = jnp.take_along_axis(teacher[:, 1:], own["positions"][:, :, None], axis=1)
            link = {"params": params["link"]["distillation"]}
            found = self._readout().apply(link, features).astype(jnp.float32)
            distance = jnp.abs(found - standardized(jax.lax.stop_gradient(wanted))).mean()
            kept = params["distillation"]
            weight = kept["weight"] * jnp.minimum(1.0, (kept["count"] + 1) / max(1, self.ramp))
            total = (1.0 - weight) * local + weight * distance
            return total, {**metrics, "local_loss": local, "distillation": distance}

        def leave(params, stream, targets, rng):
            del targets, rng
            return {"teacher": self._through(params, params, stream["teacher"])}

        def finish(params, extra, stream):
            if block.finish is not None:
                extra = block.finish(params, extra, stream)
            kept = dict(extra["distillation"])
            if "count" in kept:
                kept["count"] += 1
            if self.decay is not None:
                # A block keeps its layers' average, the stem its own.
                new = params["layers"] if "count" in kept else params
                kept["average"] = jax.tree.map(
                    lambda old, new: self.decay * old + (1.0 - self.decay) * new,
                    kept["average"],
                    new,
                )
            return {**extra, "distillation": kept}

        taught = dataclasses.replace(block, loss=loss, finish=finish)
        return also_leaving(taught, leave) if self.teacher == "ladder" else taught


def standardized(tokens: jax.Array) -> jax.Array:
    """Returns tokens [..., D] after a LayerNorm without parameters, float32."""
    tokens = tokens.astype(jnp.float32)
    mean = tokens.mean(axis=-1, keepdims=True)
    return (tokens - mean) * jax.lax.rsqrt(tokens.var(axis=-1, keepdims=True) + 1e-6)
