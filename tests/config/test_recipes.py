"""Every config in configs/ is one that can run, small and for ImageNet, with the numbers that its header names."""

import operator
import re
from pathlib import Path

import pytest

from blockjax import config as config_lib
from blockjax.config.files import load_config
from blockjax.learner.optimizer import peak_learning_rate
from blockjax.objectives import OBJECTIVES

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = sorted(OBJECTIVES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("argument", ["", ":model=b16,blocks=12", ":strategy=end_to_end,steps=7"])
def test_small_and_imagenet_recipes_are_whole(name, argument):
    config = load_config(f"{CONFIGS}/{name}.py{argument}")
    config.mesh.data = 1
    config = config_lib.resolve(config, devices=1, platform="tpu")
    assert config.objective == name
    is_large = "b16" in argument
    assert (config.model.width, config.model.image_size) == ((768, 224) if is_large else (96, 32))
    assert config.data.source == ("tfds:imagenet2012" if is_large else "embedded")
    cropped = tuple(config.data.crop_scale) != (1.0, 1.0)
    # Views and tiles are cut on the device; digits are never cropped.
    assert cropped == (is_large and name in ("mae", "beit", "rotation"))
    assert config.steps == (7 if "steps" in argument else None if is_large else 400)
    assert config.strategy == ("end_to_end" if "end_to_end" in argument else "blockwise")


# What each recipe's source has, as its header says. `peak` is the learning rate at the recipe's batch, and the warm-up
# is in epochs.
# fmt: off
ADAMW = {"optimizer.b1": 0.9, "optimizer.b2": 0.999, "optimizer.clip": 0.0, "optimizer.layer_decay": 1.0}
MAE = ADAMW | {
    "batch_size": 4096, "epochs": 800, "warmup_epochs": 40, "peak": 2.4e-3, "optimizer.weight_decay": 0.05,
    "optimizer.b2": 0.95, "data.crop_scale": (0.2, 1.0), "data.flip": True, "mask.ratio": 0.75,
    "loss.normalize_pixels": True,
}
BEIT = ADAMW | {
    "batch_size": 2048, "epochs": 800, "warmup_epochs": 10, "peak": 1.5e-3, "optimizer.weight_decay": 0.05,
    "optimizer.b2": 0.98, "optimizer.clip": 3.0, "data.crop_scale": (0.08, 1.0), "data.flip": True,
    "mask.ratio": 0.384,  # 75 of 196
}
DEIT = ADAMW | {
    "batch_size": 1024, "epochs": 100, "warmup_epochs": 5, "peak": 1e-3, "optimizer.weight_decay": 0.05,
}
TILES = DEIT | {
    "tiles.image_size": 256, "tiles.crop": 255, "tiles.size": 64, "tiles.gray": 0.66, "head.hidden": 4096,
}
MOCO_V3 = ADAMW | {"batch_size": 4096, "epochs": 300, "warmup_epochs": 40, "model.freeze_embedding": True}
MOMENTUM = MOCO_V3 | {"views.recipe": "byol", "head.hidden": 4096, "head.width": 256, "momentum.decay": 0.99}
WIDE = MOCO_V3 | {
    "batch_size": 2048, "peak": 1.2e-3, "optimizer.weight_decay": 0.1, "views.recipe": "byol", "head.hidden": 8192,
    "head.width": 8192,
}
SOURCES = {
    "mae.py:model=b16": MAE,
    "mae.py:model=b16,epochs=1600": MAE | {"epochs": 1600, "warmup_epochs": 80},
    "bim.py": MAE,
    "beit.py:model=b16": BEIT,
    "beit.py:model=l16": BEIT | {"optimizer.clip": 1.0},
    "rotation.py:model=b16": DEIT | {"data.crop_scale": (0.08, 1.0), "data.flip": True},
    "jigsaw.py:model=b16": TILES | {"head.width": 1000, "tiles.permutations": 1000, "tiles.per_image": 8},
    "context.py:model=b16": TILES,
    "simclr.py:model=b16": MOCO_V3 | {
        "peak": 3.2e-3, "optimizer.weight_decay": 0.1, "loss.temperature": 0.1, "views.recipe": "simclr",
        "head.hidden": 2048, "head.width": 128,
    },
    "moco.py:model=b16": MOMENTUM | {
        "peak": 2.4e-3, "optimizer.weight_decay": 0.1, "loss.temperature": 0.2, "momentum.queue": 0,
    },
    "byol.py:model=b16": MOMENTUM | {"peak": 1.6e-3, "optimizer.weight_decay": 0.03},
    "barlow_twins.py:model=b16": WIDE | {"loss.off_diagonal": 0.0051},
    "vicreg.py:model=b16": WIDE,
    "finetune.py:recipe=mae": ADAMW | {
        "batch_size": 1024, "epochs": 100, "warmup_epochs": 5, "peak": 2e-3, "optimizer.weight_decay": 0.05,
        "optimizer.layer_decay": 0.65, "data.crop_scale": (0.08, 1.0), "data.flip": True, "classifier.drop_path": 0.1,
        "classifier.label_smoothing": 0.1, "classifier.mixup": 0.8, "classifier.cutmix": 1.0, "classifier.erase": 0.25,
    },
}
# fmt: on
IMAGENET = 1_281_167  # training images


@pytest.mark.parametrize("file", SOURCES)
def test_imagenet_recipes_have_the_numbers_of_their_sources(file):
    config = load_config(f"{CONFIGS}/{file}")
    config.mesh.data = 1
    if "finetune" in file:  # the model is the backbone's
        with config.ignore_type():
            config.blocks, config.model.preset = 4, "b"
            config.model.image_size, config.model.patch_size = 224, 16
    config = config_lib.resolve(config, devices=1, platform="tpu")
    steps = config_lib.total_steps(config, IMAGENET)
    config_lib.fill_lengths(config, steps)
    peak = peak_learning_rate(config.optimizer.base_learning_rate, config.batch_size)
    # Rounded, as a warm-up is a whole number of steps.
    warmup = round(config.optimizer.warmup_steps * config.epochs / steps, 1)
    derived = {"peak": round(peak, 9), "warmup_epochs": warmup}
    found = {
        field: derived[field] if field in derived else operator.attrgetter(field)(config)
        for field in SOURCES[file]
    }
    assert found == SOURCES[file]


@pytest.mark.parametrize("name", NAMES)
def test_small_recipes_are_those_that_were_measured(name):
    config = load_config(f"{CONFIGS}/{name}.py")
    config.mesh.data = 1
    config = config_lib.resolve(config, devices=1, platform="cpu")
    config_lib.fill_lengths(config, config_lib.total_steps(config, 4000))
    # fmt: off
    optimizer = {
        "base_learning_rate": 2e-3, "warmup_steps": 20, "weight_decay": 0.05, "b1": 0.9, "b2": 0.95, "clip": 0.0,
    }
    # fmt: on
    if name == "beit":
        optimizer |= {"b2": 0.98, "clip": 3.0}
    assert {field: config.optimizer[field] for field in optimizer} == optimizer
    assert (config.steps, config.batch_size, config.model.freeze_embedding) == (400, 128, False)
    assert config.momentum.decay == (0.99 if name in ("moco", "byol") else None)


def test_a_recipe_in_steps_warms_up_for_the_same_share():
    config = load_config(f"{CONFIGS}/moco.py:model=b16,steps=3000")
    config_lib.fill_lengths(config, 3000)
    assert config.optimizer.warmup_steps == 400


@pytest.mark.parametrize("name", NAMES)
def test_headers_say_how_to_run(name):
    text = (CONFIGS / f"{name}.py").read_text()
    assert f"--config configs/{name}.py --workdir runs/{name}" in text
    (argument,) = re.findall(rf"configs/{name}\.py(:model=\S+)", text)
    assert load_config(f"{CONFIGS}/{name}.py{argument}").blocks == 4


def test_a_model_that_cannot_be_read_is_named():
    with pytest.raises(ValueError, match="model=huge is unknown; it may be ti, s, b, l or h"):
        load_config(f"{CONFIGS}/simclr.py:model=huge")


@pytest.mark.parametrize(
    "recipe, rate, shift", [("quickstart", 1.6e-2, 0), ("digits", 1.6e-2, 3), ("mae", 5e-4, 0)]
)
def test_fine_tuning_takes_its_rate_and_shift_from_the_command(recipe, rate, shift):
    config = load_config(f"{CONFIGS}/finetune.py:recipe={recipe}")
    assert (config.optimizer.base_learning_rate, config.data.shift) == (rate, shift)
    config = load_config(f"{CONFIGS}/finetune.py:recipe={recipe},rate=1e-3,shift=1,steps=7,pool=2")
    assert (config.optimizer.base_learning_rate, config.data.shift) == (1e-3, 1)
    assert config.classifier.pool == 2
    assert (config.steps, config.epochs) == (7, None)
    none = load_config(f"{CONFIGS}/finetune.py:recipe={recipe},shift=0")
    assert none.data.shift == 0
