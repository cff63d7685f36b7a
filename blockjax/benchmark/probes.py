"""Accuracy and time of probes beside scikit-learn's."""

import time

import jax
import numpy as np

from blockjax.data.sources.splits import held_out
from blockjax.probes.knn import TEMPERATURE, knn_accuracies
from blockjax.probes.linear import PENALTIES, linear_accuracy, standardizer
from blockjax.probes.sgd import EPOCHS, RATES, sgd_accuracy
from blockjax.report.table import render_table


def probes(examples: int, width: int, tests: int = 5000, classes: int = 10) -> None:
    """Prints accuracy and time of probes beside scikit-learn's, on the same features: classes that overlap.

    Each is called twice and the second call is timed, so nothing is compiled in it.

    Raises:
      ValueError: scikit-learn is missing.
    """
    try:
        from sklearn.linear_model import LogisticRegression, RidgeClassifierCV, SGDClassifier
        from sklearn.neighbors import KNeighborsClassifier
    except ImportError as error:
        raise ValueError(
            "the benchmark compares with scikit-learn: pip install scikit-learn"
        ) from error
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(classes, width)).astype(np.float32)
    labels = rng.integers(0, classes, examples + tests)
    spread = 0.35 * np.sqrt(width)
    features = centers[labels] + spread * rng.normal(size=(len(labels), width)).astype(np.float32)
    train = features[:examples], labels[:examples]
    test = features[examples:], labels[examples:]
    mean, std = standardizer(train[0])
    scaled = [(part - mean) / std for part in (train[0], test[0])]

    def neighbours(k):
        def weights(distances):
            return np.exp((1.0 - distances) / TEMPERATURE)

        model = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=weights, n_jobs=-1
        )
        return model.fit(*train).score(*test)

    def linear(model):
        return model.fit(scaled[0], train[1]).score(scaled[1], test[1])

    def descent():
        """As many epochs at as many rates, the best by held-out data; an example at a time."""
        held = held_out(train[1], 10)

        def fitted(rate, rows):
            model = SGDClassifier(
                "log_loss",
                penalty=None,
                max_iter=EPOCHS,
                tol=None,
                learning_rate="constant",
                eta0=rate / 256,
                n_jobs=-1,
            )
            return model.fit(scaled[0][rows], train[1][rows])

        scores = [fitted(rate, ~held).score(scaled[0][held], train[1][held]) for rate in RATES]
        best = fitted(RATES[int(np.argmax(scores))], slice(None))
        return best.score(scaled[1], test[1])

    penalties = np.float64(PENALTIES) * examples
    pairs = {
        "kNN, 20": (
            lambda: knn_accuracies(*train, *test, classes, (20,))[0],
            lambda: neighbours(20),
        ),
        "kNN, 200": (
            lambda: knn_accuracies(*train, *test, classes, (200,))[0],
            lambda: neighbours(200),
        ),
        "kNN, 20 and 200 (mean)": (
            lambda: np.mean(knn_accuracies(*train, *test, classes)),
            lambda: np.mean([neighbours(20), neighbours(200)]),
        ),
        "linear (RidgeClassifierCV)": (
            lambda: linear_accuracy(*train, *test, classes),
            lambda: linear(RidgeClassifierCV(penalties)),
        ),
        "linear_sgd (SGDClassifier)": (
            lambda: sgd_accuracy(*train, *test, classes),
            descent,
        ),
        "linear_sgd (LogisticRegression)": (
            lambda: sgd_accuracy(*train, *test, classes),
            lambda: linear(LogisticRegression(C=np.inf, max_iter=1000)),
        ),
    }
    rows = []
    for name, (ours, theirs) in pairs.items():
        ours()
        (mine, seconds), (other, their_seconds) = map(_timed, (ours, theirs))
        rows.append([name, mine, other, seconds, their_seconds, their_seconds / seconds])
        print(f"{name}: {mine:.4f}, scikit-learn {other:.4f}", flush=True)
    render_table(
        f"probes of {examples:,} features of width {width}, {tests:,} queries, {jax.devices()[0].device_kind}",
        ["probe", "accuracy", "scikit-learn's", "s", "scikit-learn's s", "times faster"],
        rows,
    )


def _timed(function):
    start = time.perf_counter()
    value = function()
    return value, time.perf_counter() - start
