"""The optimizer every block gets a copy of: AdamW with linear warm-up and cosine decay, as in MAE's recipe."""

from typing import Any

import jax
import optax

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
    schedule: optax.Schedule, *, weight_decay: float, b1: float, b2: float
) -> optax.GradientTransformation:
    """Returns AdamW that decays matrices only: no biases, norms, CLS or mask tokens (MAE, arXiv 2111.06377)."""
    return optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=decayed)


def decayed(params: PyTree) -> PyTree:
    """Marks the parameters that weight decay applies to: those called `kernel`."""

    def is_kernel(path, _):
        return getattr(path[-1], "key", None) == "kernel"

    return jax.tree_util.tree_map_with_path(is_kernel, params)
