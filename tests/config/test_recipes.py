"""Every config in configs/ is one that can run, small and for ImageNet."""

import re
from pathlib import Path

import pytest

from blockjax import config as config_lib
from blockjax.config.files import load_config
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


@pytest.mark.parametrize("name", NAMES)
def test_headers_say_how_to_run(name):
    text = (CONFIGS / f"{name}.py").read_text()
    assert f"--config configs/{name}.py --workdir runs/{name}" in text
    (argument,) = re.findall(rf"configs/{name}\.py(:model=\S+)", text)
    assert load_config(f"{CONFIGS}/{name}.py{argument}").blocks == 4


def test_a_model_that_cannot_be_read_is_named():
    with pytest.raises(ValueError, match="model=huge is unknown; it may be ti, s, b, l or h"):
        load_config(f"{CONFIGS}/simclr.py:model=huge")
