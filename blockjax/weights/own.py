"""Parameters by this package's own names."""

import os
from typing import Any

import jax
import numpy as np

from blockjax.weights.files import UnusableWeights

PyTree = Any
OWN_FORMAT = "blockjax"  # of config.json beside weights in this package's own names


def as_tensors(params: PyTree) -> dict[str, np.ndarray]:
    """Returns parameters by their paths, such as layers.attention.query.kernel."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    return {_name(path): np.asarray(leaf) for path, leaf in flat}


def as_params(tensors: dict[str, np.ndarray], shapes: PyTree, source: str | os.PathLike) -> PyTree:
    """Undoes `as_tensors`.

    Args:
      tensors: by name.
      shapes: of the parameters that there should be.
      source: where the tensors are from, for errors.

    Raises:
      UnusableWeights: a tensor is missing, of another shape, or belongs to none of the parameters; names it.
    """
    left = dict(tensors)

    def taken(path, leaf):
        name = _name(path)
        found = left.pop(name, None)
        if found is None or found.shape != leaf.shape:
            what = "absent" if found is None else f"of shape {found.shape}"
            raise UnusableWeights(
                f"{source}: tensor {name} is {what}; the encoder in config.json asks for {leaf.shape}"
            )
        return found

    params = jax.tree_util.tree_map_with_path(taken, shapes)
    if left:
        raise UnusableWeights(f"{source} has tensors that belong to no encoder: {next(iter(left))}")
    return params


def _name(path):
    return jax.tree_util.keystr(path, simple=True, separator=".")
