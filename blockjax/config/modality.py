"""Which fields are for images only and which for text, and what a model of text must have."""

from typing import Any

import ml_collections

from blockjax.checks import divisors, one_of
from blockjax.config.defaults import default_config
from blockjax.config.fields import flatten
from blockjax.data.tokens import load_tokens
from blockjax.models.layers import MLPS, NORMS
from blockjax.models.text import POSITIONS, TEXT_PRESETS
from blockjax.models.vit import PRESETS
from blockjax.objectives import OBJECTIVES, TEXT_OBJECTIVES, find_task

# By field or group of fields.
OF_IMAGES = (
    *("model.image_size", "model.patch_size", "model.freeze_embedding", "model.learned_positions"),
    *("mask.schedule", "decoder", "loss.normalize_pixels", "loss.implementation"),
    *("loss.temperature", "loss.off_diagonal", "views", "momentum", "tiles", "tokenizer"),
    *("head.readout", "head.expansion", "head.hidden", "head.width", "classifier"),
    *("data.flip", "data.crop_scale", "data.shift", "data.on_corrupt", "probe.pool"),
)
OF_TEXT = (
    *("model.context", "model.vocabulary", "model.positions", "model.norm", "model.mlp"),
    *("model.bias", "model.tied", "loss.chunk", "data.tokenizer"),
)
_BACKBONE = ("backbone", "depth_blocks", "grow", "from_scratch", "tune_blocks")
_CONTEXT = 256


def is_text(config: ml_collections.ConfigDict) -> bool:
    """Returns whether a config's objective learns from text."""
    return find_task(config.objective).modality == "text"


def presets(config: ml_collections.ConfigDict) -> dict[str, tuple[int, int, int]]:
    """Returns what `model.preset` may be, each as (width, depth, heads)."""
    return {**PRESETS, **TEXT_PRESETS} if is_text(config) else PRESETS


def check_modality(config: ml_collections.ConfigDict) -> None:
    """Checks that a config sets no field of the other modality, as a config file returns it.

    Raises:
      ValueError: it does; names the field, and the objectives that have it.
    """
    text = is_text(config)
    others = OF_IMAGES if text else OF_TEXT
    fitting = ", ".join(OBJECTIVES if text else TEXT_OBJECTIVES)
    for field, (value, default) in _changed(config, others).items():
        raise ValueError(
            f"{field}={value!r} is for {'images' if text else 'text'}, and objective={config.objective} learns from "
            f"{'text' if text else 'images'}; set it back to {default!r}, or objective to one of {fitting}"
        )
    if not text:
        return
    for field, (value, default) in _changed(config, _BACKBONE).items():
        raise ValueError(
            f"{field}={value!r}: runs on text start from random numbers; set it back to {default!r}"
        )
    if not config.data.source.startswith(("text:", "tfds:")):
        raise ValueError(
            f"data.source={config.data.source!r} has images, and objective={config.objective} learns from text; set "
            "data.source to text:stdlib, text:<file or folder> or tfds:<name>"
        )


def fill_text(config: ml_collections.ConfigDict) -> None:
    """Fills in what a config of text leaves open.

    Raises:
      ValueError: the tokenizer, whose vocabulary it is, cannot be read.
    """
    if config.model.context is None:
        config.model.context = _CONTEXT
    if config.model.vocabulary is None:
        config.model.vocabulary = load_tokens(config.data.tokenizer).vocabulary


def check_widths(model: ml_collections.ConfigDict) -> None:
    """Checks what the layers of every encoder share: heads that divide the width, and an MLP with a hidden unit.

    Raises:
      ValueError: they do not fit together; says what would.
    """
    if model.width % model.heads:
        raise ValueError(
            f"model.width {model.width} is not divisible by model.heads {model.heads}; "
            f"numbers of heads that fit: {divisors(model.width)}"
        )
    if int(model.width * model.mlp_ratio) < 1:
        raise ValueError(
            f"model.mlp_ratio {model.mlp_ratio:g} leaves an MLP of model.width {model.width} no hidden unit; set it to "
            f"at least {1 / model.width:g}"
        )


def check_text_model(model: ml_collections.ConfigDict) -> None:
    """Checks the sizes of an encoder of text.

    Raises:
      ValueError: they do not fit together; says what would.
    """
    one_of("model.positions", model.positions, POSITIONS)
    one_of("model.norm", model.norm, NORMS)
    one_of("model.mlp", model.mlp, MLPS)
    check_widths(model)
    if model.positions == "rotary" and model.width // model.heads % 2:
        raise ValueError(
            f"model.positions=rotary rotates pairs of channels, and model.width {model.width} over model.heads "
            f"{model.heads} gives {model.width // model.heads} each, an odd number; set "
            "model.positions=learned, or another number of model.heads"
        )


def _changed(config, fields) -> dict[str, tuple[Any, Any]]:
    """Returns those of the fields that differ from their defaults, each with its value and that."""
    values, defaults = flatten(config.to_dict()), flatten(default_config().to_dict())
    groups = tuple(f"{field}." for field in fields)
    return {
        name: (value, defaults.get(name))
        for name, value in values.items()
        if (name in fields or name.startswith(groups))
        and _plain(value) != _plain(defaults.get(name))
    }


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
