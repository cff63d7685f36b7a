"""Bytes that a step sends over the link between device and host, counted from its program before the compiler."""

from collections.abc import Callable

import jax
from jax.extend import core

from blockjax.xla.jaxprs import total

# The scope of a `jax.device_put` that only says where arrays are.
IS_THERE = "is_in_host_memory"


def host_link_bytes(
    jaxpr: core.ClosedJaxpr,
    to: jax.memory.Space | None = None,
    share: Callable[[tuple[int, ...]], float] = lambda shape: 1.0,
) -> float:
    """Returns the bytes that a program moves between the memories of device and host, both ways together or one way.

    Every `jax.device_put` to a memory space counts, as often as it runs (see `blockjax.xla.jaxprs.total`), with the
    bytes of what it moves, without the compiler's padding; but for those in the scope `IS_THERE`.

    Args:
      jaxpr: of the whole program.
      to: where to; None for both.
      share: of an array of this shape, what one device holds.
    """
    chosen = tuple(jax.memory.Space) if to is None else (to,)

    def moved(equation):
        if equation.primitive.name != "device_put":
            return None
        if IS_THERE in str(equation.source_info.name_stack):
            return 0.0
        targets = equation.params["devices"]
        return sum(
            source.aval.size * source.aval.dtype.itemsize * share(source.aval.shape)
            for source, target in zip(equation.invars, targets, strict=True)
            if target in chosen
        )

    return total(jaxpr, moved)
