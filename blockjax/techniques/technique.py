"""What every technique has in common: a function Block -> Block, with parameters, state and stream parts of its own."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import ml_collections

from blockjax.models.vit import ViT
from blockjax.objectives import Objective
from blockjax.strategies import Block, TrainState

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Technique(abc.ABC):
    """Couples blocks on purpose, or changes what they learn from.

    Subclasses are frozen dataclasses of hyperparameters and override what they need. What a technique trains is a part
    of each block's third group of parameters, "link"; what it keeps without gradients, of each block's `extra`; both
    under its own name, and neither is exported.

    Attributes:
      has_extra: whether blocks and stem keep something for it, see `init_extra` and `init_stem_extra`.
      feeds_heads: whether heads read something other than the tokens of their block, see `read` and `sent`.
    """

    has_extra: ClassVar[bool] = False
    feeds_heads: ClassVar[bool] = False

    @classmethod
    def from_config(
        cls, config: ml_collections.ConfigDict, vit: ViT, objective: Objective, steps: int
    ) -> "Technique":
        """Returns your own technique, which the config's `techniques` names, for a run of so many steps."""
        del config, vit, objective, steps
        return cls()

    @property
    def sweeps(self) -> bool:
        """Whether it looks at all blocks before their updates, see `targets`."""
        return False

    def init_link(self, rng: jax.Array) -> PyTree:
        """Returns one block's own parameters, float32; None for none."""
        del rng

    def init_extra(self, params: PyTree, index: jax.Array) -> PyTree:
        """Returns what block `index` (from 0) keeps beside its parameters {"layers", "head", ...}."""
        del params, index

    def init_stem_extra(self, params: PyTree) -> PyTree:
        """Returns what the stem keeps beside its parameters."""
        del params

    def extra_from(self, params: PyTree, extra: PyTree) -> PyTree:
        """Returns an extra, of the stem or of all blocks, as it starts where training starts from these parameters."""
        del params
        return extra

    def inputs(self, batch: PyTree) -> dict[str, PyTree]:
        """Returns what `first` and `targets` need of a batch."""
        del batch
        return {}

    def targets(self, state: TrainState, inputs: PyTree) -> dict[str, PyTree]:
        """Returns what it adds to the targets of all blocks, made of the state before their updates."""
        del state, inputs
        return {}

    def first(self, params: PyTree, inputs: PyTree, stream: PyTree) -> dict[str, PyTree]:
        """Returns what it adds to the first stream.

        Args:
          params: the stem's.
          inputs: what the techniques' `inputs` returned.
          stream: as the objective's stem made it.
        """
        del params, inputs, stream
        return {}

    def read(self, params: PyTree, stream: PyTree) -> jax.Array:
        """Returns the tokens that a block's head reads."""
        del params
        return stream["tokens"]

    def sent(self, stream: PyTree) -> dict[str, PyTree]:
        """Returns the parts of the stream that `read` needs in the next block."""
        del stream
        return {}

    @abc.abstractmethod
    def apply(self, block: Block) -> Block:
        """Returns the block under this technique."""


def also_coupled(block: Block, couple: Callable) -> Block:
    """Returns a block with one more term in its loss, see `Block.couple`."""
    inner = block.couple
    if inner is None:
        return dataclasses.replace(block, couple=couple)

    def both(params, before, after, targets, rng):
        loss, metrics = inner(params, before, after, targets, jax.random.fold_in(rng, 0))
        more, added = couple(params, before, after, targets, jax.random.fold_in(rng, 1))
        return loss + more, {**metrics, **added}

    return dataclasses.replace(block, couple=both)


def also_leaving(block: Block, leave: Callable) -> Block:
    """Returns a block that sends on more, see `Block.leave`."""
    inner = block.leave
    if inner is None:
        return dataclasses.replace(block, leave=leave)

    def both(params, stream, targets, rng):
        parts = inner(params, stream, targets, jax.random.fold_in(rng, 0))
        return {**parts, **leave(params, stream, targets, jax.random.fold_in(rng, 1))}

    return dataclasses.replace(block, leave=both)
