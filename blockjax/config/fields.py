"""Fields of a config by name: set, saved, restored and compared."""

import json
from typing import Any

import ml_collections

from blockjax.config.defaults import default_config

# They compute the same numbers, so a run may go on under another one.
_EQUAL_STRATEGIES = ("blockwise", "streamed", "pipelined")
# A resumed run may differ in these: they do not touch what is computed.
_MAY_CHANGE = ("checkpoint", "log", "probe", "data.dir", "mesh", "pipeline")


def set_field(config: ml_collections.ConfigDict, field: str, value: Any) -> None:
    """Sets a field given as a path, "model.depth".

    Raises:
      ValueError: there is no such field.
    """
    *groups, name = field.split(".")
    for group in groups:
        config = config.get(group)
        if not isinstance(config, ml_collections.ConfigDict):
            raise ValueError(f"--config.{field}: there is no group {group!r}")
    if name not in config:
        raise ValueError(f"--config.{field}: there is no such field; there is {', '.join(config)}")
    with config.ignore_type():
        config[name] = value


def to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the config as JSON types."""
    return json.loads(json.dumps(config.to_dict()))


def from_json(saved: dict[str, Any]) -> ml_collections.ConfigDict:
    """Returns the config that `to_json` gave; fields that are younger than it have their defaults.

    Raises:
      ValueError: a field that does not exist.
    """
    config = default_config()
    for field, value in _flatten(saved).items():
        set_field(config, field, tuple(value) if isinstance(value, list) else value)
    return config


def differences(saved: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lists the fields in which two configs (from `to_json`) describe different runs, "field: saved -> new" each."""
    # A field that is younger than the saved run had its default's effect.
    saved = {**_flatten(to_json(default_config())), **_flatten(saved)}
    new = _flatten(new)
    if saved["strategy"] in _EQUAL_STRATEGIES and new["strategy"] in _EQUAL_STRATEGIES:
        saved["strategy"] = new["strategy"]
    return [
        f"{key}: {saved.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in sorted({*saved, *new})
        if saved.get(key) != new.get(key)
        and not any(key == free or key.startswith(free + ".") for free in _MAY_CHANGE)
    ]


def _flatten(tree, prefix=""):
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
