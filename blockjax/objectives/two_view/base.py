"""What the objectives that compare two augmented views of an image share."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections

from blockjax.checks import Bound
from blockjax.models.heads import Readout
from blockjax.models.patches import patchify, standardize_unit
from blockjax.models.vit import ViT
from blockjax.objectives.objective import SMALL, Objective, default_readout
from blockjax.objectives.two_view.augment import find_recipe, two_views

PyTree = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoView(Objective):
    """Both views pass through all blocks; each block has a readout and a projector of its own.

    Attributes:
      image_size: side of a view in pixels.
      patch_size: side of a patch in pixels.
      width: the encoder's width.
      recipe: a name in `blockjax.objectives.two_view.augment.RECIPES`.
      readout: a name in `blockjax.models.heads.READOUTS`.
      expansion: width of the readout `cbe_gap`.
      hidden: width of the projector's hidden layers.
      out: width of the projector's output.
      dtype: of the readout's wide product.
    """

    image_size: int
    patch_size: int
    width: int
    recipe: str
    readout: str
    expansion: int
    hidden: int
    out: int
    dtype: Any

    means_over_images = False
    bounds: ClassVar[dict[str, Bound]] = {
        "head.expansion": Bound(1, 2**16),
        "head.hidden": Bound(1, 2**16),
        "head.width": Bound(1, 2**16),
        "loss.temperature": Bound(0, 1e3, above=True),
    }
    host_crops = False

    @staticmethod
    def fields(config: ml_collections.ConfigDict, vit: ViT) -> dict[str, Any]:
        """Returns this class's attributes, of a resolved config."""
        return {
            "image_size": vit.image_size,
            "patch_size": vit.patch_size,
            "width": vit.width,
            "recipe": config.views.recipe,
            "readout": config.head.readout,
            "expansion": config.head.expansion,
            "hidden": config.head.hidden,
            "out": config.head.width,
            "dtype": vit.dtype,
        }

    @staticmethod
    def defaults(config: ml_collections.ConfigDict) -> dict[str, Any]:
        """Returns the fields of readout and views; subclasses add those of their projector."""
        small = config.model.image_size <= SMALL
        return default_readout(config, "cbe_gap") | {
            "views.recipe": "cifar-byol" if small else "byol"
        }

    @staticmethod
    def check(config: ml_collections.ConfigDict) -> None:
        find_recipe(config.views.recipe)
        if config.batch_size < 2:
            raise ValueError(
                f"objective {config.objective} compares the images of a batch with each other; batch_size "
                f"{config.batch_size} leaves nothing to compare"
            )

    def prepare(self, rng: jax.Array, batch: dict[str, jax.Array]) -> tuple[PyTree, PyTree]:
        """Makes two views of each image: inputs [B, 2, N, P], and no targets."""
        views = two_views(rng, batch["image"], self.recipe, self.image_size, batch.get("aspect"))
        flat = views.reshape(-1, *views.shape[2:])
        patches = standardize_unit(patchify(flat, self.patch_size))
        patches = patches.reshape(*views.shape[:2], *patches.shape[1:])
        positions = jnp.broadcast_to(jnp.arange(patches.shape[2]), patches.shape[:3])
        return {"patches": patches, "positions": positions}, {}

    def seen(self, rng: jax.Array, images_BHWC: jax.Array) -> dict[str, jax.Array]:
        """Returns both views, each [B, H, W, 3] in [0, 1]."""
        views = two_views(rng, images_BHWC, self.recipe, self.image_size)
        return {"view 1": views[:, 0], "view 2": views[:, 1]}

    @abc.abstractmethod
    def _projector(self):
        """Returns the module from a readout's vectors to embeddings."""

    def init_head(self, rng: jax.Array) -> PyTree:
        readout_rng, projector_rng = jax.random.split(rng)
        readout, vector = self._init_readout(readout_rng)
        projector = self._projector().init(projector_rng, vector)["params"]
        return {"readout": readout, "projector": projector}

    def _project(self, head, tokens):
        """Returns embeddings of tokens [..., T, D]."""
        vectors = self.readout_module.apply({"params": head["readout"]}, tokens)
        return self._projector().apply({"params": head["projector"]}, vectors)

    @property
    def readout_module(self) -> Readout:
        return Readout(self.readout, self.expansion, self.dtype)

    def _init_readout(self, rng):
        """Returns a readout's parameters, and one vector such as it gives."""
        tokens = jnp.zeros((1, 2, self.width))
        vector, variables = self.readout_module.init_with_output(rng, tokens)
        return variables["params"], vector


def each_view(function: Callable[..., jax.Array], head: PyTree, tokens: jax.Array) -> jax.Array:
    """Applies `(head, tokens) -> vectors` to each view [B, 2, ...] by itself, so that BatchNorm sees one at a time."""
    return jax.vmap(lambda view: function(head, view), in_axes=1, out_axes=1)(tokens)


def embedding_std(z: jax.Array) -> jax.Array:
    """Spread of l2-normalised embeddings [B, ..., d]: the mean over dimensions of the std over all else, times √d.

    About 1 for embeddings that fill all directions, 0 for a constant (SimSiam, arXiv 2011.10566, as in lightly's
    debug utilities).
    """
    flat = z.reshape(-1, z.shape[-1])
    return jnp.std(flat, axis=0).mean() * jnp.sqrt(z.shape[-1])
