"""Classes as a local loss: what is mixed, what is erased, what is frozen and what is dropped."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blockjax import config as config_lib
from blockjax.models.patches import unpatchify, unstandardize
from blockjax.objectives.classification import Classification
from tests.tiny import images, tiny_config, tiny_learner

FIELDS = {"objective": "classification", "mask.ratio": None, "classifier.classes": 4}


def task(**fields):
    return Classification(patch_size=8, width=32, classes=4, **{"grid": (4, 4), **fields})


def batch(count=8):
    return {"image": jnp.asarray(images(count)), "label": jnp.arange(count) % 4}


def prepared(seed=0, count=8, **fields):
    """Returns pixels in [0, 1] and the targets' shares."""
    inputs, targets = task(**fields).prepare(jax.random.key(seed), batch(count))
    return np.asarray(unpatchify(unstandardize(inputs["patches"]), 8, (4, 4))), targets["shares"]


def test_nothing_is_changed_by_default():
    pixels, shares = prepared()
    np.testing.assert_allclose(pixels, images() / 255.0, atol=1e-5)
    np.testing.assert_array_equal(shares, np.eye(4)[np.arange(8) % 4])


def test_label_smoothing():
    _, shares = prepared(label_smoothing=0.2)
    np.testing.assert_allclose(shares[0], [0.85, 0.05, 0.05, 0.05], atol=1e-6)


def test_mixup_mixes_images_and_classes_alike():
    found = []
    for seed in range(8):
        pixels, shares = prepared(seed, mixup=0.8)
        share = float(shares[0, 0])  # image 0 is mixed with image 7, of class 3
        np.testing.assert_allclose(shares[0], [share, 0, 0, 1 - share], atol=1e-6)
        expected = share * images()[0] / 255.0 + (1 - share) * images()[7] / 255.0
        np.testing.assert_allclose(pixels[0], expected, atol=1e-4)
        found.append(share)
    assert max(found) - min(found) > 0.2 and all(0 <= share <= 1 for share in found)


def test_cutmix_cuts_one_box_and_counts_its_pixels():
    areas = []
    for seed in range(12):
        pixels, shares = prepared(seed, cutmix=1.0)
        changed = np.abs(pixels[0] - images()[0] / 255.0).max(axis=-1) > 1e-3
        # Where both images are alike nothing can be seen; they differ nearly everywhere.
        area = 1 - float(shares[0, 0])
        assert changed.mean() <= area + 1e-6
        rows, columns = np.nonzero(changed)
        if len(rows):
            box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1) / 1024
            assert box <= area + 1e-6 and changed.mean() > 0.8 * box
            np.testing.assert_allclose(pixels[0][changed], images()[7][changed] / 255.0, atol=1e-4)
        areas.append(area)
    assert max(areas) > 0.4 > 0.2 > min(areas)


def test_each_batch_gets_mixup_or_cutmix():
    kinds = set()
    for seed in range(12):
        pixels, shares = prepared(seed, mixup=0.8, cutmix=1.0)
        same = np.abs(pixels[0] - images()[0] / 255.0).max(axis=-1) < 1e-4
        if 0.05 < shares[0, 0] < 0.95:
            kinds.add("cut" if same.mean() > 0.02 else "mixed")
    assert kinds == {"cut", "mixed"}


def test_erasing_replaces_a_box_of_some_images():
    pixels, shares = prepared(count=64, erase=0.5)
    original = images(64) / 255.0
    changed = (np.abs(pixels - original) > 1e-4).any(axis=-1)
    areas = changed.mean(axis=(1, 2))
    assert 16 < (areas > 0).sum() < 48
    assert areas.max() < 0.4
    for mask in changed[areas > 0]:
        rows, columns = np.nonzero(mask)
        assert mask.sum() > 0.95 * (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    np.testing.assert_array_equal(shares, np.eye(4)[np.arange(64) % 4])
    noise = np.asarray(task(erase=0.99).prepare(jax.random.key(0), batch(64))[0]["patches"])
    assert noise.std() > 0.5  # normal, in the scale of the network's input


def test_loss_of_guessing_and_of_knowing():
    objective = task()
    head = objective.init_head(jax.random.key(0))
    tokens = jax.random.normal(jax.random.key(1), (8, 17, 32))
    _, targets = objective.prepare(jax.random.key(0), batch())
    loss, metrics = objective.loss(head, tokens, targets, jax.random.key(0))
    assert loss == pytest.approx(math.log(4), abs=1e-3) == objective.chance({})
    assert set(metrics) == {"accuracy"}
    # Class by the mean of four channels.
    tokens = tokens.at[:, 1:, :4].add(20.0 * jnp.eye(4)[jnp.arange(8) % 4][:, None])
    head["classes"]["kernel"] = head["classes"]["kernel"].at[:4].set(5.0 * jnp.eye(4))
    loss, metrics = objective.loss(head, tokens, targets, jax.random.key(0))
    assert loss < 0.01 and metrics["accuracy"] == 1.0
    moved = tokens.at[:, 0].multiply(-1.0)  # CLS has no say
    assert objective.loss(head, moved, targets, jax.random.key(0))[0] == loss


def test_logits_are_of_the_patches_tokens():
    """Their order is no matter, and the CLS token, which stands first, is not among them."""
    objective = task()
    head = objective.init_head(jax.random.key(0))
    kernel = jax.random.normal(jax.random.key(1), head["classes"]["kernel"].shape)
    head = {**head, "classes": {**head["classes"], "kernel": kernel}}
    tokens = jax.random.normal(jax.random.key(2), (2, 17, 32))
    logits = objective.logits(head, tokens)
    np.testing.assert_array_equal(objective.logits(head, tokens.at[:, 0].multiply(-3.0)), logits)
    turned = tokens.at[:, 1:].set(tokens[:, :0:-1])
    np.testing.assert_allclose(objective.logits(head, turned), logits, atol=1e-5)
    assert not np.allclose(
        objective.logits(head, tokens.at[:, 1].multiply(-3.0)), logits, atol=1e-3
    )


def test_a_head_that_reads_cells_knows_where_things_are():
    """Each cell's mean after the LayerNorm, row by row of a grid that is wider than high."""
    objective = task(grid=(4, 8), pool=2)
    head = objective.init_head(jax.random.key(0))
    assert head["classes"]["kernel"].shape == (4 * 32, 4)
    kernel = jax.random.normal(jax.random.key(1), (4 * 32, 4))
    head = {**head, "classes": {**head["classes"], "kernel": kernel}}
    tokens = jax.random.normal(jax.random.key(2), (2, 33, 32))
    expected = 0.0
    for index, (row, column) in enumerate(((0, 0), (0, 4), (2, 0), (2, 4))):
        places = [1 + 8 * i + j for i in (row, row + 1) for j in range(column, column + 4)]
        mean = np.asarray(tokens, np.float64)[:, places].mean(axis=1)
        mean = (mean - mean.mean(-1, keepdims=True)) / mean.std(-1, keepdims=True)
        expected = expected + mean @ np.asarray(kernel)[32 * index : 32 * (index + 1)]
    np.testing.assert_allclose(objective.logits(head, tokens), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("remat", ["none", "layer"])
def test_dropped_branches(remat):
    """Nothing is dropped with rate 0; with others some images keep a branch, scaled up, and some lose it."""
    vit = dataclasses.replace(tiny_learner().vit, remat=remat)
    layers = jax.tree.map(lambda leaf: leaf[0], vit.init_layers(jax.random.key(0), 1))
    layers = jax.tree.map(lambda leaf: leaf + 0.1, layers)
    tokens = jax.random.normal(jax.random.key(1), (64, 5, 32))
    plain = vit.layers(layers, tokens)
    none = vit.layers(layers, tokens, jax.random.key(2), jnp.zeros(4))
    np.testing.assert_allclose(none, plain, atol=1e-5)
    rates = jnp.array([0.5, 0.0, 0.0, 0.0])
    first = jax.tree.map(lambda leaf: leaf[:1], layers)
    found = vit.layers(first, tokens, jax.random.key(2), rates[:1])
    unchanged = np.isclose(found, tokens, atol=1e-6).all(axis=(1, 2))
    assert 4 < unchanged.sum() < 32  # a quarter loses both branches
    drawn = jax.vmap(lambda i: vit.layers(first, tokens[:1], jax.random.key(i), rates[:1]))
    mean = np.mean(jax.jit(drawn)(jnp.arange(400)), axis=0)
    attended = vit.layers(first, tokens[:1])
    assert np.abs(mean - attended).mean() < 0.25 * np.abs(attended - tokens[:1]).mean()


@pytest.mark.parametrize(
    "strategy, tuned",
    [
        (strategy, n)
        for strategy, some in (("end_to_end", 1), ("blockwise", 3))
        for n in (None, some, 0)
    ],
)
def test_frozen_blocks_stay_as_they_are(strategy, tuned):
    learner = tiny_learner(
        **FIELDS,
        **{"strategy": strategy, "tune_blocks": tuned, "classifier.drop_path": 0.1},
        **{"optimizer.layer_decay": 0.9, "optimizer.weight_decay": 0.5},
    )

    @jax.jit
    def start_and_step(rng, batch):
        state = learner.init(rng)
        return state, *learner.train_step(state, batch, rng)

    state, new, metrics = start_and_step(jax.random.key(0), batch())
    if tuned is None:
        tuned = 4

    def moved(a, b):
        return float(
            sum(jnp.abs(x - y).sum() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))
        )

    assert (moved(new.stem.params, state.stem.params) > 0) == (tuned == 4)
    for layer in range(4):
        before, after = (
            jax.tree.map(
                lambda leaf, i=layer: leaf.reshape(4, *leaf.shape[2:])[i], s.blocks.params["layers"]
            )
            for s in (state, new)
        )
        assert (moved(after, before) > 0) == (layer >= 4 - tuned), layer
    assert moved(new.blocks.params["head"], state.blocks.params["head"]) > 0
    assert np.isfinite(metrics["loss"]).all()


def test_frozen_layers_keep_nothing_for_a_backward_pass():
    """The scratch memory of the compiled step shrinks with them."""
    from blockjax.learner.placement import Placement
    from blockjax.memory.profiles import compile_step
    from blockjax.sharding.mesh import make_mesh

    mesh = make_mesh((1, 1, 1))
    fields = {**FIELDS, "strategy": "end_to_end", "batch_size": 64, "model.depth": 8, "blocks": 8}
    temp = [
        compile_step(Placement(tiny_learner(**fields, tune_blocks=tuned), mesh), 64)[1].temp
        for tuned in (8, 1)
    ]
    assert temp[1] < 0.5 * temp[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"classifier.drop_path": 1.0}, r"classifier\.drop_path must be from 0 to below 1"),
        ({"classifier.mixup": -1.0}, r"classifier\.mixup must be from 0 to 1000, not -1"),
        (
            {"tune_blocks": 5},
            r"tune_blocks 5: the encoder has 4 blocks; give 0 \(heads only\) to 4",
        ),
        ({"optimizer.layer_decay": 0.0}, r"optimizer\.layer_decay must be above 0"),
        ({"data.fraction": 2.0}, r"data\.fraction must be above 0 and at most 1, not 2"),
        ({"objective": "mae", "tune_blocks": 1}, r"without a backbone those hold random numbers"),
    ],
)
def test_settings_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        config_lib.resolve(tiny_config(**{**FIELDS, **fields}), devices=1, platform="cpu")
