"""The memory profile of a compiled train step."""

import dataclasses
import html
import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import jax
import ml_collections

from blockjax import config as config_lib
from blockjax.learner.build import make_learner
from blockjax.learner.placement import Placement
from blockjax.objectives import find_task
from blockjax.sharding.memory_spaces import IS_THERE
from blockjax.sharding.mesh import make_mesh, mesh_shape
from blockjax.xla.collectives import read_collectives
from blockjax.xla.flops import matmul_flops
from blockjax.xla.links import host_link_bytes
from blockjax.xla.rates import Rates
from blockjax.xla.roofline import Estimate, estimate
from blockjax.xla.targets import multiplies_bfloat16
from blockjax.xla.work import work

MIB = 2**20


class DoesNotFit(ValueError):
    """The compiler found that a step needs more memory than the device has.

    Attributes:
      needed: bytes that it says are needed, if it says so.
      limit: bytes that the device can hand out, where known.
      devices: over which the step is split.
    """

    def __init__(
        self, message: str, needed: int | None = None, limit: int | None = None, devices: int = 1
    ):
        """Keeps the figures beside the message."""
        super().__init__(message)
        self.needed, self.limit, self.devices = needed, limit, devices


@dataclasses.dataclass(frozen=True)
class MemoryProfile:
    """Bytes per device of one compiled step, from XLA's buffer assignment.

    Attributes:
      argument: parameters, optimizer state and batch, with the compiler's padding.
      output: new state and metrics; almost all of it shares its buffer with an argument.
      alias: bytes that arguments and outputs share.
      temp: scratch: activations, gradients and what XLA needs between.
      generated_code: the program itself, where the backend tells it.
      host: arguments and scratch that live in host memory.
      parameters: the part of the arguments that is parameters, without padding.
      optimizer: the part that is optimizer state.
      batch: the part that is the batch.
      flops: of all matrix products of the step, over all devices (see `matmul_flops`).
      collectives: how many of each collective operation the program holds; loops count once.
      collective_bytes: what they return on one device in a step, in bytes; every turn of a loop counts.
      host_link: bytes that cross the link between a device's memory and its host's for a batch, both ways together,
        without padding; of several devices one device's part.
      programs: where steps take one of two programs, all device memory that each needs; the other fields are those of
        the one that needs more, but for `flops`, the mean over a run.
      devices: over which the step is split.
      limit: bytes that the device can hand out, where known.
      compile_seconds: what compiling took.
      batches: that a step takes.
      estimate: of the time of a batch, where rates were given.
    """

    argument: int
    output: int
    alias: int
    temp: int
    generated_code: int = 0
    host: int = 0
    parameters: int = 0
    optimizer: int = 0
    batch: int = 0
    flops: float = 0.0
    collectives: dict[str, int] = dataclasses.field(default_factory=dict)
    collective_bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    host_link: int = 0
    programs: dict[str, int] = dataclasses.field(default_factory=dict)
    devices: int = 1
    limit: int | None = None
    compile_seconds: float = 0.0
    batches: int = 1
    estimate: Estimate | None = None

    @property
    def total(self) -> int:
        """All device memory of the step: argument + output - alias + temp."""
        return self.argument + self.output - self.alias + self.temp

    @property
    def fits(self) -> bool | None:
        """Whether the device can hold it; None where its memory is not known."""
        return None if self.limit is None else self.total <= self.limit

    def _rows(self):
        yield "parameters", self.parameters
        yield "optimizer state", self.optimizer
        yield "batch", self.batch
        yield (
            "padding and rest of the arguments",
            max(0, self.argument - self.parameters - self.optimizer - self.batch),
        )
        yield "activations and other scratch (temp)", self.temp
        yield "outputs that share no argument's buffer", self.output - self.alias
        yield "total on a device", self.total
        if self.generated_code:
            yield "generated code, beside the total", self.generated_code
        if self.limit is not None:
            yield "the device's memory", self.limit
        if self.host:
            yield "in host memory", self.host
        if self.host_link:
            yield "over the host link, a batch", self.host_link
        for name, size in self.programs.items():
            yield f"total in steps of {name}", size

    def __str__(self) -> str:
        """One line per part, in MiB."""
        return "\n".join(f"{name:<42}{size / MIB:>12,.1f} MiB" for name, size in self._rows())

    def _repr_html_(self) -> str:
        """A table, for notebooks."""
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td style='text-align:right'>{size / MIB:,.1f}</td></tr>"
            for name, size in self._rows()
        )
        return f"<table><tr><th></th><th>MiB per device</th></tr>{rows}</table>"


def place_config(
    config: ml_collections.ConfigDict, devices: list[jax.Device]
) -> tuple[Placement, ml_collections.ConfigDict]:
    """Returns a config's learner on the given devices, and the config with its defaults filled in.

    Raises:
      ValueError: a bad config.
    """
    platform = "gpu" if devices[0].platform in ("cuda", "rocm") else devices[0].platform
    config = config_lib.resolve(
        config,
        devices=len(devices),
        platform=platform,
        multiplies_bfloat16=multiplies_bfloat16(devices[0]),
    )
    if find_task(config.objective).takes_labels and config.classifier.classes is None:
        raise ValueError("classifier.classes is missing: no data is opened here that would tell")
    steps = config.steps or 1000  # enters the learning rate only
    config_lib.fill_lengths(config, steps)
    mesh = make_mesh(mesh_shape(config.mesh, len(devices)), devices)
    return Placement(make_learner(config, steps), mesh), config


def compile_step(
    placement: Placement, batch_size: int, limit: int | None = None, rates: Rates | None = None
) -> tuple[Callable, MemoryProfile]:
    """Compiles a train step and returns it with its profile.

    Args:
      placement: the learner on its mesh.
      batch_size: over all devices.
      limit: bytes that a device can hand out, where known.
      rates: of a device; with them comes an estimate of the time.

    Raises:
      DoesNotFit: the compiler refuses, since the device has too little memory.
    """
    start = time.perf_counter()
    learner, mesh = placement.learner, placement.mesh
    try:
        step = placement.compile(batch_size)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise _does_not_fit(str(error), limit, mesh.size) from error
    seconds = time.perf_counter() - start

    counts, sizes = Counter(), Counter()
    for program, times in zip(step.programs, step.turns, strict=True):
        for found in read_collectives(program.as_text()) if mesh.size > 1 else ():
            counts[found.kind] += 1
            sizes[found.kind] += found.size * found.turns * times
    held = held_bytes(placement, batch_size)
    looped, batch = placement.is_looped, held.batch
    if looped:
        row = jax.tree.map(_device_bytes, learner.abstract_row(), placement.row_shardings)
        row = _total(row)
        # Beside a program's arguments the next block's state, the last one's, and what only block 1 takes.
        beside = (row, 2 * row + held.stem + batch)
        profile = _largest(map(profile_compiled, step.programs), beside, held.host)
    else:
        profiles = [profile_compiled(program) for program in step.programs]
        profile = max(profiles, key=lambda profile: profile.total)
        if learner.other_step is not None:
            names = learner.program_names
            of_programs = {name: found.total for name, found in zip(names, profiles, strict=True)}
            profile = dataclasses.replace(profile, programs=of_programs)
    return step.call, dataclasses.replace(
        profile,
        parameters=held.parameters,
        optimizer=held.optimizer,
        batch=batch,
        flops=sum(
            times * matmul_flops(part.jaxpr)
            for part, times in zip(step.traced, step.turns, strict=True)
        ),
        host_link=round(_host_link(placement, step.traced, step.turns) / (learner.batches or 1)),
        collectives=dict(counts),
        collective_bytes={kind: round(size) for kind, size in sizes.items()},
        devices=mesh.size,
        limit=limit,
        compile_seconds=seconds,
        batches=learner.batches or 1,
        estimate=rates and estimate_step(placement, step.traced, step.turns, rates, sizes),
    )


@dataclasses.dataclass(frozen=True)
class Held:
    """Bytes of what a step takes on one device, which is known without compiling, and without padding.

    Attributes:
      parameters: on the device.
      optimizer: its state on the device.
      batch: the images, of all batches that a step takes.
      stem: the part of parameters and optimizer state that is the stem's.
      host: states in host memory.
    """

    parameters: int
    optimizer: int
    batch: int
    stem: int
    host: int


def held_bytes(placement: Placement, batch_size: int) -> Held:
    """Returns what a step takes on one device.

    Args:
      placement: the learner on its mesh.
      batch_size: over all devices.
    """
    learner, mesh = placement.learner, placement.mesh
    state = learner.abstract_state()
    size = jax.tree.map(_device_bytes, state, placement.shardings)
    host = 0
    if learner.uses_host_memory:
        whole = _total(size.blocks)
        kinds = learner.memory_kinds()
        on_device = jax.tree.map(
            lambda size, kind: 0 if placement.is_looped or kind == "pinned_host" else size,
            *(size.blocks, kinds),
        )
        size = size.replace(blocks=on_device)
        host = whole - _total(on_device)
    parts = [part for part in (size.stem, size.blocks, size.head) if part is not None]
    batch = batch_size * learner.batch.example_bytes * (learner.batches or 1)
    return Held(
        parameters=_total([part.params for part in parts]),
        optimizer=_total([part.opt_state for part in parts]),
        batch=batch // (mesh.shape["data"] * mesh.shape["fsdp"]),
        stem=_total(size.stem),
        host=host,
    )


def estimate_step(
    placement: Placement,
    traced: Sequence[jax.stages.Traced],
    turns: Sequence[float],
    rates: Rates,
    collectives: Mapping[str, float] | None = None,
) -> Estimate:
    """Estimates the seconds of a batch.

    Args:
      placement: the learner on its mesh.
      traced: the programs of a step.
      turns: how often each runs.
      rates: of a device.
      collectives: bytes of a step by kind, which only a compiled program tells.
    """
    batches = placement.learner.batches or 1
    to_device, to_host = (
        _host_link(placement, traced, turns, space) / batches
        for space in (jax.memory.Space.Device, jax.memory.Space.Host)
    )
    return estimate(
        (
            dataclasses.replace(part, turns=part.turns * times / batches)
            for program, times in zip(traced, turns, strict=True)
            for part in work(program.jaxpr)
        ),
        rates,
        devices=placement.mesh.size,
        to_device=to_device,
        to_host=to_host,
        collectives={kind: size / batches for kind, size in (collectives or {}).items()},
    )


def profile_compiled(compiled: jax.stages.Compiled) -> MemoryProfile:
    """Reads what the compiler itself tells of any compiled function."""
    # `peak_memory_in_bytes` would leave out scratch on CPU.
    stats = compiled.memory_analysis()
    return MemoryProfile(
        argument=stats.argument_size_in_bytes,
        output=stats.output_size_in_bytes,
        alias=stats.alias_size_in_bytes,
        temp=stats.temp_size_in_bytes,
        generated_code=stats.generated_code_size_in_bytes,
        host=stats.host_argument_size_in_bytes + stats.host_temp_size_in_bytes,
    )


def _host_link(placement, traced, turns, to=None):
    """Returns the bytes of a step that cross the host link of one device, both ways or to one space."""
    learner, mesh = placement.learner, placement.mesh
    if placement.is_looped:  # each block's state comes and goes
        row = jax.tree.map(_device_bytes, learner.abstract_row(), placement.row_shardings)
        return (2 if to is None else 1) * learner.rows * _total(row)
    # Counted on whole arrays; each device moves what it holds of them: of activations its part of the batch, of
    # parameters and optimizer states of one shape the mean of theirs.
    shares = defaultdict(list)
    row, of_row = learner.abstract_row(), placement.row_shardings
    for leaf, sharding in zip(*map(jax.tree.leaves, (row, of_row)), strict=True):
        share = math.prod(sharding.shard_shape(leaf.shape)) / leaf.size
        shares[leaf.shape[1:] if learner.host_states else leaf.shape].append(share)  # of a layer
    of_batch = [1 / (mesh.shape["data"] * mesh.shape["fsdp"])]
    return sum(
        times
        * host_link_bytes(
            part.jaxpr, to, lambda shape: fmean(shares.get(shape, of_batch)), IS_THERE
        )
        for part, times in zip(traced, turns, strict=True)
    )


def _device_bytes(leaf: jax.ShapeDtypeStruct, sharding: Any) -> int:
    return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _total(tree_of_bytes):
    return sum(jax.tree.leaves(tree_of_bytes))


def _largest(profiles, beside, host):
    """Returns the profile with the largest total, of programs beside which other arrays are on the device."""
    found = (
        dataclasses.replace(profile, argument=profile.argument + more, host=host)
        for profile, more in zip(profiles, beside, strict=True)
    )
    return max(found, key=lambda profile: profile.total)


def _does_not_fit(message, limit, devices):
    used = re.search(
        r"(?:Used |temporaries \()([\d.]+)([KMGT])\)? (?:of|exceeds available HBM) \(?([\d.]+)([KMGT])",
        message,
    )
    if not used:
        text = "does not fit: " + message.splitlines()[0][:300]
        return DoesNotFit(text, None, limit, devices)
    scale = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    needed = int(float(used[1]) * scale[used[2]])
    text = f"does not fit: the compiler needs {used[1]} {used[2]}iB and the device has {used[3]} {used[4]}iB"
    return DoesNotFit(text, needed, limit, devices)
