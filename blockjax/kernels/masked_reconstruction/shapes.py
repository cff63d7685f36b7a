"""Which shapes the kernels take and how they cut them into blocks; and named real shapes, for tests and benchmarks."""

import dataclasses
import math
from typing import Any

# A program of the TPU kernel holds at most so many values of predictions, of targets and of gradients: 1 MiB each in
# float32, twice for double buffering, of at least 16 MiB of VMEM.
_TPU_VALUES = 2**18
# Images whose patches have fewer values are joined, else a program would move too little at a time.
_TPU_LEAST = 2**15
_TPU_LANES = 128
# Bytes of features and predictions in a tile of the TPU kernel that also projects.
_TPU_HEAD_TILE = 2**20
_TPU_HELD = 12 * 2**20  # bytes, beside the tile
# A program of the GPU kernel holds so many values in its registers, in at most so many rows. Not tuned on a device.
_GPU_VALUES = 4096
_GPU_ROWS = 64
_GPU_LEAST_COLUMNS = 16
# Part of a row's registers that may be padding.
_GPU_WASTE = 1 / 8


@dataclasses.dataclass(frozen=True)
class Shape:
    """A batch of decoded patches as a model has it.

    Attributes:
      images: of a batch (B).
      patches: decoded ones of an image (M).
      values: of a patch (P).
      width: of the decoder, whose last layer makes them (D).
    """

    images: int
    patches: int
    values: int
    width: int


SHAPES = {
    "b16": Shape(256, 147, 768, 512),  # ViT-B/16 at 224 pixels: 75 % of 196 patches, MAE's decoder
    "b16_third": Shape(256, 49, 768, 192),  # a third of them, as in configs/bim.py
    "l16": Shape(128, 147, 768, 512),
    "h14": Shape(64, 192, 588, 512),
    "cifar": Shape(4096, 48, 48, 192),  # 32 pixels in patches of 4
    "patch6": Shape(512, 27, 108, 192),
}


def gpu_blocks(values: int) -> tuple[int, int, int]:
    """Returns how the GPU kernel cuts rows of so many values: rows a program, columns a chunk, chunks a row.

    Every array in a Triton program has a power of two of elements, so a row is held as several chunks.
    """
    columns = 1 << (values - 1).bit_length()
    while columns > _GPU_LEAST_COLUMNS:
        padded = math.ceil(values / columns) * columns
        if padded - values <= _GPU_WASTE * values:
            break
        columns //= 2
    chunks = math.ceil(values / columns)
    rows = 1 << (max(1, _GPU_VALUES // (chunks * columns)).bit_length() - 1)
    return min(rows, _GPU_ROWS), columns, chunks


def tpu_blocks(shape: tuple[int, int, int]) -> tuple[tuple[int, int, int], int]:
    """Returns how the TPU kernel sees an array [B, M, P]: the shape it gives it, and the rows of a block.

    A block's last two sides are the array's, or multiples of 8 and 128; the mask of its rows lies along the lanes.
    """
    images, patches, values = shape
    padded = math.ceil(values / _TPU_LANES) * _TPU_LANES
    if patches * padded < _TPU_LEAST:
        images, patches = 1, images * patches
    if patches * padded <= _TPU_VALUES:
        return (images, patches, values), patches
    rows = max(_TPU_LANES, _TPU_VALUES // padded // _TPU_LANES * _TPU_LANES)
    return (images, patches, values), min(rows, patches)


def why_no_head(shape: tuple[int, ...], width: int, itemsize: int) -> str | None:
    """Says why the TPU kernel cannot also project features to patches of this shape [..., P], or None if it can.

    Args:
      shape: of the predictions.
      width: of the features.
      itemsize: bytes of a feature.
    """
    sides = [math.ceil(side / _TPU_LANES) * _TPU_LANES for side in (width, shape[-1])]
    # The projection and its gradient in float32, each twice for double buffering.
    held = math.prod(sides) * 2 * (itemsize + 4)
    if held > _TPU_HELD:
        return f"a projection of {width} to {shape[-1]} and its gradient take {held / 2**20:.0f} MiB of the VMEM"
    return None


def head_rows(count: int, width: int, values: int, itemsize: int) -> int:
    """Returns the tokens of a tile of the TPU kernel that also projects [count, width] to [count, values]."""
    padded = sum(math.ceil(side / _TPU_LANES) * _TPU_LANES for side in (width, values))
    rows = max(_TPU_LANES, _TPU_HEAD_TILE // (padded * itemsize) // _TPU_LANES * _TPU_LANES)
    return min(rows, count)


def why_not(
    kernel: str, shape: tuple[int, ...], *, parts: int = 1, device: Any = None
) -> str | None:
    """Says why a kernel does not take patches of this shape [..., P], or None if it does.

    Args:
      kernel: `pallas_tpu` or `pallas_gpu`.
      shape: of the predictions.
      parts: devices over which the first dimension is split.
      device: the one that it would run on, if there is one; only its age matters.
    """
    if shape[0] % parts:
        return f"{parts} devices cannot share a first dimension of {shape[0]} equally"
    size, platform = math.prod(shape), getattr(device, "platform", None)
    if size == 0:
        return "there is no patch"
    if kernel == "pallas_gpu":
        if size >= 2**31:
            return f"its offsets are 32-bit integers, and the predictions have {size:,} values"
        if shape[-1] > 16 * _GPU_VALUES:
            return f"a patch of {shape[-1]:,} values is more than a program's registers hold"
        if platform == "gpu" and float(getattr(device, "compute_capability", None) or 8) < 8.0:
            return f"it needs a GPU of compute capability 8.0, and this is a {device.device_kind}"
    if kernel == "pallas_tpu":
        if shape[-1] * _TPU_LANES > 8 * _TPU_VALUES:
            return f"a block of {_TPU_LANES} patches of {shape[-1]:,} values is more than the VMEM holds"
        if platform == "tpu" and device.device_kind in ("TPU v2", "TPU v3"):
            return f"it needs a TPU v4 or newer, and this is a {device.device_kind}"
    return None
