"""Probes of frozen features: weighted nearest neighbours, linear classifiers, and classifiers from a few examples.

Features are arrays [N, F], float32, on the host or in files that are mapped into memory: they are read in parts, so
they may be larger than the device's memory. Labels are integers from 0. Every accuracy is in [0, 1].
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from blockjax.learner.learner import Learner
from blockjax.probes.features import array_features, pixels
from blockjax.probes.few_shot import few_shot_accuracies
from blockjax.probes.knn import REPORTED_NEIGHBOURS, knn_accuracies, knn_accuracy
from blockjax.probes.linear import linear_accuracy
from blockjax.probes.sgd import sgd_accuracy
from blockjax.strategies.state import TrainState

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
