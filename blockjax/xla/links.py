"""Bytes that a step sends over the link between device and host, counted from its program before the compiler."""

import jax
from jax.extend import core

from blockjax.xla.jaxprs import total


def host_link_bytes(jaxpr: core.ClosedJaxpr) -> float:
    """Returns the bytes that a program moves between the memories of device and host, both ways together.

    Every `jax.device_put` to a memory space counts, as often as it runs (see `blockjax.xla.jaxprs.total`), with the
    bytes of what it moves, without the compiler's padding.
    """
    return total(jaxpr, _moved)


def _moved(equation):
    if equation.primitive.name != "device_put":
        return None
    return float(
        sum(
            variable.aval.size * variable.aval.dtype.itemsize
            for variable, target in zip(equation.outvars, equation.params["devices"], strict=True)
            if isinstance(target, jax.memory.Space)
        )
    )
