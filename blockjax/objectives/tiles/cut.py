"""Nine tiles cut from an image, for tasks about where a tile comes from; and what such tasks have in common.

Axis letters beside those of `vit.py`: S side of a tile, and 9 tiles in raster order of the cells they were cut from.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import linen as nn

from blockjax.checks import Bound
from blockjax.models.heads import BatchNorm
from blockjax.models.patches import patchify, unstandardize
from blockjax.models.vit import ViT
from blockjax.objectives.objective import SMALL, default_readout
from blockjax.objectives.resample import crop_and_resize

CELLS = 9
_XAVIER = nn.initializers.xavier_uniform()
# Luma of ITU-R BT.601, rounded as in PIL's and TensorFlow's conversion to grey.
_LUMA = np.array([0.2989, 0.587, 0.114], np.float32).reshape(1, 1, 1, 1, 3)
BOUNDS = {
    "tiles.image_size": Bound(3, 2**16),
    "tiles.crop": Bound(3, 2**16),
    "tiles.size": Bound(1, 2**16),
    "tiles.gray": Bound(0, 1),
    "tiles.permutations": Bound(1, 2**20),
    "tiles.per_image": Bound(1, 2**20),
}
# Below this spread a tile is noise; far above float32's rounding of a constant tile, far below 1/255 of contrast.
_STD_FLOOR = 1e-3


def cut_tiles(
    rng: jax.Array,
    images_BHWC: jax.Array,
    image_size: int,
    crop: int,
    size: int,
    gray: float,
    aspect_B: jax.Array | None = None,
) -> jax.Array:
    """Cuts nine tiles from each image, one from each cell of a 3 x 3 grid.

    The image is resized so that its shorter side is `image_size`, a random square of side `crop` is divided into nine
    cells, and a tile is cut from each cell, at a random offset drawn for every tile: the gap of random width keeps
    edges from running on from tile to tile (arXiv 1505.05192, 1603.09246; in the latter a crop of 255 and tiles of 64).
    Some images lose their colours, all nine tiles alike, because a lens shifts colours by an amount that tells the
    place in the image (1505.05192; as a share of the images in google/revisiting-self-supervised, patch_utils.py, and
    bbrattoli/JigsawPuzzlePytorch, JigsawImageLoader.py). Each channel of each tile gets mean 0 and standard deviation
    1, so that brightness and contrast do not tell which tiles are neighbours (the two repositories just named).

    Args:
      rng: a key.
      images_BHWC: uint8, square.
      image_size: shorter side in pixels to which images are resized.
      crop: side of the square in pixels of the resized image; divisible by 3.
      size: side of a tile in pixels of the resized image.
      gray: probability that an image's tiles are grey.
      aspect_B: float, width / height that the images had before they were stretched to squares; None where they were
        not.

    Returns:
      Tiles [B, 9, S, S, 3], float32; they need no further standardisation.
    """
    window_rng, gray_rng = jax.random.split(rng)
    images, side = images_BHWC.shape[:2]
    windows_9B2 = draw_windows(window_rng, images, side, image_size, crop, size, aspect_B)
    length_B2 = size * side / resized_sides(image_size, aspect_B)
    height_B, width_B = jnp.broadcast_to(length_B2, (images, 2)).T.astype(jnp.float32)

    def cut(window_B2):
        top_B, left_B = window_B2[:, 0], window_B2[:, 1]
        return crop_and_resize(images_BHWC, top_B, left_B, height_B, width_B, size) / 255.0

    # A tile is one window of the original, resampled once: there is no need for the resized image. One tile after
    # another, because what lies between resampling rows and columns is larger than the tiles.
    tiles = jnp.swapaxes(jax.lax.map(cut, windows_9B2), 0, 1)
    luma = (tiles * _LUMA).sum(axis=-1, keepdims=True)
    is_gray = jax.random.bernoulli(gray_rng, gray, (images, 1, 1, 1, 1))
    tiles = jnp.where(is_gray, luma, tiles)
    tiles = tiles - tiles.mean(axis=(2, 3), keepdims=True)
    std = jnp.sqrt(jnp.square(tiles).mean(axis=(2, 3), keepdims=True))
    return tiles / jnp.maximum(std, _STD_FLOOR)


def resized_sides(image_size: int, aspect_B: jax.Array | None) -> np.ndarray | jax.Array:
    """Returns heights and widths of images whose shorter side is `image_size`, [B, 2]; of squares [1, 2]."""
    if aspect_B is None:
        return np.full((1, 2), image_size)
    return image_size * jnp.stack(
        [jnp.maximum(1.0, 1.0 / aspect_B), jnp.maximum(1.0, aspect_B)], axis=1
    )


def draw_windows(
    rng: jax.Array,
    images: int,
    side: int,
    image_size: int,
    crop: int,
    size: int,
    aspect_B: jax.Array | None = None,
) -> jax.Array:
    """Returns the top and left corners of tiles, float32 [9, B, 2] in pixels of images of so large a side.

    Corners are not whole pixels of the resized image. If they were, they would be multiples of side / image_size in the
    original, and each cell would have its own few places between pixels at which its tile is interpolated. These show:
    with whole pixels (32 to 54, crop 48, tiles of 12) a small network told the row of a tile of white noise in 88 % of
    the cases, without in 33 %, which is guessing.

    Args:
      rng: a key.
      images: how many (B).
      side: of the images.
      image_size: see `cut_tiles`.
      crop: see `cut_tiles`.
      size: see `cut_tiles`.
      aspect_B: see `cut_tiles`.
    """
    crop_rng, offset_rng = jax.random.split(rng)
    cell = crop // 3
    sides_B2 = resized_sides(image_size, aspect_B)
    corner = jax.random.uniform(crop_rng, (1, images, 2), maxval=sides_B2[None] - crop)
    offset = jax.random.uniform(offset_rng, (CELLS, images, 2), maxval=cell - size)
    place = np.stack(np.divmod(np.arange(CELLS), 3), axis=1)[:, None] * cell
    return (corner + offset + place) * (side / sides_B2)[None]


def tile_inputs(
    rng: jax.Array, tiles: jax.Array, patch_size: int, grid: tuple[int, int]
) -> dict[str, jax.Array]:
    """Makes encoder inputs of tiles, with positions that do not tell where a tile was cut.

    Positions are those of a window of the encoder's grid, as large as a tile. There is one window, at random, for all
    tiles and images of a call: so each position is trained, and whole images are not foreign to the encoder.

    Args:
      rng: a key.
      tiles: from `cut_tiles`.
      patch_size: side of a patch in pixels; divides the side of a tile.
      grid: rows and columns of the encoder's grid of patches, at least those of a tile.

    Returns:
      {"patches": float32 [B, 9, N, P], "positions": int32 [B, 9, N]}, N patches of a tile.
    """
    images, side = tiles.shape[0], tiles.shape[2] // patch_size
    patches = patchify(tiles.reshape(-1, *tiles.shape[2:]), patch_size)
    patches = patches.reshape(images, CELLS, *patches.shape[1:])
    row_rng, column_rng = jax.random.split(rng)
    rows = jax.random.randint(row_rng, (), 0, grid[0] - side + 1) + np.arange(side)
    columns = jax.random.randint(column_rng, (), 0, grid[1] - side + 1) + np.arange(side)
    positions_N = (rows[:, None] * grid[1] + columns[None]).reshape(-1).astype(jnp.int32)
    return {"patches": patches, "positions": jnp.broadcast_to(positions_N, patches.shape[:3])}


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How tiles become encoder inputs.

    Attributes:
      image_size, crop, size, gray: see `cut_tiles`.
      patch_size: side of a patch in pixels.
      grid: rows and columns of the encoder's grid of patches.
    """

    image_size: int
    crop: int
    size: int
    gray: float
    patch_size: int
    grid: tuple[int, int]

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict, vit: ViT) -> "Tiles":
        """Returns the tiles that a resolved config describes."""
        tiles = config.tiles
        return cls(tiles.image_size, tiles.crop, tiles.size, tiles.gray, vit.patch_size, vit.grid)

    @property
    def jitter(self) -> int:
        """The largest offset of a tile in its cell, in pixels of the resized image."""
        return self.crop // 3 - self.size

    def cut(
        self, rng: jax.Array, images_BHWC: jax.Array, aspect_B: jax.Array | None = None
    ) -> jax.Array:
        """Returns tiles [B, 9, S, S, 3], see `cut_tiles`."""
        how = self.image_size, self.crop, self.size, self.gray
        return cut_tiles(rng, images_BHWC, *how, aspect_B)

    def inputs(
        self, rng: jax.Array, images_BHWC: jax.Array, aspect_B: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Returns encoder inputs, see `tile_inputs`; with the same key, of the tiles that `picture` shows."""
        cut_rng, window_rng = jax.random.split(rng)
        tiles = self.cut(cut_rng, images_BHWC, aspect_B)
        return tile_inputs(window_rng, tiles, self.patch_size, self.grid)

    def picture(
        self, rng: jax.Array, images_BHWC: jax.Array, order_B9: jax.Array | None = None
    ) -> jax.Array:
        """Shows the tiles as the encoder sees them, each in the middle of its cell: [B, crop, crop, 3] in [0, 1].

        Args:
          rng: as for `inputs`.
          images_BHWC: uint8.
          order_B9: which tile lies in each cell; by default its own.
        """
        tiles = self.cut(jax.random.split(rng)[0], images_BHWC)
        if order_B9 is not None:
            tiles = jnp.take_along_axis(tiles, order_B9[..., None, None, None], axis=1)
        # The encoder takes a tile's numbers for those of an image that `standardize` made.
        pixels = unstandardize(tiles)
        before = self.jitter // 2
        margin = (before, self.jitter - before)
        cells = jnp.pad(pixels, ((0, 0), (0, 0), margin, margin, (0, 0)), constant_values=0.5)
        cells = cells.reshape(-1, 3, 3, *cells.shape[2:]).transpose(0, 1, 3, 2, 4, 5)
        return cells.reshape(-1, self.crop, self.crop, 3)


def default_tiles(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns values for `config.tiles` and `config.head`, by field, that fit the model's image and patch size.

    At 224 pixels with patches of 16: images of 256, a crop of 255, tiles of 64 (the release of arXiv 1603.09246) and a
    head of 1000 and 4096 (google/revisiting-self-supervised). Small images are enlarged, else tiles would have too few
    patches: at 32 pixels with patches of 4, images of 54, a crop of 48, tiles of 12 (a quarter of the cell is gap, as
    there) and a head of 128 and 512, which are this project's. Tiles follow from those of their fields that are given.
    """
    side, patch, given = config.model.image_size, config.model.patch_size, config.tiles
    small = side <= SMALL
    size = round(0.375 * side / patch) * patch if small else side * 64 // 224 // patch * patch
    size = given.size or max(patch, size)
    crop = given.crop or (3 * math.ceil(size * 4 / 3) if small else 3 * (size * 85 // 64))
    return {
        "tiles.size": size,
        "tiles.crop": crop,
        "tiles.image_size": crop * 9 // 8 if small else crop + 1,
        **default_readout(config, "gap"),
        "head.hidden": 512 if small else 4096,
        "head.width": 128 if small else 1000,
    }


def check_tiles(config: ml_collections.ConfigDict) -> None:
    """Checks the tiles of a config in which model sizes are known.

    Raises:
      ValueError: tiles that cannot be cut or encoded; says which field to change, and to what.
    """
    tiles, model = config.tiles, config.model
    patch, grid = model.patch_size, model.image_size // model.patch_size
    if tiles.size < patch or tiles.size % patch:
        near = max(patch, tiles.size // patch * patch)
        raise ValueError(
            f"tiles.size {tiles.size} is not a multiple of model.patch_size {patch}, so a tile is not a grid of "
            f"patches; set tiles.size={near}"
        )
    if tiles.crop < 3 or tiles.crop % 3:
        raise ValueError(
            f"tiles.crop {tiles.crop} is not divisible into 3 x 3 cells; "
            f"set tiles.crop={max(3, tiles.crop // 3 * 3)}"
        )
    if tiles.crop > tiles.image_size:
        raise ValueError(
            f"tiles.crop {tiles.crop} is larger than the image, which is resized to tiles.image_size "
            f"{tiles.image_size}; set tiles.image_size to at least {tiles.crop}, or a smaller tiles.crop"
        )
    if tiles.size > tiles.crop // 3:
        raise ValueError(
            f"tiles.size {tiles.size} is larger than a cell, a third of tiles.crop {tiles.crop}; set tiles.crop to at "
            f"least {3 * tiles.size}, or about {3 * round(tiles.size * 4 / 3)} for tiles with gaps between them"
        )
    if tiles.size // patch > grid:
        raise ValueError(
            f"a tile of tiles.size {tiles.size} has {tiles.size // patch} x {tiles.size // patch} patches, and the "
            f"encoder's grid for model.image_size {model.image_size} only {grid} x {grid}; "
            f"set tiles.size to at most {grid * patch}"
        )


class Classifier(nn.Module):
    """Dense, BatchNorm, ReLU, dropout, dense: [..., F] to logits [..., classes], in float32.

    The head of jigsaw puzzles and context prediction in google/revisiting-self-supervised. The last layer starts near
    zero (standard deviation 0.01, as AlexNet's layers, Krizhevsky 2012), and so the loss near that of guessing.
    """

    hidden: int
    classes: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, rng: jax.Array) -> jax.Array:
        x = nn.Dense(self.hidden, use_bias=False, kernel_init=_XAVIER, name="hidden")(x)
        x = nn.relu(BatchNorm(name="norm")(x))
        x = nn.Dropout(self.dropout, deterministic=False)(x, rng=rng)
        small = nn.initializers.normal(0.01)
        return nn.Dense(self.classes, kernel_init=small, name="classes")(x)


def classification(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the mean cross-entropy of logits [..., C] with labels [...], and {"accuracy"}."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    right = logits.argmax(axis=-1) == labels
    return losses.mean(), {"accuracy": right.astype(jnp.float32).mean()}


def at_chance(loss: float, classes: int) -> bool:
    """Whether a cross-entropy is within 2 % of guessing's, log(classes), or above it."""
    return loss > 0.98 * math.log(classes)
