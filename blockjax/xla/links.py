"""Bytes that a step sends over the link between device and host, counted from its program before the compiler."""

from collections.abc import Callable

import jax
from jax.extend import core

from blockjax.xla.jaxprs import total


def host_link_bytes(
    jaxpr: core.ClosedJaxpr,
    to: jax.memory.Space | None = None,
    share: Callable[[tuple[int, ...]], float] = lambda shape: 1.0,
    still: str | None = None,
) -> float:
    """Returns the bytes that a program moves between the memories of device and host, both ways together or one way.

    Every `jax.device_put` to a memory space counts, as often as it runs (see `blockjax.xla.jaxprs.total`), with the
    bytes of what it moves, without the compiler's padding; but for those that move nothing, see `still`.

    Args:
      jaxpr: of the whole program.
      to: where to; None for both.
      share: of an array of this shape, what one device holds.
      still: the `jax.named_scope` of what only says where arrays are.
    """
    chosen = tuple(jax.memory.Space) if to is None else (to,)

    def moved(equation):
        if equation.primitive.name != "device_put":
            return None
        if still is not None and still in str(equation.source_info.name_stack):
            return 0.0
        targets = equation.params["devices"]
        return sum(
            source.aval.size * source.aval.dtype.itemsize * share(source.aval.shape)
            for source, target in zip(equation.invars, targets, strict=True)
            if target in chosen
        )

    return total(jaxpr, moved)
