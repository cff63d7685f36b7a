"""Classes and functions of your own in the place of names that blockjax knows: `module:Name`."""

import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from blockjax.checks import did_you_mean, one_of

# Names modules, with commas between, that a saved config may import.
VARIABLE = "BLOCKJAX_EXTENSIONS"
_allowed = set()
_REFERENCE = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")


def allow(*modules: str) -> None:
    """Allows saved configs to import these modules, from now on; see `check_allowed`."""
    _allowed.update(modules)


class NotAllowed(ValueError):
    """A saved config names code of somebody's own that nobody allowed to import."""


def chosen(field: str, name: str, known: Mapping[str, Any], base: type | None = None) -> Any:
    """Returns what a name in a config stands for: one of those that are known, or what `module:Name` defines.

    That module is allowed from then on: whoever gives a config wants what it names.

    Args:
      field: of the config, for messages.
      name: its value.
      known: what blockjax has, by name.
      base: the class of which your own is a subclass; None: it is a function.

    Raises:
      ValueError: the name is unknown, its module cannot be imported, or has no such class or function; says which.
    """
    if name in known:
        return known[name]
    match = _REFERENCE.fullmatch(str(name))
    if not match:
        one_of(field, name, [*known, "module:Name of your own"])
    module, given = _imported(field, name, match[1]), f"{field} {name!r}"
    allow(match[1])
    found = getattr(module, match[2], None)
    if found is None:
        near = did_you_mean(match[2], vars(module))
        raise ValueError(f"{given}: {module.__file__} defines no {match[2]}; {near}".rstrip("; "))
    if base is None:
        if not callable(found):
            raise ValueError(f"{given} is {type(found).__name__}; it must be a function or a class")
        return found
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{given} is no subclass of {base.__module__}.{base.__name__}")
    if inspect.isabstract(found):
        raise ValueError(f"{given} lacks {', '.join(sorted(found.__abstractmethods__))}")
    return found


def source_reference(spec: str) -> tuple[str, str] | None:
    """Returns a `data.source` of your own as (`module:Name`, argument), the argument behind a second colon or "".

    None where it is written otherwise, or there is no such module.
    """
    match = _REFERENCE.match(spec)
    rest = spec[match.end() :] if match else ""
    if not match or (rest and not rest.startswith(":")):
        return None
    top = match[1].partition(".")[0]
    if top not in sys.modules and importlib.util.find_spec(top) is None:
        return None
    return match[0], rest[1:]


def check_allowed(names: Iterable[str | None]) -> None:
    """Checks that what a saved config names may be imported: it may come from a stranger.

    Allowed are modules in $BLOCKJAX_EXTENSIONS, and those that `allow` or a config of this process named.

    Args:
      names: values of fields that may be `module:Name`.

    Raises:
      NotAllowed: one is of another module; says how to allow it.
    """
    allowed = {*_allowed, *os.environ.get(VARIABLE, "").split(",")}
    for name in names:
        match = _REFERENCE.match((name or "").strip())
        if match and match[1] not in allowed:
            raise NotAllowed(
                f"it names {match[0]}, code that is not blockjax's. If it is yours, put {VARIABLE}={match[1]} in front "
                f"of the command, or call blockjax.extensions.allow({match[1]!r})"
            )


def _imported(field, name, module):
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"{field} {name!r}: {module} cannot be imported: {error}") from error
        raise ValueError(
            f"{field} {name!r}: there is no module {error.name} in {os.getcwd()} or on Python's path; start with "
            "`python -m blockjax.main` in its folder, or name that in PYTHONPATH"
        ) from error
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"{field} {name!r}: {module} cannot be imported: {what}") from error
