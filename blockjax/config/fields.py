"""Fields of a config by name: checked, set, saved, restored and compared."""

import json
import numbers
from typing import Any

import ml_collections

from blockjax.checks import did_you_mean
from blockjax.config.defaults import default_config

# They compute the same numbers, so a run may go on under another one.
_EQUAL_STRATEGIES = ("blockwise", "streamed", "pipelined")
# What a field of a type takes, and how that is said.
_KINDS = {
    bool: (bool, "True or False"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "text"),
    tuple: ((tuple, list), "a list"),
}
# A resumed run may differ in these: they do not touch what is computed.
_MAY_CHANGE = ("checkpoint", "log", "probe", "data.dir", "data.workers", "mesh", "pipeline")


def set_field(config: ml_collections.ConfigDict, field: str, value: Any) -> None:
    """Sets a field given as a path, "model.depth".

    Raises:
      ValueError: there is no such field.

    Examples:
      >>> config = default_config()
      >>> set_field(config, "model.depth", 8)
      >>> config.model.depth
      8
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
      ValueError: it does not; names the nearest, also those of the same name in another group.
    """
    known = [*flatten(config.to_dict())]
    if field in known:
        return
    within = [name for name in known if name.startswith(f"{field}.")]
    if within:
        raise ValueError(f"--config.{field} is a group of fields; set one of {', '.join(within)}")
    group, dot, name = field.rpartition(".")
    siblings = [other[len(group + dot) :] for other in known if other.startswith(group + dot)]
    elsewhere = [other for other in known if other.rpartition(".")[2] == name]
    hint = did_you_mean(name, siblings, 0.5, group + dot) if dot else ""
    hint = hint or did_you_mean(field, known) or did_you_mean(name, known)
    if elsewhere:
        hint = f"did you mean {' or '.join(elsewhere)}? "
    raise ValueError(
        f"--config.{field}: there is no such field; {hint}blockjax/config/defaults.py lists all"
    )


def check_fields(config: ml_collections.ConfigDict) -> None:
    """Checks that a config has the fields of `default_config`, no others, each of its type or None.

    Raises:
      ValueError: it does not; names the field and what it may be.
    """
    _check_group(config, default_config(), "")


def _check_group(config, defaults, prefix):
    for key in config:
        if key not in defaults:
            known = [prefix + name for name in defaults]
            raise ValueError(
                f"config has no field {prefix}{key}; {did_you_mean(key, defaults, 0.5, prefix)}there is "
                f"{', '.join(known)}"
            )
        kind = defaults.get_type(key)
        if issubclass(kind, ml_collections.ConfigDict):
            if not isinstance(config[key], ml_collections.ConfigDict):
                raise ValueError(
                    f"config field {prefix}{key} is a group of fields, not {config[key]!r}"
                )
            _check_group(config[key], defaults[key], f"{prefix}{key}.")
        elif config[key] is not None and not isinstance(config[key], _KINDS[kind][0]):
            raise ValueError(f"{prefix}{key} must be {_KINDS[kind][1]}, not {config[key]!r}")
    if missing := [key for key in defaults if key not in config]:
        raise ValueError(
            f"config lacks {', '.join(prefix + key for key in missing)}; start from blockjax.config.default_config()"
        )


def to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the config as JSON types."""
    return json.loads(json.dumps(config.to_dict()))


def from_json(saved: dict[str, Any]) -> ml_collections.ConfigDict:
    """Returns the config that `to_json` gave; fields that are newer than it have their defaults.

    Raises:
      ValueError: a field that does not exist, or something that is not a config.
    """
    if not isinstance(saved, dict):
        raise ValueError(f"a config is an object of fields, not a {type(saved).__name__}")
    config = default_config()
    for field, value in flatten(saved).items():
        set_field(config, field, tuple(value) if isinstance(value, list) else value)
    return config


def differences(saved: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lists the fields in which two configs (from `to_json`) describe different runs, "field: saved -> new" each."""
    # A field that is younger than the saved run had its default's effect.
    saved = {**flatten(to_json(default_config())), **flatten(saved)}
    new = flatten(new)
    if saved["strategy"] in _EQUAL_STRATEGIES and new["strategy"] in _EQUAL_STRATEGIES:
        saved["strategy"] = new["strategy"]
    return [
        f"{key}: {saved.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in sorted({*saved, *new})
        if saved.get(key) != new.get(key)
        and not any(key == free or key.startswith(free + ".") for free in _MAY_CHANGE)
    ]


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the fields of nested groups by their paths, "model.depth"."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
