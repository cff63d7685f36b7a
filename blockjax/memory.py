"""What a compiled train step needs of device memory, also for TPUs that are not attached."""

import argparse
import dataclasses
import importlib.util
import itertools
import os
import sys
import time

import jax
import ml_collections
from jax.experimental import topologies

from blockjax import config as config_lib
from blockjax.learner import make_learner
from blockjax.progress import render_table
from blockjax.sharding import make_mesh, mesh_shape

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class MemoryProfile:
    """Bytes per device of one compiled step, from XLA's buffer assignment.

    Attributes:
      argument: parameters, optimizer state and batch.
      output: new state and metrics; almost all of it shares its buffer with an argument.
      alias: bytes that arguments and outputs share.
      temp: scratch: activations, gradients and what XLA needs between.
    """

    argument: int
    output: int
    alias: int
    temp: int

    @property
    def total(self) -> int:
        """All device memory of the step: argument + output - alias + temp."""
        return self.argument + self.output - self.alias + self.temp


def profile_compiled(compiled: jax.stages.Compiled) -> MemoryProfile:
    """Reads the profile of a compiled step; `peak_memory_in_bytes` would leave out scratch on CPU."""
    stats = compiled.memory_analysis()
    return MemoryProfile(
        argument=stats.argument_size_in_bytes,
        output=stats.output_size_in_bytes,
        alias=stats.alias_size_in_bytes,
        temp=stats.temp_size_in_bytes,
    )


def profile(config: ml_collections.ConfigDict, target: str = "local") -> MemoryProfile:
    """Compiles a config's train step, allocating nothing, and returns its memory on one device.

    Args:
      config: as a config file returns it.
      target: "local" for the attached devices, or the name of a TPU topology ("v5e:2x2"), of which one chip is used.

    Raises:
      ValueError: a bad config, or a topology that libtpu does not know or that needs libtpu installed.
    """
    devices = jax.devices() if target == "local" else tpu_devices(target)[:1]
    platform = devices[0].platform
    config = config_lib.resolve(config, devices=len(devices), platform=platform)
    steps = config.steps or 1000  # enters the learning rate only
    config_lib.fill_lengths(config, steps)
    mesh = make_mesh(mesh_shape(config.mesh, len(devices)), devices)
    return profile_compiled(make_learner(config, steps).lower(mesh, config.batch_size).compile())


def tpu_devices(topology: str) -> list:
    """Returns the devices of a TPU topology that need not be attached, to compile for.

    Raises:
      ValueError: libtpu is not installed, or does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"compiling for {topology} needs libtpu, which is not installed: pip install 'blockjax[tpu]'"
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no cloud metadata server to ask
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # compiling needs no exclusive chip
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:
        reason = str(error).splitlines()[0][:200]
        raise ValueError(
            f"libtpu does not know the topology {topology!r} (it knows v5e:2x2, v5p:2x2x1, v6e:2x2, ...): {reason}"
        ) from error
    return description.devices


def main() -> None:
    """Prints a table of memory against strategy and depth."""
    parser = argparse.ArgumentParser(prog="python -m blockjax.memory", description=main.__doc__)
    parser.add_argument(
        "--config", required=True, help="a config file, with :arguments if it takes any"
    )
    parser.add_argument(
        "--target", default="local", help="local, or a TPU topology such as v5e:2x2"
    )
    parser.add_argument(
        "--depths",
        default="",
        help="depths to compare, such as 12,24,48; layers per block stay the config's",
    )
    parser.add_argument(
        "--strategies",
        default="end_to_end,end_to_end+remat,blockwise,blockwise+remat",
        help="strategies to compare, each with +remat and +unroll by choice",
    )
    arguments = parser.parse_args()
    if arguments.target != "local":
        jax.config.update("jax_platforms", "cpu")
    from blockjax.main import load_config

    try:
        base = load_config(arguments.config)
        rows = _rows(base, arguments)
    except ValueError as error:
        sys.exit(f"error: {error}")
    render_table(
        f"MiB per device, {arguments.config}, batch {base.batch_size}, {arguments.target}",
        ["strategy", "layers", "blocks", "arguments", "scratch (temp)", "total", "compile s"],
        rows,
    )


def _rows(base, arguments):
    depth, blocks = _depth(base), base.blocks
    depths = [int(d) for d in arguments.depths.split(",") if d] or [depth]
    strategies = arguments.strategies.split(",")
    rows = []
    for strategy, layers in itertools.product(strategies, depths):
        config = base.copy_and_resolve_references()
        config.strategy, *options = strategy.split("+")
        config.remat = "layer" if "remat" in options else "none"
        config.model.depth = layers
        config.blocks = max(1, layers * blocks // depth)
        if "unroll" in options:
            whole = config.strategy == "end_to_end"
            config.model.unroll = layers if whole else layers // config.blocks
        start = time.perf_counter()
        memory = profile(config, arguments.target)
        figures = [f / MIB for f in (memory.argument, memory.temp, memory.total)]
        rows.append([strategy, layers, config.blocks, *figures, round(time.perf_counter() - start)])
        # Compiling takes a while: show each figure when it is there.
        print(
            f"{len(rows)}/{len(strategies) * len(depths)}  {strategy}, {layers} layers in "
            f"{config.blocks} blocks: scratch {figures[1]:.1f} MiB, total {figures[2]:.1f} MiB",
            flush=True,
        )
    return rows


def _depth(config):
    return config_lib.resolve(config, devices=1, platform="cpu").model.depth


if __name__ == "__main__":
    main()
