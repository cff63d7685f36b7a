"""Linear classifiers by gradient descent: MAE's protocol."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from blockjax.data.sources.splits import held_out
from blockjax.probes.linear import classifier_accuracies, standardizer

# MAE's linear probe (facebookresearch/mae, main_linprobe.py): 90 epochs, 10 of them warm-up, momentum 0.9, no weight
# decay, LARS for its batches of 16,384. Rates are for 256 images.
EPOCHS, WARMUP_EPOCHS, MOMENTUM = 90, 10, 0.9
RATES = (0.03, 0.1, 0.3, 1.0)
_LARS_BATCH = 4096
# Features of as many steps as this holds go to the device together.
_PART_BYTES = 64 << 20


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
    `RATES` are trained at once; the best on held-out data, a tenth of each class, is trained on all.

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
    held = held_out(np.asarray(train_labels), 10)
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
        scores = classifier_accuracies(classifiers, train_features, train_labels, held, (mean, std))
        rate = RATES[int(np.argmax(scores))]
    classifier = train(np.ones(len(train_features), bool), rates=(rate,))
    everything = np.ones(len(test_features), bool)
    return float(
        classifier_accuracies(classifier, test_features, test_labels, everything, (mean, std))[0]
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
