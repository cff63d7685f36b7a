"""Loops over the rows of stacked block states, which lie on the device or in host memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from blockjax.sharding.memory_spaces import stacked_in_host_memory, to_device, to_host
from blockjax.strategies.state import read_row, write_row

PyTree = Any


def rows_in_place(
    body: Callable,
    carry: PyTree,
    states: PyTree,
    count: int,
    given: PyTree = None,
    reverse: bool = False,
) -> tuple[PyTree, PyTree, PyTree]:
    """Runs a loop over rows that it updates in place.

    Args:
      body: `(carry, row, index, given) -> (carry, row or None, result)`; None leaves the row as it was.
      carry: what the first turn gets.
      states: every leaf with a leading axis of size `count`.
      count: of rows.
      given: beside each row, with the same leading axis; None for nothing.
      reverse: whether the last row comes first.

    Returns:
      What the last turn carries, the states, and the stacked results.
    """

    def one(loop, index_and_given):
        carry, states = loop
        index, given = index_and_given
        carry, row, result = body(carry, read_row(states, index), index, given)
        return (carry, states if row is None else write_row(states, row, index)), result

    (carry, states), results = jax.lax.scan(
        one, (carry, states), (jnp.arange(count), given), reverse=reverse
    )
    return carry, states, results


def streamed_rows(
    body: Callable,
    carry: PyTree,
    states: PyTree,
    count: int,
    given: PyTree = None,
    reverse: bool = False,
) -> tuple[PyTree, PyTree, PyTree]:
    """Does what `rows_in_place` does, over rows in host memory: each is on the device for its own turn only.

    On NVIDIA GPUs they are scanned inputs and outputs, and exist twice: XLA's compiler for them (of JAX 0.10.2) copies
    states that are written in place, and then refuses the copy within host memory.
    """
    writes = True

    def moved(carry, row, index, given):
        nonlocal writes
        carry, row, result = body(carry, to_device(row), index, given)
        writes = row is not None
        return carry, to_host(row) if writes else None, result

    def in_place(carry, states, given):
        there = stacked_in_host_memory(states)
        carry, there, results = rows_in_place(moved, carry, there, count, given, reverse)
        return carry, there if writes else states, results

    def scanned(carry, states, given):
        def one(carry, slices):
            index, given, row = slices
            carry, row, result = moved(carry, row, index, given)
            return carry, (row, result)

        carry, (rows, results) = jax.lax.scan(
            one, carry, (jnp.arange(count), given, states), reverse=reverse
        )
        return carry, rows if writes else states, results

    return jax.lax.platform_dependent(carry, states, given, cuda=scanned, default=in_place)


def kept_loop(
    body: Callable, carry: PyTree, start: int, stop: int, step: jax.Array
) -> tuple[PyTree, PyTree]:
    """Runs a loop of which XLA takes nothing apart, as it does with loops of a single turn.

    The parts of such a turn would run among those of the block before, with the activations of both alive. So a single
    turn is the branch of a condition that always holds, which XLA does not know.

    Args:
      body: `(carry, index) -> (carry, result)`.
      carry: what the first turn gets.
      start: the first index.
      stop: the one after the last.
      step: of the training, at least 0, which XLA does not know; the same on all devices.

    Returns:
      What the last turn carries, and the stacked results.
    """
    if stop - start != 1:
        return jax.lax.scan(body, carry, jnp.arange(start, stop))

    def turn(carry):
        carry, result = body(carry, jnp.int32(start))
        return carry, jax.tree.map(lambda value: value[None], result)

    def none(carry):
        _, results = jax.eval_shape(turn, carry)
        return carry, jax.tree.map(lambda value: jnp.zeros(value.shape, value.dtype), results)

    return jax.lax.cond(step >= 0, turn, none, carry)
