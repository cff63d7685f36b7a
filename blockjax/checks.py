"""Checks of what a person gives: what was given, what would fit, and where to change it."""

import dataclasses
import difflib
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# What arrays, counters and their files hold.
INT32 = 2**31 - 1
UINT32 = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class Bound:
    """From where to where a number may be; NaN and infinities never are.

    Attributes:
      low: the least value.
      high: the greatest.
      above: whether `low` itself is too little.
      below: whether `high` itself is too much.

    Examples:
      >>> Bound(0, 1).check("mask.ratio", 1.5)
      Traceback (most recent call last):
      ...
      ValueError: mask.ratio must be from 0 to 1, not 1.5
    """

    low: float = 0
    high: float = math.inf
    above: bool = False
    below: bool = False

    def check(self, name: str, value: float) -> None:
        """Checks the value of a field.

        Raises:
          ValueError: it is out of bounds; says what it may be.
        """
        is_low = value < self.low or (self.above and value == self.low)
        is_high = value > self.high or (self.below and value == self.high)
        if math.isfinite(value) and not is_low and not is_high:
            return
        given = f"{value:g}" if isinstance(value, float) else str(value)
        raise ValueError(f"{name} must be {self.wanted(is_high)}, not {given}")

    def wanted(self, is_high: bool = False) -> str:
        """Says what a number may be, in answer to one that was too high or not."""
        low = f"{'above' if self.above else 'at least'} {self.low:g}"
        if self.high > 1e3:  # only there to keep slips and overflows out
            return f"at most {self.high:,.0f}" if is_high else low
        if self.above:
            return f"{low} and {'below' if self.below else 'at most'} {self.high:g}"
        return f"from {self.low:g} to {'below ' if self.below else ''}{self.high:g}"


def check_bounds(values: dict[str, float | None], bounds: dict[str, Bound]) -> None:
    """Checks numbers by name; None is a field that is left open.

    Raises:
      ValueError: one is out of bounds; names it, and says what it may be.
    """
    for name, bound in bounds.items():
        if values[name] is not None:
            bound.check(name, values[name])


def factors(name: str, text: str, count: int) -> tuple[float, ...]:
    """Returns so many factors, of a text, separated by commas.

    Raises:
      ValueError: it cannot be read, has another number of them, or one is negative or not finite.
    """
    try:
        found = tuple(map(float, text.split(",")))
    except ValueError:
        found = ()
    if len(found) != count or not all(0 <= factor < math.inf for factor in found):
        raise ValueError(
            f"{name} {text!r} should be {count} numbers of at least 0, separated by commas, one for each block"
        )
    return found


def given_path(name: str, path: str | os.PathLike) -> Path:
    """Returns a path that a person gave, with its ~ expanded; there need not be anything.

    Raises:
      ValueError: it is empty, or no path on this system.
    """
    if not str(path):
        raise ValueError(f"{name} is empty; name a file or folder, or leave it out")
    try:
        found = Path(path).expanduser()
        found.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long; null bytes; nobody's home
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{name} {path} cannot be used: {reason}") from error
    return found


def one_of(name: str, value: Any, known: Iterable[Any]) -> None:
    """Checks that a value is one of those that are known.

    Raises:
      ValueError: it is not; names the nearest, and all.
    """
    known = [*known]
    if value not in known:
        raise ValueError(
            f"{name} {value!r} is unknown; {did_you_mean(value, known)}it may be one of {', '.join(map(str, known))}"
        )


def did_you_mean(value: Any, known: Iterable[Any], cutoff: float = 0.6, prefix: str = "") -> str:
    """Returns "did you mean 'x'? " for the nearest of what is known; "" where nothing is near.

    A prefix, which all share, is shown and does not make them nearer.
    """
    near = difflib.get_close_matches(str(value), [str(k) for k in known], n=1, cutoff=cutoff)
    return f"did you mean {prefix + near[0]!r}? " if near else ""


def near_path(path: Path, prefix: str = "") -> str:
    """Returns "did you mean 'x'? " for what lies where a path leads to nothing and is called nearly like it, or "".

    A prefix is put before what is shown.
    """
    try:
        names = os.listdir(path.parent)
    except OSError:
        return ""
    return did_you_mean(path.name, names, prefix=f"{prefix}{path.parent}{os.sep}")


def divisors(number: int) -> str:
    """Lists the divisors of a number, separated by commas; of a large number the smallest."""
    found = [i for i in range(1, min(number, 4096) + 1) if number % i == 0]
    return ", ".join(map(str, found)) + (", ..." if number > 4096 else "")
