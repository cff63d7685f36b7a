"""What each implementation of the loss moves through memory and, where a GPU or TPU is attached, how long it takes."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from blockjax.kernels.masked_reconstruction import (
    masked_reconstruction_loss,
    normalize_patches,
    projected_reconstruction_loss,
)
from blockjax.kernels.masked_reconstruction.gradient import project
from blockjax.kernels.masked_reconstruction.reference import loss_and_gradient
from blockjax.kernels.masked_reconstruction.shapes import SHAPES
from blockjax.xla.hlo import moved_bytes
from blockjax.xla.targets import Target, parse_target

# Dtypes of predictions and targets, and whether targets are normalised.
CASES = {
    "bfloat16, uint8": ("bfloat16", "uint8", True),
    "bfloat16, bfloat16": ("bfloat16", "bfloat16", True),
    "float32, float32": ("float32", "float32", True),
    "bfloat16, uint8, not normalized": ("bfloat16", "uint8", False),
}
# The loss alone; with its gradient; and with the decoder's last layer before it and all their gradients.
PASSES = ("loss", "gradient", "head")
# `rows first` is XLA, too, written so that it moves as little as it can for normalised targets on GPUs: the mean of
# each patch, then over patches. In a train step it takes more scratch memory.
IMPLEMENTATIONS = ("xla", "xla, rows first", "pallas")
# Calls of a round, queued one behind the other so that starting them takes no time, and rounds.
_CALLS, _ROUNDS = 20, 30
_COPIED = 2**28  # bytes


@dataclasses.dataclass(frozen=True)
class Row:
    """What one program needs.

    Attributes:
      shape: a name in `SHAPES`.
      case: a name in `CASES`.
      implementation: one of `IMPLEMENTATIONS`.
      part: one of `PASSES`.
      kernel: whether the program has a kernel of this package.
      moved: bytes that its operations read and write. On TPU XLA's estimate, which takes ours for the kernel.
      least: bytes of predictions, targets and gradient, or of the head's features, parameters, gradients and targets:
        what has to be moved.
      temp: bytes of scratch memory.
      seconds: of a call, the median over rounds; None where nothing was run.
      copy_fraction: `least` by `seconds`, as a part of what a copy reaches on the device.
      error: of loss and gradient against the reference, relative to the largest value.
    """

    shape: str
    case: str
    implementation: str
    part: str
    kernel: bool
    moved: int
    least: int
    temp: int
    seconds: float | None = None
    copy_fraction: float | None = None
    error: float | None = None


def run(target: str, shapes: Sequence[str], cases: Sequence[str]) -> Iterator[Row]:
    """Compiles for a target in a process of its own, and measures if it is `local` and no CPU.

    Args:
      target: see `blockjax.xla.targets.parse_target`.
      shapes: names in `SHAPES`.
      cases: names in `CASES`.

    Yields:
      A row for each shape, case, part and implementation.

    Raises:
      ValueError: the target or a name is unknown, or the compiler's package is not installed.
    """
    for given, known in ((shapes, SHAPES), (cases, CASES)):
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"{unknown[0]!r} is unknown; there are {', '.join(map(repr, known))}")
    environment = {**os.environ, **parse_target(target).environment()}
    job = json.dumps({"target": target, "shapes": shapes, "cases": cases})
    command = [sys.executable, "-m", __name__, job]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if line.startswith("{"):
                yield Row(**json.loads(line))
        errors = process.stderr.read().splitlines()
    if process.returncode:
        raise ValueError(errors[-1] if errors else f"exit status {process.returncode}")


def _rows(target: Target, shapes, cases):
    device = target.devices()[0]
    measures = target.kind == "local" and device.platform != "cpu"
    copied = _copy_bandwidth(device) if measures else None
    for shape in shapes:
        for case in cases:
            for part in PASSES:
                for implementation in IMPLEMENTATIONS:
                    row, compiled = _compile(shape, case, implementation, part, device)
                    if measures:
                        row = _measure(row, compiled, device, copied)
                    yield row


def _compile(shape, case, implementation, part, device):
    sizes = SHAPES[shape]
    of_predictions, of_targets, normalize = CASES[case]
    pixels = _pixels(of_targets, sizes.values)

    def loss(predictions, targets):
        if implementation == "xla, rows first":
            return _rows_first(predictions, targets, pixels, normalize)
        return masked_reconstruction_loss(
            predictions, targets, normalize=normalize, pixels=pixels, implementation=implementation
        )

    def head(layer, targets):
        if implementation == "xla, rows first":
            return _rows_first(project(*layer), targets, pixels, normalize)
        return projected_reconstruction_loss(
            *layer, targets, normalize=normalize, pixels=pixels, implementation=implementation
        )

    # In a model the gradient may take the predictions' memory; as an argument they have to be given away for that.
    step = {
        "loss": jax.jit(loss),
        "gradient": jax.jit(jax.value_and_grad(loss), donate_argnums=0),
        "head": jax.jit(jax.value_and_grad(head), donate_argnums=0),
    }[part]
    sharding = SingleDeviceSharding(device)

    def array(*shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    batch = (
        sizes.images * sizes.patches,
    )  # one list of patches: TPUs would have to lay out others anew
    first = array(*batch, sizes.values, dtype=of_predictions)
    if part == "head":
        first = (
            array(*batch, sizes.width, dtype=of_predictions),
            array(sizes.width, sizes.values, dtype="float32"),
            array(sizes.values, dtype="float32"),
        )
    targets = array(*batch, sizes.values, dtype=of_targets)
    compiled = step.lower(first, targets).compile()
    text = compiled.as_text()
    estimated = device.platform == "tpu"
    row = Row(
        shape,
        case,
        implementation,
        part,
        re.search(r"masked_reconstruction_(tpu|gpu)", text) is not None,
        int(compiled.cost_analysis()["bytes accessed"]) if estimated else moved_bytes(text),
        _bytes(first) * (1 if part == "loss" else 2) + _bytes(targets),
        compiled.memory_analysis().temp_size_in_bytes,
    )
    return row, compiled


def _bytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _pixels(dtype, values):
    """Statistics by which targets are standardised, if they are pixels."""
    if dtype != "uint8":
        return None
    return np.full(values, 0.45, np.float32), np.full(values, 0.225, np.float32)


def _rows_first(predictions, targets, pixels, normalize):
    targets = targets.astype(jnp.float32)
    if pixels is not None:
        targets = (targets / 255.0 - pixels[0][None]) / pixels[1][None]
    if normalize:
        targets = normalize_patches(targets)[0]
    # Two sums XLA would join to one; a mean is multiplied between.
    return jnp.square(predictions.astype(jnp.float32) - targets).mean(axis=-1).mean()


def _measure(row, compiled, device, copied):
    sizes = SHAPES[row.shape]
    of_predictions, of_targets, normalize = CASES[row.case]
    pixels = _pixels(of_targets, sizes.values)
    keys = jax.random.split(jax.random.key(0), 3)
    batch = (sizes.images * sizes.patches,)
    if of_targets == "uint8":
        targets = jax.random.randint(keys[0], (*batch, sizes.values), 0, 256).astype(jnp.uint8)
    else:
        targets = jax.random.normal(keys[0], (*batch, sizes.values)).astype(of_targets)

    def reference(first):
        predictions = first if row.part != "head" else project(*first).astype(jnp.float32)
        loss, gradient = loss_and_gradient(predictions, targets, normalize=normalize, pixels=pixels)
        if row.part != "head":
            return (loss, gradient)[: 1 if row.part == "loss" else 2]
        return loss, jax.vjp(lambda layer: project(*layer).astype(jnp.float32), first)[1](gradient)[
            0
        ]

    if row.part == "head":
        first = (
            jax.random.normal(keys[1], (*batch, sizes.width)).astype(of_predictions),
            jax.random.normal(keys[2], (sizes.width, sizes.values)) / sizes.width**0.5,
            jnp.zeros(sizes.values),
        )
    else:
        first = jax.random.normal(keys[1], (*batch, sizes.values)).astype(of_predictions)
    first, targets = jax.device_put((first, targets), device)
    expected = jax.tree.leaves(reference(first))
    found = jax.tree.leaves(compiled(jax.tree.map(jnp.copy, first), targets))
    error = max(
        float(jnp.abs(one.astype(jnp.float32) - true).max() / jnp.abs(true).max())
        for one, true in zip(found, expected, strict=True)
    )
    del found, expected
    seconds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        for _ in range(_CALLS):
            result = compiled(first, targets)
            if row.part != "loss":
                first = result[1]  # the last ones were given away; the numbers do not matter
        jax.block_until_ready(result)
        seconds.append((time.perf_counter() - start) / _CALLS)
    median = float(np.median(seconds))
    return dataclasses.replace(
        row, seconds=median, copy_fraction=row.least / median / copied, error=error
    )


def _copy_bandwidth(device):
    """Bytes a second that a copy of an array reads and writes on the device."""
    array = jax.device_put(np.zeros(_COPIED // 4, np.float32), device)
    copy = jax.jit(jnp.copy)
    copy(array).block_until_ready()
    seconds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        for _ in range(_CALLS):
            result = copy(array)
        result.block_until_ready()
        seconds.append((time.perf_counter() - start) / _CALLS)
    return 2 * _COPIED / float(np.median(seconds))


def main() -> None:
    """Does the job of the first argument, and writes a row a line."""
    job = json.loads(sys.argv[1])
    try:
        for row in _rows(parse_target(job["target"]), job["shapes"], job["cases"]):
            print(json.dumps(dataclasses.asdict(row)), flush=True)
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        sys.exit(" ".join(str(error).split())[:400])


if __name__ == "__main__":
    main()
