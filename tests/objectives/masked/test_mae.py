"""Masked autoencoding: what is seen, what is predicted, and the loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blockjax.kernels.masked_reconstruction import masked_reconstruction_loss
from blockjax.models.patches import patchify, standardize
from tests.tiny import images, tiny_learner


def test_the_encoder_sees_the_visible_patches_only():
    objective = tiny_learner().objective
    batch = images()
    inputs, targets = objective.prepare(jax.random.key(0), {"image": batch})
    assert inputs["patches"].shape == (8, 6, 192)
    patches = np.asarray(patchify(batch, 8))
    order = np.asarray(targets["positions"])
    for i in range(8):
        # What is decoded, 5 of 10 masked patches, and nothing else.
        np.testing.assert_array_equal(targets["patches"][i], patches[i][order[i, 6:11]])
        np.testing.assert_allclose(
            inputs["patches"][i], standardize(patches[i : i + 1])[0][order[i, :6]], atol=1e-5
        )
    np.testing.assert_array_equal(inputs["positions"], order[:, :6])


@pytest.mark.parametrize("normalize", [False, True])
def test_every_decoded_patch_counts(normalize):
    learner = tiny_learner(**{"loss.normalize_pixels": normalize, "decoder.fraction": 1.0})
    objective = learner.objective
    _, targets = objective.prepare(jax.random.key(0), {"image": images()})
    head = objective.init_head(jax.random.key(1))
    tokens = jax.random.normal(jax.random.key(2), (8, 7, 32))

    def loss(patches):
        return float(objective.loss(head, tokens, targets | {"patches": patches}, None)[0])

    patches = targets["patches"]
    assert patches.shape == (8, 10, 192)
    assert loss(patches.at[:, 0].set(7)) != loss(patches)
    assert loss(patches.at[:, 9].set(7)) != loss(patches)


@pytest.mark.parametrize(
    ("schedule", "visible", "stop"),
    [("constant", 6, 11), ("0.5,0.5,0.75,0.75", 8, 12), ("0.5,0.5,0.75,0.75", 4, 10)],
)
def test_the_fraction_decodes_the_first_masked_patches(schedule, visible, stop):
    """Under a schedule too, where the targets hold what any block decodes."""
    objective = tiny_learner(**{"decoder.fraction": 0.5, "mask.schedule": schedule}).objective
    batch = images()
    _, targets = objective.prepare(jax.random.key(0), {"image": batch})
    head = objective.init_head(jax.random.key(1))
    tokens = jax.random.normal(jax.random.key(2), (8, 1 + visible, 32))
    found = objective.loss(head, tokens, targets, None)[0]
    order = targets["positions"]
    patches = np.take_along_axis(patchify(batch, 8), np.asarray(order)[:, :, None], axis=1)
    expected = masked_reconstruction_loss(
        objective.decode(head, tokens, order[:, :visible], order[:, visible:stop]),
        standardize(patches)[:, visible:stop],
        normalize=True,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # However small the fraction, one patch is decoded.
    tiny = dataclasses.replace(objective, fraction=0.01)
    assert np.isfinite(tiny.loss(head, tokens, targets, None)[0])


@pytest.mark.slow
def test_blocks_decode_parts_of_their_own():
    """Each block's loss is that of a run in which all blocks decode as much; block 1 learns the same."""
    fields = {"model.depth": 3, "blocks": 3, "decoder.fraction": 1.0}
    mixed = tiny_learner(**fields, **{"decoder.block_fractions": "1,0.25,0.25"})
    state, batch = jax.jit(mixed.init)(jax.random.key(0)), {"image": images()}
    losses = {}
    for name, learner in (
        ("mixed", mixed),
        ("all", tiny_learner(**fields)),
        ("few", tiny_learner(**{**fields, "decoder.fraction": 0.25})),
    ):
        step = jax.jit(learner.train_step)
        losses[name] = np.asarray(step(state, batch, jax.random.key(1))[1]["loss"])
    np.testing.assert_allclose(losses["mixed"][0], losses["all"][0], rtol=1e-5)
    np.testing.assert_allclose(losses["mixed"][1:], losses["few"][1:], rtol=1e-5)
    assert np.abs(losses["all"][1:] - losses["few"][1:]).min() > 1e-3
    one = tiny_learner(strategy="end_to_end", **fields, **{"decoder.block_fractions": "1,1,0.25"})
    assert one.objective.fractions is None and one.objective.fraction == 1.0


def test_pixels_are_compared_in_the_inputs_scale():
    objective = tiny_learner(**{"loss.normalize_pixels": False}).objective
    _, targets = objective.prepare(jax.random.key(0), {"image": images()})
    silent = {
        "pixels": jax.tree.map(jnp.zeros_like, objective.init_head(jax.random.key(1))["pixels"])
    }
    head = objective.init_head(jax.random.key(1)) | silent
    loss, _ = objective.loss(head, jnp.ones((8, 7, 32)), targets, None)
    expected = np.mean(np.square(standardize(targets["patches"])))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_a_schedule_drops_the_last_tokens():
    objective = tiny_learner(**{"mask.schedule": "0.5,0.5,0.75,0.75"}).objective
    assert [objective.cut(k) is None for k in range(4)] == [True, True, False, True]
    tokens = np.arange(9)[None, :, None]
    np.testing.assert_array_equal(objective.cut(2)(tokens), tokens[:, :5])  # CLS and 4 of 16


def test_loss_against_numpy():
    rng = np.random.default_rng(0)
    predictions = rng.normal(size=(3, 5, 48)).astype(np.float32)
    targets = rng.normal(2.0, 3.0, size=(3, 5, 48)).astype(np.float32)
    targets[1] = 2.0 + targets[1] * 1e-3  # variance 1e-5: the 1e-6 under the root shows
    plain = np.mean((predictions.astype(np.float64) - targets) ** 2)
    np.testing.assert_allclose(
        masked_reconstruction_loss(predictions, targets, normalize=False), plain, rtol=1e-6
    )
    t = targets.astype(np.float64)
    t = (t - t.mean(-1, keepdims=True)) / np.sqrt(t.var(-1, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(
        masked_reconstruction_loss(predictions, targets, normalize=True),
        np.mean((predictions - t) ** 2),
        rtol=1e-4,
    )


def test_the_loss_is_float32_and_has_no_gradient_to_its_targets():
    targets = jax.random.normal(jax.random.key(0), (1, 2, 48), jnp.bfloat16)

    def loss(targets):
        return masked_reconstruction_loss(jnp.zeros_like(targets), targets, normalize=False)

    value, gradient = jax.value_and_grad(loss)(targets)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, np.mean(np.square(targets.astype(np.float32))), rtol=1e-5)
    assert not np.any(gradient)


@pytest.mark.parametrize("values", [48, 768])
def test_predicting_zero_gives_the_closed_form(values):
    """With unbiased variance the loss of zeros is (P − 1) / P; with biased variance it would be 1."""
    targets = jax.random.normal(jax.random.key(0), (4, 16, values)) * 50
    loss = masked_reconstruction_loss(jnp.zeros_like(targets), targets, normalize=True)
    assert float(loss) == pytest.approx((values - 1) / values, rel=1e-4)


def test_constant_patches_and_wrong_arguments():
    flat = jnp.full((1, 2, 48), 3.0)
    assert float(masked_reconstruction_loss(jnp.zeros_like(flat), flat, normalize=True)) == 0.0
    with pytest.raises(ValueError, match=r"must have one shape"):
        masked_reconstruction_loss(flat, flat[:, :1], normalize=True)
    with pytest.raises(ValueError, match=r"'triton' is unknown; it may be one of xla, pallas,"):
        masked_reconstruction_loss(flat, flat, normalize=True, implementation="triton")


@pytest.mark.parametrize("normalize", [False, True])
def test_pictures_of_perfect_predictions_are_the_images(normalize):
    """Un-normalising or un-shuffling wrongly would show here."""
    learner = tiny_learner(**{"loss.normalize_pixels": normalize})
    objective = learner.objective
    batch = images()
    _, targets = objective.prepare(jax.random.key(0), {"image": batch})
    order = targets["positions"]
    true = jnp.take_along_axis(standardize(patchify(batch, 8)), order[:, 6:, None], axis=1)
    if normalize:
        true = (true - true.mean(-1, keepdims=True)) / jnp.sqrt(
            true.var(-1, ddof=1, keepdims=True) + 1e-6
        )

    class Perfect:
        decode = staticmethod(lambda *arguments: true)

    object.__setattr__(objective, "decode", Perfect.decode)
    tokens = jnp.zeros((8, 7, 32))
    picture = objective.picture({}, tokens, batch, targets)
    np.testing.assert_allclose(picture, batch / 255.0, atol=1e-4)
    visible = np.asarray(objective.visible_picture(batch, targets))
    np.testing.assert_array_equal(objective.seen(jax.random.key(0), batch)["visible"], visible)
    shown = np.isclose(patchify(visible, 8), patchify(batch / 255.0, 8), atol=1e-4).all(axis=-1)
    assert np.all(shown.sum(axis=1) == 6)  # of 16 patches
