"""A learner on a mesh: where every array lives, and the train step traced and compiled for it."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from blockjax.learner.learner import Learner, PyTree
from blockjax.sharding.memory_spaces import addresses_host_memory
from blockjax.sharding.mesh import batch_sharding, put_rows
from blockjax.sharding.rules import state_shardings, warn_once
from blockjax.strategies import BlockState, HostLoop, TrainState


@dataclasses.dataclass(frozen=True)
class TwoPrograms:
    """Two compiled train steps for one state, of which each step takes one.

    Attributes:
      first: `(state, batch, rng) -> (state, metrics)`.
      other: of the same signature, and with arrays in the same places.
      takes_other: whether a step (from 0) takes it.
    """

    first: jax.stages.Compiled
    other: jax.stages.Compiled
    takes_other: Callable[[int], bool]

    @property
    def input_formats(self) -> Any:
        """Where and how the state is taken, as `jax.stages.Compiled` says it."""
        return self.first.input_formats

    @property
    def output_formats(self) -> Any:
        """Where and how it is returned."""
        return self.first.output_formats

    def at(self, step: int) -> Callable:
        """Returns the program of a step."""
        return self.other if self.takes_other(step) else self.first

    def __call__(
        self, state: TrainState, batch: PyTree, rng: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Takes a step, of the number that the state has; waits for the last step to read it."""
        return self.at(int(state.step))(state, batch, rng)


def program_at(call: Callable, step: int) -> Callable:
    """Returns what a compiled train step calls in a step (from 0), without waiting for anything."""
    return call.at(step) if isinstance(call, TwoPrograms) else call


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A train step, compiled.

    Attributes:
      call: `(state, batch, rng) -> (state, metrics)`, which a run calls in each step.
      programs: of which it consists: one, two of `TwoPrograms`, or those of a `HostLoop`.
      traced: what each was compiled from.
      turns: how often each runs in a step; of two programs the mean over a run.
    """

    call: Callable
    programs: tuple[jax.stages.Compiled, ...]
    traced: tuple[jax.stages.Traced, ...]
    turns: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Placement:
    """A learner on a mesh.

    Attributes:
      learner: the run's functions.
      mesh: with the axes `data`, `fsdp` and `block`.
    """

    learner: Learner
    mesh: Mesh

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """The state's shapes and dtypes, and where every array lives; see `shardings` for errors."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            self.learner.abstract_state(),
            self.shardings,
        )

    @functools.cached_property
    def shardings(self) -> TrainState:
        """Where every array of the state lives.

        Raises:
          ValueError: it is to live in host memory, which these devices and processes cannot reach.
        """
        shardings = self._on_devices
        if self.is_looped:
            if self.learner.unlooped:
                raise ValueError(
                    f"{self.learner.unlooped[0]} with states in host memory takes one program, and "
                    f"{self.mesh.devices.flat[0].device_kind} does not address its host's memory (pinned_host); set "
                    f"{self.learner.on_devices}"
                )
            host = SingleDeviceSharding(_host_device(self.mesh.devices.flat[0]))
            return shardings.replace(blocks=jax.tree.map(lambda _: host, shardings.blocks))
        if not self.learner.uses_host_memory:
            return shardings
        kinds = self.learner.memory_kinds()
        return shardings.replace(
            blocks=jax.tree.map(NamedSharding.with_memory_kind, shardings.blocks, kinds)
        )

    @functools.cached_property
    def row_shardings(self) -> BlockState:
        """Where the arrays of one block's state live on the devices."""
        return jax.tree.map(
            lambda of: NamedSharding(self.mesh, PartitionSpec(*of.spec[1:])),
            self._on_devices.blocks,
        )

    @functools.cached_property
    def _on_devices(self):
        """How the devices share every array of the state that they hold."""
        return state_shardings(self.learner.abstract_state(), self.mesh)

    @property
    def is_looped(self) -> bool:
        """Whether a step is a `HostLoop`: states are to live in host memory, which the devices do not address."""
        return self.learner.uses_host_memory and not addresses_host_memory(
            self.mesh.devices.flat[0]
        )

    def init_for(self, step: Callable, rng: jax.Array) -> TrainState:
        """Returns the first state, born where and how a compiled step wants it; the same numbers on every mesh."""
        return self.init_in(state_formats(step), rng)

    def init_in(self, formats: TrainState, rng: jax.Array) -> TrainState:
        """Returns the first state, born in shardings or formats."""
        init, host = jax.jit(self.learner.init), jax.tree.leaves(formats.blocks)[0]
        if not isinstance(host, SingleDeviceSharding):
            return jax.jit(self.learner.init, out_shardings=formats)(rng)
        with jax.default_device(*host.device_set):
            return jax.device_put(init(jax.device_put(rng, host)), formats)

    def compile(self, batch_size: int) -> CompiledStep:
        """Compiles the train step.

        Args:
          batch_size: of all processes together.
        """
        if not self.is_looped:
            traced = self.trace(batch_size)
            program = traced.lower().compile()
            if self.learner.other_step is None:
                return CompiledStep(program, (program,), (traced,), self.learner.turns)
            other_traced = self._trace(self.learner.other_step, batch_size, state_formats(program))
            other = other_traced.lower().compile()
            call = TwoPrograms(program, other, self.learner.takes_other)
            return CompiledStep(call, (program, other), (traced, other_traced), self.learner.turns)
        traced = self.trace_loop(batch_size)
        programs = tuple(part.lower().compile() for part in traced)
        rows = self.learner.rows
        loop = HostLoop(*programs, rows, self.shardings, self.row_shardings)
        return CompiledStep(loop, programs, traced, (1, rows - 1))

    def trace(self, batch_size: int) -> jax.stages.Traced:
        """Traces the train step, on shapes only; the state is donated and keeps its sharding.

        `trace(...).lower().compile()` is what a run calls in each step, on a state in the formats that the compiled
        step asks for (see `state_formats`).
        """
        formats = self.shardings
        if not self.learner.uses_host_memory:
            # XLA chooses the layout of the state: with the default one it may copy whole stacks into another and back.
            formats = jax.tree.map(lambda sharding: Format(Layout.AUTO, sharding), formats)
        return self._trace(self.learner.train_step, batch_size, formats, chosen=True)

    def traces(self, batch_size: int) -> tuple[jax.stages.Traced, ...]:
        """Traces each program of the train step, to count its operations; not to be compiled."""
        steps = [self.learner.train_step, self.learner.other_step]
        return tuple(
            self._trace(step, batch_size, self.shardings) for step in steps if step is not None
        )

    def _trace(self, train_step, batch_size, formats, chosen=False):
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        batch, batch_shardings = self._abstract_batch(batch_size)
        # Where XLA is asked for the layout of some results it chooses that of all. JAX 0.10.2 takes the others to lie
        # row by row all the same, so a transposed [M, K] would be read in the wrong order.
        is_chosen = chosen and not self.learner.uses_host_memory
        of_metrics = Format(Layout.AUTO, everywhere) if is_chosen else everywhere
        step = jax.jit(
            train_step,
            donate_argnums=0,
            in_shardings=(formats, batch_shardings, everywhere),
            out_shardings=(formats, of_metrics),
        )
        with jax.set_mesh(self.mesh):  # pipelined, and kernels, ask for it
            # Shapes that say in which memory they are would have XLA's GPU compiler copy them there, and refuse to.
            return step.trace(self.learner.abstract_state(), batch, _abstract_key())

    def trace_loop(self, batch_size: int) -> tuple[jax.stages.Traced, ...]:
        """Traces the programs of the first block and of the others, where `is_looped`."""
        learner, row = self.learner, self.learner.abstract_row()
        state, of_state = learner.abstract_state(), self._on_devices
        batch, of_batch = self._abstract_batch(batch_size)
        of_row = self.row_shardings
        images, whole = batch_sharding(self.mesh), NamedSharding(self.mesh, PartitionSpec())
        first = jax.jit(
            learner.loop[0],
            donate_argnums=(0, 1),
            in_shardings=(of_state.stem, of_row, whole, whole, of_batch, whole),
            out_shardings=(of_state.stem, of_row, images, images, whole),
        )
        later = jax.jit(
            learner.loop[1],
            donate_argnums=(0, 1),
            in_shardings=(of_row, images, images, whole, whole, whole),
            out_shardings=(of_row, images, whole),
        )
        key = _abstract_key()
        with jax.set_mesh(self.mesh):
            first = first.trace(state.stem, row, state.step, state.fitted, batch, key)
            _, _, stream, targets, _ = first.out_info
            return first, later.trace(row, stream, targets, state.step, state.step, key)

    def _abstract_batch(self, batch_size):
        """Returns the shapes and the shardings of what `place` gives."""
        batches = self.learner.batches
        split = batch_sharding(self.mesh)
        if batches is None:
            batch = self.learner.batch.abstract(batch_size)
            return batch, dict.fromkeys(batch, split)
        batch = self.learner.batch.abstract_stacked(batches, batch_size)
        split = NamedSharding(self.mesh, PartitionSpec(None, *split.spec))
        shardings = dict.fromkeys(batch, split)
        count = jax.ShapeDtypeStruct((), jnp.int32)
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        return {"batches": batch, "count": count}, {"batches": shardings, "count": everywhere}

    def place(self, batches: Sequence[dict[str, np.ndarray]]) -> PyTree:
        """Puts host batches on the devices, as the train step takes them.

        Args:
          batches: this process's rows of each batch, as `Learner.batch` describes them: one batch, or under `pipelined`
            as many as a train step takes, or fewer.
        """
        chosen = [self.learner.batch.chosen(batch) for batch in batches]
        if self.learner.batches is None:
            (batch,) = chosen
            return {name: put_rows(self.mesh, rows) for name, rows in batch.items()}
        filled = [*chosen, *[chosen[-1]] * (self.learner.batches - len(chosen))]
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        stacked = self.learner.batch.stacked(filled)
        return {
            "batches": {name: put_rows(self.mesh, rows, axis=1) for name, rows in stacked.items()},
            "count": jax.device_put(np.int32(len(chosen)), everywhere),
        }

    def encoded(self, batch: PyTree, index: int) -> jax.Array:
        """Returns, of what `place` gave, the array that the encoder reads, of batch `index` of the step's."""
        spec = self.learner.batch
        if self.learner.batches is None:
            return batch[spec.encoded]
        return spec.shaped({name: rows[index] for name, rows in batch["batches"].items()})[
            spec.encoded
        ]

    def readable(self, state: TrainState) -> TrainState:
        """Returns a state whose parameters programs on the mesh can read: a copy where they are on the CPU backend."""
        if not self.is_looped:
            return state
        params = jax.device_put(state.blocks.params, self._on_devices.blocks.params)
        return state.replace(blocks=BlockState(params=params, opt_state=None))


def state_formats(step: Callable) -> TrainState:
    """Returns the sharding and the layout in which a compiled step takes each array of the state."""
    return step.input_formats[0][0]


def _abstract_key():
    return jax.eval_shape(lambda: jax.random.key(0))


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
