"""Walks through a program before the compiler, where loops still tell their length."""

import math
from collections.abc import Callable
from typing import Any

from jax.extend import core


def total(jaxpr: Any, of_equation: Callable[[Any], float | None]) -> float:
    """Returns the sum of a number over all equations of a program, each as often as it runs.

    Loops count as often as they turn, what devices do side by side under `shard_map` as often as there are of them, and
    what rematerialisation computes again counts again. Of a `cond` the most expensive branch counts; the body of a
    `while` loop whose length is not known counts once.

    Args:
      jaxpr: a `jax.extend.core.Jaxpr` or `ClosedJaxpr`.
      of_equation: an equation's number; None for what holds programs, whose equations count instead.
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    found = 0.0
    for equation in jaxpr.eqns:
        own = of_equation(equation)
        if own is not None:
            found += own
        elif equation.primitive.name == "cond":
            found += max(total(branch, of_equation) for branch in equation.params["branches"])
        else:
            inner = sum(total(part, of_equation) for part in programs(equation))
            found += inner * turns(equation)
    return found


def programs(equation: core.JaxprEqn) -> list[core.Jaxpr]:
    """Returns the programs that an equation's parameters are; not those of a `cond`, which are in a tuple."""
    found = equation.params.values()
    kinds = (core.ClosedJaxpr, core.Jaxpr)
    return [getattr(value, "jaxpr", value) for value in found if isinstance(value, kinds)]


def turns(equation: core.JaxprEqn) -> int:
    """Returns how often the program in an equation runs, on all devices together."""
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return params["length"]
    if name == "shard_map":  # whose shapes are a device's
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return 1
