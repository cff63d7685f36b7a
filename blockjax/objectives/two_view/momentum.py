"""Objectives with a second encoder whose parameters are a moving average of the first one's, block by block.

Each block keeps the average of its own layers, readout and projector, and a second stream flows through these averages:
so a block's targets depend on no other block's gradients.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from blockjax.checks import INT32, Bound
from blockjax.models.vit import ViT
from blockjax.objectives.objective import Objective

PyTree = Any

# Parts of a head that have no average: they follow the projector on the first encoder's side only.
_ONLINE_ONLY = ("predictor",)


def decay_at(count: jax.Array, start: float, steps: int | None) -> jax.Array | float:
    """Returns the average's decay after `count` steps: from `start` up to 1 at `steps`, on a half cosine.

    Without `steps` it stays at `start`, as in MoCo v1 and v2 (facebookresearch/moco, moco/builder.py).

    1 - (1 - start) · (cos(π count / steps) + 1) / 2, as in BYOL (google-deepmind/deepmind-research, byol) and MoCo v3
    (facebookresearch/moco-v3). Float32 scalar.
    """
    if steps is None:
        return start
    share = jnp.minimum(count, steps) / steps
    return 1.0 - (1.0 - start) * (jnp.cos(jnp.pi * share) + 1.0) / 2.0


def averaged(target: PyTree, params: PyTree, decay: jax.Array) -> PyTree:
    """Returns decay · target + (1 - decay) · params, for those of the parameters that the target has."""
    if isinstance(target, dict):
        return {name: averaged(part, params[name], decay) for name, part in target.items()}
    return decay * target + (1.0 - decay) * params


@dataclasses.dataclass(frozen=True, kw_only=True)
class MomentumObjective(Objective):
    """An objective whose stream is {"tokens", "target"}, the second tokens too, made by averaged parameters.

    Attributes:
      decay: of the average at the first step.
      decay_steps: steps in which it rises to 1; None where it does not.
    """

    decay: float
    decay_steps: int | None

    means_over_images = False
    bounds: ClassVar[dict[str, Bound]] = {
        "momentum.decay": Bound(0, 1),
        "momentum.steps": Bound(1, INT32),
        "momentum.queue": Bound(0, 2**24),
    }

    def init_stem_extra(self, params: PyTree) -> PyTree:
        return {"count": jnp.zeros((), jnp.int32), "target": params}

    def init_block_extra(self, params: PyTree, rng: jax.Array) -> PyTree:
        del rng
        head = {name: part for name, part in params["head"].items() if name not in _ONLINE_ONLY}
        target = {"layers": params["layers"], "head": head}
        return {"count": jnp.zeros((), jnp.int32), "target": target}

    def extra_from(self, params: PyTree, extra: PyTree) -> PyTree:
        """Returns an extra whose average is these parameters, as far as it has them; copies, as both are donated."""

        def copied(target, params):
            if isinstance(target, dict):
                return {name: copied(part, params[name]) for name, part in target.items()}
            return jnp.copy(params)

        return {**extra, "target": copied(extra["target"], params)}

    def average(self, params: PyTree, extra: PyTree) -> PyTree:
        """Returns `extra` with its average moved towards the parameters."""
        decay = decay_at(extra["count"], self.decay, self.decay_steps)
        return {**extra, "target": averaged(extra["target"], params, decay)}

    def stem(self, vit: ViT, params: PyTree, inputs: PyTree) -> PyTree:
        return {
            "tokens": vit.stem(_trained(params), inputs),
            "target": vit.stem(params["target"], inputs),
        }

    def forward(self, vit: ViT, params: PyTree, stream: PyTree, rng: jax.Array) -> PyTree:
        del rng
        return {
            **stream,
            "tokens": vit.layers(params["layers"], stream["tokens"]),
            "target": vit.layers(params["target"]["layers"], stream["target"]),
        }

    def local_loss(
        self, params: PyTree, stream: PyTree, targets: PyTree, rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        kept = {name: part for name, part in params.items() if name not in ("layers", "head")}
        head = {**params["head"], **kept, "target": params["target"]["head"]}
        return self.loss(head, stream, targets, rng)


def _trained(params):
    return {name: part for name, part in params.items() if name not in ("count", "target")}
