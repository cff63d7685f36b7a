"""BEiT's objective: what is masked and named, that nothing leaks, and the loss."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blockjax.models.patches import patchify, standardize
from blockjax.models.vit import ViT
from blockjax.objectives.masked import tokenizer
from blockjax.objectives.masked.beit import Beit
from tests.tiny import images, tiny_config

CODES = 16


def objective(**fields):
    default = {"patch_size": 8, "grid": (4, 4), "width": 32, "masked": 6, "codes": CODES}
    return Beit(**(default | fields))


def tiny_vit(**fields):
    return ViT(image_size=32, patch_size=8, width=32, depth=1, heads=2, mask_token=True, **fields)


def centroids(seed=0, codes=CODES):
    return np.random.default_rng(seed).normal(size=(codes, 192)).astype(np.float32)


def config(**overrides):
    config = tiny_config()
    config.update_from_flattened_dict(
        {"mask.ratio": 0.39, "tokenizer.kind": "kmeans", "tokenizer.codes": CODES} | overrides
    )
    return config


def test_targets_are_the_tokens_of_masked_patches():
    beit, batch = objective(), images()
    inputs, targets = beit.prepare(jax.random.key(0), {"image": batch}, centroids())
    patches = np.asarray(standardize(patchify(batch, 8)), np.float64)
    np.testing.assert_allclose(inputs["patches"], patches, atol=1e-5)
    np.testing.assert_array_equal(inputs["positions"], np.tile(np.arange(16), (8, 1)))
    masked = np.asarray(inputs["masked"])
    assert masked.dtype == bool and (masked.sum(axis=1) == 6).all()
    assert len(np.unique(masked, axis=0)) > 1
    assert targets["tokens"].shape == targets["positions"].shape == (8, 6)
    assert targets["tokens"].dtype == targets["positions"].dtype == jnp.int32
    distances = np.square(patches[:, :, None] - centroids()[None, None]).sum(axis=-1)
    for i in range(8):
        np.testing.assert_array_equal(targets["positions"][i], np.flatnonzero(masked[i]))
        np.testing.assert_array_equal(targets["tokens"][i], distances[i][masked[i]].argmin(axis=1))
    other = beit.prepare(jax.random.key(1), {"image": batch}, centroids())[0]["masked"]
    assert not np.array_equal(masked, other)


def test_tokens_follow_the_kind():
    inputs = [
        objective(kind=kind).prepare(jax.random.key(0), {"image": images()}, centroids())[1]
        for kind in ("kmeans", "kmeans_norm")
    ]
    assert not np.array_equal(inputs[0]["tokens"], inputs[1]["tokens"])


def test_masked_patches_do_not_reach_the_encoder():
    beit, vit = objective(), tiny_vit()
    stem = vit.init_stem(jax.random.key(0))
    inputs, _ = beit.prepare(jax.random.key(1), {"image": images()}, centroids())
    noise = jax.random.normal(jax.random.key(2), inputs["patches"].shape)
    tokens = vit.stem(stem, inputs)

    def changed(where):
        other = jnp.where(where[:, :, None], noise, inputs["patches"])
        return np.asarray(vit.stem(stem, inputs | {"patches": other}) - tokens)

    assert np.all(changed(inputs["masked"]) == 0)
    assert np.all(changed(~inputs["masked"])[:, 1:][~inputs["masked"]].any(axis=1))


@pytest.fixture(scope="module")
def setup():
    """An objective, a head, a stream and targets."""
    beit = objective()

    @jax.jit
    def make():
        head = beit.init_head(jax.random.key(0))
        head["logits"]["kernel"] *= 30  # so that predictions differ
        head["logits"]["bias"] += jax.random.normal(jax.random.key(5), (CODES,))
        stream = 2.0 + 3.0 * jax.random.normal(jax.random.key(1), (8, 17, 32))
        return head, stream, beit.prepare(jax.random.key(2), {"image": images()}, centroids())[1]

    return beit, *make()


@functools.partial(jax.jit, static_argnums=0)
def run_loss(beit, head, stream, targets):
    return beit.loss(head, stream, targets, jax.random.key(0))


def test_loss_and_metrics_against_numpy(setup):
    beit, head, stream, targets = setup
    loss, metrics = run_loss(beit, head, stream, targets)
    head, stream, targets = jax.tree.map(np.asarray, (head, stream, targets))
    losses, predicted = [], []
    for i in range(8):
        for position, token in zip(targets["positions"][i], targets["tokens"][i], strict=True):
            x = stream[i, 1 + position].astype(np.float64)
            x = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
            x = x * head["norm"]["scale"] + head["norm"]["bias"]
            logits = x @ head["logits"]["kernel"].astype(np.float64) + head["logits"]["bias"]
            losses.append(np.log(np.exp(logits).sum()) - logits[token])
            predicted.append(logits.argmax())
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    true, predicted = targets["tokens"].ravel(), np.array(predicted)
    assert set(metrics) == {"accuracy", "prediction_perplexity", "token_entropy"}
    np.testing.assert_allclose(metrics["accuracy"], np.mean(true == predicted), rtol=1e-6)
    shares = [tokenizer.token_statistics(tokens, CODES) for tokens in (true, predicted)]
    np.testing.assert_allclose(metrics["token_entropy"], shares[0]["entropy"], rtol=1e-5)
    perplexity = metrics["prediction_perplexity"]
    np.testing.assert_allclose(perplexity, shares[1]["perplexity"], rtol=1e-5)
    assert 1.5 < perplexity != pytest.approx(shares[0]["perplexity"], rel=0.01)


def test_only_masked_places_carry_loss_and_gradient(setup):
    beit, head, stream, targets = setup
    value, gradient = jax.value_and_grad(lambda s: run_loss(beit, head, s, targets)[0])(stream)
    masked = np.zeros((8, 16), bool)
    np.put_along_axis(masked, np.asarray(targets["positions"]), True, axis=1)
    gradient = np.asarray(gradient)
    assert np.all(gradient[:, 0] == 0)  # CLS
    assert np.all(gradient[:, 1:][~masked] == 0)
    assert np.all(np.abs(gradient[:, 1:][masked]).max(axis=-1) > 0)
    other = jnp.where(jnp.pad(masked, ((0, 0), (1, 0)))[:, :, None], stream, 7.0)
    np.testing.assert_array_equal(run_loss(beit, head, other, targets)[0], value)


def test_a_silent_head_gives_log_v(setup):
    beit, head, stream, targets = setup
    silent = jax.tree.map(jnp.zeros_like, head)
    loss, metrics = run_loss(beit, silent, stream, targets)
    assert float(loss) == pytest.approx(math.log(CODES), rel=1e-6)
    assert float(metrics["prediction_perplexity"]) == pytest.approx(1.0)
    # As it starts, a head is near that.
    started, _ = run_loss(beit, beit.init_head(jax.random.key(0)), stream, targets)
    assert float(started) == pytest.approx(math.log(CODES), abs=0.1)


def test_the_loss_is_float32_whatever_the_encoder_is(setup):
    beit, head, stream, targets = setup
    half = dataclasses.replace(beit, dtype=jnp.bfloat16)
    loss, metrics = run_loss(half, head, stream.astype(jnp.bfloat16), targets)
    assert all(value.dtype == jnp.float32 for value in (loss, *metrics.values()))
    np.testing.assert_allclose(loss, run_loss(beit, head, stream, targets)[0], rtol=0.02)


def test_a_block_learns_to_predict_tokens():
    """Below the entropy of the tokens, so from visible patches: each image is of one of two colours."""
    vit, beit = tiny_vit(), objective(codes=2)
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 2, (16, 1, 1, 1)) * 200 + rng.integers(0, 55, (16, 32, 32, 3))
    batch = {"image": jnp.asarray(colours, jnp.uint8)}
    vocabulary = jnp.stack([jnp.full(192, -1.0), jnp.full(192, 1.0)])

    @jax.jit
    def init(key):
        keys = jax.random.split(key, 3)
        return {
            "stem": vit.init_stem(keys[0]),
            "layers": vit.init_block(keys[1], 0, 1),
            "head": beit.init_head(keys[2]),
        }

    def loss(params, inputs, targets):
        tokens = vit.layers(params["layers"], vit.stem(params["stem"], inputs))
        return beit.loss(params["head"], tokens, targets, None)

    @jax.jit
    def step(params, key):
        inputs, targets = beit.prepare(key, batch, vocabulary)
        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, inputs, targets)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value, metrics, grads

    params = init(jax.random.key(0))
    for i in range(30):
        params, value, metrics, grads = step(params, jax.random.key(i))
    assert float(value) < 0.5 * float(metrics["token_entropy"])
    assert float(metrics["accuracy"]) > 0.8
    assert np.any(grads["stem"]["mask_token"])


def test_the_vocabulary_is_fitted_and_checked_on_different_images():
    beit = objective(patch_size=4, grid=(8, 8), masked=25)
    batch = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    seen = {}
    fit, statistics = tokenizer.fit, tokenizer.token_statistics

    def noted_fit(rng, patches, codes, kind):
        seen["fitted"] = patches
        return fit(rng, patches, codes, kind)

    def noted_statistics(tokens, codes):
        seen["checked"] = tokens
        return statistics(tokens, codes)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tokenizer, "fit", noted_fit)
        patched.setattr(tokenizer, "token_statistics", noted_statistics)
        found = beit.fit(jax.random.key(0), batch)
    assert beit.fitted_shape == found.shape == (CODES, 48) and found.dtype == np.float32
    np.testing.assert_array_equal(found, beit.fit(jax.random.key(0), batch))
    # 36 images of 64 patches, each patch once and as the encoder sees it; 4 images are left.
    assert seen["fitted"].shape == (36 * 64, 48) and seen["checked"].shape == (4 * 64,)
    every = np.asarray(standardize(patchify(batch, 4)))
    of = {row.tobytes(): i for i, rows in enumerate(every) for row in rows}
    counts = np.bincount([of[row.tobytes()] for row in seen["fitted"]], minlength=40)
    assert sorted(counts) == [0] * 4 + [64] * 36


def test_a_fit_takes_no_more_patches_than_it_needs(monkeypatch):
    beit = objective(patch_size=4, grid=(8, 8), masked=25)
    monkeypatch.setattr("blockjax.objectives.masked.beit._PATCHES_PER_CODE", 10)
    batch = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    patches = beit._some_patches(jax.random.key(0), batch, np.arange(4), 160)
    assert len(np.unique(patches, axis=0)) == 160
    kept = {}
    monkeypatch.setattr(
        tokenizer, "fit", lambda rng, patches, *_: kept.update(n=len(patches)) or patches[:CODES]
    )
    beit.fit(jax.random.key(0), batch)
    assert kept["n"] == 160


def test_images_that_cannot_be_named_are_refused():
    beit = objective(patch_size=4, grid=(8, 8), masked=25, codes=64)
    white = np.full((20, 32, 32, 3), 255, np.uint8)
    with pytest.raises(ValueError, match=r"of which 1 are different"):
        beit.fit(jax.random.key(0), white)
    rng = np.random.default_rng(0)
    white[:, :16] = rng.integers(0, 256, (20, 16, 32, 3))  # every second patch
    with pytest.raises(ValueError, match=r"one of .* codes has 50.0%.*model.patch_size"):
        beit.fit(jax.random.key(0), white)
    with pytest.raises(ValueError, match=r"on 1 image.*tokenizer.examples"):
        beit.fit(jax.random.key(0), white[:1])


def test_views_show_image_mask_and_tokens():
    beit, batch = objective(), images()
    vocabulary = np.asarray(standardize(patchify(batch, 8))).reshape(-1, 192)
    beit = dataclasses.replace(beit, codes=len(vocabulary))
    views = beit.seen(jax.random.key(0), batch, vocabulary)
    assert list(views) == ["image", "masked", "tokens"]
    np.testing.assert_allclose(views["image"], batch / 255, atol=1e-5)
    np.testing.assert_allclose(views["tokens"], batch / 255, atol=1e-5)  # every patch is a code
    inputs, _ = beit.prepare(jax.random.key(0), {"image": batch}, vocabulary)
    same = np.isclose(views["masked"], batch / 255, atol=1e-5)
    same = np.asarray(patchify(same, 8)).all(axis=-1)
    np.testing.assert_array_equal(same, ~np.asarray(inputs["masked"]))
    shifted = beit.seen(jax.random.key(0), batch, vocabulary + 0.3)["tokens"]
    assert np.abs(shifted - batch / 255).max() > 0.05


def test_signs_of_collapse():
    beit = objective()
    healthy = {
        "loss": 3.0,
        "accuracy": 0.2,
        "prediction_perplexity": 60.0,
        "token_entropy": 5.0,
    }
    assert beit.symptoms(healthy, 1.0) == []
    marginal = healthy | {"loss": 5.0, "prediction_perplexity": 1.0}
    assert beit.symptoms(marginal, 0.1) == []
    (found,) = beit.symptoms(marginal, 0.5)
    assert "not below the entropy" in found and "optimizer.base_learning_rate" in found
    (found,) = beit.symptoms(healthy | {"prediction_perplexity": 2.5}, 0.5)
    assert "perplexity of 2.5" in found
    (found,) = beit.symptoms(healthy | {"accuracy": 0.99}, 0.01)
    assert "mask token" in found


def test_configs():
    vit = tiny_vit()
    Beit.check(config())
    made = Beit.from_config(config(), vit, 4)
    assert made == objective()
    assert Beit.mask_token and Beit.means_over_images
    for overrides, message in (
        ({"mask.ratio": 0.02}, r"masks 0 of 16 patches.*from 0.0625 to 0.938"),
        ({"mask.ratio": 0.98}, r"masks 16 of 16 patches"),
        ({"tokenizer.kind": "vae"}, r"tokenizer.kind 'vae' is unknown"),
        ({"tokenizer.codes": 1}, r"tokenizer.codes 1 .* at least 2"),
        ({"tokenizer.examples": 3, "tokenizer.codes": 64}, r"have 48 patches, too few for 64"),
    ):
        with pytest.raises(ValueError, match=message):
            Beit.check(config(**overrides))


@pytest.mark.parametrize(
    ("size", "patch", "strategy", "masked", "codes"),
    [
        (32, 4, "blockwise", 25, 512),
        (224, 16, "blockwise", 75, 2048),
        (224, 16, "end_to_end", 75, 8192),
    ],
)
def test_defaults(size, patch, strategy, masked, codes):
    chosen = config(**{"model.image_size": size, "model.patch_size": patch, "strategy": strategy})
    chosen.update_from_flattened_dict(Beit.defaults(chosen))
    made = Beit.from_config(chosen, ViT(size, patch, 32, 1, 2), 4)
    assert made.masked == masked and made.codes == codes
