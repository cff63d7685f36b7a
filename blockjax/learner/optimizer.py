"""The optimizer every block gets a copy of: AdamW with linear warm-up and cosine decay, as in MAE's recipe."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from blockjax.sharding.rules import split_as_parameters

PyTree = Any


def peak_learning_rate(base_learning_rate: float, batch_size: int) -> float:
    """Scales a base learning rate with the batch: lr = base · batch / 256 (Goyal et al., arXiv 1706.02677)."""
    return base_learning_rate * batch_size / 256


def learning_rate_schedule(
    base_learning_rate: float, batch_size: int, warmup_steps: int, steps: int
) -> optax.Schedule:
    """Returns step -> learning rate: linear from 0 over the warm-up, then a half cosine to 0 at `steps`."""
    peak = peak_learning_rate(base_learning_rate, batch_size)
    if warmup_steps == 0:
        return optax.cosine_decay_schedule(peak, steps)
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, steps)


def make_optimizer(
    schedule: optax.Schedule,
    *,
    weight_decay: float,
    b1: float,
    b2: float,
    freeze_embedding: bool = False,
    split: Callable[[PyTree], PyTree] = split_as_parameters,
) -> optax.GradientTransformation:
    """Returns AdamW that decays matrices only: no biases, norms, CLS or mask tokens (MAE, arXiv 2111.06377).

    A patch embedding that is frozen is not decayed either: it would shrink. `split` is applied to the updates.
    """
    mask = functools.partial(decayed, freeze_embedding=freeze_embedding)
    optimizer = optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=mask)

    def update(grads, state, params=None):
        updates, state = optimizer.update(grads, state, params)
        return split(updates), state

    return optax.GradientTransformation(optimizer.init, update)


def decayed(params: PyTree, freeze_embedding: bool = False) -> PyTree:
    """Marks the parameters that weight decay applies to: those called `kernel`, but for a frozen patch embedding."""

    def is_decayed(path, _):
        names = [getattr(part, "key", None) for part in path]
        if freeze_embedding and names == ["embed", "kernel"]:  # the stem's; a decoder's lies deeper
            return False
        return names[-1] == "kernel"

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def scaled(
    optimizer: optax.GradientTransformation, scales: PyTree = None
) -> optax.GradientTransformation:
    """Returns an optimizer whose updates are multiplied by numbers that it keeps in its state.

    In the state, blocks that share one compiled update can have numbers of their own.

    Args:
      optimizer: any.
      scales: that a state begins with: a tree of dicts like the parameters, cut off at any depth, whose ends are arrays
        that multiply along the leading axes. None where no state is made.
    """

    def init(params):
        return optimizer.init(params), scales

    def update(grads, state, params=None):
        inner, kept = state
        updates, inner = optimizer.update(grads, inner, params)
        return _multiplied(kept, updates), (inner, kept)

    return optax.GradientTransformation(init, update)


def _multiplied(scales, updates):
    if isinstance(scales, dict):
        return {name: _multiplied(scales[name], part) for name, part in updates.items()}
    return jax.tree.map(
        lambda leaf: leaf * scales.reshape(scales.shape + (1,) * (leaf.ndim - scales.ndim)), updates
    )


@dataclasses.dataclass(frozen=True)
class Rates:
    """What multiplies learning rates.

    Attributes:
      stem: of the stem.
      layers: of each layer of the encoder.
      blocks: of what else each block has: its head.
    """

    stem: float
    layers: tuple[float, ...]
    blocks: tuple[float, ...]


def layer_rates(depth: int, decay: float, frozen: int) -> tuple[float, list[float]]:
    """Returns what multiplies the learning rate of the stem and of every layer.

    decay^(depth + 1 - i) for layer i from 1, i = 0 for the stem, and 1 for heads (facebookresearch/mae,
    util/lr_decay.py); 0 for the first `frozen` layers and, if there are any, for the stem.
    """
    rates = [decay ** (depth + 1 - i) for i in range(depth + 1)]
    if frozen:
        rates[: frozen + 1] = [0.0] * (frozen + 1)
    return rates[0], rates[1:]
