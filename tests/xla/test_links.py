"""Bytes over the host link, of programs whose moves are known."""

import jax
import jax.numpy as jnp

from blockjax.sharding.memory_spaces import IS_THERE, stacked_in_host_memory, to_device, to_host
from blockjax.xla.links import host_link_bytes


def test_every_turn_of_a_loop_counts_both_ways():
    def doubled(rows):
        def body(total, row):
            row = to_device(row)
            return total + row.sum(), to_host(2.0 * row)

        return jax.lax.scan(body, 0.0, rows)

    rows = jnp.ones((5, 6), jnp.bfloat16)
    assert host_link_bytes(jax.make_jaxpr(doubled)(rows)) == 5 * 6 * 2 * 2
    for space in (jax.memory.Space.Device, jax.memory.Space.Host):
        assert host_link_bytes(jax.make_jaxpr(doubled)(rows), space) == 5 * 6 * 2
    half = host_link_bytes(jax.make_jaxpr(doubled)(rows), share=lambda shape: 1 / len(shape) / 2)
    assert half == 5 * 6 * 2  # rows of one axis
    there = jax.make_jaxpr(lambda x: stacked_in_host_memory(x))(rows)
    assert host_link_bytes(there, still=IS_THERE) == 0 < host_link_bytes(there)
    assert host_link_bytes(jax.make_jaxpr(lambda x: x @ x)(jnp.ones((4, 4)))) == 0


def test_a_move_to_a_device_is_none_between_memories():
    def placed(x):
        return jax.device_put(x, jax.devices()[0])

    assert host_link_bytes(jax.make_jaxpr(placed)(jnp.ones(3))) == 0
