"""Linear classifiers from a few examples of each class."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from blockjax.probes.linear import classifier_accuracies

# Few-shot ridge as in big_vision (google-research/big_vision, evaluators/fewshot_lsr.py).
SHOTS = (1, 5, 10, 25)
FEW_SHOT_SEEDS = 3
_FEW_SHOT_PENALTY, _FEW_SHOT_BIAS = 2.0**10, 100.0


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
                classifier_accuracies(classifier, test_features, test_labels, everything, standard)[
                    0
                ]
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
