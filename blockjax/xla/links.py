"""Bytes that a step sends over the link between device and host, counted from its program before the compiler."""

from collections.abc import Callable

import jax
from jax.extend import core

from blockjax.xla.jaxprs import total


def host_link_bytes(
    jaxpr: core.ClosedJaxpr, share: Callable[[tuple[int, ...]], float] = lambda shape: 1.0
) -> float:
    """Returns the bytes that a program moves between the memories of device and host, both ways together.

    Every `jax.device_put` to a memory space counts, as often as it runs (see `blockjax.xla.jaxprs.total`), with the
    bytes of what it moves, without the compiler's padding.

    Args:
      jaxpr: of the whole program.
      share: of an array of this shape, what one device holds.
    """

    def moved(equation):
        if equation.primitive.name != "device_put":
            return None
        targets = equation.params["devices"]
        return sum(
            variable.aval.size * variable.aval.dtype.itemsize * share(variable.aval.shape)
            for variable, target in zip(equation.outvars, targets, strict=True)
            if isinstance(target, jax.memory.Space)
        )

    return total(jaxpr, moved)
