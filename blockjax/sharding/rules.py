"""How states are split over the mesh."""

import functools
import math
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

PyTree = Any
# How parameters end, with all that is named like them in optimizer states, and the dimension that `fsdp` splits. The
# first that fits counts; biases, norms and tokens are not worth a gather.
FSDP_RULES = (
    ("/Dense_0/kernel", -1),  # [width, hidden]
    ("/Dense_1/kernel", -2),  # [hidden, width]
    ("/pixels/kernel", -1),  # [width, values of a patch]
    ("/kernel", -2),  # attention [width, width], embeddings
)


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


def split_as_parameters(tree: PyTree, axes: tuple[str, ...] = ("fsdp",)) -> PyTree:
    """Splits what has the names of parameters as parameters are split; under `jit`, in the mesh of `jax.set_mesh`.

    For parameters where they are used (their gradients then are split so too), and for their updates. Else XLA may
    split both as the optimizer's state is, and gather the activations of the whole batch for it.

    Args:
      tree: parameters, gradients or updates.
      axes: of the mesh that split parameters: none of them between `gathered` and the end of a block's stay.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    if sizes.get("data", 1) == 1:
        return tree

    def constrained(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec, _ = _split(f"/{name}", leaf.shape, axes, sizes)
        return jax.lax.with_sharding_constraint(leaf, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(constrained, tree)


def gathered(row: PyTree) -> PyTree:
    """Makes whole on every device what `fsdp` splits of one block's state; `data` splits optimizer states as before.

    Under `jit`, in the mesh of `jax.set_mesh`.
    """
    sizes = jax.sharding.get_abstract_mesh().shape
    if sizes.get("fsdp", 1) == 1:
        return row

    def constrained(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        axes = ("data",) if name.startswith("opt_state/") else ()
        spec, _ = _split(f"/{name}", leaf.shape, axes, sizes)
        return jax.lax.with_sharding_constraint(leaf, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(constrained, row)


def _split(name, shape, axes, sizes):
    """Returns the entries of an array's `PartitionSpec`, and whether the first of the axes found a dimension."""
    spec, fits = [()] * len(shape), True
    rule = next((dimension for end, dimension in FSDP_RULES if name.endswith(end)), None)
    for axis in axes if rule is not None else ():
        if sizes[axis] == 1:
            continue
        for dimension in (rule, -3 - rule):
            if -dimension > len(shape):  # a factor of a second moment
                continue
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
