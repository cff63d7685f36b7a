"""A config small enough to compile in seconds, made from the real one."""

import numpy as np

from blockjax import config as config_lib
from blockjax.learner.build import make_learner

STEPS = 20


def tiny_config(**overrides):
    """Returns default_config() with a tiny model, and any field set: tiny_config(**{"model.depth": 8})."""
    config = config_lib.default_config()
    config.steps = STEPS
    config.batch_size = 8
    config.mesh.data = 1
    config.model.width, config.model.depth, config.model.heads = 32, 4, 2
    config.model.patch_size = 8
    config.mask.ratio = 0.625
    config.decoder.width = 32
    config.decoder.fraction = 0.5
    config.optimizer.base_learning_rate = 0.03
    config.optimizer.warmup_steps = 0  # the first step must move parameters
    for field, value in overrides.items():
        group, _, name = field.rpartition(".")
        (config[group] if group else config)[name] = value
    return config


def tiny_learner(**overrides):
    """Returns a learner of the tiny config."""
    config = config_lib.resolve(tiny_config(**overrides), devices=1, platform="cpu")
    config_lib.fill_lengths(config, STEPS)
    return make_learner(config, STEPS)


def images(count=8, side=32, seed=0):
    """Returns random uint8 images that are smooth enough to have something to predict."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 4, 4, 3))
    return coarse.repeat(side // 4, axis=1).repeat(side // 4, axis=2).astype(np.uint8)


def marked(count):
    """Images of four classes, each with a bright quarter."""
    labels = np.arange(count) % 4
    found = images(count) // 4
    for image, label in zip(found, labels, strict=True):
        row, column = divmod(label, 2)
        image[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] += 128
    return found, labels


def marked_data(folder):
    """Writes such images, 240 to learn from and 80 to test with, to a file in a folder; returns its path."""
    train, test = marked(240), marked(80)
    path = folder / "quarters.npz"
    np.savez(
        path, train_images=train[0], train_labels=train[1], test_images=test[0], test_labels=test[1]
    )
    return path
