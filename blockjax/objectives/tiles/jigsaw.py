"""Jigsaw puzzles (Noroozi and Favaro, arXiv 1603.09246) as a local loss."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
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
from blockjax.objectives.tiles.permutations import check_permutations, permutations

PyTree = Any


class _Head(nn.Module):
    """Tokens of nine tiles [B, 9, T, D], and orders [B, R, 9] in which to see them, to logits [B, R, classes]."""

    readout: str
    expansion: int
    tile_width: int
    hidden: int
    classes: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, tokens, order_BR9, rng):
        tiles = Readout(self.readout, self.expansion, self.dtype, name="readout")(tokens)
        xavier = nn.initializers.xavier_uniform()
        tiles = nn.Dense(self.tile_width, kernel_init=xavier, name="tile")(tiles)
        ordered = jnp.take_along_axis(tiles[:, None], order_BR9[..., None], axis=2)
        ordered = ordered.reshape(*order_BR9.shape[:2], -1)
        return Classifier(self.hidden, self.classes, self.dropout, name="classifier")(ordered, rng)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Jigsaw(TileObjective):
    """Tells by which permutation of a fixed set the nine tiles of an image were shuffled.

    Tiles are encoded one by one, without attention from one to another and with positions of their own, and are
    shuffled as features: so each image is encoded once and seen in several orders, as in
    google/revisiting-self-supervised (self_supervision/jigsaw.py).

    Attributes:
      permutations: how many of them (P), the classes.
      permutation_set: see `blockjax.objectives.tiles.permutations.permutations`.
      per_image: orders in which an image is seen in a step (R).
      tile_width: features of a tile after the dense layer that all tiles share.
    """

    permutations: int
    permutation_set: str
    per_image: int
    tile_width: int

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict, vit: ViT, blocks: int) -> "Jigsaw":
        """Returns the objective that a resolved config describes."""
        del blocks
        return cls(
            permutations=config.tiles.permutations,
            permutation_set=config.tiles.permutation_set,
            per_image=config.tiles.per_image,
            tile_width=config.head.width,
            **cls.fields(config, vit),
        )

    @staticmethod
    def check(config: ml_collections.ConfigDict) -> None:
        """Checks a config in which model sizes are known.

        Raises:
          ValueError: tiles that cannot be cut or encoded, or a set without so many permutations; says what would fit.
        """
        TileObjective.check(config)
        tiles = config.tiles
        if tiles.permutations < 2:
            raise ValueError(
                f"tiles.permutations {tiles.permutations} leaves nothing to tell apart; set it to at least 2"
            )
        try:
            check_permutations(tiles.permutations, tiles.permutation_set)
        except ValueError as error:
            raise ValueError(f"tiles.permutations or tiles.permutation_set: {error}") from error

    def _head(self):
        return _Head(
            self.readout,
            self.expansion,
            self.tile_width,
            self.hidden,
            self.permutations,
            self.dropout,
            self.dtype,
        )

    def _orders(self, labels):
        """Returns the permutations of labels [...], [..., 9]: place i of the puzzle holds tile permutation[i]."""
        return jnp.asarray(permutations(self.permutations, self.permutation_set))[labels]

    def init_head(self, rng: jax.Array) -> PyTree:
        """Returns one block's head parameters, float32."""
        tokens, orders = jnp.zeros((1, CELLS, 2, self.width)), jnp.zeros((1, 1, CELLS), jnp.int32)
        return self._head().init(rng, tokens, orders, jax.random.key(0))["params"]

    def prepare(self, rng: jax.Array, batch: dict[str, jax.Array]) -> tuple[PyTree, PyTree]:
        """Cuts tiles, and draws the orders in which they are seen.

        Args:
          rng: a key for this step.
          batch: {"image": uint8 [B, H, H, 3]}, and "aspect", float32 [B], where images are stretched.

        Returns:
          Inputs of the stem, {"patches": float32 [B, 9, N, P], "positions": int32 [B, 9, N]}, tiles in raster order;
          targets, {"labels": int32 [B, per_image]}, indices of permutations.
        """
        tiles_rng, labels_rng = jax.random.split(rng)
        images = batch["image"]
        labels = self._labels(labels_rng, images.shape[0])
        return self.tiles.inputs(tiles_rng, images, batch.get("aspect")), {"labels": labels}

    def _labels(self, rng, images):
        return jax.random.randint(rng, (images, self.per_image), 0, self.permutations)

    def loss(
        self, head: PyTree, stream: jax.Array, targets: PyTree, rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """A block's local loss: the mean cross-entropy over all images and their orders.

        Args:
          head: the block's head parameters.
          stream: tokens [B, 9, T, D], as they leave the block.
          targets: from `prepare`.
          rng: for dropout.

        Returns:
          The loss (guessing: log of the number of permutations) and {"accuracy"}.
        """
        labels = targets["labels"]
        logits = self._head().apply({"params": head}, stream, self._orders(labels), rng)
        return classification(logits, labels)

    def seen(self, rng: jax.Array, images_BHWC: jax.Array) -> dict[str, jax.Array]:
        """Returns the tiles in place and in the first order of the step with this key, [B, H, W, 3] in [0, 1]."""
        tiles_rng, labels_rng = jax.random.split(rng)
        order_B9 = self._orders(self._labels(labels_rng, images_BHWC.shape[0])[:, 0])
        return {
            "tiles": self.tiles.picture(tiles_rng, images_BHWC),
            "shuffled": self.tiles.picture(tiles_rng, images_BHWC, order_B9),
        }

    def chance(self, metrics: dict[str, float]) -> float:
        """See `Objective.chance`."""
        del metrics
        return math.log(self.permutations)

    def symptoms(self, metrics: dict[str, float], progress: float) -> list[str]:
        """Says what is wrong with one block, see `Objective.symptoms`."""
        found = []
        if metrics["accuracy"] > 0.95:
            found.append(
                f"{metrics['accuracy']:.0%} of the puzzles are solved: so many, in an early block, are solved by edges "
                f"that run on from tile to tile (tiles.size {self.tiles.size} leaves them {self.tiles.jitter} pixels "
                "to move in their cells; lower it) or by colours (raise tiles.gray); for a harder task raise "
                "tiles.permutations"
            )
        if progress > 0.5 and at_chance(metrics["loss"], self.permutations):
            found.append(
                f"loss {metrics['loss']:.3f} is that of guessing one of {self.permutations} permutations "
                f"({math.log(self.permutations):.3f}), late in the run; a long plateau is known in this task: train "
                "longer, or lower tiles.permutations"
            )
        return found
