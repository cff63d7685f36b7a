"""What is known of a step without compiling it: bounds of its memory, and an estimate of its time."""

import dataclasses

import ml_collections

from blockjax.learner.placement import Placement
from blockjax.memory.profiles import estimate_step, held_bytes
from blockjax.xla.rates import Rates
from blockjax.xla.roofline import Estimate


@dataclasses.dataclass(frozen=True)
class Sketch:
    """What a traced step tells.

    Attributes:
      estimate: of the time of a batch, without collectives, which only a compiled program has.
      device: bytes that it takes of a device at least: states and images.
      host: bytes of states in host memory, for each device.
      images: bytes of one batch's images on a device.
      rows: blocks that have states of their own.
      limit: bytes that a device can hand out, where known.
    """

    estimate: Estimate
    device: int
    host: int
    images: int
    rows: int
    limit: int | None


def sketch(
    placement: Placement, config: ml_collections.ConfigDict, limit: int | None, rates: Rates
) -> Sketch:
    """Traces a resolved config's step, which takes about a second."""
    learner = placement.learner
    if placement.is_looped:
        traced = placement.trace_loop(config.batch_size)
        turns = (1, learner.rows - 1)
    else:
        traced, turns = placement.traces(config.batch_size), learner.turns
    held = held_bytes(placement, config.batch_size)
    return Sketch(
        estimate=estimate_step(placement, traced, turns, rates),
        device=held.parameters + held.optimizer + held.batch,
        host=held.host,
        images=held.batch // (learner.batches or 1),
        rows=learner.losses,
        limit=limit,
    )
