"""Bytes over the host link, of programs whose moves are known."""

import jax
import jax.numpy as jnp

from blockjax.sharding.memory_spaces import to_device, to_host
from blockjax.xla.links import host_link_bytes


def test_every_turn_of_a_loop_counts_both_ways():
    def doubled(rows):
        def body(total, row):
            row = to_device(row)
            return total + row.sum(), to_host(2.0 * row)

        return jax.lax.scan(body, 0.0, rows)

    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    host = jax.NamedSharding(mesh, jax.P(), memory_kind="pinned_host")
    rows = jax.ShapeDtypeStruct((5, 6), jnp.bfloat16, sharding=host)
    program = jax.jit(doubled).trace(rows).jaxpr
    assert host_link_bytes(program) == 5 * 6 * 2 * 2
    for space in (jax.memory.Space.Device, jax.memory.Space.Host):
        assert host_link_bytes(program, space) == 5 * 6 * 2
    there = jax.ShapeDtypeStruct((5, 6), jnp.bfloat16)
    assert host_link_bytes(jax.jit(doubled).trace(there).jaxpr) == 5 * 6 * 2  # one way only
    assert host_link_bytes(jax.make_jaxpr(lambda x: x @ x)(jnp.ones((4, 4)))) == 0


def test_a_move_to_a_device_is_none_between_memories():
    def placed(x):
        return jax.device_put(x, jax.devices()[0])

    assert host_link_bytes(jax.make_jaxpr(placed)(jnp.ones(3))) == 0
