"""Operations of a step, counted from its program before the compiler, where loops still tell their length."""

import math
from typing import Any

from jax.extend import core


def matmul_flops(jaxpr: core.ClosedJaxpr) -> float:
    """Returns the floating-point operations of all matrix products and convolutions, two for each multiply-add.

    Loops count as often as they turn, and what rematerialisation computes again counts again. XLA's own
    `cost_analysis` counts a loop's body once. Of a `cond` the most expensive branch counts; the body of a `while` loop
    whose length is not known counts once.
    """
    return _count(jaxpr.jaxpr)


def _count(jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            contracted = params["dimension_numbers"][0][0]
            left = equation.invars[0].aval.shape
            total += 2.0 * _size(equation.outvars[0]) * math.prod(left[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel, numbers = equation.invars[1].aval.shape, params["dimension_numbers"]
            taps = math.prod(kernel[axis] for axis in numbers.rhs_spec[1:])
            total += 2.0 * _size(equation.outvars[0]) * taps
        elif name == "cond":
            total += max(_count(branch.jaxpr) for branch in params["branches"])
        else:
            inner = sum(_count(part) for value in params.values() for part in _jaxprs(value))
            total += inner * params["length"] if name == "scan" else inner
    return total


def _jaxprs(value: Any) -> list:
    """Returns the programs inside an equation's parameter."""
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    return []


def _size(variable):
    return math.prod(variable.aval.shape)
