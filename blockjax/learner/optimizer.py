"""The optimizer every block gets a copy of: AdamW as in MAE's recipe, or another; linear warm-up and cosine decay."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from blockjax.sharding.memory_spaces import to_device, to_host
from blockjax.sharding.rules import split_as_parameters

PyTree = Any

# Whose update of a number depends on others of the same tensor.
_BY_TENSOR = ("adafactor", "lamb", "lars", "muon")
# Matrices that Muon leaves to Adam, as its authors do with embeddings and the last layer.
_OF_ADAM = ("embed", "pixels", "classes", "codes")


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
    name: str = "adamw",
    weight_decay: float,
    b1: float,
    b2: float,
    freeze_embedding: bool = False,
    split: Callable[[PyTree], PyTree] = split_as_parameters,
) -> optax.GradientTransformation:
    """Returns an optimizer that decays matrices only: no biases, norms, CLS or mask tokens (MAE, arXiv 2111.06377).

    What looks at whole tensors looks at each layer's own, so that an update does not depend on how many layers are
    stacked in a block.

    Args:
      schedule: step -> learning rate.
      name: adamw, adafactor, lamb, lars, lion, muon or sgd.
      weight_decay: decoupled, times the learning rate; of lars and sgd added to the gradient.
      b1: decay of the first moment, or momentum.
      b2: decay of the second moment; of lion that of its momentum; lars, muon's matrices and sgd have none, and
        adafactor's rises by itself.
      freeze_embedding: whether the patch embedding is frozen; then it is not decayed either, as it would shrink.
      split: applied to the updates.

    Raises:
      ValueError: the name is unknown.
    """
    mask = functools.partial(decayed, freeze_embedding=freeze_embedding)
    decay = {"weight_decay": weight_decay, "mask": mask}
    if name == "adafactor":
        # Without scaling by the parameters' size, so that learning rates mean what they do for Adam; momentum in
        # bfloat16 (arXiv 2106.04560).
        optimizer = optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.ema(b1, debias=False, accumulator_dtype=jnp.bfloat16),
            optax.add_decayed_weights(**decay),
            optax.scale_by_learning_rate(schedule),
        )
    elif name == "lamb":
        optimizer = optax.lamb(schedule, b1=b1, b2=b2, **decay)
    elif name == "lars":
        optimizer = optax.lars(
            schedule,
            weight_decay=weight_decay,
            weight_decay_mask=mask,
            trust_ratio_mask=mask,
            momentum=b1,
        )
    elif name == "lion":
        optimizer = optax.lion(schedule, b1=b1, b2=b2, **decay)
    elif name == "muon":
        # Updates as large as Adam's (arXiv 2502.16982), so that one learning rate serves both.
        optimizer = contrib.muon(
            schedule,
            beta=b1,
            weight_decay=weight_decay,
            weight_decay_mask=mask,
            adam_b1=b1,
            adam_b2=b2,
            adam_weight_decay=weight_decay,
            muon_weight_dimension_numbers=_of_muon,
            consistent_rms=0.2,
        )
    elif name == "sgd":
        optimizer = optax.chain(
            optax.add_decayed_weights(**decay), optax.sgd(schedule, momentum=b1)
        )
    elif name == "adamw":
        optimizer = optax.adamw(schedule, b1=b1, b2=b2, **decay)
    else:
        raise ValueError(f"optimizer {name!r} is unknown")
    if name in _BY_TENSOR:
        optimizer = by_layer(optimizer)

    def update(grads, state, params=None):
        updates, state = optimizer.update(grads, state, params)
        return split(updates), state

    return optax.GradientTransformation(optimizer.init, update)


def by_layer(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns an optimizer that treats each layer of "layers", stacked along the first axis, by itself.

    Its state is {"layers": a state for each layer, stacked, "others": that of all other parameters}; of parameters
    without "layers" it is the optimizer's own.
    """

    def init(params):
        if "layers" not in params:
            return optimizer.init(params)
        layers, others = _parted(params)
        return {"layers": jax.vmap(optimizer.init)(layers), "others": optimizer.init(others)}

    def update(grads, state, params=None):
        if "layers" not in grads:
            return optimizer.update(grads, state, params)
        (of_layers, of_others), (layers, others) = _parted(grads), _parted(params)
        of_layers, new_layers = jax.vmap(optimizer.update)(of_layers, state["layers"], layers)
        of_others, new_others = optimizer.update(of_others, state["others"], others)
        return {**of_others, "layers": of_layers}, {"layers": new_layers, "others": new_others}

    return optax.GradientTransformation(init, update)


def from_host(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns an optimizer that updates one layer of "layers" after another, whose states live in host memory.

    Each layer's comes to the device for its update (ZeRO-Offload, arXiv 2101.06840, updates on the host instead). The
    state is that of `by_layer`, with "layers" in host memory as `to_host` moves a layer's.
    """

    def init(params):
        if "layers" not in params:
            return optimizer.init(params)
        layers, others = _parted(params)
        of_layers = jax.lax.map(lambda layer: to_host(optimizer.init(layer)), layers)
        return {"layers": of_layers, "others": optimizer.init(others)}

    def update(grads, state, params=None):
        if "layers" not in grads:
            return optimizer.update(grads, state, params)
        (of_layers, of_others), (layers, others) = _parted(grads), _parted(params)

        def one(row):
            grads, kept, layer = row
            updates, kept = optimizer.update(grads, to_device(kept), layer)
            return updates, to_host(kept)

        of_layers, new_layers = jax.lax.map(one, (of_layers, state["layers"], layers))
        of_others, new_others = optimizer.update(of_others, state["others"], others)
        return {**of_others, "layers": of_layers}, {"layers": new_layers, "others": new_others}

    return optax.GradientTransformation(init, update)


def _parted(params):
    return params["layers"], {name: part for name, part in params.items() if name != "layers"}


def _of_muon(params):
    """Marks the matrices that Muon makes orthogonal; the rest is Adam's."""

    def dimensions(path, leaf):
        names = [getattr(part, "key", None) for part in path]
        is_matrix = leaf.ndim == 2 and names[-1] == "kernel" and names[-2] not in _OF_ADAM
        return contrib.MuonDimensionNumbers() if is_matrix else None

    return jax.tree_util.tree_map_with_path(dimensions, params)


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
