"""Operations of a step, counted from its program before the compiler."""

import math

from jax.extend import core

from blockjax.xla.jaxprs import total


def matmul_flops(jaxpr: core.ClosedJaxpr) -> float:
    """Returns the floating-point operations of all matrix products and convolutions, two for each multiply-add.

    How often loops and branches count, `blockjax.xla.jaxprs.total` says. XLA's own `cost_analysis` counts a loop's body
    once.
    """
    return total(jaxpr, equation_flops)


def equation_flops(equation: core.JaxprEqn) -> float | None:
    """Returns those of one equation; None for what is no matrix product or convolution."""
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        contracted = params["dimension_numbers"][0][0]
        left = equation.invars[0].aval.shape
        return 2.0 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, numbers = equation.invars[1].aval.shape, params["dimension_numbers"]
        taps = math.prod(kernel[axis] for axis in numbers.rhs_spec[1:])
        return 2.0 * equation.outvars[0].aval.size * taps
    return None
