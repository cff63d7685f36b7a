"""Walks through a program before the compiler, where loops still tell their length."""

from collections.abc import Callable
from typing import Any

from jax.extend import core


def total(jaxpr: Any, of_equation: Callable[[Any], float | None]) -> float:
    """Returns the sum of a number over all equations of a program, each as often as it runs.

    Loops count as often as they turn, and what rematerialisation computes again counts again. Of a `cond` the most
    expensive branch counts; the body of a `while` loop whose length is not known counts once.

    Args:
      jaxpr: a `jax.extend.core.Jaxpr` or `ClosedJaxpr`.
      of_equation: an equation's number; None for what holds programs, whose equations count instead.
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    found = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        own = of_equation(equation)
        if own is not None:
            found += own
        elif name == "cond":
            found += max(total(branch, of_equation) for branch in params["branches"])
        else:
            inner = sum(
                total(part, of_equation) for value in params.values() for part in _jaxprs(value)
            )
            found += inner * params["length"] if name == "scan" else inner
    return found


def _jaxprs(value):
    """Returns the programs that an equation's parameter is, or holds."""
    return [value] if isinstance(value, (core.ClosedJaxpr, core.Jaxpr)) else []
