"""Config files: read as `--config` reads them, and the arguments behind their colon."""

import importlib.util
from pathlib import Path

import ml_collections


def parse_argument(argument: str | None, **defaults):
    """Reads "name=value,name=value" into a dict, each value of the type of its default.

    Args:
      argument: what stands behind the colon in `--config file.py:...`.
      **defaults: the names that may be given, and their values where they are not.

    Raises:
      ValueError: an unknown name, or a value that cannot be read; says what would fit.
    """
    values = dict(defaults)
    for part in (argument or "").split(","):
        if not part:
            continue
        name, equals, text = part.partition("=")
        if name not in defaults or not equals:
            known = ", ".join(f"{key}={value}" for key, value in defaults.items())
            raise ValueError(
                f"config argument {part!r} is unknown; arguments and their defaults: {known}"
            )
        kind = type(defaults[name])
        try:
            values[name] = kind(text)
        except ValueError as error:
            raise ValueError(
                f"config argument {name}={text!r} is not a number of type {kind.__name__}"
            ) from error
    return values


def load_config(file: str) -> ml_collections.ConfigDict:
    """Returns the config of a file, given as `path` or `path:argument`, as `--config` reads it.

    Raises:
      ValueError: there is no such file.
    """
    path, _, argument = file.partition(":")
    if not Path(path).is_file():
        raise ValueError(f"--config {path}: there is no such file")
    spec = importlib.util.spec_from_file_location("config_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument) if argument else module.get_config()
