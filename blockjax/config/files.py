"""Config files: found by path or by name, read as `--config` reads them, and the arguments behind their colon."""

import importlib.util
import traceback
from pathlib import Path

import ml_collections

from blockjax.checks import did_you_mean, given_path
from blockjax.config.fields import check_fields

_PACKAGE = Path(__file__).parents[1]
# A wheel carries configs/ inside of the package; in a clone it lies beside it.
_FOLDER = _PACKAGE / "configs"
if not _FOLDER.is_dir():
    _FOLDER = _PACKAGE.parent / "configs"


def parse_argument(argument: str | None, **defaults):
    """Reads "name=value,name=value" into a dict, each value of the type of its default.

    Args:
      argument: what follows the colon in `--config file.py:...`.
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


def config_names() -> list[str]:
    """Returns the names of the configs that come with blockjax."""
    return sorted(path.stem for path in _FOLDER.glob("*.py"))


def config_name(config: str) -> str:
    """Returns what a run of a config is called: its name, or that of its file, without folder and argument."""
    return Path(config.partition(":")[0]).stem


def find_config(config: str) -> str:
    """Returns the path of a config's file, with the argument that it was given.

    Args:
      config: a path or, without folder and ending, the name of a config that comes with blockjax, where there is no
        file of that name; each followed by `:argument` if it takes any.

    Raises:
      ValueError: there is no such file, and no such name; says what there is.
    """
    path, colon, argument = config.partition(":")
    given_path("--config", path)
    if Path(path).is_file():
        return config
    names = config_names()
    if path in names:
        return f"{_FOLDER / path}.py{colon}{argument}"
    what = "that is a folder" if Path(path).is_dir() else "there is no such file"
    raise ValueError(
        f"--config {path}: {what}; {did_you_mean(config_name(path), names)}give the path of a config file, or the name "
        f"of one that comes with blockjax: {', '.join(names)}"
    )


def load_config(config: str) -> ml_collections.ConfigDict:
    """Returns the config of a file or a name, with or without `:argument`, as `--config` reads it.

    Raises:
      ValueError: there is no such file or name, it is not a config file, or it fails; says where and why.

    Examples:
      >>> load_config("quickstart").objective
      'mae'
      >>> load_config("bim:model=b16,blocks=6").blocks
      6
    """
    path, _, argument = find_config(config).partition(":")
    if not path.endswith(".py"):
        raise ValueError(
            f"--config {path} is not a Python file: a config file defines get_config(). A run goes on with the config "
            "file and the --workdir that it began with"
        )
    spec = importlib.util.spec_from_file_location("config_file", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ValueError(f"--config {path}, line {error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(_failed(path, error)) from error
    if not callable(getattr(module, "get_config", None)):
        raise ValueError(f"--config {path} defines no get_config(), which returns the config")
    try:
        config = module.get_config(argument) if argument else module.get_config()
    except (Exception, SystemExit) as error:
        raise ValueError(_failed(path, error)) from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(
            f"get_config() of --config {path} returns {type(config).__name__}, not a ConfigDict; start from "
            "blockjax.config.default_config()"
        )
    try:
        check_fields(config)
    except ValueError as error:
        raise ValueError(f"--config {path}: {error}") from error
    return config


def _failed(path, error):
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    line = f", line {own[-1].lineno}" if own else ""
    what = (
        "" if isinstance(error, ValueError) else f" {type(error).__name__}:"
    )  # that says what does not fit
    return f"--config {path}{line}:{what} {error}"
