import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blockjax import config as config_lib
from blockjax.models.patches import unpatchify, unstandardize
from blockjax.models.vit import ViT
from blockjax.objectives.rotation import Rotation, rotations

ROTATION = Rotation(patch_size=4, width=32)


def noise(count=3, side=16, seed=0):
    shape = (count, side, side, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def head(seed=0, scale=1.0):
    """Random parameters of the plain head, and the same as NumPy arrays."""
    rng = np.random.default_rng(seed)
    norm = {"scale": rng.normal(1.0, 0.3, 32), "bias": rng.normal(0.0, 0.3, 32)}
    classes = {"kernel": scale * rng.normal(size=(32, 4)), "bias": scale * rng.normal(size=4)}
    p = {"readout": {"norm": norm}, "classes": classes}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), p), p


def test_the_pixels_of_each_rotation():
    """Pixel by pixel: the upper left corner of an image that was turned to the left is its upper right one."""
    images = noise()
    found = np.asarray(rotations(images))
    assert found.shape == (3, 4, 16, 16, 3) and found.dtype == np.uint8
    last = 15
    for y, x in ((0, 0), (3, 11), (15, 2)):
        np.testing.assert_array_equal(found[:, 0, y, x], images[:, y, x])
        np.testing.assert_array_equal(found[:, 1, y, x], images[:, x, last - y])
        np.testing.assert_array_equal(found[:, 2, y, x], images[:, last - y, last - x])
        np.testing.assert_array_equal(found[:, 3, y, x], images[:, last - x, y])
    # A quarter more is the next one, and after four it is the image again.
    again = np.asarray(rotations(found[:, 1]))
    np.testing.assert_array_equal(again, found[:, [1, 2, 3, 0]])


def test_labels_count_quarter_turns():
    """Against np.rot90, from the patches back to the image."""
    images = noise()
    inputs, targets = jax.jit(ROTATION.prepare)(jax.random.key(0), {"image": images})
    assert inputs["patches"].shape == (3, 4, 16, 48) and inputs["patches"].dtype == jnp.float32
    np.testing.assert_array_equal(inputs["positions"], np.tile(np.arange(16), (3, 4, 1)))
    np.testing.assert_array_equal(targets["labels"], np.tile(np.arange(4), (3, 1)))
    flat = np.asarray(inputs["patches"]).reshape(12, 16, 48)
    pixels = np.asarray(unpatchify(np.asarray(unstandardize(flat)), 4, (4, 4)))
    pixels = pixels.reshape(3, 4, 16, 16, 3)
    for i, k in np.ndindex(3, 4):
        turned = np.rot90(images[i], int(targets["labels"][i, k]))
        np.testing.assert_allclose(pixels[i, k], turned / 255.0, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_loss_against_numpy(seed):
    params, p = head(seed)
    rng = np.random.default_rng(seed)
    tokens = rng.normal(1.0, 2.0, (3, 4, 9, 32)).astype(np.float32)
    labels = rng.integers(0, 4, (3, 4))
    x = tokens.astype(np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * p["readout"]["norm"]["scale"] + p["readout"]["norm"]["bias"]
    logits = x[:, :, 1:].mean(axis=2) @ p["classes"]["kernel"] + p["classes"]["bias"]
    right = np.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    expected = (np.log(np.exp(logits).sum(-1)) - right).mean()
    found, metrics = jax.jit(ROTATION.loss)(params, tokens, {"labels": labels}, None)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert metrics["accuracy"] == pytest.approx((logits.argmax(-1) == labels).mean())


def test_the_loss_starts_at_that_of_guessing():
    params, _ = head()
    tokens = jax.random.normal(jax.random.key(0), (3, 4, 9, 32))
    targets = {"labels": jnp.tile(jnp.arange(4), (3, 1))}
    silent = params | {"classes": jax.tree.map(jnp.zeros_like, params["classes"])}
    loss = jax.jit(ROTATION.loss)
    assert float(loss(silent, tokens, targets, None)[0]) == np.float32(np.log(4))
    fresh = jax.jit(ROTATION.init_head)(jax.random.key(1))
    assert float(loss(fresh, tokens, targets, None)[0]) == pytest.approx(np.log(4), abs=0.05)


def test_half_precision_stays_out_of_the_loss():
    half = Rotation(patch_size=4, width=32, dtype=jnp.bfloat16)
    tokens = jnp.zeros((1, 4, 9, 32), jnp.bfloat16)
    fresh = jax.eval_shape(half.init_head, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
    labels = jnp.zeros((1, 4), jnp.int32)
    found = jax.eval_shape(half.loss, fresh, tokens, {"labels": labels}, None)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}


def test_a_block_learns_to_see_what_is_up():
    """Images that are bright above: from stem to loss, the gradient leads down to almost no error."""
    images = noise(8)
    images[:, :8] //= 4
    vit = ViT(image_size=16, patch_size=4, width=32, depth=1, heads=2)

    @jax.jit
    def train():
        rngs = jax.random.split(jax.random.key(0), 3)
        params = {
            "stem": vit.init_stem(rngs[0]),
            "layers": vit.init_block(rngs[1], 0, 1),
            "head": ROTATION.init_head(rngs[2]),
        }
        inputs, targets = ROTATION.prepare(rngs[0], {"image": images})

        def loss(params):
            tokens = vit.layers(params["layers"], vit.stem(params["stem"], inputs))
            return ROTATION.loss(params["head"], tokens, targets, rngs[0])

        def step(params, _):
            (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
            params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
            return params, (value, metrics["accuracy"])

        return jax.lax.scan(step, params, length=100)[1]

    losses, accuracies = train()
    assert losses[0] == pytest.approx(np.log(4), abs=0.05)
    assert losses[-1] < 0.5 and accuracies[-1] == 1.0


def test_views_are_the_rotations():
    images = noise()
    found = ROTATION.seen(jax.random.key(0), images)
    assert list(found) == ["rotated 0", "rotated 90", "rotated 180", "rotated 270"]
    expected = np.rot90(images, 3, axes=(1, 2)) / 255.0
    np.testing.assert_allclose(found["rotated 270"], expected, atol=1e-6)


def test_symptoms():
    healthy = {"loss": 0.9, "accuracy": 0.6}
    assert ROTATION.symptoms(healthy, 0.9) == []
    (sentence,) = ROTATION.symptoms({"loss": 0.1, "accuracy": 0.97}, 0.1)
    assert "97%" in sentence and "edges" in sentence
    guessing = {"loss": 1.387, "accuracy": 0.25}
    assert ROTATION.symptoms(guessing, 0.2) == []  # normal early on
    (sentence,) = ROTATION.symptoms(guessing, 0.6)
    assert "guessing" in sentence


def test_the_config_says_all():
    config = config_lib.default_config()
    config.model.width = 32
    vit = ViT(image_size=32, patch_size=4, width=32, depth=1, heads=2, dtype=jnp.bfloat16)
    for field, value in Rotation.defaults(config).items():
        config.head[field.removeprefix("head.")] = value
    Rotation.check(config)
    found = Rotation.from_config(config, vit, 4)
    assert found == Rotation(4, 32, "gap", 128, jnp.bfloat16)
    assert hash(found) == hash(Rotation.from_config(config, vit, 2))
    config.microbatches = 2
    Rotation.check(config)  # the plain loss is a mean over images
    config.head.readout = "cbe_gap"
    with pytest.raises(ValueError, match=r"microbatches=2.*cbe_gap.*set head.readout=gap"):
        Rotation.check(config)
