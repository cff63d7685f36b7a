"""The rates of attached devices, measured."""

import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from blockjax.xla.rates import Rates

_LONG = 0.02  # seconds that are enough to be measured
_TIMES = 20
_LARGEST = 2**30  # bytes of an array
_SPACE = jax.memory.Space


def measured_rates(
    devices: list[jax.Device], clock: Callable[[], float] = time.perf_counter
) -> Rates:
    """Measures the rates of the devices, all busy at the same time; takes seconds.

    Each is the best of some runs: of square matrix products, of doubling each number of an array in place, of fetching
    one from host memory and taking it back (None where the device does not address it), and of gathering one on all.

    Args:
      devices: of this process.
      clock: tells seconds.
    """
    mesh = Mesh(devices, ("device",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("device",), ()))
    count = len(devices)

    def product_rate(dtype):
        return _rate(
            lambda a: jnp.matmul(a, a),
            lambda side: jnp.zeros((count, side, side), dtype),
            split,
            256,
            lambda side: 2.0 * side**3,
            clock,
        )

    def copy_rate(change, sharding, moved):
        return _rate(
            change,
            lambda size: jnp.ones((count, size // 4), jnp.float32),
            sharding,
            2**20,
            lambda size: moved * size,
            clock,
        )

    def through_device(a):
        return jax.device_put(2.0 * jax.device_put(a, _SPACE.Device), _SPACE.Host)

    link = collectives = None
    kinds = [memory.kind for memory in devices[0].addressable_memories()]
    if "pinned_host" in kinds:
        link = copy_rate(through_device, split.with_memory_kind("pinned_host"), 2.0)
    if count > 1:
        gather = jax.jit(lambda a: a, out_shardings=whole)
        collectives = copy_rate(lambda a: gather(a) + 0.0, split, count)
    return Rates(
        bfloat16=product_rate(jnp.bfloat16),
        float32=product_rate(jnp.float32),
        memory=copy_rate(lambda a: 2.0 * a, split, 2.0),
        link=link,
        collectives=collectives,
    )


def _rate(change, first, sharding, size, amount, clock):
    """Returns the amount a second that a function does, at a size at which it takes long enough to be measured."""
    step = jax.jit(change, donate_argnums=0, out_shardings=sharding)
    while True:
        made = jax.eval_shape(lambda size=size: first(size))
        array = jax.jit(lambda size=size: first(size), out_shardings=sharding)()
        array = jax.block_until_ready(step(array))  # compiles
        seconds = math.inf
        for _ in range(_TIMES):
            start = clock()
            array = jax.block_until_ready(step(array))
            seconds = min(seconds, clock() - start)
        if seconds >= _LONG or 2 * made.size * made.dtype.itemsize > _LARGEST:
            return amount(size) / seconds
        size *= 2
