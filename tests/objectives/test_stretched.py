"""Views and tiles of large images: cut from all of an image, in its own proportions."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

from blockjax import config as config_lib
from blockjax.data.sources import open_source
from blockjax.learner.build import make_learner
from blockjax.models.patches import unstandardize
from blockjax.objectives.tiles.cut import cut_tiles, draw_windows
from blockjax.objectives.two_view.augment import View, augment, two_views
from blockjax.sharding.mesh import batch_sharding, make_mesh
from blockjax.training.data import host_batches
from tests.tiny import tiny_config

# The sides of a usual photo and of a usual view, halved: 500 x 375 and 224.
WIDTH, HEIGHT, SIZE = 250, 188, 112


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Sixteen pictures that say where a pixel was: red by its column, green by its row."""
    folder = tmp_path_factory.mktemp("photos")
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    picture = np.stack([x + 2, y + 30, 0 * x], axis=-1).astype(np.uint8)
    for part in ("train", "test"):
        (folder / part).mkdir()
        for i in range(16):
            Image.fromarray(picture).save(folder / part / f"{i}.png")
    return folder


def config_of(folder, **overrides):
    fields = {
        "batch_size": 16,
        "model.image_size": SIZE,
        "model.patch_size": 16,
        "model.depth": 1,
        "blocks": 1,
        "probe.pool": 1,
        "mask.ratio": None,
        "data.source": f"folder:{folder}",
        "data.flip": False,
        "data.crop_scale": (1.0, 1.0),
    }
    config = tiny_config(**{**fields, **overrides})
    config = config_lib.resolve(config, devices=1, platform="cpu")
    config_lib.fill_lengths(config, 20)
    return config


def prepared(config, keys):
    """Encoder inputs of a batch of the run, with each of so many keys."""
    learner = make_learner(config, 20)
    source = open_source(config.data.source, "train")
    with contextlib.closing(host_batches(config, source)) as batches:
        batch = learner.batch.chosen(next(batches))
    assert {name: array.shape for name, array in learner.batch.abstract(16).items()} == {
        name: array.shape for name, array in batch.items()
    }
    prepare = jax.jit(lambda rng: learner.objective.prepare(rng, batch)[0]["patches"])
    return np.stack([prepare(jax.random.key(k)) for k in range(keys)])


@pytest.fixture(scope="module")
def windows(photos):
    """Lefts, tops, widths and heights of 512 views, in pixels of the photo, read off their colours."""
    config = config_of(photos, objective="simclr", **{"views.recipe": "cifar-mim"})
    patches = prepared(config, 16)
    side, patch = SIZE // 16, 16
    views = np.asarray(unstandardize(patches)).reshape(-1, side, side, patch, patch, 3)
    views = 255 * views.swapaxes(2, 3).reshape(-1, SIZE, SIZE, 3)
    # Away from the borders, at which a ramp does not go on.
    a, b = SIZE // 8, SIZE - SIZE // 8
    slope_x = (views[:, a:b, b, 0] - views[:, a:b, a, 0]).mean(axis=1) / (b - a)
    slope_y = (views[:, b, a:b, 1] - views[:, a, a:b, 1]).mean(axis=1) / (b - a)
    centre = views[:, a : b + 1, a : b + 1].mean(axis=(1, 2)) - np.array([1.5, 29.5, 0])
    width, height = np.abs(slope_x) * SIZE, slope_y * SIZE
    return centre[:, 0] - width / 2, centre[:, 1] - height / 2, width, height


def test_every_column_of_a_photo_is_seen(windows):
    left, top, width, height = windows
    assert left.min() < 3 and (left + width).max() > WIDTH - 3
    assert top.min() < 3 and (top + height).max() > HEIGHT - 3
    assert left.min() > -2 and (left + width).max() < WIDTH + 2


def test_as_many_views_are_enlarged_as_with_published_crops(windows):
    """Of 8 to 100 % of the area, at ratios of 3/4 to 4/3, drawn again until they fit: 27 %, by up to 1.8."""
    rng = np.random.default_rng(0)
    area = rng.uniform(0.08, 1, 100_000) * WIDTH * HEIGHT
    ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), 100_000))
    fits = (np.sqrt(area * ratio) <= WIDTH) & (np.sqrt(area / ratio) <= HEIGHT)
    published = SIZE / np.sqrt(area[fits])
    enlarged = SIZE / np.sqrt(windows[2] * windows[3])
    expected = np.mean(published > 1)
    assert 0.26 < expected < 0.29
    assert abs(np.mean(enlarged > 1) - expected) < 0.06  # standard deviation 0.02
    assert enlarged.max() < 1.9


def test_views_have_the_ratios_of_the_photo_as_it_was(windows):
    ratio = windows[2] / windows[3]
    assert 0.73 < ratio.min() < 0.8 and 1.28 < ratio.max() < 1.36
    assert abs(np.log(ratio).mean()) < 0.04  # stretched, they would be wide or tall by 1.33


def disc(width, height, size):
    """A picture of a white disc of radius height / 5 in its middle, stretched to a square."""
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.hypot(x - width / 2, y - height / 2) < height / 5
    picture = Image.fromarray((255 * inside).astype(np.uint8)).convert("RGB")
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))


@pytest.mark.parametrize(("width", "height"), [(400, 300), (225, 300)])
def test_a_circle_stays_round(width, height):
    stretched = np.stack([disc(width, height, 96)] * 16)
    aspect = jnp.full(16, width / height)
    view = View(scale=(0.7, 0.7), ratio=(1.0, 1.0), flip=0.0)
    views = np.asarray(augment(jax.random.key(0), stretched, view, 72, aspect))[..., 0] > 0.5
    across, down = views.any(axis=1).sum(axis=1), views.any(axis=2).sum(axis=1)
    assert across.min() > 20
    assert np.abs(across - down).max() <= 2


@pytest.mark.parametrize(("width", "height"), [(400, 300), (225, 300)])
def test_tiles_are_those_of_the_photo_with_a_resized_shorter_side(width, height):
    """Against Pillow, on the photo as it was; and the crop reaches all four of its borders."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    photo = coarse.resize((width, height), Image.Resampling.BICUBIC)
    stored = photo.resize((192, 192), Image.Resampling.BILINEAR)
    stretched, aspect = np.stack([np.asarray(stored)] * 64), jnp.full(64, width / height)
    how, key = (108, 102, 24), jax.random.key(1)
    tiles = np.asarray(cut_tiles(key, stretched, *how, 0.0, aspect))
    corners = draw_windows(jax.random.split(key)[0], 64, 192, *how, aspect)
    corners = np.asarray(corners) * np.array([height, width]) / 192
    side = 24 * min(width, height) / 108
    for tile, i in np.ndindex(9, 4):
        top, left = corners[tile, i]
        box = (left, top, min(left + side, width), min(top + side, height))
        expected = np.asarray(photo.resize((24, 24), Image.Resampling.BILINEAR, box=box))
        for channel in range(3):
            both = tiles[i, tile, ..., channel], expected[..., channel]
            assert np.corrcoef(*(part.ravel() for part in both))[0, 1] > 0.99
    ends = corners[
        [0, 8]
    ]  # of the first and the last cell; a gap of 10 of 108, and 6 beside the crop
    assert ends.min() > -1e-3
    for axis, extent in enumerate((height, width)):
        assert ends[0, :, axis].min() < 0.12 * extent
        assert ends[1, :, axis].max() + side > 0.88 * extent


def test_devices_cut_views_of_their_own_images():
    """However few each has: parts of the batch of which it has none would have to be moved."""
    mesh = make_mesh((4, 2, 1))

    def views(rng, images, aspect_B):
        return two_views(rng, images, "cifar-mim", 72, aspect_B)

    whole, split = NamedSharding(mesh, PartitionSpec()), batch_sharding(mesh)
    images, aspect = jax.ShapeDtypeStruct((16, 144, 144, 3), jnp.uint8), jnp.ones(16)
    with jax.set_mesh(mesh):
        compiled = jax.jit(views, in_shardings=(whole, split, split), out_shardings=split)
        text = compiled.lower(jax.random.key(0), images, aspect).compile().as_text()
    moved = re.findall(r"= (\S+) (?:all-gather|all-reduce|all-to-all|collective-permute)\(", text)
    assert not [shape for shape in moved if "144" in shape or "72" in shape]


@pytest.mark.parametrize("objective", ["jigsaw", "context"])
def test_tasks_of_tiles_know_the_aspect(photos, objective):
    objective = make_learner(config_of(photos, objective=objective), 20).objective
    noise = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)

    @jax.jit
    def patches(aspect_B):
        batch = {"image": noise, "aspect": aspect_B}
        return objective.prepare(jax.random.key(0), batch)[0]["patches"]

    square, wide = (np.asarray(patches(jnp.array([aspect, 1.0]))) for aspect in (1.0, 1.5))
    assert np.abs(square[0] - wide[0]).mean() > 0.1
    np.testing.assert_array_equal(square[1], wide[1])


@pytest.mark.parametrize("objective", ["simclr", "jigsaw"])
def test_small_images_come_as_the_encoder_takes_them(photos, objective):
    config = config_of(photos, objective=objective, **{"model.image_size": 64})
    spec = make_learner(config, 20).batch
    assert {name: array.shape for name, array in spec.abstract(16).items()} == {
        "image": (16, 64, 64, 3)
    }
    with contextlib.closing(host_batches(config, open_source(config.data.source, "train"))) as made:
        assert next(made).keys() == {"image"}
