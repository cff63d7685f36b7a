"""What a config describes, put together: encoder, objective and optimizer as a train step and its first state."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from blockjax.backbone import Backbone
from blockjax.models.vit import ViT, regroup
from blockjax.objectives import TASKS
from blockjax.optimizer import layer_rates, learning_rate_schedule, make_optimizer, scaled
from blockjax.sharding import (
    batch_sharding,
    put_rows,
    split_as_parameters,
    state_shardings,
    warn_once,
)
from blockjax.state import (
    BlockState,
    TrainState,
    host_memory_kinds,
    init_block_state,
    to_host,
)
from blockjax.strategies import Block, blockwise, end_to_end, host_loop, pipelined, streamed

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Learner:
    """A run's pure functions.

    Attributes:
      vit: the encoder.
      objective: the pretext task.
      rows: gradient-isolated blocks: K, or 1 when the strategy is `end_to_end`.
      readouts: depths at which features are read, K under every strategy.
      optimizer: of each block.
      schedule: step -> learning rate.
      train_step: `(state, batch, rng) -> (state, metrics)`.
      loop: of `streamed` alone, the two functions of `host_loop`, for devices that address no host memory.
      batches: that a train step takes under `pipelined`; None under the others, which take one.
      rates: what multiplies the learning rate of the stem and of each layer; None if nothing does.
    """

    vit: ViT
    objective: Any
    rows: int
    readouts: int
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    train_step: Any
    loop: tuple[Callable, Callable] | None = None
    batches: int | None = None
    rates: tuple[float, tuple[float, ...]] | None = None

    @property
    def in_host_memory(self) -> bool:
        """Whether the blocks' states live there, as `streamed` wants it."""
        return self.loop is not None

    def init(self, rng: jax.Array) -> TrainState:
        """Returns the state before the first step. The encoder's start does not depend on the strategy.

        What the objective fits to data before training is zero in it.
        """
        stem_rng, layers_rng, heads_rng = (jax.random.fold_in(rng, i) for i in range(3))

        def init_block(index):
            layers = self.vit.init_block(layers_rng, index, self.rows)
            head_rng = jax.random.fold_in(heads_rng, index)
            params = {"layers": layers, "head": self.objective.init_head(head_rng)}
            extra = self.objective.init_block_extra(params, jax.random.fold_in(head_rng, 0))
            state = init_block_state(self._block_optimizer(index), params, extra)
            return to_host(state) if self.in_host_memory else state

        rows = jnp.arange(self.rows)
        # One after another where all together may be more than a device holds.
        one_by_one = self.in_host_memory
        blocks = jax.lax.map(init_block, rows) if one_by_one else jax.vmap(init_block)(rows)
        stem, fitted = self.vit.init_stem(stem_rng), self.objective.fitted_shape
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            stem=init_block_state(
                self._stem_optimizer(), stem, self.objective.init_stem_extra(stem)
            ),
            blocks=blocks,
            fitted=None if fitted is None else jnp.zeros(fitted),
        )

    def _block_optimizer(self, index):
        """Returns the optimizer whose state block `index` begins with."""
        if self.rates is None:
            return self.optimizer
        of_layers = jnp.asarray(self.rates[1], jnp.float32).reshape(self.rows, -1)
        return scaled(self.optimizer, {"layers": of_layers[index], "head": jnp.float32(1.0)})

    def _stem_optimizer(self):
        if self.rates is None:
            return self.optimizer
        return scaled(self.optimizer, jnp.float32(self.rates[0]))

    def start_from(self, state: TrainState, params: PyTree) -> TrainState:
        """Returns a first state with an encoder that was trained before, each array where it was.

        Args:
          state: from `init_for`.
          params: the encoder's "stem" and "layers", leaves [depth, ...], on the host; what the stem has beside them
            stays.
        """
        layers = regroup(params["layers"], self.rows, stacked=1)
        stem = {**state.stem.params, **params["stem"]}
        place = functools.partial(jax.tree.map, lambda new, old: jax.device_put(new, old.format))
        blocks = {**state.blocks.params, "layers": place(layers, state.blocks.params["layers"])}
        stem = place(stem, state.stem.params)
        stem_extra, extra = state.stem.extra, state.blocks.extra
        if extra is not None:  # averages start as what they are averages of
            stem_extra = _averages_of(stem_extra, stem)
            extra = _averages_of(extra, blocks)
        return state.replace(
            stem=state.stem.replace(params=stem, extra=stem_extra),
            blocks=state.blocks.replace(params=blocks, extra=extra),
        )

    def abstract_state(self, mesh: Mesh | None = None) -> TrainState:
        """Returns the state's shapes and dtypes without making it; for a mesh, also where every array lives."""
        state = jax.eval_shape(self.init, jax.random.key(0))
        if mesh is None:
            return state
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            state,
            self.state_shardings(mesh),
        )

    def abstract_row(self) -> BlockState:
        """Returns the shapes and dtypes of one block's state."""
        stacked = jax.eval_shape(self.init, jax.random.key(0)).blocks
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), stacked)

    def state_shardings(self, mesh: Mesh) -> TrainState:
        """Returns where every array of the state lives.

        Raises:
          ValueError: it is to live in host memory, which these devices and processes cannot reach.
        """
        state = self.abstract_state()
        shardings = state_shardings(state, mesh)
        if not self.in_host_memory:
            return shardings
        if self.is_looped(mesh):
            host = SingleDeviceSharding(_host_device(mesh.devices.flat[0]))
            return shardings.replace(blocks=jax.tree.map(lambda _: host, shardings.blocks))
        kinds = host_memory_kinds(state.blocks)
        return shardings.replace(
            blocks=jax.tree.map(NamedSharding.with_memory_kind, shardings.blocks, kinds)
        )

    def is_looped(self, mesh: Mesh) -> bool:
        """Whether a step is a `HostLoop`: states are to live in host memory, which the devices do not address."""
        return self.in_host_memory and not addresses_host_memory(mesh.devices.flat[0])

    def init_for(self, compiled: jax.stages.Compiled, rng: jax.Array) -> TrainState:
        """Returns the first state, born where and how a compiled step wants it; the same numbers on every mesh."""
        return self.init_in(state_formats(compiled), rng)

    def init_in(self, formats: TrainState, rng: jax.Array) -> TrainState:
        """Returns the first state, born in shardings or formats."""
        host = jax.tree.leaves(formats.blocks)[0]
        if not isinstance(host, SingleDeviceSharding):
            return jax.jit(self.init, out_shardings=formats)(rng)
        with jax.default_device(*host.device_set):
            return jax.device_put(jax.jit(self.init)(jax.device_put(rng, host)), formats)

    def trace(self, mesh: Mesh, batch_size: int) -> jax.stages.Traced:
        """Traces the train step for a mesh, on shapes only; the state is donated and keeps its sharding.

        `trace(...).lower().compile()` is what a run calls in each step, on a state in the formats that the compiled
        step asks for (see `state_formats`).
        """
        state = self.abstract_state()
        shardings = self.state_shardings(mesh)
        replicated = NamedSharding(mesh, PartitionSpec())
        batch, batch_shardings = self._abstract_batch(mesh, batch_size)
        formats = shardings
        if not self.in_host_memory:
            # XLA chooses the layout of the state: with the default one it may copy whole stacks into another and back.
            formats = jax.tree.map(lambda sharding: Format(Layout.AUTO, sharding), shardings)
        step = jax.jit(
            self.train_step,
            donate_argnums=0,
            in_shardings=(formats, batch_shardings, replicated),
            out_shardings=(formats, replicated),
        )
        with jax.set_mesh(mesh):  # pipelined, and kernels, ask for it
            return step.trace(state, batch, _abstract_key())

    def trace_loop(self, mesh: Mesh, batch_size: int) -> tuple[jax.stages.Traced, ...]:
        """Traces the programs of the first block and of the others, where `is_looped`."""
        state, row = self.abstract_state(), self.abstract_row()
        batch, of_batch = self._abstract_batch(mesh, batch_size)
        of_row, of_state = self.row_shardings(mesh), state_shardings(state, mesh)
        images, whole = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
        first = jax.jit(
            self.loop[0],
            donate_argnums=(0, 1),
            in_shardings=(of_state.stem, of_row, whole, whole, of_batch, whole),
            out_shardings=(of_state.stem, of_row, images, images, whole),
        )
        later = jax.jit(
            self.loop[1],
            donate_argnums=(0, 1),
            in_shardings=(of_row, images, images, whole, whole, whole),
            out_shardings=(of_row, images, whole),
        )
        key = _abstract_key()
        with jax.set_mesh(mesh):
            first = first.trace(state.stem, row, state.step, state.fitted, batch, key)
            _, _, stream, targets, _ = first.out_info
            return first, later.trace(row, stream, targets, state.step, state.step, key)

    def row_shardings(self, mesh: Mesh) -> PyTree:
        """Returns where the arrays of one block's state live on the devices."""
        stacked = state_shardings(self.abstract_state(), mesh).blocks
        return jax.tree.map(lambda of: NamedSharding(mesh, PartitionSpec(*of.spec[1:])), stacked)

    def _abstract_batch(self, mesh, batch_size):
        """Returns the shapes and the shardings of what `place` gives."""
        replicated = NamedSharding(mesh, PartitionSpec())
        side = self.vit.image_size
        several = () if self.batches is None else (self.batches,)
        images = NamedSharding(
            mesh, PartitionSpec(*[None for _ in several], *batch_sharding(mesh).spec)
        )
        batch = {"image": jax.ShapeDtypeStruct((*several, batch_size, side, side, 3), jnp.uint8)}
        if self.objective.takes_labels:
            batch["label"] = jax.ShapeDtypeStruct((*several, batch_size), jnp.int32)
        batch_shardings = dict.fromkeys(batch, images)
        if several:
            batch = {"batches": batch, "count": jax.ShapeDtypeStruct((), jnp.int32)}
            batch_shardings = {"batches": batch_shardings, "count": replicated}
        return batch, batch_shardings

    def place(self, mesh: Mesh, batches: Sequence[dict[str, np.ndarray]]) -> PyTree:
        """Puts host batches on the devices of a mesh, as the train step takes them.

        Args:
          mesh: that of the train step.
          batches: this process's rows of each batch, {"image": uint8 [B, H, W, 3]} and, if the objective takes labels,
            "label": one batch, or under `pipelined` as many as a train step takes, or fewer.
        """
        names = ("image", "label") if self.objective.takes_labels else ("image",)
        if self.batches is None:
            (batch,) = batches
            return {name: put_rows(mesh, batch[name]) for name in names}
        filled = [*batches, *[batches[-1]] * (self.batches - len(batches))]
        count = jax.device_put(np.int32(len(batches)), NamedSharding(mesh, PartitionSpec()))
        stacked = {name: np.stack([batch[name] for batch in filled]) for name in names}
        placed = {name: put_rows(mesh, rows, axis=1) for name, rows in stacked.items()}
        return {"batches": placed, "count": count}

    def readable(self, state: TrainState, mesh: Mesh) -> TrainState:
        """Returns a state whose parameters programs on the mesh can read: a copy where they are on the CPU backend."""
        if not self.is_looped(mesh):
            return state
        stacked = state_shardings(self.abstract_state(), mesh).blocks.params
        params = jax.device_put(state.blocks.params, stacked)
        return state.replace(blocks=BlockState(params=params, opt_state=None))

    @property
    def backbone(self) -> Backbone:
        """The encoder alone; `backbone_params` gives its parameters."""
        return Backbone(self.vit, self.readouts, self.objective.readout_module)

    def backbone_params(self, state: TrainState) -> PyTree:
        """Returns the part of a run's state that `backbone` takes."""
        layers, heads = (state.blocks.params[name] for name in ("layers", "head"))
        if self.rows != self.readouts:
            layers = regroup(layers, self.readouts, stacked=2)
        return {"stem": state.stem.params, "layers": layers, "heads": heads}


def _with_noise(stream, scale, rng):
    """Adds Gaussian noise of `scale` times the tokens' standard deviation, to the trained encoder's tokens only.

    Block-wise Barlow Twins (arXiv 2302.01647) feeds noisy features to the local head and to the next block; 0.25 is its
    best setting.
    """
    if not scale:
        return stream
    if isinstance(stream, dict):
        return {**stream, "online": _with_noise(stream["online"], scale, rng)}
    noise = jax.random.normal(rng, stream.shape, stream.dtype)
    spread = jnp.std(stream.astype(jnp.float32))
    return stream + (scale * jax.lax.stop_gradient(spread)).astype(stream.dtype) * noise


def _averages_of(extra, params):
    """Returns an extra with the parameters as its average, as far as it has one; copies, as both are donated."""
    if "target" not in extra:
        return extra

    def copied(target, params):
        if isinstance(target, dict):
            return {name: copied(part, params[name]) for name, part in target.items()}
        return jnp.copy(params)

    return {**extra, "target": copied(extra["target"], params)}


def _abstract_key():
    return jax.eval_shape(lambda: jax.random.key(0))


def run_key(seed: int, name: str) -> jax.Array:
    """Returns a run's key for one of its parts: init, train, figure, fit."""
    parts = {"init": 0, "train": 1, "figure": 2, "fit": 3}
    return jax.random.fold_in(jax.random.key(seed), parts[name])


def state_formats(compiled: jax.stages.Compiled) -> TrainState:
    """Returns the sharding and the layout in which a compiled step takes each array of the state."""
    return compiled.input_formats[0][0]


def addresses_host_memory(device: jax.Device) -> bool:
    """Whether a program on this device can read and write the memory of its host."""
    memories = [memory.kind for memory in device.addressable_memories()]
    return not memories or "pinned_host" in memories  # a GPU that is only described lists none


def _host_device(device):
    """Returns the CPU that keeps states for devices such as this one, and says so in the log."""
    found = (
        f"strategy=streamed: {device.device_kind} does not address its host's memory (pinned_host)"
    )
    remedy = "set strategy=blockwise, and mesh.fsdp to split states over devices"
    if jax.process_count() > 1:
        raise ValueError(
            f"{found}, and keeping states on the CPU instead works with one process only; {remedy}"
        )
    try:
        host = jax.devices("cpu")[0]
    except RuntimeError as error:
        raise ValueError(
            f"{found}, and JAX was told to leave the CPU alone; add cpu to JAX_PLATFORMS, or {remedy}"
        ) from error
    warn_once(f"{found}: one program for each block's update, and copies between")
    return host


def make_learner(config: ml_collections.ConfigDict, steps: int) -> Learner:
    """Puts a resolved config (see `blockjax.config.resolve`) together for a run of `steps` steps."""
    model, task = config.model, TASKS[config.objective]
    vit = ViT(
        image_size=model.image_size,
        patch_size=model.patch_size,
        width=model.width,
        depth=model.depth,
        heads=model.heads,
        mlp_ratio=model.mlp_ratio,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
        unroll=model.unroll,
        mask_token=task.mask_token,
        freeze_embedding=model.freeze_embedding,
        learned_positions=model.learned_positions,
        norm_epsilon=model.norm_epsilon,
    )
    rows = 1 if config.strategy == "end_to_end" else config.blocks
    objective = task.from_config(config, vit, rows)
    schedule = learning_rate_schedule(
        config.optimizer.base_learning_rate,
        config.batch_size,
        config.optimizer.warmup_steps,
        steps,
    )
    optimizer = make_optimizer(
        schedule,
        weight_decay=config.optimizer.weight_decay,
        b1=config.optimizer.b1,
        b2=config.optimizer.b2,
        freeze_embedding=model.freeze_embedding,
    )

    rates = None
    frozen = 0
    if config.tune_blocks is not None:
        frozen = (config.blocks - config.tune_blocks) * (model.depth // config.blocks)
    if frozen or config.optimizer.layer_decay != 1.0:
        stem_rate, of_layers = layer_rates(model.depth, config.optimizer.layer_decay, frozen)
        rates = (stem_rate, tuple(of_layers))

    def forward(params, stream, rng):
        params = split_as_parameters(params)
        # The noise keeps the key that it had before there was anything else at random.
        out = objective.forward(vit, params, stream, jax.random.fold_in(rng, 1))
        return _with_noise(out, config.noise, rng)

    def local_loss(params, stream, targets, rng):
        return objective.local_loss(split_as_parameters(params), stream, targets, rng)

    block = Block(
        forward=forward,
        loss=local_loss,
        optimizer=scaled(optimizer) if rates else optimizer,
        clip=config.optimizer.clip or None,
        microbatches=config.microbatches,
        begin=objective.begin,
        finish=objective.finish,
    )

    def stem(params, inputs, rng):
        del rng
        return objective.stem(vit, split_as_parameters(params), inputs)

    if config.strategy == "end_to_end":
        train_step = end_to_end(block, stem=stem, prepare=objective.prepare)
    else:
        blocks = [block]
        for k in range(1, rows):
            enter = objective.enter(k)
            # Blocks that see the same tokens stay one object, and so one compiled loop.
            blocks.append(dataclasses.replace(blocks[-1], enter=enter) if enter else blocks[-1])
        driver = {"blockwise": blockwise, "streamed": streamed, "pipelined": pipelined}[
            config.strategy
        ]
        train_step = driver(blocks, stem=stem, prepare=objective.prepare)
    loop = None
    if config.strategy == "streamed":
        loop = host_loop(blocks, stem=stem, prepare=objective.prepare)
    return Learner(
        vit=vit,
        objective=objective,
        rows=rows,
        readouts=config.blocks,
        optimizer=optimizer,
        schedule=schedule,
        train_step=train_step,
        loop=loop,
        batches=config.pipeline.batches if config.strategy == "pipelined" else None,
        rates=rates,
    )
