"""Device memory and host memory: which arrays live where, and moves between them."""

from typing import Any

import jax

PyTree = Any
# The scope of what only looks like a move.
IS_THERE = "is_in_host_memory"


def addresses_host_memory(device: jax.Device) -> bool:
    """Whether a program on this device can read and write the memory of its host."""
    memories = [memory.kind for memory in device.addressable_memories()]
    return not memories or "pinned_host" in memories  # a GPU that is only described lists none


def host_memory_kinds(stacked: PyTree) -> PyTree:
    """Returns "pinned_host" or "device" for each stacked array: where it lives when states are kept in host memory.

    What is one number for each block, as an optimizer's count, stays on the device: the TPU compiler refuses to write
    single numbers of an array in host memory.
    """
    return jax.tree.map(lambda leaf: "pinned_host" if leaf.ndim > 1 else "device", stacked)


def to_host(row: PyTree) -> PyTree:
    """Moves one block's arrays to where `host_memory_kinds` has them; to be called under `jit`."""
    return jax.tree.map(
        lambda leaf: jax.device_put(leaf, jax.memory.Space.Host) if leaf.ndim else leaf, row
    )


def stacked_in_host_memory(stacked: PyTree) -> PyTree:
    """Says of stacked arrays that they are where `host_memory_kinds` has them; to be called under `jit`.

    Only so may parts of them be written in place there. Nothing moves: `jit` was told the same of its arguments.
    """
    with jax.named_scope(IS_THERE):
        return jax.tree.map(
            lambda leaf: jax.device_put(leaf, jax.memory.Space.Host) if leaf.ndim > 1 else leaf,
            stacked,
        )


def to_device(row: PyTree) -> PyTree:
    """Undoes `to_host`."""
    return jax.device_put(row, jax.memory.Space.Device)
