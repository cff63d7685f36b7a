"""Rotation prediction (RotNet, arXiv 1803.07728) as a local loss."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import linen as nn

from blockjax.models.heads import Readout
from blockjax.models.patches import patchify, standardize
from blockjax.models.vit import ViT
from blockjax.objectives.objective import Objective, default_readout

PyTree = Any

_TURNS = 4


class _Head(nn.Module):
    """Tokens [..., T, D] to logits [..., 4]."""

    readout: str
    expansion: int
    dtype: Any

    @nn.compact
    def __call__(self, tokens):
        features = Readout(self.readout, self.expansion, self.dtype, name="readout")(tokens)
        small = nn.initializers.normal(0.01)  # the loss starts near that of guessing
        return nn.Dense(_TURNS, kernel_init=small, name="classes")(features)


@dataclasses.dataclass(frozen=True)
class Rotation(Objective):
    """Tells by how many quarter turns an image was rotated. All four rotations of each image are in the batch.

    As in gidariss/FeatureLearningRotNet, whose head (mean over the image, one linear layer) is every block's; a
    LayerNorm stands in front of it, as a block's tokens have none.

    Attributes:
      patch_size: side of a patch in pixels.
      width: the encoder's width.
      readout: of a block's tokens, see `Readout`.
      expansion: width of the readout "cbe_gap".
      dtype: of activations.
    """

    patch_size: int
    width: int
    readout: str = "gap"
    expansion: int = 0
    dtype: Any = jnp.float32

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict, vit: ViT, blocks: int) -> "Rotation":
        """Returns the objective that a resolved config describes."""
        del blocks
        return cls(vit.patch_size, vit.width, config.head.readout, config.head.expansion, vit.dtype)

    @staticmethod
    def defaults(config: ml_collections.ConfigDict) -> dict[str, Any]:
        """Returns the readout's fields."""
        return default_readout(config, "gap")

    @staticmethod
    def check(config: ml_collections.ConfigDict) -> None:
        """Checks a config that is fully resolved, not yet checked by the objective.

        Raises:
          ValueError: microbatches with a readout that has a BatchNorm.
        """
        if config.microbatches > 1 and not Rotation.takes_microbatches(config):
            raise ValueError(
                f"microbatches={config.microbatches}: the readout cbe_gap uses statistics of the whole batch; set "
                "head.readout=gap, or microbatches=1 and remat=layer for less memory"
            )

    @classmethod
    def takes_microbatches(cls, config: ml_collections.ConfigDict) -> bool:
        """Not with the readout cbe_gap, whose BatchNorm uses statistics of the whole batch."""
        return config.head.readout != "cbe_gap"

    def _head(self):
        return _Head(self.readout, self.expansion, self.dtype)

    @property
    def readout_module(self) -> Readout:
        return Readout(self.readout, self.expansion, self.dtype)

    def init_head(self, rng: jax.Array) -> PyTree:
        """Returns one block's head parameters, float32."""
        return self._head().init(rng, jnp.zeros((1, _TURNS, 2, self.width)))["params"]

    def prepare(self, rng: jax.Array, batch: dict[str, jax.Array]) -> tuple[PyTree, PyTree]:
        """Rotates a batch.

        Args:
          rng: unused; nothing is random.
          batch: {"image": uint8 [B, H, H, 3]}.

        Returns:
          Inputs of the stem, {"patches": float32 [B, 4, N, P], "positions": int32 [B, 4, N]}; targets,
          {"labels": int32 [B, 4]}, the quarter turns to the left, 0 to 3.
        """
        del rng
        rotated = rotations(batch["image"])
        patches = standardize(patchify(rotated.reshape(-1, *rotated.shape[2:]), self.patch_size))
        patches = patches.reshape(*rotated.shape[:2], *patches.shape[1:])
        positions = np.arange(patches.shape[2], dtype=np.int32)[None, None]
        labels = np.arange(_TURNS, dtype=np.int32)[None]
        inputs = {"patches": patches, "positions": jnp.broadcast_to(positions, patches.shape[:3])}
        return inputs, {"labels": jnp.broadcast_to(labels, patches.shape[:2])}

    def loss(
        self, head: PyTree, stream: jax.Array, targets: PyTree, rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """A block's local loss: the mean cross-entropy over all images and rotations.

        Args:
          head: the block's head parameters.
          stream: tokens [B, 4, T, D], as they leave the block.
          targets: from `prepare`.
          rng: unused.

        Returns:
          The loss (guessing: log 4) and {"accuracy"} (guessing: 1/4).
        """
        del rng
        logits = self._head().apply({"params": head}, stream)
        labels = targets["labels"]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        accuracy = (logits.argmax(axis=-1) == labels).astype(jnp.float32).mean()
        return loss, {"accuracy": accuracy}

    def seen(self, rng: jax.Array, images_BHWC: jax.Array) -> dict[str, jax.Array]:
        """Returns the four rotations, each [B, H, W, 3] in [0, 1], by their names."""
        del rng
        rotated = rotations(images_BHWC).astype(jnp.float32) / 255.0
        return {f"rotated {90 * k}": rotated[:, k] for k in range(_TURNS)}

    def chance(self, metrics: dict[str, float]) -> float:
        """See `Objective.chance`."""
        del metrics
        return math.log(_TURNS)

    def symptoms(self, metrics: dict[str, float], progress: float) -> list[str]:
        """Says what is wrong with one block, see `Objective.symptoms`."""
        accuracy = metrics["accuracy"]
        found = []
        if accuracy > 0.9:
            found.append(
                f"rotations are told apart in {accuracy:.0%} of the images: so high a share, in an early block, comes "
                "from the directions of edges, from a border, a watermark or round corners, and leaves later blocks "
                "nothing to learn; look for such marks in the images, or use fewer, larger blocks"
            )
        # Within 2 % of guessing's loss.
        if progress > 0.5 and metrics["loss"] > 0.98 * math.log(_TURNS):
            found.append(
                f"loss {metrics['loss']:.3f} is that of guessing a rotation (log 4 = 1.386), late in the run: images "
                "without an upright position (textures, satellite) cannot be told apart; else raise "
                "optimizer.base_learning_rate"
            )
        return found


def rotations(images_BHWC: jax.Array) -> jax.Array:
    """Returns square images turned to the left by 0, 1, 2 and 3 quarters, [B, 4, H, W, C]; no pixel is interpolated."""
    return jnp.stack([jnp.rot90(images_BHWC, k, axes=(1, 2)) for k in range(_TURNS)], axis=1)
