"""FLOPs against counts made by hand."""

import jax
import jax.numpy as jnp

from blockjax.xla.flops import matmul_flops


def count(function, *shapes):
    return matmul_flops(jax.make_jaxpr(function)(*map(jnp.zeros, shapes)))


def test_a_matrix_product():
    assert count(lambda a, b: a @ b, (3, 5), (5, 7)) == 2 * 3 * 5 * 7


def test_batch_axes_count_once():
    assert count(jnp.matmul, (4, 3, 5), (4, 5, 7)) == 4 * 2 * 3 * 5 * 7


def test_loops_count_their_turns():
    def loop(x, weights):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, weights)[0]

    assert count(loop, (2, 8), (6, 8, 8)) == 6 * 2 * 2 * 8 * 8


def test_a_gradient_is_three_forwards_and_rematerialisation_a_fourth():
    def chain(x, w):
        return jnp.sum(jnp.sin(jnp.sin(x @ w) @ w))

    forward = count(chain, (16, 16), (16, 16))
    assert forward == 2 * 2 * 16**3
    assert count(jax.grad(chain, (0, 1)), (16, 16), (16, 16)) == 3 * forward

    def layer(x, w):
        return jnp.sin(jnp.sin(x @ w) @ w)

    def recomputed(x, w):
        return jnp.sum(jax.checkpoint(layer)(x, w))

    assert 3 * forward < count(jax.grad(recomputed, (0, 1)), (16, 16), (16, 16)) <= 4 * forward


def test_convolutions():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    assert count(convolve, (2, 8, 8, 3), (2, 2, 3, 5)) == 2 * (2 * 4 * 4 * 5) * (2 * 2 * 3)


def test_the_dearest_branch_counts():
    def branch(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert count(branch, (4, 4)) == 2 * 2 * 4**3
