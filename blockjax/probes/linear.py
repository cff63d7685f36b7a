"""Linear classifiers in closed form: ridge regression."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from blockjax.data.sources.splits import held_out

# Ridge penalties, as multiples of the mean eigenvalue (features are standardised); the best on held-out data is used.
PENALTIES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
_ROWS = 8192


def linear_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
) -> float:
    """Accuracy of a ridge classifier in closed form, on standardised features.

    The penalty is chosen on a fifth of the training examples, held out; then all training examples are used.

    Args:
      train_features: [N, F].
      train_labels: int [N].
      test_features: [M, F].
      test_labels: int [M].
      classes: number of classes.

    Examples:
      >>> labels = np.arange(60) % 3
      >>> features = np.eye(3, 8, dtype=np.float32)[labels]
      >>> linear_accuracy(features, labels, features[:30], labels[:30], classes=3)
      1.0
    """
    standard = standardizer(train_features)
    held = _held_out(np.asarray(train_labels))
    rest = _Moments.of(train_features, train_labels, ~held, standard, classes)
    penalty = 1.0
    if held.any():
        weights = rest.ridge(np.float32(PENALTIES))
        scores = classifier_accuracies(weights, train_features, train_labels, held, standard)
        penalty = PENALTIES[int(np.argmax(scores))]
        rest = rest + _Moments.of(train_features, train_labels, held, standard, classes)
    weights = rest.ridge(np.float32([penalty]))
    everything = np.ones(len(test_features), bool)
    return float(
        classifier_accuracies(weights, test_features, test_labels, everything, standard)[0]
    )


def _held_out(labels):
    """Returns the mask of every fifth example; where that misses a class, as with periodic labels, a fifth of each."""
    every_fifth = np.arange(len(labels)) % 5 == 4
    parts = (np.unique(labels[part]) for part in (every_fifth, ~every_fifth))
    if all(len(part) == len(np.unique(labels)) for part in parts):
        return every_fifth
    return held_out(labels, 5)


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


def classifier_accuracies(classifiers, features, labels, chosen, standard):
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
