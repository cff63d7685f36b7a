"""Context prediction (Doersch, Gupta and Efros, arXiv 1505.05192) as a local loss."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import linen as nn

from blockjax.models.heads import Readout
from blockjax.models.vit import ViT
from blockjax.objectives.tiles.base import TileObjective
from blockjax.objectives.tiles.cut import (
    CELLS,
    Classifier,
    at_chance,
    classification,
)

PyTree = Any

_CENTRE = 4
# In raster order; a direction's label is its index here.
_NEIGHBOURS = np.array([0, 1, 2, 3, 5, 6, 7, 8])
_DIRECTIONS = len(_NEIGHBOURS)


class _Head(nn.Module):
    """Tokens of nine tiles [B, 9, T, D] to logits of each neighbour's direction [B, 8, 8]."""

    readout: str
    expansion: int
    hidden: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, tokens, rng):
        tiles = Readout(self.readout, self.expansion, self.dtype, name="readout")(tokens)
        neighbours = tiles[:, _NEIGHBOURS]
        centre = jnp.broadcast_to(tiles[:, _CENTRE, None], neighbours.shape)
        pairs = jnp.concatenate([neighbours, centre], axis=-1)
        return Classifier(self.hidden, _DIRECTIONS, self.dropout, name="classifier")(pairs, rng)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextPrediction(TileObjective):
    """Tells in which of eight directions from the centre tile another tile of the image lies.

    The present-day form of google/revisiting-self-supervised (relative_patch_location): the tiles of a jigsaw puzzle,
    encoded one by one, and all eight pairs of the centre and a neighbour.
    """

    @classmethod
    def from_config(
        cls, config: ml_collections.ConfigDict, vit: ViT, blocks: int
    ) -> "ContextPrediction":
        """Returns the objective that a resolved config describes."""
        del blocks
        return cls(**cls.fields(config, vit))

    def _head(self):
        return _Head(self.readout, self.expansion, self.hidden, self.dropout, self.dtype)

    def init_head(self, rng: jax.Array) -> PyTree:
        """Returns one block's head parameters, float32."""
        tokens = jnp.zeros((1, CELLS, 2, self.width))
        return self._head().init(rng, tokens, jax.random.key(0))["params"]

    def prepare(self, rng: jax.Array, batch: dict[str, jax.Array]) -> tuple[PyTree, PyTree]:
        """Cuts tiles.

        Args:
          rng: a key for this step.
          batch: {"image": uint8 [B, H, H, 3]}, and "aspect", float32 [B], where images are stretched.

        Returns:
          Inputs of the stem, {"patches": float32 [B, 9, N, P], "positions": int32 [B, 9, N]}, tiles in raster order;
          targets, {"labels": int32 [B, 8]}, the directions 0 to 7 of the centre's neighbours in raster order.
        """
        images = batch["image"]
        labels = np.arange(_DIRECTIONS, dtype=np.int32)[None]
        labels = jnp.broadcast_to(labels, (images.shape[0], _DIRECTIONS))
        return self.tiles.inputs(rng, images, batch.get("aspect")), {"labels": labels}

    def loss(
        self, head: PyTree, stream: jax.Array, targets: PyTree, rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """A block's local loss: the mean cross-entropy over all images and their eight pairs.

        Args:
          head: the block's head parameters.
          stream: tokens [B, 9, T, D], as they leave the block.
          targets: from `prepare`.
          rng: for dropout.

        Returns:
          The loss (guessing: log 8) and {"accuracy"} (guessing: 1/8).
        """
        return classification(self._head().apply({"params": head}, stream, rng), targets["labels"])

    def seen(self, rng: jax.Array, images_BHWC: jax.Array) -> dict[str, jax.Array]:
        """Returns the tiles of the step with this key, in place, [B, H, W, 3] in [0, 1]."""
        return {"tiles": self.tiles.picture(rng, images_BHWC)}

    def chance(self, metrics: dict[str, float]) -> float:
        """See `Objective.chance`."""
        del metrics
        return math.log(_DIRECTIONS)

    def symptoms(self, metrics: dict[str, float], progress: float) -> list[str]:
        """Says what is wrong with one block, see `Objective.symptoms`."""
        found = []
        if metrics["accuracy"] > 0.9:
            found.append(
                f"directions are told apart in {metrics['accuracy']:.0%} of the pairs: so many, in an early block, "
                f"come from edges that run on from tile to tile (tiles.size {self.tiles.size} leaves them "
                f"{self.tiles.jitter} pixels to move in their cells; lower it) or from the colours of a lens or camera "
                "(raise tiles.gray)"
            )
        if progress > 0.5 and at_chance(metrics["loss"], _DIRECTIONS):
            found.append(
                f"loss {metrics['loss']:.3f} is that of guessing one of 8 directions ({math.log(_DIRECTIONS):.3f}), "
                "late in the run; a long plateau is known in this task: train longer, or raise "
                "optimizer.base_learning_rate"
            )
        return found
