"""Where the configs of several objectives start from: one encoder for small images, one for ImageNet."""

import re

import ml_collections

from blockjax.config.defaults import default_config
from blockjax.config.files import parse_argument
from blockjax.objectives import find_task

_MODEL = r"(ti|s|b|l|h)(\d+)"


def recipe(argument: str | None, objective: str, **imagenet: float) -> ml_collections.ConfigDict:
    """Returns the config of an objective, small or for ImageNet.

    Args:
      argument: what follows the colon in `--config file.py:...`: `model=`, `size=`, `strategy=`, `blocks=`,
        `data=`, `batch=`, `epochs=`, `steps=`. Without any, the small recipe: four blocks of one layer on the embedded
        images, for a CPU. With `model=` (s16, b16, ...) the one for ImageNet.
      objective: its name.
      **imagenet: `batch`, `epochs`, `warmup_epochs`, `base_learning_rate` (for 256 images), `weight_decay` and `b2` of
        the ImageNet recipe, and `least_crop`, the least share of an image's area that a crop has (default: MAE's 0.2).
        A run that is made shorter or longer warms up for the same share of it.

    Whatever the source has, in all ImageNet recipes matrices decay and nothing else; the learning rate starts and ends
    at 0; images are resampled bilinearly; every block has a head of its own. Views and tiles are cut, in an image's own
    proportions, from all of it, after it was resized to a square of twice the encoder's image size.

    Raises:
      ValueError: the argument cannot be read.
    """
    given = parse_argument(
        argument,
        model="",
        size=0,
        strategy="blockwise",
        blocks=4,
        data="",
        batch=0,
        epochs=0.0,
        steps=0,
    )
    config = _imagenet(given, imagenet) if given["model"] else _small(given)
    config.objective = objective
    config.strategy = given["strategy"]
    config.blocks = given["blocks"]
    if not find_task(objective).host_crops:
        # Views and tiles are cut and mirrored on the device, by recipes of their own.
        config.data.flip, config.data.crop_scale, config.data.shift = False, (1.0, 1.0), 0
    return config


def _small(given):
    config = default_config()
    config.steps = given["steps"] or None
    config.epochs = given["epochs"] or None
    if not config.steps and not config.epochs:
        config.steps = 400
    config.batch_size = given["batch"] or 128

    config.model.width, config.model.depth, config.model.heads = 96, 4, 3
    config.model.image_size = given["size"] or 32
    if config.model.image_size % 8 == 0:  # as many tokens at any size
        config.model.patch_size = config.model.image_size // 8
    config.data.source = given["data"] or "embedded"
    if config.data.source == "embedded":  # digits must not be mirrored, and a crop would cut them
        config.data.flip, config.data.crop_scale, config.data.shift = False, (1.0, 1.0), 3
        config.views.recipe = "digits"

    config.optimizer.base_learning_rate = 2e-3  # 1e-3 at this batch
    config.log.every = 10
    config.probe.pool = 4
    return config


def _imagenet(given, recipe):
    match = re.fullmatch(_MODEL, given["model"])
    if not match:
        raise ValueError(
            f"config argument model={given['model']} is unknown; it may be ti, s, b, l or h with a patch size: b16"
        )
    config = default_config()
    config.steps = given["steps"] or None
    config.epochs = given["epochs"] or (None if config.steps else recipe["epochs"])
    config.batch_size = given["batch"] or recipe["batch"]

    config.model.preset = match[1]
    config.model.patch_size = int(match[2])
    config.model.image_size = given["size"] or 224
    config.data.source = given["data"] or "tfds:imagenet2012"
    if config.data.source == "tfds:imagenet2012":
        config.data.test_split = "validation"
    config.data.workers = 8

    config.data.crop_scale = (recipe.get("least_crop", 0.2), 1.0)
    for name in ("base_learning_rate", "weight_decay", "b2"):
        config.optimizer[name] = recipe[name]
    config.optimizer.warmup_share = recipe["warmup_epochs"] / recipe["epochs"]
    return config
