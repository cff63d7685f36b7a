"""What training carries from step to step: the stem's state and the blocks' states, stacked."""

from typing import Any

import flax.struct
import jax

PyTree = Any


@flax.struct.dataclass
class TrainState:
    """The whole state of a run.

    Attributes:
      step: int32 scalar, the number of steps done.
      stem: the stem's `BlockState`, or None where there is no stem to train.
      blocks: a `BlockState` whose every leaf has a leading axis of size K, one row per block.
    """

    step: jax.Array
    stem: PyTree
    blocks: PyTree
