import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blockjax import config as config_lib
from blockjax.models.vit import ViT
from blockjax.objectives.tiles.cut import Tiles
from blockjax.objectives.tiles.jigsaw import Jigsaw
from blockjax.objectives.tiles.permutations import permutations

TILES = Tiles(image_size=54, crop=48, size=12, gray=0.66, patch_size=4, grid=(8, 8))
JIGSAW = Jigsaw(
    tiles=TILES,
    width=32,
    permutations=100,
    permutation_set="pgl",
    per_image=3,
    tile_width=5,
    hidden=16,
)
PLAIN = dataclasses.replace(JIGSAW, dropout=0.0)


def noise(count=4, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def head(seed=0, scale=1.0):
    """Random parameters, and the same as NumPy arrays."""
    rng = np.random.default_rng(seed)
    p = {
        "readout": {"norm": {"scale": rng.normal(1, 0.3, 32), "bias": rng.normal(0, 0.3, 32)}},
        "tile": {"kernel": rng.normal(size=(32, 5)), "bias": rng.normal(size=5)},
        "classifier": {
            "hidden": {"kernel": rng.normal(size=(45, 16))},
            "norm": {"scale": rng.normal(1, 0.3, 16), "bias": rng.normal(0, 0.3, 16)},
            "classes": {"kernel": scale * rng.normal(size=(16, 100)), "bias": np.zeros(100)},
        },
    }
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), p), p


def test_inputs_and_targets():
    prepare = jax.jit(JIGSAW.prepare)
    inputs, targets = prepare(jax.random.key(0), {"image": noise(64)})
    assert inputs["patches"].shape == (64, 9, 9, 48)
    assert inputs["positions"].shape == (64, 9, 9)
    labels = np.asarray(targets["labels"])
    assert labels.shape == (64, 3) and labels.min() >= 0 and labels.max() < 100
    # Drawn for each image and each time: 192 of 100 leave about 15 out.
    assert 75 < len(np.unique(labels)) <= 95
    _, other = prepare(jax.random.key(1), {"image": noise(64)})
    assert (labels == other["labels"]).mean() < 0.1


def test_tiles_reach_the_encoder_in_raster_order_whatever_the_labels():
    """Were pixels shuffled too, the order would be applied twice."""
    shades = np.arange(9, dtype=np.float32).reshape(3, 3).repeat(8, axis=0).repeat(8, axis=1)
    rows, columns = np.meshgrid(np.arange(24) % 8, np.arange(24) % 8, indexing="ij")
    # Cell k has an edge pattern of its own: stripes of direction k.
    angle = shades * np.pi / 9
    wave = np.sin(2.0 * (rows * np.cos(angle) + columns * np.sin(angle)))
    image = (127 + 100 * wave).astype(np.uint8)[..., None].repeat(3, axis=-1)[None]
    exact = dataclasses.replace(JIGSAW, tiles=Tiles(24, 24, 8, 0.0, 4, (6, 6)), permutations=72)
    inputs, _ = jax.jit(exact.prepare)(jax.random.key(0), {"image": image})
    tiles = np.asarray(inputs["patches"]).reshape(9, 2, 2, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5)
    for k, tile in enumerate(tiles.reshape(9, 8, 8, 3)):
        top, left = 8 * (k // 3), 8 * (k % 3)
        cell = image[0, top : top + 8, left : left + 8] / 255.0
        expected = (cell - cell.mean((0, 1))) / cell.std((0, 1))
        np.testing.assert_allclose(tile, expected, atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_loss_against_numpy(seed):
    params, p = head(seed)
    rng = np.random.default_rng(seed)
    tokens = rng.normal(1.0, 2.0, (4, 9, 3, 32)).astype(np.float32)
    labels = rng.integers(0, 100, (4, 3))
    x = tokens.astype(np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * p["readout"]["norm"]["scale"] + p["readout"]["norm"]["bias"]
    tiles = x[:, :, 1:].mean(axis=2) @ p["tile"]["kernel"] + p["tile"]["bias"]
    rows = []
    for i, r in np.ndindex(4, 3):
        order = permutations(100)[labels[i, r]]
        rows.append(np.concatenate([tiles[i, tile] for tile in order]))
    hidden = np.stack(rows) @ p["classifier"]["hidden"]["kernel"]
    hidden = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
    norm = p["classifier"]["norm"]
    hidden = np.maximum(hidden * norm["scale"] + norm["bias"], 0)
    logits = hidden @ p["classifier"]["classes"]["kernel"]
    right = logits[np.arange(12), labels.reshape(-1)]
    expected = (np.log(np.exp(logits).sum(-1)) - right).mean()
    found, metrics = jax.jit(PLAIN.loss)(params, tokens, {"labels": labels}, jax.random.key(0))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    accuracy = (logits.argmax(-1) == labels.reshape(-1)).mean()
    assert metrics["accuracy"] == pytest.approx(accuracy)


def test_the_order_of_features_goes_with_its_label():
    """A head that sees which tile lies in each place, and knows the table, makes no mistake; all others must.

    Tile k's feature is one-hot(k); the last layers score each permutation by the number of places where it agrees.
    """
    count = 72
    ideal = dataclasses.replace(
        PLAIN, permutations=count, per_image=count, tile_width=9, hidden=81, width=32
    )
    table = permutations(count)
    tokens = np.zeros((2, 9, 2, 32), np.float32)
    tokens[:, np.arange(9), 1, np.arange(9)] = 1.0
    scores = np.zeros((9, 9, count), np.float32)  # [place, tile, class]
    for label, order in enumerate(table):
        scores[np.arange(9), order, label] = 1.0
    params = {
        "readout": {"norm": {"scale": np.ones(32), "bias": np.zeros(32)}},
        "tile": {"kernel": np.eye(32, 9), "bias": np.zeros(9)},
        "classifier": {
            "hidden": {"kernel": np.eye(81)},
            "norm": {"scale": np.ones(81), "bias": np.zeros(81)},
            "classes": {"kernel": 10 * scores.reshape(81, count), "bias": np.zeros(count)},
        },
    }
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    labels = np.tile(np.arange(count), (2, 1))
    loss = jax.jit(ideal.loss)
    found, metrics = loss(params, tokens, {"labels": labels}, jax.random.key(0))
    assert found < 1e-3 and metrics["accuracy"] == 1.0
    # The inverse permutation restores the order of the tiles.
    for order in table:
        shuffled = tokens[0, order]
        np.testing.assert_array_equal(shuffled[np.argsort(order)], tokens[0])
    # Tiles that come in another order than the true one fool it.
    _, metrics = loss(params, tokens[:, table[5]], {"labels": labels}, jax.random.key(0))
    assert metrics["accuracy"] < 0.2


def test_the_loss_starts_at_that_of_guessing():
    params, _ = head()
    tokens = jax.random.normal(jax.random.key(0), (4, 9, 3, 32))
    targets = {"labels": jnp.arange(12).reshape(4, 3)}
    loss = jax.jit(JIGSAW.loss)
    classes = jax.tree.map(jnp.zeros_like, params["classifier"]["classes"])
    silent = params | {"classifier": params["classifier"] | {"classes": classes}}
    found = float(loss(silent, tokens, targets, jax.random.key(1))[0])
    assert found == pytest.approx(np.log(100), rel=1e-6)
    fresh = jax.jit(JIGSAW.init_head)(jax.random.key(1))
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)
    found = float(loss(fresh, tokens, targets, jax.random.key(1))[0])
    assert found == pytest.approx(np.log(100), abs=0.1)


def test_dropout_follows_the_key():
    params, _ = head()
    tokens = jax.random.normal(jax.random.key(0), (4, 9, 3, 32))
    targets = {"labels": jnp.arange(12).reshape(4, 3)}
    loss = jax.jit(JIGSAW.loss)
    values = [float(loss(params, tokens, targets, jax.random.key(k))[0]) for k in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


def test_features_of_one_tile_reach_the_loss_and_no_other_tile():
    """Every tile counts, and the CLS token does not under the plain readout."""
    params, _ = head()
    tokens = jax.random.normal(jax.random.key(0), (4, 9, 3, 32))
    targets = {"labels": jnp.arange(12).reshape(4, 3)}
    gradient = jax.jit(jax.grad(lambda tokens: PLAIN.loss(params, tokens, targets, None)[0]))
    size = np.abs(np.asarray(gradient(tokens))).max(axis=(0, 3))
    assert np.all(size[:, 0] == 0) and np.all(size[:, 1:] > 0)


def test_views_show_the_first_order_of_the_step():
    images, rng = noise(2), jax.random.key(3)

    @jax.jit
    def both(rng, images):
        return JIGSAW.prepare(rng, {"image": images})[1], JIGSAW.seen(rng, images)

    targets, found = both(rng, images)
    tiles, shuffled = np.asarray(found["tiles"]), np.asarray(found["shuffled"])
    assert tiles.shape == shuffled.shape == (2, 48, 48, 3)
    for i, place in np.ndindex(2, 9):
        tile = permutations(100)[int(targets["labels"][i, 0]), place]

        def cell(picture, k, i=i):
            top, left = 16 * (k // 3), 16 * (k % 3)
            return picture[i, top : top + 16, left : left + 16]

        np.testing.assert_array_equal(cell(shuffled, place), cell(tiles, tile))


def resolved(**tiles):
    config = config_lib.default_config()
    config.model.width = 32
    for field, value in Jigsaw.defaults(config).items():
        group, name = field.split(".")
        config[group][name] = value
    config.tiles.update(tiles)
    return config


def test_the_config_says_all():
    config = resolved(permutations=500)
    Jigsaw.check(config)
    vit = ViT(image_size=32, patch_size=4, width=32, depth=1, heads=2, dtype=jnp.bfloat16)
    found = Jigsaw.from_config(config, vit, 4)
    tiles = Tiles(54, 48, 12, 0.66, 4, (8, 8))
    assert found == Jigsaw(
        tiles=tiles,
        width=32,
        permutations=500,
        permutation_set="pgl",
        per_image=8,
        tile_width=128,
        hidden=512,
        readout="gap",
        expansion=128,
        dtype=jnp.bfloat16,
    )
    hash(found)
    assert not Jigsaw.means_over_images


@pytest.mark.parametrize(
    ("tiles", "message"),
    [
        ({"permutations": 1}, r"tiles.permutations 1 leaves nothing .* at least 2"),
        ({"permutations": 2000}, r"tiles.permutations.* 1512, or 'greedy_mean' for 2000"),
        ({"permutation_set": "best"}, r"tiles.permutation_set.* 'best' is unknown"),
        ({"size": 10}, r"tiles.size 10 is not a multiple"),
    ],
)
def test_settings_that_cannot_work(tiles, message):
    with pytest.raises(ValueError, match=message):
        Jigsaw.check(resolved(**tiles))


def test_symptoms():
    assert JIGSAW.symptoms({"loss": 2.0, "accuracy": 0.5}, 0.9) == []
    (sentence,) = JIGSAW.symptoms({"loss": 0.1, "accuracy": 0.99}, 0.1)
    assert "99%" in sentence and "4 pixels" in sentence
    guessing = {"loss": 4.6, "accuracy": 0.01}
    assert JIGSAW.symptoms(guessing, 0.4) == []  # normal early on
    (sentence,) = JIGSAW.symptoms(guessing, 0.6)
    assert "100 permutations" in sentence
