"""Weighted nearest neighbours."""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from blockjax.models.heads import l2_normalize

# Weighted kNN as in DINO's evaluation (facebookresearch/dino, eval_knn.py), which reports 20 and 200 neighbours.
NEIGHBOURS = 20
REPORTED_NEIGHBOURS = (20, 200)
TEMPERATURE = 0.07
# Similarities of one part of the queries (some 30 MB) go into memory that the system need not clear anew each time;
# two parts are searched at a time, as sorting keeps one core busy only. On 2 cores this takes two thirds of the time.
_QUERIES, _SEARCHES = 125, 2
_BANK, _GROUP = 1 << 16, 16


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

    Args:
      train_features: [N, F].
      train_labels: int [N].
      test_features: [M, F].
      test_labels: int [M].
      classes: number of classes.
      neighbours: the k.

    Examples:
      >>> directions = np.eye(3, 8, dtype=np.float32)
      >>> labels = np.arange(60) % 3
      >>> train, test = directions[labels], 2 * directions[labels[:30]]
      >>> knn_accuracies(train, labels, test, labels[:30], classes=3, neighbours=(1, 20))
      [1.0, 1.0]
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
