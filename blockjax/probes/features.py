"""Features of many images: every depth of a backbone is read in one pass, and kept where there is room."""

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from blockjax.models.backbone import Backbone
from blockjax.sharding.mesh import replicated

PyTree = Any

BATCH = 250  # images in a forward pass
# Features that need more than this are kept in files instead of memory.
_MEMORY_BYTES = 4 << 30
_PIXEL_SIDE = 32


@dataclasses.dataclass(frozen=True)
class Features:
    """Features of N images.

    Attributes:
      arrays: for each readout a dict from depth (from 1) to float32 [N, F], on the host or in mapped files.
      labels: int [N], or None.
      pixels: the images themselves as features, [N, P], see `pixels`.
    """

    arrays: dict[str, dict[int, np.ndarray]]
    labels: np.ndarray | None
    pixels: np.ndarray


def read_features(
    backbone: Backbone,
    params: PyTree,
    batches: Iterable[tuple[np.ndarray, np.ndarray | None]],
    total: int,
    *,
    readouts: Sequence[str],
    depths: Sequence[int] | None = None,
    pool: int = 1,
    mesh: Mesh | None = None,
    folder: Path | None = None,
    on_images: Callable[[int], None] = lambda done: None,
) -> Features:
    """Reads features of images as they come, on all devices of a mesh.

    Args:
      backbone: what is read.
      params: its parameters, wherever they are on the mesh.
      batches: images, uint8 [B, H, W, 3], B at most 250, and labels [B] or None.
      total: at least as many as images will come.
      readouts: names in `blockjax.models.backbone.FEATURE_READOUTS`.
      depths: from 1; default all.
      pool: side of the grid of the readout "grid".
      mesh: over whose devices images are split; None for one device.
      folder: where features go that are too large for memory (each file is deleted when it is no longer used).
      on_images: called with the number of images read so far.

    Returns:
      The features. The readout "own" is there for depths with a head only.
    """
    depths = tuple(depths or range(1, backbone.blocks + 1))
    kept: dict[str, dict[int, np.ndarray]] = {}
    labels, pixels_ = [], None
    done = 0
    for images, label in batches:
        found = batch_features(backbone, params, images, readouts, pool, mesh)
        if not done:
            needed = total * 4 * sum(f.shape[0] * f.shape[2] for f in found.values())
            make = np.empty if needed <= _MEMORY_BYTES else functools.partial(_mapped, folder)
            pixels_ = make((total, pixels(images[:1]).shape[1]), np.float32)
            for readout, rows in found.items():
                first = backbone.blocks - len(rows) + 1  # a single head is that of the last depth
                kept[readout] = {
                    depth: make((total, rows.shape[2]), np.float32)
                    for depth in depths
                    if depth >= first
                }
        here = slice(done, done + len(images))
        for readout, rows in found.items():
            for depth, array in kept[readout].items():
                array[here] = rows[depth - 1 - backbone.blocks]
        pixels_[here] = pixels(images)
        labels.append(label)
        done += len(images)
        on_images(done)
    arrays = {
        readout: {depth: array[:done] for depth, array in kept[readout].items()}
        for readout in readouts
    }
    has_labels = labels[0] is not None
    return Features(arrays, np.concatenate(labels) if has_labels else None, pixels_[:done])


def batch_features(
    backbone: Backbone,
    params: PyTree,
    images_BHWC: np.ndarray,
    readouts: Sequence[str],
    pool: int,
    mesh: Mesh | None,
) -> dict[str, np.ndarray]:
    """Returns features of at most 250 images for each readout, [K, B, F] float32 on the host ([1, B, F] for one
    head).
    """
    batch = put_examples(images_BHWC, mesh)
    found = jax.device_get(_features(backbone, tuple(readouts), pool, mesh, params, batch))
    return {readout: rows[:, : len(images_BHWC)] for readout, rows in found.items()}


def put_examples(
    examples: np.ndarray, mesh: Mesh | None, most: int = BATCH
) -> np.ndarray | jax.Array:
    """Fills examples, at most so many, up to a batch of one shape, for one program, and splits it over a mesh."""
    devices = mesh.size if mesh else 1
    size = -(-most // devices) * devices
    batch = np.concatenate([examples, examples[:1].repeat(size - len(examples), axis=0)])
    if devices == 1:
        return batch
    # Each device, of whatever process, takes its share.
    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.make_array_from_callback(batch.shape, split, batch.__getitem__)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _features(backbone, readouts, pool, mesh, params, images_BHWC):
    def at_depth(tokens):
        return {name: backbone.pooled(tokens, name, pool) for name in readouts if name != "own"}

    at_head = backbone.own if "own" in readouts else None
    found, own = backbone.read(params, backbone.vit.inputs(images_BHWC), at_depth, at_head)
    return replicated(found if own is None else {**found, "own": own}, mesh)


def array_features(
    backbone: Backbone,
    params: PyTree,
    images_BHWC: np.ndarray,
    pool: int,
    mesh: Mesh | None = None,
) -> list[np.ndarray]:
    """Returns the features "grid" of every depth, K arrays [B, pool² · D] float32, of any number of images."""
    batches = ((images_BHWC[i : i + BATCH], None) for i in range(0, len(images_BHWC), BATCH))
    found = read_features(
        backbone, params, batches, len(images_BHWC), readouts=("grid",), pool=pool, mesh=mesh
    )
    return [*found.arrays["grid"].values()]


def pixels(images_BHWC: np.ndarray) -> np.ndarray:
    """Returns raw pixels as features, [B, F] float32 in [0, 1]; images above 32 pixels a side are averaged down."""
    factor = max(1, images_BHWC.shape[1] // _PIXEL_SIDE)
    side = images_BHWC.shape[1] // factor
    images_BHWC = images_BHWC[:, : side * factor, : side * factor].astype(np.float32) / 255.0
    cut = images_BHWC.reshape(-1, side, factor, side, factor, 3)
    return cut.mean(axis=(2, 4)).reshape(len(images_BHWC), -1)


def _mapped(folder, shape, dtype):
    # A file without a name vanishes with the last use of it, however the program ends.
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
    return np.memmap(file, dtype, "w+", shape=shape)
