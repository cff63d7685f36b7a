"""Masked image modeling of pixels (MAE, arXiv 2111.06377) as a local loss; as the one loss at the end it is MAE."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from blockjax.checks import factors
from blockjax.kernels.masked_reconstruction import normalize_patches, projected_reconstruction_loss
from blockjax.models.decoders import find_decoder
from blockjax.models.patches import (
    patchify,
    pixel_statistics,
    standardize,
    unpatchify,
    unstandardize,
)
from blockjax.models.vit import ViT
from blockjax.objectives.masked.masking import random_order, visible_counts
from blockjax.objectives.objective import Objective

PyTree = Any


@dataclasses.dataclass(frozen=True)
class MaskedAutoencoder(Objective):
    """Reconstructs masked patches from visible ones.

    Attributes:
      patch_size: side of a patch in pixels.
      grid: rows and columns of patches.
      width: the encoder's width.
      visible: visible patches for each block, not rising.
      decoder: a module of `blockjax.models.decoders`; every block owns one, with its own parameters.
      fraction: part of the masked patches that is decoded in a step.
      fractions: that of each block, where they differ; None: `fraction`, in all.
      normalize_pixels: whether targets are normalised patch by patch.
      implementation: of the loss, see `masked_reconstruction_loss`.
    """

    patch_size: int
    grid: tuple[int, int]
    width: int
    visible: tuple[int, ...]
    decoder: nn.Module
    fraction: float = 1.0
    fractions: tuple[float, ...] | None = None
    normalize_pixels: bool = True
    implementation: str | None = None

    reconstructs: ClassVar[bool] = True

    @classmethod
    def from_config(
        cls, config: ml_collections.ConfigDict, vit: ViT, blocks: int
    ) -> "MaskedAutoencoder":
        decoder, fractions = config.decoder, None
        if decoder.block_fractions is not None and blocks == config.blocks:
            fractions = factors("decoder.block_fractions", decoder.block_fractions, blocks)
        return cls(
            patch_size=vit.patch_size,
            grid=vit.grid,
            width=vit.width,
            visible=visible_counts(config.mask.ratio, config.mask.schedule, vit.patches, blocks),
            decoder=find_decoder(decoder.kind)(
                width=decoder.width,
                depth=decoder.depth,
                heads=decoder.heads,
                grid=vit.grid,
                patch_values=vit.patch_size**2 * 3,
                dtype=vit.dtype,
                remat=config.remat,
            ),
            fraction=decoder.fraction,
            fractions=fractions,
            normalize_pixels=config.loss.normalize_pixels,
            implementation=config.loss.implementation,
        )

    @staticmethod
    def defaults(config: ml_collections.ConfigDict) -> dict[str, Any]:
        del config
        return {"mask.ratio": 0.75}

    @staticmethod
    def check(config: ml_collections.ConfigDict) -> None:
        patches = (config.model.image_size // config.model.patch_size) ** 2
        visible_counts(config.mask.ratio, config.mask.schedule, patches, config.blocks)
        text = config.decoder.block_fractions
        if text is not None and not all(
            0 < part <= 1 for part in factors("decoder.block_fractions", text, config.blocks)
        ):
            raise ValueError(
                f"decoder.block_fractions {text!r} are parts of the masked patches; each must be above 0 and at most 1"
            )

    def init_head(self, rng: jax.Array) -> PyTree:
        """Returns one block's decoder parameters, float32."""
        position = jnp.zeros((1, 1), jnp.int32)
        return self.decoder.init(rng, jnp.zeros((1, 2, self.width)), position, position)["params"]

    def prepare(self, rng: jax.Array, batch: dict[str, jax.Array]) -> tuple[PyTree, PyTree]:
        """Masks a batch, each image by its own random order, shared by all blocks.

        Args:
          rng: a key for this step.
          batch: {"image": uint8 [B, H, W, 3]}.

        Returns:
          Inputs of the stem, {"patches": [B, V, P] float32, "positions": [B, V]}, for the V patches that block 1 sees;
          targets of all blocks, {"patches": uint8 [B, M, P], "positions": [B, N]}: all positions in the order in which
          patches become masked from the end, and the patches that some block decodes, in this order.
        """
        patches_BNP = patchify(batch["image"], self.patch_size)
        order_BN = self._order(rng, len(patches_BNP))

        def taken(start, stop):
            return jnp.take_along_axis(patches_BNP, order_BN[:, start:stop, None], axis=1)

        first = self.visible[0]
        inputs = {"patches": standardize(taken(0, first)), "positions": order_BN[:, :first]}
        # All blocks keep the targets alive, so they are no more than what is decoded.
        blocks = [self.of_block(k) for k in range(len(self.visible))]
        stops = [own.stop(visible) for own, visible in zip(blocks, self.visible, strict=True)]
        return inputs, {"patches": taken(self.visible[-1], max(stops)), "positions": order_BN}

    def stop(self, visible: int) -> int:
        """Returns the place in the order at which a block that sees so many patches stops to decode."""
        masked = self.grid[0] * self.grid[1] - visible
        return visible + max(1, round(self.fraction * masked))

    def of_block(self, block: int) -> "MaskedAutoencoder":
        if self.fractions is None:
            return self
        return dataclasses.replace(self, fraction=self.fractions[block])

    def cut(self, block: int) -> Callable[[PyTree], PyTree] | None:
        """Returns the function that drops the tokens which `block` (from 0) no longer sees, of every part of the stream
        [B, ..., T, D]; None if it sees all.
        """
        if block == 0 or self.visible[block] == self.visible[block - 1]:
            return None
        kept = 1 + self.visible[block]
        return lambda stream: jax.tree.map(lambda part: part[..., :kept, :], stream)

    def loss(
        self, head: PyTree, tokens_BTD: jax.Array, targets: PyTree, rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """A block's local loss: mean squared error over the masked patches that are decoded in this step.

        Args:
          head: the block's decoder parameters.
          tokens_BTD: CLS and visible tokens, as they leave the block.
          targets: from `prepare`.
          rng: unused; which patches are decoded follows from the random order.

        Returns:
          The loss, and no further metrics.
        """
        del rng
        return self.loss_of(head, *self.predicted(head, tokens_BTD, targets))

    def predicted(
        self, head: PyTree, tokens_BTD: jax.Array, targets: PyTree
    ) -> tuple[jax.Array, PyTree]:
        """Returns the decoder's features of the patches that this block decodes, and {"positions", "patches"}."""
        visible = tokens_BTD.shape[1] - 1
        stop, offset = self.stop(visible), self.visible[-1]
        positions_BM = targets["positions"][:, visible:stop]
        features_BMF = self.decoder.apply(
            {"params": head},
            tokens_BTD,
            targets["positions"][:, :visible],
            positions_BM,
            project=False,
        )
        patches_BMP = targets["patches"][:, visible - offset : stop - offset]
        return features_BMF, {"positions": positions_BM, "patches": patches_BMP}

    @property
    def predicted_width(self) -> int:
        """The decoder's."""
        return self.decoder.width

    def loss_of(
        self, head: PyTree, features_BMF: jax.Array, targets: PyTree
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the loss of decoded features, see `loss`."""
        last = head["pixels"]
        loss = projected_reconstruction_loss(
            features_BMF,
            last["kernel"],
            last["bias"],
            targets["patches"],
            pixels=pixel_statistics(last["bias"].size),
            normalize=self.normalize_pixels,
            implementation=self.implementation,
        )
        return loss, {}

    def decode(
        self, head: PyTree, tokens_BTD: jax.Array, visible_BV: jax.Array, masked_BM: jax.Array
    ) -> jax.Array:
        """Returns predicted patches [B, M, P] at the masked positions, in the targets' scale."""
        return self.decoder.apply({"params": head}, tokens_BTD, visible_BV, masked_BM)

    def chance(self, metrics: dict[str, float]) -> float | None:
        """See `Objective.chance`: 1, the variance of normalised pixels."""
        del metrics
        return 1.0 if self.normalize_pixels else None

    def picture(
        self, head: PyTree, tokens_BTD: jax.Array, images_BHWC: jax.Array, targets: PyTree
    ) -> jax.Array:
        """Reconstructs whole images, [B, H, W, 3] in [0, 1]: visible patches as they are, all others predicted.

        With normalised targets a prediction lacks its patch's mean and spread; the true ones are used.

        Args:
          head: the block's decoder parameters.
          tokens_BTD: CLS and visible tokens, as they leave the block.
          images_BHWC: uint8.
          targets: from `prepare`; their positions are used.
        """
        order_BN = targets["positions"]
        visible = tokens_BTD.shape[1] - 1
        true = self._ordered(images_BHWC, order_BN)
        predictions = self.decode(head, tokens_BTD, order_BN[:, :visible], order_BN[:, visible:])
        if self.normalize_pixels:
            _, mean, std = normalize_patches(true[:, visible:])
            predictions = predictions * std + mean
        return self._assemble(jnp.concatenate([true[:, :visible], predictions], axis=1), order_BN)

    def seen(self, rng: jax.Array, images_BHWC: jax.Array) -> dict[str, jax.Array]:
        """Returns what block 1 sees in the step with this key: the visible patches on grey, [B, H, W, 3] in [0, 1]."""
        order_BN = self._order(rng, len(images_BHWC))
        return {"visible": self.visible_picture(images_BHWC, {"positions": order_BN})}

    def visible_picture(self, images_BHWC: jax.Array, targets: PyTree) -> jax.Array:
        """Returns block 1's visible patches on grey, [B, H, W, 3] in [0, 1]; arguments as in `picture`."""
        order_BN = targets["positions"]
        patches = self._ordered(images_BHWC, order_BN)
        return self._assemble(patches.at[:, self.visible[0] :].set(0.0), order_BN)

    def _order(self, rng, images):
        return random_order(rng, images, self.grid[0] * self.grid[1])

    def _ordered(self, images_BHWC, order_BN):
        patches_BNP = standardize(patchify(images_BHWC, self.patch_size))
        return jnp.take_along_axis(patches_BNP, order_BN[:, :, None], axis=1)

    def _assemble(self, patches_BNP, order_BN):
        inverse_BN = jnp.argsort(order_BN, axis=1)
        patches_BNP = jnp.take_along_axis(patches_BNP, inverse_BN[:, :, None], axis=1)
        return unpatchify(unstandardize(patches_BNP), self.patch_size, self.grid)
