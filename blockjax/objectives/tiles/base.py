"""What objectives on tiles of an image have in common."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import ml_collections

from blockjax.models.heads import Readout
from blockjax.models.vit import ViT
from blockjax.objectives.objective import Objective
from blockjax.objectives.tiles.cut import BOUNDS, Tiles, check_tiles, default_tiles


@dataclasses.dataclass(frozen=True, kw_only=True)
class TileObjective(Objective):
    """Tiles pass through all blocks one by one; each block has a readout and a classifier of its own.

    Attributes:
      tiles: how tiles are cut.
      width: the encoder's width.
      hidden: width of the classifier's hidden layer.
      readout: of a tile's tokens, see `Readout`.
      expansion: width of the readout "cbe_gap".
      dropout: probability, of hidden units.
      dtype: of activations.
    """

    tiles: Tiles
    width: int
    hidden: int
    readout: str = "gap"
    expansion: int = 0
    dropout: float = 0.5
    dtype: Any = jnp.float32

    means_over_images = False
    bounds = BOUNDS
    host_crops = False

    @staticmethod
    def fields(config: ml_collections.ConfigDict, vit: ViT) -> dict[str, Any]:
        """Returns this class's attributes, of a resolved config."""
        return {
            "tiles": Tiles.from_config(config, vit),
            "width": vit.width,
            "hidden": config.head.hidden,
            "readout": config.head.readout,
            "expansion": config.head.expansion,
            "dtype": vit.dtype,
        }

    @staticmethod
    def defaults(config: ml_collections.ConfigDict) -> dict[str, Any]:
        """Returns the fields of tiles and head, see `default_tiles`."""
        return default_tiles(config)

    @staticmethod
    def check(config: ml_collections.ConfigDict) -> None:
        """Checks a config that is fully resolved, not yet checked by the objective.

        Raises:
          ValueError: tiles that cannot be cut or encoded; says what would fit.
        """
        check_tiles(config)

    @property
    def readout_module(self) -> Readout:
        """See `Objective.readout_module`."""
        return Readout(self.readout, self.expansion, self.dtype)
