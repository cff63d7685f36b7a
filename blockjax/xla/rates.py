"""How fast a device can be at best: matrix products, its memory, the link to its host, other devices."""

import dataclasses

from blockjax.xla.targets import Target


@dataclasses.dataclass(frozen=True)
class Rates:
    """Rates of one device, each alone and at its best.

    Attributes:
      bfloat16: floating-point operations a second, in matrix products of bfloat16.
      float32: the same of float32, at the precision that JAX takes by default.
      memory: bytes a second that are read from and written to the device's memory.
      link: bytes a second to the host, and as many back; None if nobody says.
      collectives: bytes a second to other devices, and as many back; None if nobody says, or there are none.
    """

    bfloat16: float
    float32: float
    memory: float
    link: float | None = None
    collectives: float | None = None


# Operations a second, link, collectives. By default JAX runs float32 products on TPUs in one pass of bfloat16.
# bfloat16: https://cloud.google.com/tpu/docs/v4, v5e, v5p, v6e, tpu7x, "peak compute per chip". Links: "How to scale
# your model", https://jax-ml.github.io/scaling-book/tpus: PCIe 16e9 each way on v4 and typically 1.5e10 a chip, 32e9 on
# v6e; it has no figure for tpu7x, and neither has Google. Collectives: half of the "bidirectional inter-chip
# interconnect bandwidth per chip" of the pages above; v4 by the book, 6 links of 4.5e10 one way. A tpu7x chip is two
# devices.
_TPUS = {
    "v4": (275e12, 16e9, 270e9),
    "v5e": (197e12, 15e9, 200e9),
    "v5p": (459e12, 15e9, 600e9),
    "v6e": (918e12, 32e9, 400e9),
    "tpu7x": (2307e12 / 2, None, 600e9 / 2),
}
# bfloat16, float32, link, collectives: NVIDIA's data sheets "T4", "V100", "A100", "L4", "H100" and "H200", of the SXM
# boards where there are any, without sparsity (the sheets of L4, H100 and H200 give twice as much, with it). float32 is
# TF32 where there is one. T4 and V100 multiply no bfloat16: XLA computes in float32. Link: half of what the sheets say
# of PCIe, both ways (generation 3: 32e9, 4: 64e9, 5: 128e9). Collectives: half of NVLink's; PCIe where there is none.
_GPUS = {
    "t4": (8.1e12, 8.1e12, 16e9, 16e9),
    "v100": (15.7e12, 15.7e12, 16e9, 150e9),
    "a100-40": (312e12, 156e12, 32e9, 300e9),
    "a100": (312e12, 156e12, 32e9, 300e9),
    "l4": (121e12, 60e12, 32e9, 32e9),
    "h100": (989.5e12, 494.5e12, 64e9, 450e9),
    "h200": (989.5e12, 494.5e12, 64e9, 450e9),
}


def rates_of(target: Target) -> Rates | None:
    """Returns a target's rates by its maker's figures; None for local, where they are measured."""
    if target.kind == "local":
        return None
    if target.kind == "tpu":
        bfloat16, link, collectives = _TPUS[target.model]
        return Rates(bfloat16, bfloat16, target.bandwidth, link, collectives)
    bfloat16, float32, link, collectives = _GPUS[target.model]
    return Rates(bfloat16, float32, target.bandwidth, link, collectives)


def with_link() -> list[str]:
    """Lists the targets whose link to the host has a figure."""
    return [*_GPUS, *(name for name, (_, link, _) in _TPUS.items() if link is not None)]
