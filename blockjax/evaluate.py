"""What every block learned: kNN and a linear probe on frozen features, beside raw pixels and an untrained encoder."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from blockjax.learner import Learner
from blockjax.objectives.patches import patchify, standardize
from blockjax.sharding import replicated
from blockjax.state import TrainState

PyTree = Any

# Weighted kNN as in DINO's evaluation (facebookresearch/dino, eval_knn.py): 20 neighbours, temperature 0.07.
NEIGHBOURS = 20
TEMPERATURE = 0.07
# Ridge penalties, as multiples of the mean eigenvalue (features are standardised); the best on held-out data is used.
PENALTIES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0)
_BATCH = 250
_PIXEL_SIDE = 32


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
    """Probes pixels, an untrained encoder and every block.

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
    probe = functools.partial(_probe, train[1], test[1], classes)
    rows = [{"features": "pixels", **probe(pixels(train[0]), pixels(test[0]))}]
    before = [
        probe(*features)
        for features in zip(
            block_features(learner, untrained, train[0], pool),
            block_features(learner, untrained, test[0], pool),
            strict=True,
        )
    ]
    rows.append({"features": "untrained", **max(before, key=lambda row: row["linear"])})
    pairs = zip(
        block_features(learner, state, train[0], pool),
        block_features(learner, state, test[0], pool),
        strict=True,
    )
    rows += [
        {"features": f"block_{k}", **probe(*features)} for k, features in enumerate(pairs, start=1)
    ]
    return rows


def pixels(images_BHWC: np.ndarray) -> np.ndarray:
    """Returns raw pixels as features, [B, F] float32 in [0, 1]; images above 32 pixels a side are averaged down."""
    factor = max(1, images_BHWC.shape[1] // _PIXEL_SIDE)
    side = images_BHWC.shape[1] // factor
    images_BHWC = images_BHWC[:, : side * factor, : side * factor].astype(np.float32) / 255.0
    cut = images_BHWC.reshape(-1, side, factor, side, factor, 3)
    return cut.mean(axis=(2, 4)).reshape(len(images_BHWC), -1)


def block_features(
    learner: Learner, state: TrainState, images_BHWC: np.ndarray, pool: int
) -> list[np.ndarray]:
    """Returns the features of every block: its tokens, normalised and averaged over a pool x pool grid.

    A mean over all tokens would hide where things are, which a linear probe on small images needs.

    Returns:
      K arrays [B, pool² · D], float32, on the host.
    """
    mesh = getattr(state.step.sharding, "mesh", None)
    devices = mesh.size if mesh else 1
    size = -(-_BATCH // devices) * devices
    padding = -len(images_BHWC) % size
    padded = np.concatenate([images_BHWC, images_BHWC[:1].repeat(padding, axis=0)])
    batches = []
    for i in range(0, len(padded), size):
        batch = padded[i : i + size]
        if devices > 1:  # each device, of whatever process, takes its share
            split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
            batch = jax.make_array_from_callback(batch.shape, split, batch.__getitem__)
        batches.append(jax.device_get(_features(learner, pool, mesh, state, batch)))
    return list(np.concatenate(batches, axis=1)[:, : len(images_BHWC)])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _features(learner, pool, mesh, state, images_BHWC):
    patches = patchify(images_BHWC, learner.vit.patch_size)
    positions = jnp.broadcast_to(jnp.arange(patches.shape[1]), patches.shape[:2])
    inputs = {"patches": standardize(patches), "positions": positions}

    def readout(tokens_BTD):
        return _pooled(tokens_BTD[:, 1:].astype(jnp.float32), *learner.vit.grid, pool)

    return replicated(learner.read(state, inputs, readout), mesh)


def _pooled(tokens_BND, rows, columns, pool):
    mean = tokens_BND.mean(axis=-1, keepdims=True)
    tokens_BND = (tokens_BND - mean) / jnp.sqrt(tokens_BND.var(axis=-1, keepdims=True) + 1e-6)
    batch, _, width = tokens_BND.shape
    cells = tokens_BND.reshape(batch, pool, rows // pool, pool, columns // pool, width)
    return cells.mean(axis=(2, 4)).reshape(batch, -1)


def _probe(train_labels, test_labels, classes, train_features, test_features):
    return {
        "knn": knn_accuracy(train_features, train_labels, test_features, test_labels, classes),
        "linear": linear_accuracy(
            train_features, train_labels, test_features, test_labels, classes
        ),
    }


def knn_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
) -> float:
    """Accuracy of weighted k-nearest neighbours: cosine similarity, votes exp(similarity / 0.07) of the 20 nearest."""
    train, test = jnp.asarray(_unit(train_features)), _unit(test_features)
    votes = jax.nn.one_hot(train_labels, classes)
    predicted = [_vote(train, votes, test[i : i + 1000]) for i in range(0, len(test), 1000)]
    return float(np.mean(np.concatenate(predicted) == test_labels))


@jax.jit
def _vote(train_features, votes, queries):
    k = min(NEIGHBOURS, len(train_features))
    similarity, nearest = jax.lax.top_k(queries @ train_features.T, k)
    weights = jnp.exp((similarity - similarity[:, :1]) / TEMPERATURE)
    return jnp.argmax(jnp.einsum("bk,bkc->bc", weights, votes[nearest]), axis=-1)


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
    mean, std = train_features.mean(axis=0), train_features.std(axis=0) + 1e-5
    train, test = (train_features - mean) / std, (test_features - mean) / std
    targets = 2.0 * np.eye(classes, dtype=np.float32)[train_labels] - 1.0
    held = np.arange(len(train)) % 5 == 4
    if held.any():
        predicted = _ridge(train[~held], targets[~held], np.float32(PENALTIES), train[held])
        scores = np.mean(np.asarray(predicted) == train_labels[held], axis=1)
        penalty = PENALTIES[int(np.argmax(scores))]
    else:
        penalty = 1.0
    predicted = _ridge(train, targets, np.float32([penalty]), test)
    return float(np.mean(np.asarray(predicted)[0] == test_labels))


@jax.jit
def _ridge(features, targets, penalties, queries):
    """Predicted classes of the queries for each penalty, [penalties, queries]: ridge regression with a free bias."""
    center, bias = features.mean(axis=0), targets.mean(axis=0)
    features, targets = features - center[None], targets - bias[None]
    gram = features.T @ features / len(features)
    moments = features.T @ targets / len(features)
    scale = jnp.trace(gram) / len(gram)

    def predict(penalty):
        damped = gram + penalty * scale * jnp.eye(len(gram))
        weights = jax.scipy.linalg.solve(damped, moments, assume_a="pos")
        return jnp.argmax((queries - center[None]) @ weights + bias[None], axis=-1)

    return jax.lax.map(predict, penalties)


def _unit(features):
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-8)
