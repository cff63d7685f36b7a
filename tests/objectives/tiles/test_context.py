import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blockjax import config as config_lib
from blockjax.models.vit import ViT
from blockjax.objectives.tiles.context import ContextPrediction
from blockjax.objectives.tiles.cut import Tiles

TILES = Tiles(image_size=54, crop=48, size=12, gray=0.66, patch_size=4, grid=(8, 8))
CONTEXT = ContextPrediction(tiles=TILES, width=32, hidden=16)
PLAIN = dataclasses.replace(CONTEXT, dropout=0.0)
TARGETS = {"labels": np.tile(np.arange(8), (4, 1))}


def noise(count=4, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def head(seed=0):
    """Random parameters, and the same as NumPy arrays."""
    rng = np.random.default_rng(seed)
    p = {
        "readout": {"norm": {"scale": rng.normal(1, 0.3, 32), "bias": rng.normal(0, 0.3, 32)}},
        "classifier": {
            "hidden": {"kernel": rng.normal(size=(64, 16))},
            "norm": {"scale": rng.normal(1, 0.3, 16), "bias": rng.normal(0, 0.3, 16)},
            "classes": {"kernel": rng.normal(size=(16, 8)), "bias": rng.normal(size=8)},
        },
    }
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), p), p


def test_inputs_and_targets():
    inputs, targets = jax.jit(CONTEXT.prepare)(jax.random.key(0), {"image": noise()})
    assert inputs["patches"].shape == (4, 9, 9, 48)
    assert inputs["positions"].shape == (4, 9, 9)
    np.testing.assert_array_equal(targets["labels"], TARGETS["labels"])


@pytest.mark.parametrize("seed", range(3))
def test_loss_against_numpy(seed):
    """Pairs written out by their places on the 3 x 3 grid, row by row, the centre left out."""
    params, p = head(seed)
    rng = np.random.default_rng(seed)
    tokens = rng.normal(1.0, 2.0, (4, 9, 3, 32)).astype(np.float32)
    x = tokens.astype(np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * p["readout"]["norm"]["scale"] + p["readout"]["norm"]["bias"]
    grid = x[:, :, 1:].mean(axis=2).reshape(4, 3, 3, 32)
    places = [(row, column) for row in range(3) for column in range(3) if (row, column) != (1, 1)]
    pairs = [
        np.concatenate([image[row, column], image[1, 1]])
        for image in grid
        for row, column in places
    ]
    hidden = np.stack(pairs) @ p["classifier"]["hidden"]["kernel"]
    hidden = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
    norm, classes = p["classifier"]["norm"], p["classifier"]["classes"]
    hidden = np.maximum(hidden * norm["scale"] + norm["bias"], 0)
    logits = hidden @ classes["kernel"] + classes["bias"]
    labels = np.tile(np.arange(8), 4)
    expected = (np.log(np.exp(logits).sum(-1)) - logits[np.arange(32), labels]).mean()
    found, metrics = jax.jit(PLAIN.loss)(params, tokens, TARGETS, jax.random.key(0))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert metrics["accuracy"] == pytest.approx((logits.argmax(-1) == labels).mean())


def test_each_direction_has_its_label():
    """Features that name their place on the grid: a head that reads the neighbour's half makes no mistake."""
    tokens = np.zeros((4, 9, 2, 32), np.float32)
    tokens[:, np.arange(9), 1, np.arange(9)] = 1.0
    kernel = np.zeros((64, 16))
    kernel[[0, 1, 2, 3, 5, 6, 7, 8], np.arange(8)] = 1.0  # place on the grid -> direction
    params = {
        "readout": {"norm": {"scale": np.ones(32), "bias": np.zeros(32)}},
        "classifier": {
            "hidden": {"kernel": kernel},
            "norm": {"scale": np.ones(16), "bias": np.zeros(16)},
            "classes": {"kernel": 10 * np.eye(16, 8), "bias": np.zeros(8)},
        },
    }
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    loss, metrics = jax.jit(PLAIN.loss)(params, tokens, TARGETS, jax.random.key(0))
    assert loss < 1e-3 and metrics["accuracy"] == 1.0
    _, metrics = jax.jit(PLAIN.loss)(params, tokens[:, ::-1], TARGETS, jax.random.key(0))
    assert metrics["accuracy"] == 0.0


def test_the_loss_starts_at_that_of_guessing():
    params, _ = head()
    tokens = jax.random.normal(jax.random.key(0), (4, 9, 3, 32))
    loss = jax.jit(CONTEXT.loss)
    classes = jax.tree.map(jnp.zeros_like, params["classifier"]["classes"])
    silent = params | {"classifier": params["classifier"] | {"classes": classes}}
    found = float(loss(silent, tokens, TARGETS, jax.random.key(1))[0])
    assert found == pytest.approx(np.log(8), rel=1e-6)
    fresh = jax.jit(CONTEXT.init_head)(jax.random.key(1))
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)
    found = float(loss(fresh, tokens, TARGETS, jax.random.key(1))[0])
    assert found == pytest.approx(np.log(8), abs=0.1)
    other = float(loss(params, tokens, TARGETS, jax.random.key(1))[0])
    assert other != float(loss(params, tokens, TARGETS, jax.random.key(2))[0])  # dropout


def test_a_readout_that_widens():
    """Its own BatchNorm and width fit into the head."""
    wide = dataclasses.replace(CONTEXT, readout="cbe_gap", expansion=24, dtype=jnp.bfloat16)
    fresh = jax.eval_shape(wide.init_head, jax.random.key(0))
    assert fresh["classifier"]["hidden"]["kernel"].shape == (48, 16)
    tokens = jax.ShapeDtypeStruct((4, 9, 3, 32), jnp.bfloat16)
    found = jax.eval_shape(wide.loss, fresh, tokens, TARGETS, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves((fresh, found))} == {jnp.dtype("float32")}


def test_views_show_the_tiles():
    @jax.jit
    def both(rng, images):
        return CONTEXT.seen(rng, images)["tiles"], TILES.picture(rng, images)

    found, expected = both(jax.random.key(0), noise(2))
    assert found.shape == (2, 48, 48, 3) and found.min() >= 0 and found.max() <= 1
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_config_says_all():
    config = config_lib.default_config()
    config.model.width = 32
    for field, value in ContextPrediction.defaults(config).items():
        group, name = field.split(".")
        config[group][name] = value
    ContextPrediction.check(config)
    vit = ViT(image_size=32, patch_size=4, width=32, depth=1, heads=2, dtype=jnp.bfloat16)
    found = ContextPrediction.from_config(config, vit, 4)
    tiles = Tiles(54, 48, 12, 0.66, 4, (8, 8))
    assert found == ContextPrediction(
        tiles=tiles, width=32, hidden=512, readout="gap", expansion=128, dtype=jnp.bfloat16
    )
    hash(found)
    assert not ContextPrediction.means_over_images
    config.tiles.crop = 50
    with pytest.raises(ValueError, match=r"set tiles.crop=48"):
        ContextPrediction.check(config)


def test_symptoms():
    assert CONTEXT.symptoms({"loss": 1.0, "accuracy": 0.6}, 0.9) == []
    (sentence,) = CONTEXT.symptoms({"loss": 0.1, "accuracy": 0.95}, 0.1)
    assert "95%" in sentence and "4 pixels" in sentence
    guessing = {"loss": 2.08, "accuracy": 0.125}
    assert CONTEXT.symptoms(guessing, 0.4) == []  # a long plateau is known
    (sentence,) = CONTEXT.symptoms(guessing, 0.6)
    assert "8 directions" in sentence
