"""Classes as a local loss: how a pretrained encoder is fine-tuned, whole or block by block."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import linen as nn

from blockjax.checks import Bound
from blockjax.models.heads import over_cells
from blockjax.models.layers import layer_norm
from blockjax.models.patches import CHANNEL_MEAN, CHANNEL_STD, patchify
from blockjax.models.vit import ViT
from blockjax.objectives.objective import Objective

PyTree = Any

# Random erasing (arXiv 1708.04896): least and greatest share of the area; log of the greatest height to width.
_ERASED_AREA, _ERASED_ASPECT = (0.02, 1 / 3), math.log(1 / 0.3)


class _Head(nn.Module):
    """The mean of the patches' tokens, a LayerNorm and a dense layer that starts at almost nothing, as in MAE.

    With `pool` above 1 there is a mean for each cell of a grid, and the dense layer reads all of them.
    """

    classes: int
    grid: tuple[int, int]
    pool: int

    @nn.compact
    def __call__(self, tokens_BTD: jax.Array) -> jax.Array:
        pooled_BCD = over_cells(tokens_BTD[:, 1:].astype(jnp.float32), self.grid, self.pool)
        pooled_BCD = layer_norm(jnp.float32, "pooled_norm")(pooled_BCD)
        start = nn.initializers.truncated_normal(2e-5)
        flat_BF = pooled_BCD.reshape(len(pooled_BCD), -1)
        return nn.Dense(self.classes, kernel_init=start, name="classes")(flat_BF)


@dataclasses.dataclass(frozen=True)
class Classification(Objective):
    """Predicts the class of an image.

    Attributes:
      patch_size: side of a patch in pixels.
      width: the encoder's width.
      classes: how many there are.
      grid: rows and columns of patches.
      pool: cells a side of the grid over which the patches' tokens are averaged; 1 is the mean of all, which does not
        say where anything is.
      frozen: layers at the start of each block that get no gradient; above 0, nor does the stem.
      drop_path: greatest share of images for which a branch of a layer is left out (arXiv 1603.09382).
      rises: whether that share rises from 0 at the first layer; else it is the same everywhere.
      label_smoothing: share of each target that all classes get alike.
      mixup: alpha of the share by which two images are mixed (arXiv 1710.09412); 0 for none.
      cutmix: alpha of the share that is cut from another image (arXiv 1905.04899); 0 for none. With both, each batch
        gets one of the two.
      erase: share of the images of which a rectangle is replaced by noise.
    """

    patch_size: int
    width: int
    classes: int
    grid: tuple[int, int]
    pool: int = 1
    frozen: int = 0
    drop_path: float = 0.0
    rises: bool = True
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    erase: float = 0.0

    takes_labels: ClassVar[bool] = True
    bounds: ClassVar[dict[str, Bound]] = {
        "classifier.classes": Bound(1, 2**24),
        "classifier.pool": Bound(1, 2**16),
        "classifier.drop_path": Bound(0, 1, below=True),
        "classifier.label_smoothing": Bound(0, 1, below=True),
        "classifier.erase": Bound(0, 1, below=True),
        "classifier.mixup": Bound(0, 1e3),
        "classifier.cutmix": Bound(0, 1e3),
    }

    @classmethod
    def from_config(
        cls, config: ml_collections.ConfigDict, vit: ViT, blocks: int
    ) -> "Classification":
        """Returns the objective that a resolved config describes."""
        group = config.classifier
        whole = blocks == 1
        tuned = config.blocks if config.tune_blocks is None else config.tune_blocks
        return cls(
            patch_size=vit.patch_size,
            width=vit.width,
            classes=group.classes,
            grid=vit.grid,
            pool=group.pool,
            frozen=(config.blocks - tuned) * (vit.depth // config.blocks) if whole else 0,
            drop_path=group.drop_path,
            rises=whole,
            label_smoothing=group.label_smoothing,
            mixup=group.mixup,
            cutmix=group.cutmix,
            erase=group.erase,
        )

    def init_head(self, rng: jax.Array) -> PyTree:
        """Returns one block's head parameters, float32."""
        rows, columns = self.grid
        tokens = jnp.zeros((1, 1 + rows * columns, self.width))
        return self._head().init(rng, tokens)["params"]

    def _head(self):
        return _Head(self.classes, self.grid, self.pool)

    def prepare(self, rng: jax.Array, batch: dict[str, jax.Array]) -> tuple[PyTree, PyTree]:
        """Mixes and erases images.

        Args:
          rng: a key for this step.
          batch: {"image": uint8 [B, H, W, 3], "label": int [B]}.

        Returns:
          Inputs of the stem, and targets, {"shares": [B, classes] float32, "label": [B]}: how much of each class an
          image is, and which most of it is.
        """
        images, shares = self._augmented(rng, batch["image"], batch["label"])
        patches = patchify(images, self.patch_size)
        positions = np.arange(patches.shape[1], dtype=np.int32)[None]
        inputs = {"patches": patches, "positions": jnp.broadcast_to(positions, patches.shape[:2])}
        return inputs, {"shares": shares, "label": batch["label"]}

    def _augmented(self, rng, images_BHWC, labels_B):
        """Returns standardised float32 images and the targets' shares."""
        mix_rng, erase_rng = jax.random.split(rng)
        images = (images_BHWC.astype(jnp.float32) / 255.0 - CHANNEL_MEAN[None, None, None]) / (
            CHANNEL_STD[None, None, None]
        )
        smooth = self.label_smoothing
        shares = jax.nn.one_hot(labels_B, self.classes) * (1.0 - smooth) + smooth / self.classes
        if self.erase:
            images = _erased(erase_rng, images, self.erase)
        if self.mixup or self.cutmix:
            images, shares = _mixed(mix_rng, images, shares, self.mixup, self.cutmix)
        return images, shares

    def stem(self, vit: ViT, params: PyTree, inputs: PyTree) -> PyTree:
        stream = super().stem(vit, params, inputs)
        return jax.lax.stop_gradient(stream) if self.frozen else stream

    def forward(self, vit: ViT, params: PyTree, stream: PyTree, rng: jax.Array) -> PyTree:
        layers, tokens = params["layers"], stream["tokens"]
        depth = len(jax.tree.leaves(layers)[0])
        rates = np.linspace(0.0, self.drop_path, depth) if self.rises else [self.drop_path] * depth
        if self.frozen:
            fixed = jax.tree.map(lambda leaf: leaf[: self.frozen], layers)
            layers = jax.tree.map(lambda leaf: leaf[self.frozen :], layers)
            # No gradient, so nothing of these layers is kept for a backward pass.
            tokens = jax.lax.stop_gradient(vit.layers(jax.lax.stop_gradient(fixed), tokens))
        if self.frozen < depth:
            dropped = (rng, jnp.float32(rates[self.frozen :])) if self.drop_path else ()
            tokens = vit.layers(layers, tokens, *dropped)
        return {**stream, "tokens": tokens}

    def logits(self, head: PyTree, tokens_BTD: jax.Array) -> jax.Array:
        """Returns a block's logits, [B, classes] float32."""
        return self._head().apply({"params": head}, tokens_BTD)

    def loss(
        self, head: PyTree, stream: jax.Array, targets: PyTree, rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """A block's local loss: the mean cross-entropy with the targets' shares.

        Args:
          head: the block's head parameters.
          stream: tokens [B, T, D], as they leave the block.
          targets: from `prepare`.
          rng: unused.

        Returns:
          The loss (guessing: the log of the classes) and {"accuracy"}, by the class that most of an image is.
        """
        del rng
        logits = self.logits(head, stream)
        loss = optax.softmax_cross_entropy(logits, targets["shares"]).mean()
        right = logits.argmax(axis=-1) == targets["shares"].argmax(axis=-1)
        return loss, {"accuracy": right.astype(jnp.float32).mean()}

    def seen(self, rng: jax.Array, images_BHWC: jax.Array) -> dict[str, jax.Array]:
        """Returns images as they are trained on, [B, H, W, 3] in [0, 1]."""
        labels = jnp.zeros(len(images_BHWC), jnp.int32)
        images, _ = self._augmented(rng, images_BHWC, labels)
        images = images * CHANNEL_STD[None, None, None] + CHANNEL_MEAN[None, None, None]
        return {"trained on": jnp.clip(images, 0.0, 1.0)}

    def chance(self, metrics: dict[str, float]) -> float:
        """See `Objective.chance`."""
        del metrics
        return math.log(self.classes)


def _mixed(rng, images, shares, mixup, cutmix):
    """Mixes each image with its counterpart at the other end of the batch, by a share that is the batch's."""
    choice_rng, mix_rng, cut_rng, box_rng = jax.random.split(rng, 4)
    other, other_shares = images[::-1], shares[::-1]

    def mixed():
        share = jax.random.beta(mix_rng, mixup, mixup) if mixup else jnp.float32(1.0)
        return share * images + (1.0 - share) * other, share

    def cut():
        share = jax.random.beta(cut_rng, cutmix, cutmix) if cutmix else jnp.float32(1.0)
        _, height, width, _ = images.shape
        side = jnp.sqrt(1.0 - share)
        center = jax.random.uniform(box_rng, (2,)) * jnp.array([height, width])
        half = side * jnp.array([height, width]) / 2.0
        low = jnp.clip(jnp.round(center - half), 0)
        high = jnp.minimum(jnp.round(center + half), jnp.array([height, width]))
        inside = _inside(low[None], high[None], height, width)
        # By what is really cut: a box may reach over the border.
        area = inside.mean()
        return jnp.where(inside[..., None], other, images), 1.0 - area

    is_cut = jax.random.bernoulli(choice_rng, 0.5) if mixup and cutmix else jnp.bool(bool(cutmix))
    images, share = jax.lax.cond(is_cut, cut, mixed)
    return images, share * shares + (1.0 - share) * other_shares


def _erased(rng, images, probability):
    """Replaces a rectangle of some images by noise, as timm does for MAE (mode "pixel", one rectangle)."""
    batch, height, width, _ = images.shape
    keys = jax.random.split(rng, 5)
    area = jax.random.uniform(keys[0], (batch,), minval=_ERASED_AREA[0], maxval=_ERASED_AREA[1])
    log = jax.random.uniform(keys[1], (batch,), minval=-_ERASED_ASPECT, maxval=_ERASED_ASPECT)
    aspect = jnp.exp(log)
    size = jnp.sqrt(area[:, None] * height * width * jnp.stack([aspect, 1.0 / aspect], axis=1))
    size = jnp.minimum(jnp.round(size), jnp.array([[height, width]]))
    low = jnp.floor(
        jax.random.uniform(keys[2], (batch, 2)) * (jnp.array([[height, width]]) - size + 1)
    )
    inside = _inside(low, low + size, height, width)
    chosen = jax.random.bernoulli(keys[3], probability, (batch, 1, 1))
    noise = jax.random.normal(keys[4], images.shape)
    return jnp.where((inside & chosen)[..., None], noise, images)


def _inside(low_B2, high_B2, height, width):
    """Returns whether each pixel lies in its image's box (rows, columns), bool [B, H, W]."""
    rows = jnp.arange(height)[None, :, None]
    columns = jnp.arange(width)[None, None, :]
    low, high = low_B2[:, :, None, None], high_B2[:, :, None, None]
    in_rows = (rows >= low[:, 0]) & (rows < high[:, 0])
    return in_rows & (columns >= low[:, 1]) & (columns < high[:, 1])
