"""Probes give right accuracies on data whose answer is known."""

import jax
import numpy as np
import pytest

from blockjax.probes import few_shot, knn, linear, probe, sgd
from tests.tiny import images


def blobs(per_class, classes=4, width=8, spread=0.3, seed=0):
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(99).normal(size=(classes, width))
    labels = np.repeat(np.arange(classes), per_class)
    features = centers[labels] + spread * rng.normal(size=(len(labels), width))
    return features.astype(np.float32), labels


@pytest.mark.parametrize("accuracy", [knn.knn_accuracy, linear.linear_accuracy])
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
    assert knn.knn_accuracy(train, labels, test, np.array([0, 1, 0]), 2) == 1.0
    assert knn.knn_accuracy(train, labels, test, np.array([0, 1, 1]), 2) == pytest.approx(2 / 3)


def test_linear_needs_its_bias_and_its_scaling():
    train, labels = blobs(40)
    test, test_labels = blobs(25, seed=1)
    scale = np.logspace(-4, 4, 8).astype(np.float32)
    assert (
        linear.linear_accuracy(
            train * scale + 100 * scale, labels, test * scale + 100 * scale, test_labels, 4
        )
        > 0.95
    )


def test_the_penalty_is_chosen_and_the_bias_counts():
    """As many features as examples, most of them noise, and one class in nine examples out of ten.

    The least penalty alone would give 0.64, the greatest 0.9.
    """
    rng = np.random.default_rng(1)
    labels = (rng.permutation(300) % 10 == 0).astype(int)
    features = rng.normal(size=(300, 150)).astype(np.float32)
    features[:, 0] += 4 * labels
    train, test = (features[:150], labels[:150]), (features[150:], labels[150:])
    assert linear.linear_accuracy(*train, *test, 2) > 0.91


class Fake:
    """A learner whose features are those that a test says."""

    backbone = None

    def __init__(self, features):
        self.features = features

    def backbone_params(self, state):
        return self.features[state.name]


class State:
    def __init__(self, name):
        self.name = name
        self.step = type("Step", (), {"sharding": None})


def test_rows_of_the_probes(monkeypatch):
    """Untrained features are those of the depth that is best by the linear probe."""
    good, bad = blobs(40, spread=0.1)[0], blobs(40, spread=9.0, seed=5)[0]
    labels = np.repeat(np.arange(4), 40)
    learner = Fake({"trained": [bad, good], "untrained": [good, bad]})
    monkeypatch.setattr(
        "blockjax.probes.probe.array_features", lambda backbone, params, images, pool, mesh: params
    )
    data = (images(160, side=4), labels)
    rows = probe.probe_blocks(
        learner, State("trained"), State("untrained"), data, data, classes=4, pool=2
    )
    assert [row["features"] for row in rows] == ["pixels", "untrained", "block_1", "block_2"]
    assert rows[1]["linear"] == rows[3]["linear"] == 1.0 > rows[2]["linear"]


@pytest.mark.parametrize("bank", [1 << 16, 64, 48])
def test_neighbours_are_found_among_many(monkeypatch, bank):
    """Whatever part of the bank is on the device at a time, and though groups are searched first."""
    monkeypatch.setattr(knn, "_BANK", bank)
    train, test = blobs(250, spread=2.0), blobs(30, spread=2.0, seed=1)
    order = np.random.default_rng(4).permutation(
        1000
    )  # neighbours in the bank are of other classes
    train = train[0][order] + 1.0, train[1][order]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train[0], test[0])]
    similarity = unit[1] @ unit[0].T

    def expected(k):
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
        weights = np.exp(np.take_along_axis(similarity, nearest, axis=1).astype(np.float64) / 0.07)
        votes = np.stack([(weights * (train[1][nearest] == c)).sum(axis=1) for c in range(4)], 1)
        return np.mean(votes.argmax(axis=1) == test[1])

    for neighbours in ((1, 5, 20), (200, 2000)):  # fewer than there are groups, and more
        found = knn.knn_accuracies(*train, *test, 4, neighbours=neighbours)
        np.testing.assert_allclose(found, [expected(k) for k in neighbours], atol=1e-9)


def test_parts_of_the_data_add_up(monkeypatch):
    """Ridge regression of all features is that of parts, with statistics of large means."""
    train, test = blobs(100, spread=1.5), blobs(60, spread=1.5, seed=1)
    train[0][:], test[0][:] = train[0] + 50, test[0] + 50
    mean, std = linear.standardizer(train[0])
    np.testing.assert_allclose(mean, train[0].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(std, train[0].std(axis=0) + 1e-5, rtol=1e-5)
    whole = linear.linear_accuracy(*train, *test, 4)
    monkeypatch.setattr(linear, "_ROWS", 37)
    assert linear.linear_accuracy(*train, *test, 4) == pytest.approx(whole, abs=0.005)
    assert 0.5 < whole < 1.0


def test_ridge_against_numpy():
    """Of a part of the examples, whose mean is not that of all."""
    features, labels = blobs(50, spread=2.0)
    standard = linear.standardizer(features)
    chosen = np.arange(200) < 130
    penalties = np.float32([0.1, 1.0])
    weights, biases = linear._Moments.of(features, labels, chosen, standard, 4).ridge(penalties)
    x = ((features - standard[0]) / standard[1])[chosen]
    y = (2.0 * np.eye(4)[labels] - 1.0)[chosen]
    center, mean = x.mean(axis=0), y.mean(axis=0)
    for i, penalty in enumerate(penalties):
        gram = (x - center).T @ (x - center) / 130
        damped = gram + penalty * np.trace(gram) / 8 * np.eye(8)
        expected = np.linalg.solve(damped, (x - center).T @ (y - mean) / 130)
        np.testing.assert_allclose(weights[i], expected, atol=1e-4)
        np.testing.assert_allclose(biases[i], mean - center @ expected, atol=1e-4)
    assert np.abs(center).max() > 0.2
    halves = chosen & (np.arange(200) % 2 == 0), chosen & (np.arange(200) % 2 == 1)
    parts = [linear._Moments.of(features, labels, half, standard, 4) for half in halves]
    for a, b in zip((parts[0] + parts[1]).ridge(penalties), (weights, biases), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_softmax_regression_learns_what_ridge_regression_does():
    train, test = blobs(200, spread=1.2), blobs(100, spread=1.2, seed=1)
    scale = np.logspace(-3, 3, 8).astype(np.float32)
    train, test = ((x * scale + 10 * scale, y) for x, y in (train, test))
    train, test = tuple(train), tuple(test)
    found = sgd.sgd_accuracy(*train, *test, 4, epochs=30)
    assert found == pytest.approx(linear.linear_accuracy(*train, *test, 4), abs=0.04)
    assert found > 0.7
    assert found == sgd.sgd_accuracy(*train, *test, 4, epochs=30)  # by the seed
    shuffled = np.random.default_rng(3).permutation(train[1])
    assert sgd.sgd_accuracy(train[0], shuffled, *test, 4, epochs=5) < 0.5


def test_rates_are_chosen_on_a_tenth_of_each_class(monkeypatch):
    features, labels = np.zeros((80, 2), np.float32), np.arange(80) % 10
    chosen = []

    def train(features, labels, rows, *, rates, **rest):
        chosen.append(rows)
        return np.zeros((len(rates), 2, 10), np.float32), np.zeros((len(rates), 10), np.float32)

    monkeypatch.setattr(sgd, "_train_softmax", train)
    sgd.sgd_accuracy(features, labels, features, labels, 10)
    np.testing.assert_array_equal(np.bincount(labels[~chosen[0]]), np.ones(10))
    assert chosen[1].all()


def test_steps_of_softmax_regression_by_hand():
    """Two steps of SGD with momentum, of other examples at other rates, each classifier by itself."""
    features, labels = blobs(10)
    mean, std = linear.standardizer(features)
    order = np.random.default_rng(0).permutation(40).reshape(2, 20)
    rates = np.float32([[0.1, 0.5], [0.2, 0.3]])
    state = (np.full((2, 8, 4), 0.01, np.float32), np.zeros((2, 4), np.float32))
    momentum = jax.tree.map(np.zeros_like, state)
    state, momentum = sgd._softmax_steps(
        False, state, momentum, features[order], labels[order], rates, mean, std
    )
    expected = [np.full((8, 4), 0.01), np.zeros(4)]
    velocity = [np.zeros((8, 4)), np.zeros(4)]
    for rows, rate in zip(order, rates[:, 1], strict=True):
        x, y = (features[rows] - mean) / std, np.eye(4)[labels[rows]]
        logits = x @ expected[0] + expected[1]
        error = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) - y) / len(x)
        for part, gradient in enumerate((x.T @ error, error.sum(axis=0))):
            velocity[part] = 0.9 * velocity[part] + gradient
            expected[part] = expected[part] - rate * velocity[part]
    np.testing.assert_allclose(state[0][1], expected[0], atol=1e-5)
    np.testing.assert_allclose(state[1][1], expected[1], atol=1e-5)
    assert not np.allclose(state[0][0], state[0][1], atol=1e-3)


def test_softmax_regression_in_parts(monkeypatch):
    """However many steps go to the device together, and where they do not divide the epoch."""
    features, labels = blobs(80)
    fields = {"standard": linear.standardizer(features), "classes": 4, "epochs": 18, "seed": 0}
    chosen = np.arange(320) < 300  # 9 steps of 32
    whole = sgd._train_softmax(features, labels, chosen, rates=(0.3, 1.0), **fields)
    monkeypatch.setattr(sgd, "_PART_BYTES", 4 * 4 * 32 * 8)
    taken, train = [], sgd._softmax_steps
    monkeypatch.setattr(sgd, "_softmax_steps", lambda *args: taken.append(args[5]) or train(*args))
    parts = sgd._train_softmax(features, labels, chosen, rates=(0.3, 1.0), **fields)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    # Two of 18 epochs of warm-up, then half a cosine; rates are for 256 images.
    rates = np.concatenate(taken)[:, 1]
    step = np.arange(18 * 9)
    falling = 0.5 * (1 + np.cos(np.pi * (step - 18) / (16 * 9)))
    np.testing.assert_allclose(rates, 32 / 256 * np.where(step < 18, step / 18, falling), atol=1e-6)


def test_large_batches_use_trust_ratios(monkeypatch):
    features, labels = blobs(200)
    fields = {"standard": linear.standardizer(features), "classes": 4, "epochs": 3, "seed": 0}
    chosen = np.ones(800, bool)
    small = sgd._train_softmax(features, labels, chosen, rates=(1.0,), **fields)
    monkeypatch.setattr(sgd, "_LARS_BATCH", 16)
    large = sgd._train_softmax(features, labels, chosen, rates=(1.0,), **fields)
    start = 0.01 * np.sqrt(8 * 4)
    moved = [np.linalg.norm(np.asarray(found[0][0])) for found in (small, large)]
    assert (
        moved[1] < 1.5 * start < moved[0]
    )  # each step moves the weights by a thousandth of their norm


def test_few_examples():
    train, test = blobs(30, spread=0.8), blobs(50, spread=0.8, seed=1)
    found = few_shot.few_shot_accuracies(*train, *test, 4)
    assert list(found) == [1, 5, 10, 25]
    means = [mean for mean, _ in found.values()]
    assert means[0] < means[2] and means[3] > 0.85
    assert found[1][1] > 0  # three different choices
    few = np.concatenate([np.flatnonzero(train[1] == c)[:6] for c in range(4)])
    assert list(few_shot.few_shot_accuracies(train[0][few], train[1][few], *test, 4)) == [1, 5]


def test_few_shot_against_big_vision_by_hand():
    """Primal ridge with a bias feature of 100 and penalty 1024."""
    (x, y), _ = blobs(5), None
    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-5
    weights, bias = few_shot._few_shot(x, y, 4, mean, std)
    z = np.pad((x - mean) / std, ((0, 0), (0, 1)), constant_values=100.0)
    t = 2.0 * np.eye(4)[y] - 1.0
    expected = np.linalg.solve(z.T @ z + 1024 * np.eye(9), z.T @ t)
    np.testing.assert_allclose(weights[0], expected[:-1], atol=1e-4)
    np.testing.assert_allclose(bias[0], 100 * expected[-1], atol=1e-3)


def test_probes_by_name():
    train, test = blobs(30), blobs(20, seed=1)
    found = probe.probe(("knn", "linear", "few_shot"), train, test, 4)
    assert {"knn_20", "knn_200", "linear", "few_shot_1", "few_shot_1_std"} <= set(found)
    with pytest.raises(ValueError, match="probe 'svm' is unknown; there is knn, linear"):
        probe.probe(("svm",), train, test, 4)


def test_agrees_with_scikit_learn():
    """On features of some difficulty: the same neighbours, and as good a linear classifier."""
    linear_model = pytest.importorskip("sklearn.linear_model", reason="needs scikit-learn")
    from sklearn.neighbors import KNeighborsClassifier

    train, test = blobs(500, spread=2.2, width=16), blobs(500, spread=2.2, width=16, seed=1)

    def weights(distance):
        return np.exp((1 - distance) / knn.TEMPERATURE)

    for k, ours in zip((20, 200), knn.knn_accuracies(*train, *test, 4, (20, 200)), strict=True):
        theirs = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights)
        assert ours == pytest.approx(theirs.fit(*train).score(*test), abs=0.005)
    standard = linear.standardizer(train[0])
    x, z = ((features - standard[0]) / standard[1] for features in (train[0], test[0]))
    ridge = linear_model.RidgeClassifierCV(np.float32(linear.PENALTIES) * len(x)).fit(x, train[1])
    ours = linear.linear_accuracy(*train, *test, 4)
    assert ours == pytest.approx(ridge.score(z, test[1]), abs=0.005)
    softmax = linear_model.LogisticRegression(C=np.inf).fit(x, train[1])
    ours = sgd.sgd_accuracy(*train, *test, 4, epochs=30)
    assert ours == pytest.approx(softmax.score(z, test[1]), abs=0.005)
    assert 0.5 < ours < 0.97


def test_the_penalty_is_chosen_on_all_classes_where_labels_are_periodic():
    """Every fifth example of labels 0 1 2 3 4 0 1 ... is of one class, of which the rest then has none."""
    labels = np.arange(100) % 5
    held = linear._held_out(labels)
    assert 10 <= held.sum() <= 30
    assert set(labels[held]) == set(labels[~held]) == set(range(5))
    shuffled = np.random.default_rng(0).permutation(labels)
    np.testing.assert_array_equal(linear._held_out(shuffled), np.arange(100) % 5 == 4)
