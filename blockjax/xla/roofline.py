"""How long a step takes at least: what it computes and moves, over the best rates of a device."""

import dataclasses
from collections.abc import Iterable, Mapping

from blockjax.xla.rates import Rates
from blockjax.xla.work import Work

# How often a device sends or receives the bytes of a collective's result, at least: an all-reduce is a scatter and a
# gather. (Of a reduce-scatter the result is one device's part; every other part goes by as well.)
_TIMES = {"all-reduce": 2}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds that a batch takes on one device at the rates of its maker, or at measured ones: an estimate, not a time.

    Real programs reach a part of these rates only, so times are longer; what matters is the order of settings.

    Attributes:
      compute: of all matrix products, were nothing else to do.
      memory: of reading and writing the device's memory, were nothing else to do.
      operations: one after another, each as long as the longer of the two takes it (the roofline model: Williams,
        Waterman and Patterson, 2009).
      link: of moving states and activations to the host and back, both ways at the same time; None if they are moved
        and the link has no figure.
      link_in_turn: the same, one way after the other.
      collectives: of what devices send to each other; None if there are any and they have no figure.
    """

    compute: float
    memory: float
    operations: float
    link: float | None = 0.0
    link_in_turn: float | None = 0.0
    collectives: float | None = 0.0

    @property
    def seconds(self) -> float | None:
        """The longest of operations, link and collectives, as if these overlapped perfectly; None if one is unknown."""
        if self.link is None or self.collectives is None:
            return None
        return max(self.operations, self.link, self.collectives)

    @property
    def seconds_in_turn(self) -> float | None:
        """The sum, as if nothing overlapped."""
        if self.link_in_turn is None or self.collectives is None:
            return None
        return self.operations + self.link_in_turn + self.collectives

    @property
    def limit(self) -> str:
        """What takes longest: compute, memory, host link or collectives; of what has no figure, that."""
        for name, seconds in (("host link", self.link), ("collectives", self.collectives)):
            if seconds is None or (seconds > 0 and seconds == self.seconds):
                return name
        return "compute" if self.compute >= self.memory else "memory"


def estimate(
    work: Iterable[Work],
    rates: Rates,
    *,
    devices: int = 1,
    to_device: float = 0.0,
    to_host: float = 0.0,
    collectives: Mapping[str, float] | None = None,
) -> Estimate:
    """Estimates the time of a step.

    Args:
      work: of whole arrays, see `blockjax.xla.work`; it divides evenly over the devices.
      rates: of one device.
      devices: over which the step is split.
      to_device: bytes that cross one device's link from the host.
      to_host: bytes that cross it to the host.
      collectives: bytes of the results on one device, by kind, see `blockjax.xla.collectives`.
    """
    compute = memory = operations = 0.0
    for part in work:
        rate = rates.bfloat16 if part.is_narrow else rates.float32
        of_products = part.turns * part.flops / rate / devices
        of_memory = part.turns * part.size / rates.memory / devices
        compute += of_products
        memory += of_memory
        operations += max(of_products, of_memory)
    sent = sum(_TIMES.get(kind, 1) * size for kind, size in (collectives or {}).items())
    return Estimate(
        compute,
        memory,
        operations,
        _over(max(to_device, to_host), rates.link),
        _over(to_device + to_host, rates.link),
        _over(sent, rates.collectives),
    )


def _over(size, rate):
    if not size:
        return 0.0
    return None if rate is None else size / rate
