import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blockjax.learner.optimizer import (
    decayed,
    layer_rates,
    learning_rate_schedule,
    make_optimizer,
    scaled,
)
from tests.tiny import STEPS, tiny_learner


def test_schedule_scales_warms_up_and_ends_at_zero():
    schedule = learning_rate_schedule(1.5e-4, 1024, warmup_steps=10, steps=100)
    assert float(schedule(0)) == 0.0
    assert float(schedule(5)) == pytest.approx(3e-4)
    assert float(schedule(10)) == pytest.approx(6e-4)
    assert float(schedule(55)) == pytest.approx(3e-4)
    assert float(schedule(100)) == pytest.approx(0.0, abs=1e-9)
    assert float(learning_rate_schedule(1.0, 256, 0, 10)(0)) == 1.0


def test_only_matrices_decay():
    learner = tiny_learner()
    state = learner.abstract_state()
    marks = decayed(state.blocks.params | {"stem": state.stem.params})
    flat = {
        jax.tree_util.keystr(path): mark
        for path, mark in jax.tree_util.tree_leaves_with_path(marks)
    }
    assert any(flat.values())
    for name, mark in flat.items():
        assert mark == ("kernel" in name), name
    assert not any(mark for name, mark in flat.items() if "cls" in name or "mask_token" in name)


def test_weight_decay_is_applied_where_marked():
    optimizer = make_optimizer(lambda step: 0.1, weight_decay=0.5, b1=0.9, b2=0.95)
    params = {"kernel": jnp.ones(3), "bias": jnp.ones(3)}
    grads = {"kernel": jnp.zeros(3), "bias": jnp.zeros(3)}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], 0.0)


def test_a_frozen_embedding_does_not_shrink():
    params = {"embed": {"kernel": 1, "bias": 1}, "head": {"embed": {"kernel": 1}}}
    assert decayed(params)["embed"] == {"kernel": True, "bias": False}
    frozen = decayed(params, freeze_embedding=True)
    assert frozen["embed"] == {"kernel": False, "bias": False}
    assert frozen["head"] == {"embed": {"kernel": True}}  # a decoder's


def test_adam_by_hand_with_the_configs_numbers():
    learner = tiny_learner(
        **{"optimizer.b1": 0.8, "optimizer.b2": 0.6, "optimizer.weight_decay": 0.5}
    )
    params = {"kernel": jnp.float32(2.0)}
    state, m, v = learner.optimizer.init(params), 0.0, 0.0
    for step, gradient in enumerate((1.0, -3.0)):
        updates, state = learner.optimizer.update({"kernel": jnp.float32(gradient)}, state, params)
        m, v = 0.8 * m + 0.2 * gradient, 0.6 * v + 0.4 * gradient**2
        direction = m / (1 - 0.8 ** (step + 1)) / np.sqrt(v / (1 - 0.6 ** (step + 1)))
        rate = 0.03 * 8 / 256 * (1 + np.cos(np.pi * step / STEPS)) / 2
        assert float(updates["kernel"]) == pytest.approx(-rate * (direction + 0.5 * 2), rel=1e-4)


def test_rates_fall_towards_the_input():
    stem, layers = layer_rates(3, 0.5, 0)
    assert (stem, layers) == (0.0625, [0.125, 0.25, 0.5])  # the head has 1
    assert layer_rates(3, 0.5, 2) == (0.0, [0.0, 0.0, 0.5])
    assert layer_rates(3, 1.0, 3) == (0.0, [0.0, 0.0, 0.0])


def test_updates_are_scaled_by_what_the_state_keeps():
    params = {"layers": {"kernel": jnp.ones((2, 3))}, "head": {"kernel": jnp.ones(3)}}
    grads = jax.tree.map(jnp.ones_like, params)
    scales = {"layers": jnp.array([0.0, 0.5]), "head": jnp.float32(2.0)}
    state = scaled(optax.sgd(1.0), scales).init(params)
    updates, state = scaled(optax.sgd(1.0)).update(
        grads, state, params
    )  # one update for all states
    np.testing.assert_array_equal(updates["layers"]["kernel"], [[0.0] * 3, [-0.5] * 3])
    np.testing.assert_array_equal(updates["head"]["kernel"], [-2.0] * 3)
    again, _ = scaled(optax.sgd(1.0)).update(grads, state, params)
    np.testing.assert_array_equal(again["layers"]["kernel"], updates["layers"]["kernel"])
