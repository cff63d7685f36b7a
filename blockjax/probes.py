"""Probes of frozen features: weighted nearest neighbours, linear classifiers, and classifiers from a few examples.

Features are arrays [N, F], float32, on the host or in files that are mapped into memory: they are read in parts, so
they may be larger than the device's memory. Labels are integers from 0. Every accuracy is in [0, 1].
"""

import functools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from blockjax.features import array_features, pixels
from blockjax.learner import Learner
from blockjax.models.heads import l2_normalize
from blockjax.state import TrainState

# Weighted kNN as in DINO's evaluation (facebookresearch/dino, eval_knn.py), which reports 20 and 200 neighbours.
NEIGHBOURS = 20
REPORTED_NEIGHBOURS = (20, 200)
TEMPERATURE = 0.07
# Ridge penalties, as multiples of the mean eigenvalue (features are standardised); the best on held-out data is used.
PENALTIES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
# Few-shot ridge as in big_vision (google-research/big_vision, evaluators/fewshot_lsr.py).
SHOTS = (1, 5, 10, 25)
FEW_SHOT_SEEDS = 3
_FEW_SHOT_PENALTY, _FEW_SHOT_BIAS = 2.0**10, 100.0
# MAE's linear probe (facebookresearch/mae, main_linprobe.py): 90 epochs, 10 of them warm-up, momentum 0.9, no weight
# decay, LARS for its batches of 16,384. Rates are for 256 images.
EPOCHS, WARMUP_EPOCHS, MOMENTUM = 90, 10, 0.9
RATES = (0.03, 0.1, 0.3, 1.0)
_LARS_BATCH = 4096
# Features of as many steps as this holds go to the device together.
_PART_BYTES = 64 << 20

# Similarities of one part of the queries (some 30 MB) go into memory that the system need not clear anew each time;
# two parts are searched at a time, as sorting keeps one core busy only. On 2 cores this takes two thirds of the time.
_QUERIES, _SEARCHES = 125, 2
_BANK, _GROUP = 1 << 16, 16
_ROWS = 8192


# Of what `probe` can be asked for; in this order.
PROBES = ("knn", "linear", "linear_sgd", "few_shot")


def probe(
    names: Sequence[str],
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    classes: int,
) -> dict[str, float]:
    """Probes features.

    Args:
      names: of `PROBES`.
      train: features [N, F] and labels [N] that are learned from.
      test: the same, on which accuracy is measured.
      classes: number of classes.

    Returns:
      Accuracies: for "knn" knn_20 and knn_200; for "linear" (ridge regression) and "linear_sgd" (MAE's protocol) one
      each; for "few_shot" few_shot_N, and few_shot_N_std over three choices of N examples of each class.
    """
    found = {}
    for name in names:
        if name == "knn":
            accuracies = knn_accuracies(*train, *test, classes)
            found |= {
                f"knn_{k}": value for k, value in zip(REPORTED_NEIGHBOURS, accuracies, strict=True)
            }
        elif name == "linear":
            found["linear"] = linear_accuracy(*train, *test, classes)
        elif name == "linear_sgd":
            found["linear_sgd"] = sgd_accuracy(*train, *test, classes)
        elif name == "few_shot":
            for shots, (mean, std) in few_shot_accuracies(*train, *test, classes).items():
                found |= {f"few_shot_{shots}": mean, f"few_shot_{shots}_std": std}
        else:
            raise ValueError(f"probe {name!r} is unknown; there is {', '.join(PROBES)}")
    return found


def probe_blocks(
    learner: Learner,
    state: TrainState,
    untrained: TrainState,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    classes: int,
    pool: int,
) -> list[dict[str, Any]]:
    """Probes pixels, an untrained encoder and every block, as a run does at its end.

    Args:
      learner: the run's functions.
      state: the trained state.
      untrained: the state before the first step; its best block is the row `untrained`.
      train: (images uint8 [n, H, W, 3], labels int [n]) that the probes learn from.
      test: the same, on which accuracy is measured.
      classes: number of classes.
      pool: side of the grid over which tokens are averaged.

    Returns:
      A list of {"features", "knn", "linear"}, accuracies in [0, 1], for pixels, untrained, block_1 ... block_K.
    """

    def probed(train_features, test_features):
        data = train_features, train[1], test_features, test[1], classes
        return {"knn": knn_accuracy(*data), "linear": linear_accuracy(*data)}

    def of_every_depth(state):
        mesh = getattr(state.step.sharding, "mesh", None)
        params = learner.backbone_params(state)
        both = (
            array_features(learner.backbone, params, images, pool, mesh)
            for images in (train[0], test[0])
        )
        return [probed(*features) for features in zip(*both, strict=True)]

    rows = [{"features": "pixels", **probed(pixels(train[0]), pixels(test[0]))}]
    best = max(of_every_depth(untrained), key=lambda row: row["linear"])
    rows.append({"features": "untrained", **best})
    rows += [
        {"features": f"block_{k}", **row} for k, row in enumerate(of_every_depth(state), start=1)
    ]
    return rows


def knn_accuracies(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
    neighbours: Sequence[int] = REPORTED_NEIGHBOURS,
) -> list[float]:
    """Accuracies of weighted k-nearest neighbours, one for each k.

    Similarity is the cosine; the k nearest vote for their classes with the weight exp(similarity / 0.07). Where there
    are fewer than k, all vote.
    """
    most = min(max(neighbours), len(train_features))
    # One part of the bank is on the device at a time; all its parts have one shape.
    size = min(_BANK, -(-len(train_features) // _GROUP) * _GROUP)
    starts = range(0, len(train_features), size)
    right = np.zeros(len(neighbours))
    best = [None] * -(-len(test_features) // _QUERIES)
    for start in starts:
        part = np.asarray(train_features[start : start + size], np.float32)
        real = len(part)
        bank = jax.jit(l2_normalize)(
            part if real == size else np.pad(part, ((0, size - real), (0, 0)))
        )

        def search(i, bank=bank, real=real):
            queries = np.asarray(test_features[i * _QUERIES : (i + 1) * _QUERIES], np.float32)
            found = _nearest(bank, queries, np.int32(real), min(most, size), real < size)
            return jax.device_get(found)

        with ThreadPoolExecutor(_SEARCHES) as pool:
            for i, found in enumerate(pool.map(search, range(len(best)))):
                best[i] = _merged(best[i], found, start, most)
    for i, (similarity, nearest) in enumerate(best):
        labels = test_labels[i * _QUERIES : (i + 1) * _QUERIES]
        votes = np.asarray(train_labels)[nearest]
        weights = np.exp((similarity - similarity[:, :1]) / TEMPERATURE)
        for n, k in enumerate(neighbours):
            places = classes * np.arange(len(labels))[:, None] + votes[:, :k]
            scores = np.bincount(places.ravel(), weights[:, :k].ravel(), classes * len(labels))
            scores = scores.reshape(len(labels), classes)
            right[n] += np.sum(scores.argmax(axis=1) == labels)
    return [float(count) / len(test_labels) for count in right]


def knn_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
) -> float:
    """Accuracy of weighted k-nearest neighbours with k = 20, see `knn_accuracies`."""
    data = train_features, train_labels, test_features, test_labels
    (accuracy,) = knn_accuracies(*data, classes, (NEIGHBOURS,))
    return accuracy


@functools.partial(jax.jit, static_argnums=(3, 4))
def _nearest(bank_NF, queries_QF, real, k, is_padded):
    """Similarities and indices of the k nearest, [Q, k] each, nearest first, among the first `real` of the bank.

    Sorting all similarities is most of the work, so groups are compared by their greatest ones first: the k nearest lie
    in the k best groups.
    """
    similarity_QN = l2_normalize(queries_QF) @ bank_NF.T
    if is_padded:
        similarity_QN = jnp.where(jnp.arange(len(bank_NF))[None] < real, similarity_QN, -jnp.inf)
    groups = len(bank_NF) // _GROUP
    if groups <= k:
        return jax.lax.top_k(similarity_QN, k)
    grouped_QGM = similarity_QN.reshape(-1, groups, _GROUP)
    _, chosen_Qk = jax.lax.top_k(grouped_QGM.max(axis=-1), k)
    candidates = jnp.take_along_axis(grouped_QGM, chosen_Qk[:, :, None], axis=1)
    similarity_Qk, place_Qk = jax.lax.top_k(candidates.reshape(len(queries_QF), -1), k)
    group_Qk = jnp.take_along_axis(chosen_Qk, place_Qk // _GROUP, axis=1)
    return similarity_Qk, group_Qk * _GROUP + place_Qk % _GROUP


def _merged(before, found, start, most):
    similarity, nearest = found[0], found[1] + start
    if before is not None:
        similarity = np.concatenate([before[0], similarity], axis=1)
        nearest = np.concatenate([before[1], nearest], axis=1)
        order = np.argsort(-similarity, axis=1, kind="stable")[:, :most]
        similarity = np.take_along_axis(similarity, order, axis=1)
        nearest = np.take_along_axis(nearest, order, axis=1)
    # What fills up the last part of the bank is no neighbour.
    return similarity, np.where(np.isfinite(similarity), nearest, 0)


def linear_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
) -> float:
    """Accuracy of a ridge classifier in closed form, on standardised features.

    The penalty is chosen on every fifth training example, held out; then all training examples are used.
    """
    standard = standardizer(train_features)
    held = np.arange(len(train_features)) % 5 == 4
    rest = _Moments.of(train_features, train_labels, ~held, standard, classes)
    penalty = 1.0
    if held.any():
        weights = rest.ridge(np.float32(PENALTIES))
        scores = _linear_accuracies(weights, train_features, train_labels, held, standard)
        penalty = PENALTIES[int(np.argmax(scores))]
        rest = rest + _Moments.of(train_features, train_labels, held, standard, classes)
    weights = rest.ridge(np.float32([penalty]))
    everything = np.ones(len(test_features), bool)
    return float(_linear_accuracies(weights, test_features, test_labels, everything, standard)[0])


def standardizer(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and the standard deviation (and 1e-5) of each feature, [F] each."""
    count, total = 0, 0.0
    for part in _parts(features):
        count, total = count + len(part), total + part.sum(axis=0, dtype=np.float64)
    mean = total / count
    squares = sum(
        np.square(part - mean.astype(np.float32)).sum(axis=0, dtype=np.float64)
        for part in _parts(features)
    )
    return mean.astype(np.float32), np.sqrt(squares / count).astype(np.float32) + 1e-5


class _Moments:
    """Sums over examples from which ridge regression follows, for targets -1 and 1: they add up over parts of the
    data.
    """

    def __init__(self, count, sums):
        self._count, self._sums = count, sums

    @classmethod
    def of(cls, features, labels, chosen, standard, classes):
        """Of those examples of features [N, F] that are `chosen`, bool [N]."""
        width = features.shape[1]
        sums = (
            jnp.zeros((width, width)),
            jnp.zeros((width, classes)),
            jnp.zeros(width),
            jnp.zeros(classes),
        )
        for part, label, weight in _parts_of_one_shape(features, labels, chosen):
            sums = _add_moments(sums, part, label, weight, *standard)
        return cls(int(np.sum(chosen)), sums)

    def __add__(self, other):
        return _Moments(self._count + other._count, jax.tree.map(jnp.add, self._sums, other._sums))

    def ridge(self, penalties):
        """Returns weights [penalties, F, classes] and biases [penalties, classes]."""
        return _solve(self._count, self._sums, penalties)


@functools.partial(jax.jit, donate_argnums=0)
def _add_moments(sums, features, labels, weight, mean, std):
    gram, moments, features_sum, targets_sum = sums
    features = (features - mean[None]) / std[None] * weight[:, None]
    targets = (2.0 * jax.nn.one_hot(labels, len(targets_sum)) - 1.0) * weight[:, None]
    return (
        gram + features.T @ features,
        moments + features.T @ targets,
        features_sum + features.sum(axis=0),
        targets_sum + targets.sum(axis=0),
    )


@jax.jit
def _solve(count, sums, penalties):
    gram, moments, features_sum, targets_sum = sums
    center, bias = features_sum / count, targets_sum / count
    gram = gram / count - jnp.outer(center, center)
    moments = moments / count - jnp.outer(center, bias)
    scale = jnp.trace(gram) / len(gram)

    def solved(penalty):
        damped = gram + penalty * scale * jnp.eye(len(gram))
        weights = jax.scipy.linalg.solve(damped, moments, assume_a="pos")
        return weights, bias - center @ weights

    return jax.lax.map(solved, penalties)


def _linear_accuracies(classifiers, features, labels, chosen, standard):
    """Accuracies [C] of linear classifiers, weights [C, F, classes] and biases [C, classes], on chosen examples."""
    right = 0
    for part, label, weight in _parts_of_one_shape(features, labels, chosen):
        right = right + np.asarray(_count_right(*classifiers, part, label, weight, *standard))
    return right / np.sum(chosen)


@jax.jit
def _count_right(weights, biases, features, labels, weight, mean, std):
    features = (features - mean[None]) / std[None]
    predicted = jnp.argmax(jnp.einsum("nf,pfc->pnc", features, weights) + biases[:, None], axis=-1)
    return jnp.sum((predicted == labels[None]) * weight[None], axis=1)


def sgd_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
) -> float:
    """Accuracy of softmax regression trained as MAE's linear probe is, on features without augmentation.

    BatchNorm without scale and offset stands in front (here with the statistics of all training features), then a dense
    layer that starts with a standard deviation of 0.01; SGD with momentum, LARS for batches of 4,096 and more. All of
    `RATES` are trained at once; the best on held-out data, every tenth example, is trained on all.

    Args:
      train_features: float [N, F].
      train_labels: int [N].
      test_features: float [M, F].
      test_labels: int [M].
      classes: number of classes.
      epochs: passes over the training features.
      seed: of the first weights and the order.
    """
    mean, std = standardizer(train_features)
    held = np.arange(len(train_features)) % 10 == 9
    train = functools.partial(
        _train_softmax,
        train_features,
        train_labels,
        standard=(mean, std),
        classes=classes,
        epochs=epochs,
        seed=seed,
    )
    rate = RATES[0]
    if held.any():
        classifiers = train(~held, rates=RATES)
        scores = _linear_accuracies(classifiers, train_features, train_labels, held, (mean, std))
        rate = RATES[int(np.argmax(scores))]
    classifier = train(np.ones(len(train_features), bool), rates=(rate,))
    everything = np.ones(len(test_features), bool)
    return float(
        _linear_accuracies(classifier, test_features, test_labels, everything, (mean, std))[0]
    )


def _train_softmax(features, labels, chosen, *, standard, classes, epochs, seed, rates):
    """Returns weights [rates, F, classes] and biases [rates, classes]."""
    indices = np.flatnonzero(chosen)
    # About 50 steps an epoch at least, as MAE's 78 are; batches of a power of 2.
    batch = int(2 ** np.clip(math.floor(math.log2(max(len(indices) / 50, 1))), 5, 14))
    batch = min(batch, len(indices))
    steps = len(indices) // batch
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, 1.0, max(1, WARMUP_EPOCHS * epochs // EPOCHS * steps), epochs * steps
    )
    shares = np.asarray(schedule(np.arange(epochs * steps)), np.float32)
    rates_SR = shares[:, None] * np.float32(rates) * batch / 256
    weights = 0.01 * jax.random.normal(jax.random.key(seed), (features.shape[1], classes))
    weights = jnp.broadcast_to(weights, (len(rates), *weights.shape))
    state = (weights, jnp.zeros((len(rates), classes)))
    momentum = jax.tree.map(jnp.zeros_like, state)
    order = np.random.default_rng(seed)
    train = functools.partial(_softmax_steps, batch >= _LARS_BATCH)
    together = max(1, _PART_BYTES // (4 * batch * features.shape[1]))
    for epoch in range(epochs):
        rows_SB = order.permutation(indices)[: steps * batch].reshape(steps, batch)
        for start in range(0, steps, together):
            rows = np.sort(
                rows_SB[start : start + together]
            )  # neighbours in a file are read together
            now = slice(epoch * steps + start, epoch * steps + start + len(rows))
            part = np.asarray(features[rows], np.float32), labels[rows], rates_SR[now]
            state, momentum = train(state, momentum, *part, *standard)
    return state


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _softmax_steps(is_lars, classifiers, momentum, features_SBF, labels_SB, rates_SR, mean, std):
    """Trains R classifiers, each at its rates, for S steps."""

    def step(carry, batch):
        features, labels, rates = batch
        features = (features - mean[None]) / std[None]

        def loss(classifier):
            weights, bias = classifier
            logits = features @ weights + bias[None]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        def update(classifier, momentum, rate):
            grads = jax.grad(loss)(classifier)
            if is_lars:  # trust ratios for the weights; biases take the plain step (facebookresearch/mae, util/lars.py)
                ratio = 0.001 * optax.tree.norm(classifier[0]) / (optax.tree.norm(grads[0]) + 1e-12)
                grads = (grads[0] * ratio, grads[1])
            momentum = jax.tree.map(lambda m, g: MOMENTUM * m + g, momentum, grads)
            return jax.tree.map(lambda p, m: p - rate * m, classifier, momentum), momentum

        return jax.vmap(update)(*carry, rates), None

    carry, _ = jax.lax.scan(step, (classifiers, momentum), (features_SBF, labels_SB, rates_SR))
    return carry


def few_shot_accuracies(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
    shots: Sequence[int] = SHOTS,
) -> dict[int, tuple[float, float]]:
    """Accuracies of ridge classifiers from a few examples of each class, as in big_vision's `fewshot_lsr`.

    Features are standardised by the chosen examples, a constant of 100 is their bias, the penalty is 2¹⁰.

    Returns:
      {shots: (mean, standard deviation) over three choices of examples}; without those that have no class of that size.
    """
    labels = np.asarray(train_labels)
    places = [np.flatnonzero(labels == c) for c in range(classes)]
    most = max(map(len, places))
    found = {}
    for count in shots:
        if count > most:
            continue
        scores = []
        for seed in range(FEW_SHOT_SEEDS):
            rng = np.random.default_rng(seed)
            # A class with fewer examples gives all that it has.
            chosen = np.concatenate([rng.permutation(place)[:count] for place in places])
            features = np.asarray(train_features[np.sort(chosen)], np.float32)
            standard = features.mean(axis=0), features.std(axis=0) + 1e-5
            classifier = _few_shot(features, labels[np.sort(chosen)], classes, *standard)
            everything = np.ones(len(test_features), bool)
            scores.append(
                _linear_accuracies(classifier, test_features, test_labels, everything, standard)[0]
            )
        found[count] = (float(np.mean(scores)), float(np.std(scores)))
    return found


@functools.partial(jax.jit, static_argnums=2)
def _few_shot(features, labels, classes, mean, std):
    features = (features - mean[None]) / std[None]
    features = jnp.pad(features, ((0, 0), (0, 1)), constant_values=_FEW_SHOT_BIAS)
    targets = 2.0 * jax.nn.one_hot(labels, classes) - 1.0
    gram = features @ features.T + _FEW_SHOT_PENALTY * jnp.eye(len(features))
    # Through the examples' products with each other, of which there are fewer than features.
    weights = features.T @ jax.scipy.linalg.solve(gram, targets, assume_a="pos")
    return weights[None, :-1], _FEW_SHOT_BIAS * weights[None, -1]


def _parts(features):
    for start in range(0, len(features), _ROWS):
        yield np.asarray(features[start : start + _ROWS], np.float32)


def _parts_of_one_shape(features, labels, chosen):
    """Yields features, labels and weights, 1 for chosen examples; all parts have one shape, so that one program
    runs.
    """
    size = min(_ROWS, len(features))
    for start in range(0, len(features), size):
        part = np.asarray(features[start : start + size], np.float32)
        label = np.asarray(labels[start : start + size], np.int32)
        weight = np.asarray(chosen[start : start + size], np.float32)
        missing = size - len(part)
        yield (
            np.pad(part, ((0, missing), (0, 0))),
            np.pad(label, (0, missing)),
            np.pad(weight, (0, missing)),
        )
