"""Probes give right accuracies on data whose answer is known."""

import jax
import numpy as np
import pytest

from blockjax import evaluate
from tests.tiny import images, tiny_learner


def blobs(per_class, classes=4, width=8, spread=0.3, seed=0):
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(99).normal(size=(classes, width))
    labels = np.repeat(np.arange(classes), per_class)
    features = centers[labels] + spread * rng.normal(size=(len(labels), width))
    return features.astype(np.float32), labels


@pytest.mark.parametrize("accuracy", [evaluate.knn_accuracy, evaluate.linear_accuracy])
def test_separable_classes_are_found_and_noise_is_not(accuracy):
    train, test = blobs(40), blobs(25, seed=1)
    assert accuracy(*train, *test, 4) > 0.97
    noise = np.random.default_rng(2).normal(size=(160, 8)).astype(np.float32)
    assert accuracy(noise, train[1], test[0], test[1], 4) < 0.5
    shuffled = np.random.default_rng(3).permutation(test[1])
    assert accuracy(*train, test[0], shuffled, 4) < 0.5  # it is the test labels that count


def test_knn_by_hand():
    angles = np.deg2rad([0, 10, 20, 90, 100, 110])
    train = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    labels = np.array([0, 0, 0, 1, 1, 1])
    angles = np.deg2rad([5, 105, 50])
    test = (
        np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32) * 7
    )  # length is no matter
    assert evaluate.knn_accuracy(train, labels, test, np.array([0, 1, 0]), 2) == 1.0
    assert evaluate.knn_accuracy(train, labels, test, np.array([0, 1, 1]), 2) == pytest.approx(
        2 / 3
    )


def test_linear_needs_its_bias_and_its_scaling():
    train, labels = blobs(40)
    test, test_labels = blobs(25, seed=1)
    scale = np.logspace(-4, 4, 8).astype(np.float32)
    assert (
        evaluate.linear_accuracy(
            train * scale + 100 * scale, labels, test * scale + 100 * scale, test_labels, 4
        )
        > 0.95
    )


def test_features_of_every_block_are_pooled_over_the_grid():
    learner = tiny_learner()
    state = jax.jit(learner.init)(jax.random.key(0))
    features = evaluate.block_features(learner, state, images(7), pool=2)
    assert [f.shape for f in features] == [(7, 4 * 32)] * 4
    assert not np.allclose(features[0], features[1])
    # An image's features do not depend on what else is in the batch (there is padding inside).
    alone = evaluate.block_features(learner, state, images(7)[3:4], pool=2)
    np.testing.assert_allclose(alone[2][0], features[2][3], atol=1e-5)
    # Cells are places: a change in the patch of row 2, column 4 reaches the upper right cell most of all in block 1.
    changed = images(7)
    changed[:, 8:16, 24:] = 255 - changed[:, 8:16, 24:]
    moved = evaluate.block_features(learner, state, changed, pool=2)[0] - features[0]
    by_cell = np.abs(moved).reshape(7, 4, 32).sum(axis=(0, 2))
    assert by_cell.argmax() == 1


def test_features_do_not_depend_on_the_strategy():
    ours, baseline = tiny_learner(), tiny_learner(strategy="end_to_end")
    a = evaluate.block_features(ours, jax.jit(ours.init)(jax.random.key(0)), images(3), 2)
    b = evaluate.block_features(baseline, jax.jit(baseline.init)(jax.random.key(0)), images(3), 2)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def test_the_penalty_is_chosen_and_the_bias_counts():
    """More features than examples, most of them noise, and one class in nine examples out of ten."""
    rng = np.random.default_rng(0)
    labels = (np.arange(200) % 10 == 0).astype(int)
    features = rng.normal(size=(200, 120)).astype(np.float32)
    features[:, 0] += 4 * labels
    train, test = (features[:120], labels[:120]), (features[120:], labels[120:])
    assert evaluate.linear_accuracy(*train, *test, 2) >= 0.9


def test_rows_of_the_probes(monkeypatch):
    """Untrained features are those of the depth that is best by the linear probe."""
    good, bad = blobs(40, spread=0.1)[0], blobs(40, spread=9.0, seed=5)[0]
    labels = np.repeat(np.arange(4), 40)
    features = {"trained": [bad, good], "untrained": [good, bad]}
    monkeypatch.setattr(
        evaluate, "block_features", lambda learner, state, images, pool: features[state]
    )
    data = (images(160, side=4), labels)
    rows = evaluate.probe_blocks(None, "trained", "untrained", data, data, classes=4, pool=2)
    assert [row["features"] for row in rows] == ["pixels", "untrained", "block_1", "block_2"]
    assert rows[1]["linear"] == rows[3]["linear"] == 1.0 > rows[2]["linear"]


def test_pixels_are_averaged_down():
    small = images(2)
    np.testing.assert_allclose(evaluate.pixels(small), small.reshape(2, -1) / 255.0, rtol=1e-6)
    large = small.repeat(2, axis=1).repeat(2, axis=2)
    large[:, ::2, ::2] = 0
    np.testing.assert_allclose(evaluate.pixels(large), 0.75 * evaluate.pixels(small), rtol=1e-5)
