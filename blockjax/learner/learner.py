"""A run's pure functions: the first state, the train step, and the backbone in a state."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from blockjax.data.batch import BatchSpec
from blockjax.learner.optimizer import Rates, scaled
from blockjax.models.backbone import Backbone
from blockjax.models.encoder import Encoder, regroup
from blockjax.objectives import Objective
from blockjax.sharding.memory_spaces import host_memory_kinds, to_host
from blockjax.strategies import BlockState, TrainState, init_block_state
from blockjax.techniques import Technique

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Learner:
    """A run's pure functions; `blockjax.learner.placement` puts them on devices.

    Attributes:
      vit: the encoder, of images or of text.
      objective: the pretext task.
      batch: what a batch holds.
      rows: of the stacked states: a block each, K, or 1 under `end_to_end`; under `streamed_end_to_end` a layer each.
      losses: gradient-isolated blocks: K, or 1 end to end.
      depths: how many there are at which features are read, K under every strategy.
      optimizer: of each block.
      schedule: step -> learning rate.
      train_step: `(state, batch, rng) -> (state, metrics)`.
      other_step: of the same signature, which takes the place of `train_step` in some steps; None where it never does.
      takes_other: whether it does in a step (from 0).
      other_share: in which share of a run's steps it does.
      program_names: what the two are called.
      in_host_memory: whether the stacked states live there.
      host_states: whether of those only the layers' optimizer states do.
      loop: of `streamed` alone, the two functions of `host_loop`, for devices that address no host memory.
      unlooped: fields that such a loop does not do, "hybrid.every=2".
      batches: that a train step takes under `pipelined`; None under the others, which take one.
      rates: what multiplies learning rates; None if nothing does.
      techniques: that couple blocks.
      shares_head: whether all rows have one head, which is no part of theirs.
      copies_head: whether blocks before the last read a copy of that head.
      trained: which block (from 0) alone trains in a step (from 0), and how many updates it had; None where all do.
    """

    vit: Encoder
    objective: Objective
    batch: BatchSpec
    rows: int
    losses: int
    depths: int
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    train_step: Any
    other_step: Any = None
    takes_other: Callable[[int], bool] | None = None
    other_share: float = 0.0
    program_names: tuple[str, str] = ("", "")
    in_host_memory: bool = False
    host_states: bool = False
    loop: tuple[Callable, Callable] | None = None
    unlooped: tuple[str, ...] = ()
    batches: int | None = None
    rates: Rates | None = None
    techniques: tuple[Technique, ...] = ()
    shares_head: bool = False
    copies_head: bool = False
    trained: Callable[[int], tuple[int, int]] | None = None

    def init(self, rng: jax.Array) -> TrainState:
        """Returns the state before the first step. The encoder's start does not depend on the strategy.

        What the objective fits to data before training is zero in it.
        """
        stem_rng, layers_rng, heads_rng = _init_keys(rng)

        def init_block(index):
            layers = self.vit.init_block(layers_rng, index, self.rows)
            head_rng = jax.random.fold_in(heads_rng, index)
            params = {"layers": layers}
            if not self.shares_head:
                params["head"] = self.objective.init_head(head_rng)
            extra = self.objective.init_block_extra(params, jax.random.fold_in(head_rng, 0))
            for number, technique in enumerate(self.techniques, start=1):
                link = technique.init_link(jax.random.fold_in(head_rng, number))
                if link is not None:
                    params["link"] = {**params.get("link", {}), **link}
                if technique.has_extra:
                    extra = {**(extra or {}), **technique.init_extra(params, index)}
            state = init_block_state(self._block_optimizer(index), params, extra)
            return to_host(state) if self.in_host_memory else state

        rows = jnp.arange(self.rows)
        if self.host_states:
            blocks = jax.tree.map(lambda leaf: leaf[None], init_block(0))
        elif self.in_host_memory:  # one after another: all together may be more than a device holds
            blocks = jax.lax.map(init_block, rows)
        else:
            blocks = jax.vmap(init_block)(rows)
        stem, fitted = self.vit.init_stem(stem_rng), self.objective.fitted_shape
        extra = self.objective.init_stem_extra(stem)
        for technique in self.techniques:
            if technique.has_extra:
                extra = {**(extra or {}), **technique.init_stem_extra(stem)}
        head = None
        if self.shares_head:
            params = self.objective.init_head(jax.random.fold_in(heads_rng, 0))
            copy = {"copy": params} if self.copies_head else None
            head = BlockState(params, self._head_optimizer().init({"head": params}), copy)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            stem=init_block_state(self._stem_optimizer(), stem, extra),
            blocks=blocks,
            fitted=None if fitted is None else jnp.zeros(fitted),
            head=head,
        )

    def first_layers(self, rng: jax.Array) -> PyTree:
        """Returns the encoder's layers as `init` makes them, leaves [depth, ...]."""
        layers = self.vit.init_layers(_init_keys(rng)[1], 1)
        return jax.tree.map(lambda leaf: leaf[0], layers)

    def _block_optimizer(self, index):
        """Returns the optimizer whose state block `index` begins with."""
        if self.rates is None:
            return self.optimizer
        of_layers = jnp.asarray(self.rates.layers, jnp.float32).reshape(self.rows, -1)
        of_block = jnp.asarray(self.rates.blocks, jnp.float32)[index]
        scales = {"layers": of_layers[index], "head": of_block}
        if self.techniques:
            scales["link"] = of_block
        return scaled(self.optimizer, scales)

    def _head_optimizer(self):
        if self.rates is None:
            return self.optimizer
        return scaled(self.optimizer, {"head": jnp.float32(1.0)})

    def _stem_optimizer(self):
        if self.rates is None:
            return self.optimizer
        return scaled(self.optimizer, jnp.float32(self.rates.stem))

    @property
    def uses_host_memory(self) -> bool:
        """Whether any part of the stacked states lives there."""
        return self.in_host_memory or self.host_states

    @property
    def on_devices(self) -> str:
        """What to set so that none does."""
        if self.host_states:
            return "optimizer.in_host_memory=False"
        return f"strategy={'blockwise' if self.losses > 1 else 'end_to_end'}"

    def memory_kinds(self) -> BlockState:
        """Returns "pinned_host" or "device" for each array of the stacked states."""
        blocks = self.abstract_state().blocks
        if self.in_host_memory:
            return host_memory_kinds(blocks)

        def kind(path, leaf):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            is_there = self.host_states and name.startswith("opt_state") and "/layers/" in name
            # As in `host_memory_kinds`, below the axes of rows and layers.
            return "pinned_host" if is_there and leaf.ndim > 2 else "device"

        return jax.tree_util.tree_map_with_path(kind, blocks)

    @property
    def turns(self) -> tuple[float, ...]:
        """How often each program runs in a step, the mean over a run."""
        return (1.0,) if self.other_step is None else (1.0 - self.other_share, self.other_share)

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of a step (from 0), of the block that trains."""
        return float(self.schedule(step if self.trained is None else self.trained(step)[1]))

    def start_from(self, state: TrainState, params: PyTree) -> TrainState:
        """Returns a first state with an encoder that was trained before, each array where it was.

        Args:
          state: from `Placement.init_for`.
          params: the encoder's "stem" and "layers", leaves [depth, ...], on the host; what the stem has beside them
            stays.
        """
        layers = regroup(params["layers"], self.rows, stacked=1)
        stem = {**state.stem.params, **params["stem"]}
        place = functools.partial(jax.tree.map, lambda new, old: jax.device_put(new, old.format))
        blocks = {**state.blocks.params, "layers": place(layers, state.blocks.params["layers"])}
        stem = place(stem, state.stem.params)

        def extra_from(params, extra):
            for part in (self.objective, *self.techniques):
                extra = part.extra_from(params, extra)
            return extra

        return state.replace(
            stem=state.stem.replace(params=stem, extra=extra_from(stem, state.stem.extra)),
            blocks=state.blocks.replace(
                params=blocks, extra=extra_from(blocks, state.blocks.extra)
            ),
        )

    def abstract_state(self) -> TrainState:
        """Returns the state's shapes and dtypes without making it."""
        return jax.eval_shape(lambda: self.init(jax.random.key(0)))

    def abstract_row(self) -> BlockState:
        """Returns the shapes and dtypes of one block's state."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype),
            self.abstract_state().blocks,
        )

    @property
    def backbone(self) -> Backbone:
        """The encoder alone; `backbone_params` gives its parameters."""
        return Backbone(self.vit, self.depths, self.objective.readout_module)

    def backbone_params(self, state: TrainState) -> PyTree:
        """Returns the part of a run's state that `backbone` takes."""
        layers = state.blocks.params["layers"]
        if self.shares_head:
            heads = jax.tree.map(lambda leaf: jnp.stack([leaf] * self.losses), state.head.params)
        else:
            heads = state.blocks.params["head"]
        if self.rows != self.depths:
            layers = regroup(layers, self.depths, stacked=2)
        return {"stem": state.stem.params, "layers": layers, "heads": heads}


def _init_keys(rng):
    """Returns the keys of stem, layers and heads."""
    return tuple(jax.random.fold_in(rng, i) for i in range(3))


def run_key(seed: int, name: str) -> jax.Array:
    """Returns a run's key for one of its parts: init, train, figure, fit."""
    parts = {"init": 0, "train": 1, "figure": 2, "fit": 3}
    return jax.random.fold_in(jax.random.key(seed), parts[name])
