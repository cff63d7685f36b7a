"""One mesh for everything: which devices hold which part of the batch and of the state."""

import functools
import math
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

PyTree = Any

AXES = ("data", "fsdp", "block")
# How parameters end, with all that is named like them in optimizer states, and the dimension that `fsdp` splits. The
# first that fits counts; biases, norms and tokens are not worth a gather.
FSDP_RULES = (
    ("/Dense_0/kernel", -1),  # [width, hidden]
    ("/Dense_1/kernel", -2),  # [hidden, width]
    ("/pixels/kernel", -1),  # [width, values of a patch]
    ("/kernel", -2),  # attention [width, width], embeddings
)


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
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


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


def state_shardings(state: PyTree, mesh: Mesh) -> PyTree:
    """Returns a sharding for every array of an (abstract) train state.

    The axis `block` splits the rows of `blocks`; `fsdp` splits what `FSDP_RULES` names. Where it does not divide the
    dimension of the rule, it takes the array's other one; where it divides none, the array stays whole, with a warning.
    What of it is optimizer state, `data` splits further (ZeRO's first stage, arXiv 1910.02054): each device makes its
    part of the update, and the parts are gathered. See `split_as_parameters`.
    """
    whole = []

    def sharding(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        axes = ("fsdp", "data") if "/opt_state/" in name else ("fsdp",)
        spec, fits = _split(name, leaf.shape, axes, mesh.shape)
        if mesh.shape["block"] > 1 and name.startswith("blocks/"):
            spec[0] = "block"
        if not fits:
            whole.append(f"{name} {leaf.shape}")
        return NamedSharding(mesh, PartitionSpec(*spec))

    shardings = jax.tree_util.tree_map_with_path(sharding, state)
    if whole:
        fsdp = mesh.shape["fsdp"]
        warn_once(f"mesh.fsdp={fsdp} divides no dimension of {', '.join(whole)}: whole everywhere")
    return shardings


def split_as_parameters(tree: PyTree) -> PyTree:
    """Splits what has the names of parameters as parameters are split; under `jit`, in the mesh of `jax.set_mesh`.

    For parameters where they are used (their gradients then are split so too), and for their updates. Else XLA may
    split both as the optimizer's state is, and gather the activations of the whole batch for it.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    if sizes.get("data", 1) == 1:
        return tree

    def constrained(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec, _ = _split(f"/{name}", leaf.shape, ("fsdp",), sizes)
        return jax.lax.with_sharding_constraint(leaf, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(constrained, tree)


def _split(name, shape, axes, sizes):
    """Returns the entries of an array's `PartitionSpec`, and whether the first of the axes found a dimension."""
    spec, fits = [()] * len(shape), True
    rule = next((dimension for end, dimension in FSDP_RULES if name.endswith(end)), None)
    for axis in axes if rule is not None else ():
        if sizes[axis] == 1:
            continue
        for dimension in (rule, -3 - rule):
            if shape[dimension] % math.prod(sizes[used] for used in (*spec[dimension], axis)) == 0:
                spec[dimension] = (*spec[dimension], axis)
                break
        else:
            fits = fits and axis != axes[0]
    return [(used if len(used) > 1 else used[0]) if used else None for used in spec], fits


@functools.cache
def warn_once(text: str) -> None:
    """Logs a warning, the first time that it is given."""
    logging.warning(text)
