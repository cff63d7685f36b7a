import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from blockjax import config as config_lib
from blockjax.models.vit import ViT
from blockjax.objectives.tiles.cut import (
    Classifier,
    Tiles,
    check_tiles,
    classification,
    cut_tiles,
    default_tiles,
    draw_windows,
    tile_inputs,
)

VIT = ViT(image_size=32, patch_size=4, width=32, depth=1, heads=2)


@functools.cache
def cutter(image_size=54, crop=48, size=12, gray=0.0):
    return jax.jit(lambda rng, images: cut_tiles(rng, images, image_size, crop, size, gray))


def noise(count=4, side=32, seed=0):
    shape = (count, side, side, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def config(**tiles):
    """A default config with tiles for 32 pixels and patches of 4."""
    found = config_lib.default_config()
    found.model.width = 32
    sizes = {"image_size": 54, "crop": 48, "size": 12}
    found.tiles.update(sizes | tiles)
    return found


def standardised(tiles):
    tiles = tiles - tiles.mean(axis=(-3, -2), keepdims=True)
    return tiles / tiles.std(axis=(-3, -2), keepdims=True)


def test_a_tile_is_cut_from_the_resized_image():
    """Against SciPy's linear interpolation of the original at the centres of the resized image's pixels."""
    images, rng = noise(), jax.random.key(3)
    found = np.asarray(cutter()(rng, images))
    assert found.shape == (4, 9, 12, 12, 3) and found.dtype == np.float32
    corners = np.asarray(draw_windows(jax.random.split(rng)[0], 4, 32, 54, 48, 12), np.float64)
    steps = (np.arange(12) + 0.5) * 32 / 54 - 0.5
    for i, tile in np.ndindex(4, 9):
        top, left = corners[tile, i]
        grid = np.meshgrid(top + steps, left + steps, indexing="ij")
        expected = np.stack(
            [
                ndimage.map_coordinates(images[i, ..., c] / 255.0, grid, order=1, mode="nearest")
                for c in range(3)
            ],
            axis=-1,
        )
        np.testing.assert_allclose(found[i, tile], standardised(expected), atol=2e-4)


def test_tiles_move_in_their_cells_by_themselves():
    """Offsets reach both ends of the gap, differ from tile to tile, and the crop moves all tiles of an image."""
    corners = np.asarray(draw_windows(jax.random.key(0), 2000, 32, 32, 24, 6))  # 1:1, gap of 2
    place = np.stack(np.divmod(np.arange(9), 3), axis=1)[:, None] * 8
    moved = corners - place
    assert moved.min() >= 0 and moved.max() <= 8 + 2
    assert moved.min() < 0.3 and moved.max() > 8 + 2 - 0.3
    offset = moved - moved.mean(axis=0)
    assert 0.9 < offset.std() / np.sqrt(4 / 12 * 8 / 9) < 1.1  # uniform on [0, 2], nine of them
    correlation = np.corrcoef(offset.reshape(9, -1))
    # Nine numbers minus their mean have a correlation of -1/8, in whatever pair.
    np.testing.assert_allclose(correlation[~np.eye(9, dtype=bool)], -1 / 8, atol=0.08)
    crops = moved.mean(axis=0)
    assert crops.std() == pytest.approx(np.sqrt(64 / 12 + 4 / 12 / 9), rel=0.1)


def test_the_place_of_a_tile_does_not_show_in_its_interpolation():
    """With corners at whole pixels of the resized image, each cell has its own places between the original's pixels."""
    corners = np.asarray(draw_windows(jax.random.key(0), 20_000, 32, 54, 48, 12))
    for tile in range(9):
        fraction = np.histogram(corners[tile, :, 0] % 1.0, bins=54, range=(0, 1))[0]
        # 370 in each bin. With whole pixels of 27 possible fractions 11 occur, others in each row.
        assert fraction.min() > 250 and fraction.max() < 490


def test_tiles_are_independent_of_each_other():
    """What changes inside of one cell changes that cell's tile, and nothing else, up to the encoder's features."""
    images, rng = noise(2), jax.random.key(1)
    corners = np.asarray(draw_windows(jax.random.split(rng)[0], 2, 32, 32, 24, 4))

    @jax.jit
    def features(images):
        params = VIT.init_stem(jax.random.key(0)), VIT.init_block(jax.random.key(1), 0, 1)
        tiles = cut_tiles(rng, images, 32, 24, 4, 0.0)  # cells of 8, of which a tile is 4
        tokens = VIT.stem(params[0], tile_inputs(jax.random.key(2), tiles, 4, VIT.grid))
        return VIT.layers(params[1], tokens)

    before = np.asarray(features(images))
    assert before.shape == (2, 9, 2, 32)
    for tile in (0, 4, 5):
        top, left = np.round(corners[tile, 0]).astype(int)
        changed = images.copy()
        changed[0, top + 1 : top + 3, left + 1 : left + 3] ^= 255
        moved = np.abs(np.asarray(features(changed)) - before).max(axis=(2, 3)) > 0
        np.testing.assert_array_equal(np.argwhere(moved), [[0, tile]])


def test_positions_do_not_tell_where_a_tile_was_cut():
    tiles = cutter()(jax.random.key(0), noise())
    seen = set()
    inputs = jax.jit(lambda rng, tiles: tile_inputs(rng, tiles, 4, (8, 8)))
    for k in range(60):
        found = inputs(jax.random.key(k), tiles)
        positions = np.asarray(found["positions"])
        assert positions.shape == (4, 9, 9) and positions.dtype == np.int32
        assert np.all(positions == positions[0, 0])  # of all tiles of all images
        row, column = np.divmod(positions[0, 0], 8)
        np.testing.assert_array_equal(row - row[0], [0, 0, 0, 1, 1, 1, 2, 2, 2])
        np.testing.assert_array_equal(column - column[0], [0, 1, 2] * 3)
        seen.update(positions[0, 0].tolist())
    assert seen == set(range(64))  # whole images are no strangers
    # Nor do they depend on the pixels.
    other = inputs(jax.random.key(59), cutter()(jax.random.key(9), noise(seed=1)))
    np.testing.assert_array_equal(other["positions"], positions)


def test_patches_are_those_of_the_tile():
    tiles = cutter()(jax.random.key(0), noise())
    patches = np.asarray(tile_inputs(jax.random.key(1), tiles, 4, (8, 8))["patches"])
    assert patches.shape == (4, 9, 9, 48)
    np.testing.assert_array_equal(
        patches[2, 7, 5].reshape(4, 4, 3), np.asarray(tiles)[2, 7, 4:8, 8:12]
    )


def test_a_tile_as_large_as_the_grid_has_one_window():
    tiles = jnp.zeros((1, 9, 32, 32, 3))
    positions = tile_inputs(jax.random.key(1), tiles, 4, (8, 8))["positions"]
    np.testing.assert_array_equal(positions[0, 8], np.arange(64))


def test_each_channel_of_each_tile_is_standardised():
    images = noise()
    images[0, ..., 1] = images[0, ..., 1] // 8 + 200  # another brightness and contrast
    tiles = np.asarray(cutter()(jax.random.key(0), images), np.float64)
    np.testing.assert_allclose(tiles.mean(axis=(2, 3)), 0.0, atol=1e-5)
    np.testing.assert_allclose(tiles.std(axis=(2, 3)), 1.0, atol=1e-4)


def test_a_constant_tile_is_zero():
    """Divided by its own spread, rounding would become a picture, or nothing over nothing NaN."""
    images = np.full((2, 32, 32, 3), 173, np.uint8)
    images[1] = 0
    tiles = np.asarray(cutter()(jax.random.key(0), images))
    np.testing.assert_allclose(tiles, 0.0, atol=1e-3)
    # And no floor is felt where one pixel differs by one step.
    images[0, ::4, ::4] += 1
    tiles = np.asarray(cutter(32, 24, 8)(jax.random.key(0), images))
    np.testing.assert_allclose(tiles[0].std(axis=(1, 2)), 1.0, atol=0.5)


def test_a_share_of_the_images_is_gray():
    images = noise(400)
    images[..., 2] //= 2
    tiles = np.asarray(cutter(gray=0.66)(jax.random.key(0), images))
    spread = np.abs(tiles - tiles[..., :1]).max(axis=(2, 3, 4)) < 1e-6  # [B, 9]
    assert np.all(spread == spread[:, :1])  # all tiles of an image, or none
    assert 0.58 < spread[:, 0].mean() < 0.74  # standard deviation 0.024
    colours = np.asarray(cutter(gray=0.0)(jax.random.key(0), images))
    np.testing.assert_array_equal(tiles[~spread[:, 0]], colours[~spread[:, 0]])
    # Grey is luma, of the pixels before they are standardised.
    luma = images.astype(np.float64) @ [0.2989, 0.587, 0.114]
    luma = np.repeat(luma[..., None], 3, axis=-1).round().astype(np.uint8)
    expected = np.asarray(cutter()(jax.random.key(0), luma))
    np.testing.assert_allclose(tiles[spread[:, 0]], expected[spread[:, 0]], atol=0.03)


def test_same_key_same_tiles():
    images = noise()
    first, again, other = (cutter()(jax.random.key(k), images) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.any(np.all(first == other, axis=(2, 3, 4)))


def test_the_picture_shows_the_tiles_of_the_step():
    tiles = Tiles(32, 24, 4, 0.0, 4, (8, 8))  # gap of 4: 2 pixels of grey on each side of a tile
    images, rng = noise(2), jax.random.key(5)
    patches = np.asarray(tiles.inputs(rng, images)["patches"]).reshape(2, 9, 4, 4, 3)
    order = np.array([[8, 7, 6, 5, 4, 3, 2, 1, 0], [1, 2, 3, 4, 5, 6, 7, 8, 0]])
    seen = patches * np.array([0.229, 0.224, 0.225]) + np.array([0.485, 0.456, 0.406])
    seen = np.clip(seen, 0, 1)
    for shuffle in (None, order):
        picture = np.asarray(tiles.picture(rng, images, shuffle))
        assert picture.shape == (2, 24, 24, 3)
        for i, cell in np.ndindex(2, 9):
            top, left = 8 * (cell // 3), 8 * (cell % 3)
            shown = picture[i, top : top + 8, left : left + 8]
            tile = cell if shuffle is None else order[i, cell]
            np.testing.assert_allclose(shown[2:6, 2:6], seen[i, tile], atol=1e-5)
            assert np.all(shown[:2] == 0.5) and np.all(shown[:, 6:] == 0.5)


@pytest.mark.parametrize(
    ("tiles", "message"),
    [
        ({"size": 10}, r"tiles.size 10 is not a multiple of model.patch_size 4.*set tiles.size=8"),
        ({"size": 2}, r"tiles.size 2 is not a multiple.*set tiles.size=4"),
        ({"crop": 47}, r"tiles.crop 47 is not divisible into 3 x 3 cells; set tiles.crop=45"),
        ({"crop": 57}, r"tiles.crop 57 is larger .* tiles.image_size 54; .* at least 57"),
        ({"size": 20}, r"tiles.size 20 is larger than a cell, a third of tiles.crop 48; .* 60"),
        (
            {"size": 36, "crop": 120, "image_size": 120},
            r"tiles.size 36 has 9 x 9 patches.* model.image_size 32 only 8 x 8; .* at most 32",
        ),
    ],
)
def test_tiles_that_cannot_be_cut_say_what_can(tiles, message):
    check_tiles(config())
    with pytest.raises(ValueError, match=message):
        check_tiles(config(**tiles))


@pytest.mark.parametrize(
    ("side", "patch"),
    [
        *[(28, 7), (28, 4), (32, 4), (32, 8), (32, 16), (64, 8), (96, 8), (128, 16), (224, 14)],
        *[(224, 16), (224, 32), (256, 16), (384, 16)],
    ],
)
def test_defaults_can_be_cut(side, patch):
    found = config_lib.default_config()
    found.model.image_size, found.model.patch_size, found.model.width = side, patch, 32
    for field, value in default_tiles(found).items():
        group, name = field.split(".")
        found[group][name] = value
    check_tiles(found)
    tiles = found.tiles
    assert tiles.crop // 3 > tiles.size  # a gap
    assert tiles.size / side <= 0.5
    if (side, patch) == (32, 4):
        assert (tiles.image_size, tiles.crop, tiles.size) == (54, 48, 12)
    if (side, patch) == (224, 16):
        assert (tiles.image_size, tiles.crop, tiles.size) == (256, 255, 64)


def test_defaults_follow_what_is_given():
    found = config_lib.default_config()
    found.model.width = 32
    found.tiles.size = 16
    defaults = default_tiles(found)
    assert (defaults["tiles.crop"], defaults["tiles.image_size"]) == (66, 74)


def test_the_classifier_against_numpy():
    model = Classifier(hidden=7, classes=5, dropout=0.0)
    rng = np.random.default_rng(0)
    x = rng.normal(1.0, 2.0, (6, 4, 3))
    params = model.init(jax.random.key(0), jnp.asarray(x, jnp.float32), jax.random.key(1))["params"]
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params
    )
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    hidden = x @ p["hidden"]["kernel"]
    flat = hidden.reshape(-1, 7)
    hidden = (hidden - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    hidden = np.maximum(hidden * p["norm"]["scale"] + p["norm"]["bias"], 0)
    expected = hidden @ p["classes"]["kernel"] + p["classes"]["bias"]
    found = model.apply({"params": params}, jnp.asarray(x, jnp.float32), jax.random.key(1))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_dropout_drops_half_of_the_hidden_units():
    model = Classifier(hidden=512, classes=1, dropout=0.5)
    x = jax.random.normal(jax.random.key(0), (64, 8))
    params = {
        "hidden": {"kernel": jnp.ones((8, 512))},
        "norm": {"scale": jnp.zeros(512), "bias": jnp.ones(512)},  # all hidden units are 1
        "classes": {"kernel": jnp.ones((512, 1)), "bias": jnp.zeros(1)},
    }
    apply = jax.jit(lambda rng: model.apply({"params": params}, x, rng))
    found = np.asarray(apply(jax.random.key(2)))
    # Each kept unit counts twice: 512 expected, standard deviation 2 · sqrt(512 / 4) = 22.6.
    assert found.mean() == pytest.approx(512, abs=12) and 16 < found.std() < 30
    assert not np.allclose(found, apply(jax.random.key(3)))


def test_cross_entropy_and_accuracy_against_numpy():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (6, 4, 5)).astype(np.float32)
    labels = rng.integers(0, 5, (6, 4))
    loss, metrics = classification(jnp.asarray(logits), jnp.asarray(labels))
    exact = logits.astype(np.float64)
    right = np.take_along_axis(exact, labels[..., None], axis=-1)[..., 0]
    expected = (np.log(np.exp(exact).sum(-1)) - right).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], (exact.argmax(-1) == labels).mean(), rtol=1e-6)
