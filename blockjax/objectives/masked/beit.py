"""Masked image modeling of visual tokens (BEiT, arXiv 2106.08254) as a local loss.

This is BEiT's objective, but not DALL-E's tokenizer: the visual tokens are nearest centroids of patches (see
`blockjax.objectives.masked.tokenizer`), because DALL-E's weights are not available everywhere. Figures of BEiT's paper
do not carry over; the nearest published relative is CCViT (arXiv 2303.04664).
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl import logging
from flax import linen as nn

from blockjax.checks import INT32, Bound
from blockjax.models.layers import layer_norm
from blockjax.models.patches import patchify, standardize, unpatchify, unstandardize
from blockjax.models.vit import ViT
from blockjax.objectives.masked import tokenizer
from blockjax.objectives.masked.block_masks import block_masks, min_block_area
from blockjax.objectives.objective import Objective
from blockjax.strategies import END_TO_END

PyTree = Any

# Patches that a vocabulary is fitted on at most: as many for each code as faiss, CCViT's k-means, would use, and 1 GiB
# of float32 in all. It is checked on a quarter of that.
_PATCHES_PER_CODE = 256
_FITTED_VALUES = 2**28
_CHECKED_PART = 4
# Every tenth image is kept from the fit, to check it.
_HOLD_OUT = 10

# BEiT cuts the head's initial weights at one standard deviation (microsoft/unilm, beit/modeling_pretrain.py).
_HEAD_INIT = nn.initializers.truncated_normal(0.02, lower=-1.0, upper=1.0)


class TokenHead(nn.Module):
    """Logits of visual tokens, [B, M, D] to [B, M, V] float32: LayerNorm, then a dense layer.

    Attributes:
      codes: size of the vocabulary (V).
      dtype: of the dense layer.
    """

    codes: int
    dtype: Any

    def setup(self):
        """Names the two layers."""
        self.norm = layer_norm(self.dtype)
        self.logits = nn.Dense(self.codes, dtype=self.dtype, kernel_init=_HEAD_INIT)

    def __call__(self, tokens_BMD: jax.Array) -> jax.Array:
        return self.projected(self.normed(tokens_BMD))

    def normed(self, tokens_BMD: jax.Array) -> jax.Array:
        """Returns the tokens after the LayerNorm, [B, M, D]."""
        return self.norm(tokens_BMD)

    def projected(self, normed_BMD: jax.Array) -> jax.Array:
        """Returns the logits of normed tokens, [B, M, V] float32."""
        return self.logits(normed_BMD).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Beit(Objective):
    """Predicts the visual tokens of masked patches, from all patches with a mask token in these places.

    Masks are unions of rectangles, one for each image, shared by all blocks. The vocabulary is fitted once before
    training (`fit`) and handed to `prepare` in every step. Every block owns a head, and the mask token is the stem's.

    Attributes:
      patch_size: side of a patch in pixels.
      grid: rows and columns of patches.
      width: the encoder's width.
      masked: patches of an image that are masked (M).
      codes: size of the vocabulary (V).
      kind: of the tokenizer, one of `tokenizer.KINDS`.
      dtype: of the head's dense layer; the loss is float32.
    """

    patch_size: int
    grid: tuple[int, int]
    width: int
    masked: int
    codes: int
    kind: str = "kmeans"
    dtype: Any = jnp.float32

    mask_token: ClassVar[bool] = True
    bounds: ClassVar[dict[str, Bound]] = {
        "tokenizer.codes": Bound(1, 2**24),
        "tokenizer.examples": Bound(1, INT32),
    }

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict, vit: ViT, blocks: int) -> "Beit":
        """Returns the objective that a resolved config describes."""
        del blocks
        return cls(
            patch_size=vit.patch_size,
            grid=vit.grid,
            width=vit.width,
            masked=round(config.mask.ratio * vit.patches),
            codes=config.tokenizer.codes,
            kind=config.tokenizer.kind,
            dtype=vit.dtype,
        )

    @staticmethod
    def defaults(config: ml_collections.ConfigDict) -> dict[str, Any]:
        """Returns a mask ratio and a vocabulary size.

        BEiT masks 75 of 14 x 14 patches; 0.39 is 25 of 8 x 8, the same share. CCViT has 8192 codes for patches of
        16 x 16 pixels; that many logits for every block are more than a block, so blocks get 2048. Patches of 4 x 4
        pixels have enough in 512.
        """
        codes = 8192 if config.strategy in END_TO_END else 2048
        return {
            "mask.ratio": 0.39 if _patches(config) < 196 else 0.384,
            "tokenizer.codes": codes if config.model.patch_size > 8 else 512,
        }

    @staticmethod
    def check(config: ml_collections.ConfigDict) -> None:
        """Checks a config that is fully resolved, not yet checked by the objective.

        Raises:
          ValueError: the mask leaves no masked or no visible patch, or the tokenizer's kind is unknown, or it has fewer
            than two codes or fewer patches than codes.
        """
        patches, ratio, chosen = _patches(config), config.mask.ratio, config.tokenizer
        if not 1 <= round(ratio * patches) < patches:
            low, high = 1 / patches, (patches - 1) / patches
            raise ValueError(
                f"mask.ratio {ratio:g} masks {round(ratio * patches)} of {patches} patches, and beit needs a masked "
                f"and a visible one; mask.ratio may be from {low:.3g} to {high:.3g}"
            )
        if chosen.kind not in tokenizer.KINDS:
            raise ValueError(
                f"tokenizer.kind {chosen.kind!r} is unknown; it may be one of {tokenizer.KINDS}"
            )
        if chosen.codes < 2:
            raise ValueError(
                f"tokenizer.codes {chosen.codes} leaves nothing to predict; it must be at least 2"
            )
        if chosen.examples * patches < chosen.codes:
            raise ValueError(
                f"tokenizer.examples {chosen.examples} images have {chosen.examples * patches} patches, too few for "
                f"{chosen.codes} codes; set a larger tokenizer.examples or a smaller tokenizer.codes"
            )

    @staticmethod
    def check_examples(config: ml_collections.ConfigDict, examples: int) -> None:
        """Checks that there are patches for all codes.

        Raises:
          ValueError: there are too few images to fit the vocabulary to, and to check it on.
        """
        images, chosen = min(examples, config.tokenizer.examples), config.tokenizer
        fitted = images - max(1, images // _HOLD_OUT)
        if fitted * _patches(config) < chosen.codes:
            raise ValueError(
                f"tokenizer.codes {chosen.codes}: the {fitted} images to which they are fitted have "
                f"{fitted * _patches(config)} patches; set a smaller tokenizer.codes, or train on more images"
            )

    @property
    def fitted_shape(self) -> tuple[int, int]:
        """That of the centroids, (V, P)."""
        return self.codes, self.patch_size**2 * 3

    def fit(self, rng: jax.Array, images_BHWC: np.ndarray) -> np.ndarray:
        """Fits the vocabulary to some training images, and checks it on a tenth of them that it is not fitted to.

        Args:
          rng: a key; the same key and images give the same vocabulary on the same device type.
          images_BHWC: uint8, square, of the encoder's image size; at least two.

        Returns:
          Centroids, float32 [V, P].

        Raises:
          ValueError: there are too few images or different patches, or the codes are used too unevenly (see
            `tokenizer.check_tokenizer`).
        """
        if len(images_BHWC) < 2:
            raise ValueError(
                f"the tokenizer cannot be fitted and checked on {len(images_BHWC)} image: set a larger "
                "tokenizer.examples"
            )
        order_rng, fit_rng, *patch_rngs = jax.random.split(rng, 4)
        order_B = np.asarray(jax.random.permutation(order_rng, len(images_BHWC)))
        held_out = max(1, len(order_B) // _HOLD_OUT)
        most = min(_PATCHES_PER_CODE * self.codes, _FITTED_VALUES // self.fitted_shape[1])
        checked_NP = self._some_patches(
            patch_rngs[0], images_BHWC, order_B[:held_out], most // _CHECKED_PART
        )
        patches_NP = self._some_patches(patch_rngs[1], images_BHWC, order_B[held_out:], most)
        logging.info(
            "tokenizer: fitting %d codes (%s) to %d patches of %d images",
            self.codes,
            self.kind,
            len(patches_NP),
            len(order_B) - held_out,
        )
        centroids_VP = tokenizer.fit(fit_rng, patches_NP, self.codes, self.kind)
        tokens_N = tokenizer.tokenize(centroids_VP, checked_NP, self.kind)
        statistics = tokenizer.token_statistics(tokens_N, self.codes)
        logging.info(
            "tokenizer: on %d patches of other images, perplexity %.4g, most frequent code %.1f %%, %.0f %% used",
            len(checked_NP),
            statistics["perplexity"],
            100 * statistics["top_share"],
            100 * statistics["used"],
        )
        tokenizer.check_tokenizer(statistics, self.codes)
        return centroids_VP

    def _some_patches(self, rng, images_BHWC, chosen, most):
        """Returns random patches of the chosen images, at most so many, standardised float32 [N, P]."""
        rows, columns = self.grid
        size = self.patch_size
        total = len(chosen) * rows * columns
        places = np.arange(total)
        if total > most:
            places = np.asarray(jax.random.permutation(rng, total))[:most]
        image, row, column = np.unravel_index(places, (len(chosen), rows, columns))
        cut = images_BHWC.reshape(len(images_BHWC), rows, size, columns, size, 3)
        patches_NP = cut[chosen[image], row, :, column].reshape(len(places), -1)
        return np.asarray(standardize(patches_NP[None])[0])

    def init_head(self, rng: jax.Array) -> PyTree:
        """Returns one block's head parameters, float32."""
        return self._head().init(rng, jnp.zeros((1, 1, self.width)))["params"]

    def _head(self):
        return TokenHead(self.codes, self.dtype)

    def prepare(
        self, rng: jax.Array, batch: dict[str, jax.Array], fitted: jax.Array
    ) -> tuple[PyTree, PyTree]:
        """Masks a batch and names what is masked.

        Args:
          rng: a key for this step.
          batch: {"image": uint8 [B, H, W, 3]}.
          fitted: centroids [V, P], from `fit`.

        Returns:
          Inputs of the stem, all patches: {"patches": float32 [B, N, P], "positions": int32 [B, N], "masked": bool
          [B, N]}; targets of all blocks, of masked patches only: {"tokens", "positions": int32 [B, M]}.
        """
        patches_BNP = standardize(patchify(batch["image"], self.patch_size))
        masked_BN = self._masks(rng, len(patches_BNP))
        # False comes before true, and otherwise the order stays.
        positions_BM = jnp.argsort(~masked_BN, axis=1, stable=True)[:, : self.masked]
        positions_BM = positions_BM.astype(jnp.int32)
        masked_BMP = jnp.take_along_axis(patches_BNP, positions_BM[:, :, None], axis=1)
        positions_BN = jnp.broadcast_to(jnp.arange(masked_BN.shape[1])[None], masked_BN.shape)
        inputs = {"patches": patches_BNP, "positions": positions_BN, "masked": masked_BN}
        tokens_BM = tokenizer.tokenize(fitted, masked_BMP, self.kind)
        return inputs, {"tokens": tokens_BM, "positions": positions_BM}

    def _masks(self, rng, images):
        patches = self.grid[0] * self.grid[1]
        return block_masks(rng, images, self.grid, self.masked, min_block_area(patches))

    def loss(
        self, head: PyTree, stream: jax.Array, targets: PyTree, rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """A block's local loss: cross-entropy of the visual tokens, mean over all masked patches of the batch.

        Args:
          head: the block's head parameters.
          stream: CLS and all patches' tokens [B, 1 + N, D], as they leave the block.
          targets: from `prepare`.
          rng: unused.

        Returns:
          The loss in nats, and metrics: `accuracy` on masked patches; `token_entropy`, the entropy of the batch's
          visual tokens in nats, which is the loss of a head that ignores the stream and knows their frequencies; and
          `prediction_perplexity`, the exponential of the same entropy of the predicted tokens (the likeliest of each
          patch), so 1 where all predictions are one code.
        """
        del rng
        return self.loss_of(head, *self.predicted(head, stream, targets))

    def predicted(
        self, head: PyTree, tokens: jax.Array, targets: PyTree
    ) -> tuple[jax.Array, PyTree]:
        """Returns the masked patches' tokens after the head's LayerNorm, and the targets as they are."""
        tokens_BMD = jnp.take_along_axis(tokens[:, 1:], targets["positions"][:, :, None], axis=1)
        normed_BMD = self._head().apply({"params": head}, tokens_BMD, method="normed")
        return normed_BMD, targets

    @property
    def predicted_width(self) -> int:
        """The encoder's."""
        return self.width

    def loss_of(
        self, head: PyTree, features_BMF: jax.Array, targets: PyTree
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the loss and metrics of normed tokens, see `loss`."""
        logits_BMV = self._head().apply({"params": head}, features_BMF, method="projected")
        losses_BM = optax.softmax_cross_entropy_with_integer_labels(logits_BMV, targets["tokens"])
        predicted_BM = logits_BMV.argmax(axis=-1)
        return losses_BM.mean(), {
            "accuracy": (predicted_BM == targets["tokens"]).astype(jnp.float32).mean(),
            "prediction_perplexity": jnp.exp(self._entropy(predicted_BM)),
            "token_entropy": self._entropy(targets["tokens"]),
        }

    def _entropy(self, tokens_BM):
        # A comparison with every code, summed at once: scattered additions would gather a split batch.
        hits_BMV = tokens_BM[:, :, None] == jnp.arange(self.codes)[None, None]
        shares_V = hits_BMV.sum(axis=(0, 1), dtype=jnp.int32) / tokens_BM.size
        return jax.scipy.special.entr(shares_V).sum()

    def seen(
        self, rng: jax.Array, images_BHWC: jax.Array, fitted: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns what the objective sees of images, [B, H, W, 3] in [0, 1]: image, masked image, visual tokens.

        Args:
          rng: a key; the masks are those that `prepare` draws from it.
          images_BHWC: uint8.
          fitted: centroids [V, P], from `fit`.
        """
        patches_BNP = standardize(patchify(images_BHWC, self.patch_size))
        masked_BN = self._masks(rng, len(patches_BNP))
        tokens_BN = tokenizer.tokenize(fitted, patches_BNP, self.kind)
        pictures = {
            "image": patches_BNP,
            "masked": jnp.where(masked_BN[:, :, None], 0.0, patches_BNP),
            "tokens": tokenizer.reconstruct(fitted, tokens_BN, patches_BNP, self.kind),
        }
        return {
            name: unpatchify(unstandardize(patches), self.patch_size, self.grid)
            for name, patches in pictures.items()
        }

    def chance(self, metrics: dict[str, float]) -> float:
        """See `Objective.chance`: what the tokens' frequencies alone give."""
        return metrics["token_entropy"]

    def symptoms(self, metrics: dict[str, float], progress: float) -> list[str]:
        """Says what is wrong with one block, see `Objective.symptoms`."""
        found = []
        loss, entropy = metrics["loss"], metrics["token_entropy"]
        predicted, true = metrics["prediction_perplexity"], math.exp(entropy)
        if progress >= 0.3 and loss >= entropy:
            found.append(
                f"loss {loss:.3f} is not below the entropy of the visual tokens, {entropy:.3f}: the block predicts how "
                "often codes occur and ignores the visible patches; lower optimizer.base_learning_rate or raise "
                "optimizer.warmup_steps, train longer, or set a smaller tokenizer.codes"
            )
        # Healthy runs have a tenth of the true perplexity within 250 steps: the likeliest of uncertain tokens are few.
        elif progress >= 0.5 and predicted < 0.02 * true:
            found.append(
                f"the likeliest tokens have a perplexity of {predicted:.3g}, true ones of {true:.3g}: only the most "
                "frequent codes are told apart; train longer, or set a smaller tokenizer.codes"
            )
        if metrics["accuracy"] > 0.95:
            found.append(
                f"{metrics['accuracy']:.1%} of the masked visual tokens are predicted right, more than visible patches "
                "tell in photos: masked patches reach the encoder (a stem without mask token), or nearly all are "
                "alike; look at the images, or set a larger tokenizer.codes"
            )
        return found


def _patches(config):
    return (config.model.image_size // config.model.patch_size) ** 2
