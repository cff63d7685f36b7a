"""What every pretext task has in common; the drivers, the loop, probes and exports know no more of a task than this."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import ml_collections
from flax import linen as nn

from blockjax.checks import Bound
from blockjax.models.heads import Readout
from blockjax.models.vit import ViT

PyTree = Any

# Up to this side in pixels images are small: recipes without blur, and narrower heads.
SMALL = 64


def default_readout(config: ml_collections.ConfigDict, readout: str) -> dict[str, Any]:
    """Returns the fields of a readout of this kind; one that widens tokens does so to 2048 (arXiv 2302.01647)."""
    small = config.model.image_size <= SMALL
    expansion = 4 * config.model.width if small else 2048
    return {"head.readout": readout, "head.expansion": expansion}


class Objective(abc.ABC):
    """A pretext task: how images become encoder inputs and targets, and what a block's loss is.

    Subclasses are frozen dataclasses of hyperparameters. They define `from_config`, `init_head`, `prepare`, `loss` and
    `seen`; the rest has defaults. Every array of inputs, stream and targets has the images as its leading axis; views,
    rotations or tiles of an image follow, so that they stay on one device where a batch is split. A stream is a dict:
    "tokens" [B, ..., T, D], and what else an objective sends from block to block.

    Attributes:
      modality: of its data, "images" or "text".
      means_over_images: whether the loss is a mean over images, so that the means over parts of a batch are those of
        the whole; False where it takes statistics or negatives from the batch.
      mask_token: whether the stem owns a mask token.
      takes_labels: whether batches have a "label", int32 [B]; such an objective defines `logits`.
      bounds: of the numbers in the config that are this objective's own, by field ("head.width").
      host_crops: whether images come cropped and mirrored from the input pipeline; False where views or tiles are cut
        on the device, see `stretched_size`.
      reconstructs: whether blocks make images; such an objective defines `picture` and `visible_picture`.
      decoder: the module of the heads where they are decoders, by which weights are exported; None elsewhere.
      predicted_width: of the features of `predicted`; None where heads predict nothing patch by patch.
      fitted_shape: of what is fitted to data before training and `prepare` then takes as its third argument; None where
        nothing is. An objective that has it has a method `fit(rng, images_BHWC uint8) -> array`.
      begin, finish: of each block, see `blockjax.strategies.Block`.
    """

    modality: ClassVar[str] = "images"
    means_over_images: ClassVar[bool] = True
    mask_token: ClassVar[bool] = False
    takes_labels: ClassVar[bool] = False
    bounds: ClassVar[dict[str, Bound]] = {}
    host_crops: ClassVar[bool] = True
    reconstructs: ClassVar[bool] = False
    decoder: nn.Module | None = None
    fitted_shape: tuple[int, ...] | None = None
    predicted_width: int | None = None
    begin = None
    finish = None

    @classmethod
    @abc.abstractmethod
    def from_config(cls, config: ml_collections.ConfigDict, vit: ViT, blocks: int) -> "Objective":
        """Returns the objective that a resolved config describes, for an encoder in so many isolated blocks."""

    @staticmethod
    def defaults(config: ml_collections.ConfigDict) -> dict[str, Any]:
        """Returns values for fields that a config leaves open, by name ("head.width"); model sizes are known."""
        del config
        return {}

    @staticmethod
    def check(config: ml_collections.ConfigDict) -> None:
        """Raises ValueError for settings that cannot work, in a config that is fully resolved, not yet checked by
        the objective.
        """
        del config

    @classmethod
    def stretched_size(cls, image_size: int) -> int | None:
        """Returns the side of the squares to which the input pipeline stretches whole images, of any aspect.

        So that views and tiles of an encoder with this image size are cut from all of an image, and few are enlarged.
        None where images come as the encoder takes them: cropped by the pipeline, or small.
        """
        return None if cls.host_crops or image_size <= SMALL else 2 * image_size

    @staticmethod
    def check_examples(config: ml_collections.ConfigDict, examples: int) -> None:
        """Raises ValueError for settings that so many training images do not allow."""
        del config, examples

    @classmethod
    def takes_microbatches(cls, config: ml_collections.ConfigDict) -> bool:
        """Whether parts of a batch, one after another, give the loss of the whole batch under this config."""
        del config
        return cls.means_over_images

    @abc.abstractmethod
    def init_head(self, rng: jax.Array) -> PyTree:
        """Returns one block's own head parameters, float32."""

    def init_stem_extra(self, params: PyTree) -> PyTree:
        """Returns what the stem keeps beside its parameters; None for nothing."""
        del params

    def init_block_extra(self, params: PyTree, rng: jax.Array) -> PyTree:
        """Returns what a block keeps beside its parameters {"layers", "head"}; None for nothing."""
        del params, rng

    def extra_from(self, params: PyTree, extra: PyTree) -> PyTree:
        """Returns an extra, of the stem or of all blocks, as it starts where training starts from these parameters."""
        del params
        return extra

    @abc.abstractmethod
    def prepare(self, rng: jax.Array, batch: dict[str, jax.Array]) -> tuple[PyTree, PyTree]:
        """Returns the stem's inputs (see `ViT.stem`) and all blocks' targets.

        Args:
          rng: a key for this step.
          batch: {"image": uint8 [B, H, H, 3]}, and "aspect", float32 [B], where images are stretched.
        """

    def stem(self, vit: ViT, params: PyTree, inputs: PyTree) -> PyTree:
        """Returns the first stream."""
        return {"tokens": vit.stem(params, inputs)}

    def forward(self, vit: ViT, params: PyTree, stream: PyTree, rng: jax.Array) -> PyTree:
        """Returns the stream that leaves a block."""
        del rng
        return {**stream, "tokens": vit.layers(params["layers"], stream["tokens"])}

    def of_block(self, block: int) -> "Objective":
        """Returns the objective as `block` (from 0) learns by it: itself, where all learn alike."""
        del block
        return self

    def cut(self, block: int) -> Callable[[PyTree], PyTree] | None:
        """Returns the function by which the stream changes its shape before `block` (from 0); None if it does not."""
        del block

    @abc.abstractmethod
    def loss(
        self, head: PyTree, tokens: PyTree, targets: PyTree, rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns a block's local loss and a dict of scalars, from the tokens that leave it."""

    def predicted(
        self, head: PyTree, tokens: jax.Array, targets: PyTree
    ) -> tuple[jax.Array, dict[str, PyTree]]:
        """Returns the features [B, M, F] of which a head's last layer predicts patches, and those patches' targets.

        Among these are their "positions", int32 [B, M]. Of objectives with a `predicted_width`, whose `loss` is
        `loss_of(head, *predicted(head, tokens, targets))`.
        """
        raise TypeError(f"{type(self).__name__} predicts no patches")

    def loss_of(
        self, head: PyTree, features_BMF: jax.Array, targets: PyTree
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the loss and a dict of scalars, from what `predicted` returns."""
        raise TypeError(f"{type(self).__name__} predicts no patches")

    def local_loss(
        self, params: PyTree, stream: PyTree, targets: PyTree, rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns `loss`, from all that a block owns: its head, and with an extra what it keeps there."""
        return self.loss(params["head"], stream["tokens"], targets, rng)

    @abc.abstractmethod
    def seen(
        self, rng: jax.Array, images_BHWC: jax.Array, *fitted: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns what `prepare` makes of uint8 images with this key as pictures, {name: [B, H, W, 3] in [0, 1]}."""

    def picture(
        self, head: PyTree, tokens_BTD: jax.Array, images_BHWC: jax.Array, targets: PyTree
    ) -> jax.Array:
        """Returns what a block makes of images, [B, H, W, 3] in [0, 1], where the objective `reconstructs`.

        Args:
          head: the block's own parameters.
          tokens_BTD: as they leave the block.
          images_BHWC: uint8.
          targets: from `prepare`.
        """
        raise TypeError(f"{type(self).__name__} reconstructs no images")

    def visible_picture(self, images_BHWC: jax.Array, targets: PyTree) -> jax.Array:
        """Returns what block 1 sees of images; arguments as in `picture`, where the objective `reconstructs`."""
        raise TypeError(f"{type(self).__name__} reconstructs no images")

    def logits(self, head: PyTree, tokens_BTD: jax.Array) -> jax.Array:
        """Returns a block's logits of whole images, [B, classes] float32, where the objective `takes_labels`."""
        raise TypeError(f"{type(self).__name__} knows no classes")

    @property
    def readout_module(self) -> Readout | None:
        """The module of a head's "readout"; None where a head begins with a LayerNorm "norm" only."""
        return None

    def chance(self, metrics: dict[str, float]) -> float | None:
        """Returns the loss of a block whose features are the same for every image, or None if it depends on the data.

        Args:
          metrics: those of the block.
        """
        del metrics

    def symptoms(self, metrics: dict[str, float], progress: float) -> list[str]:
        """Says what is wrong with one block.

        Args:
          metrics: those of the block at a logged step.
          progress: part of the run that is done, in [0, 1].

        Returns:
          A sentence, with the known cause, for each sign of collapse or of a shortcut.
        """
        del metrics, progress
        return []
