"""One mesh for everything: which devices hold which part of the batch and of the state."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

PyTree = Any

AXES = ("data", "fsdp", "block")
# Arrays smaller than this many elements are not worth a gather: biases, norms, tokens.
_SMALLEST_SHARDED = 2**12


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
        raise ValueError(
            f"{named} does not fit {devices} device{'s' if devices != 1 else ''}; "
            "the sizes must multiply to that, or set mesh.data=-1"
        )
    return tuple(sizes)


def make_mesh(shape: tuple[int, int, int], devices: list | None = None) -> Mesh:
    """Returns the mesh with axes `data`, `fsdp`, `block`; XLA decides how intermediate arrays are split."""
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Images are split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_shardings(state: PyTree, mesh: Mesh) -> PyTree:
    """Returns a sharding for every array of an (abstract) state.

    With an `fsdp` axis, each array is split along its largest dimension that divides by it; small arrays and all
    else are replicated.
    """
    size = mesh.shape["fsdp"]

    def leaf_sharding(leaf):
        spec = [None] * leaf.ndim
        if size > 1 and leaf.size >= _SMALLEST_SHARDED:
            fitting = [i for i in range(leaf.ndim) if leaf.shape[i] % size == 0]
            if fitting:
                spec[max(fitting, key=lambda i: leaf.shape[i])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(leaf_sharding, state)
