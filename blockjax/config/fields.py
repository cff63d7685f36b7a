"""Fields of a config by name: set, saved, restored and compared."""

import json
from pathlib import Path
from typing import Any

import ml_collections

from blockjax.checks import did_you_mean, one_of
from blockjax.config.bounds import check_numbers
from blockjax.config.defaults import STRATEGIES, default_config
from blockjax.objectives import TASKS

# They compute the same numbers, so a run may go on under another one.
_EQUAL_STRATEGIES = ("blockwise", "streamed", "pipelined")
# Open in a config file, and filled in in every run's.
_FILLED = (
    *("model.width", "model.depth", "model.heads", "decoder.heads"),
    *("optimizer.warmup_steps", "checkpoint.every"),
)
# A resumed run may differ in these: they do not touch what is computed.
_MAY_CHANGE = ("checkpoint", "log", "probe", "data.dir", "mesh", "pipeline")


def set_field(config: ml_collections.ConfigDict, field: str, value: Any) -> None:
    """Sets a field given as a path, "model.depth".

    Raises:
      ValueError: there is no such field.
    """
    check_field(config, field)
    *groups, name = field.split(".")
    for group in groups:
        config = config[group]
    with config.ignore_type():
        config[name] = value


def check_field(config: ml_collections.ConfigDict, field: str) -> None:
    """Checks that a config has a field, given as a path, "model.depth".

    Raises:
      ValueError: it has not; names the nearest, also those of the same name in another group.
    """
    known = [*_flatten(config.to_dict())]
    groups = {name.rpartition(".")[0] for name in known} - {""}
    if field in known or field in groups:
        return
    name = field.rpartition(".")[2]
    elsewhere = [other for other in known if other.rpartition(".")[2] == name]
    hint = did_you_mean(field, known) or did_you_mean(name, known)
    if elsewhere:
        hint = f"did you mean {' or '.join(elsewhere)}? "
    raise ValueError(
        f"--config.{field}: there is no such field; {hint}blockjax/config/defaults.py lists all"
    )


def to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the config as JSON types."""
    return json.loads(json.dumps(config.to_dict()))


def from_json(saved: dict[str, Any]) -> ml_collections.ConfigDict:
    """Returns the config that `to_json` gave; fields that are younger than it have their defaults.

    Raises:
      ValueError: a field that does not exist, or something that is no config.
    """
    if not isinstance(saved, dict):
        raise ValueError(f"a config is an object of fields, not a {type(saved).__name__}")
    config = default_config()
    for field, value in _flatten(saved).items():
        set_field(config, field, tuple(value) if isinstance(value, list) else value)
    return config


def read_saved(path: Path) -> ml_collections.ConfigDict:
    """Returns the config that a run wrote to its config.json, with all that `resolve` filled in.

    Raises:
      ValueError: it cannot be read, is none, or lacks a field that every run has.
    """
    try:
        config = from_json(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{path} cannot be read: {reason}; restore it, or choose another --workdir"
        ) from error
    one_of(f"{path}: objective", config.objective, TASKS)
    one_of(f"{path}: strategy", config.strategy, STRATEGIES)
    needed = (*_FILLED, *TASKS[config.objective].defaults(config))
    if missing := [field for field in needed if _flatten(config.to_dict())[field] is None]:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}, which the run had; restore it, or choose another --workdir"
        )
    check_numbers(config)
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
