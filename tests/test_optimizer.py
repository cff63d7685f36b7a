import jax.numpy as jnp
import numpy as np
import pytest

from blockjax.optimizer import decayed, learning_rate_schedule, make_optimizer
from tests.tiny import tiny_learner


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
    import jax

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
