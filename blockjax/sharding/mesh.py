"""One mesh for everything: which devices, and which processes, hold which part of the batch."""

import math
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

PyTree = Any
AXES = ("data", "fsdp", "block")
BATCH_AXES = ("data", "fsdp")  # which split images


def mesh_shape(mesh_config: Any, devices: int) -> tuple[int, int, int]:
    """Returns the sizes of the axes `data`, `fsdp` and `block`; one of them may be -1 in the config, meaning the rest.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    sizes = [mesh_config[axis] for axis in AXES]
    named = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
        raise ValueError(f"{named}: sizes are at least 1, and at most one is -1 (the rest)")
    known = 1
    for size in sizes:
        known *= 1 if size == -1 else size
    if -1 in sizes and devices % known == 0:
        sizes[sizes.index(-1)] = devices // known
    if -1 in sizes or sizes[0] * sizes[1] * sizes[2] != devices:
        fitting = "multiply to that, or set mesh.data=-1"
        if -1 in sizes:
            fitting = "divide that, and the one of -1 is the rest"
        raise ValueError(
            f"{named} does not fit {devices} device{'s' if devices != 1 else ''}; the sizes must {fitting}"
        )
    return tuple(sizes)


def make_mesh(shape: tuple[int, int, int], devices: list | None = None) -> Mesh:
    """Returns the mesh with axes `data`, `fsdp`, `block`; XLA decides how intermediate arrays are split.

    Neighbours on the mesh are neighbours in the network where they can be. An axis may be a part of one of a torus,
    which `jax.make_mesh` allows on some chips only.
    """
    devices = (devices or jax.devices())[: math.prod(shape)]
    arranged = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * 3)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Images are split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Brings arrays whole to every device, so that every process can read them; to be called under `jit`."""
    if mesh is None or mesh.size == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def process_parts(mesh: Mesh, process: int) -> list[int]:
    """Returns which of the data x fsdp equal parts of each batch the devices of a process hold.

    Processes that hold different stages of a pipeline hold the same images. On TPU slices a process's parts need not
    follow one another.
    """
    # Data is the slowest axis, as in `batch_sharding`.
    devices = mesh.devices.reshape(-1, mesh.shape["block"])
    return [
        part
        for part, holders in enumerate(devices)
        if any(device.process_index == process for device in holders)
    ]


def process_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns which images of each batch this process makes."""
    rows = np.arange(batch_size).reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
    return rows[process_parts(mesh, jax.process_index())].ravel()


def put_rows(mesh: Mesh, rows: np.ndarray, axis: int = 0) -> jax.Array:
    """Makes one array, split like a batch along an axis, of what every process has: its `process_rows`."""
    parts = process_parts(mesh, jax.process_index())
    size = rows.shape[axis] // len(parts)
    shape = list(rows.shape)
    shape[axis] = size * mesh.shape["data"] * mesh.shape["fsdp"]

    def part(index):
        own = parts.index((index[axis].start or 0) // size) * size
        return rows[(slice(None),) * axis + (slice(own, own + size),)]

    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, *batch_sharding(mesh).spec))
    return jax.make_array_from_callback(tuple(shape), sharding, part)


def row_by_row(batch: jax.Array) -> jax.Array:
    """Holds the layout of a part of a batch [B, ...], in which its first axis is the slowest; under `jit`.

    Else XLA may give it the layout that suits what is made of it, and with it the array of which it is a part, as a
    copy of all of that.
    """

    def held(part):
        return with_layout_constraint(part, Layout(major_to_minor=tuple(range(part.ndim))))

    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return held(batch)
    # XLA's partitioner would gather it to hold it.
    spec = PartitionSpec(BATCH_AXES)
    return jax.shard_map(held, in_specs=spec, out_specs=spec)(batch)
