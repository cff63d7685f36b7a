"""The averaged encoder: its schedule, and that each block's average follows that block at the right moment."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blockjax.objectives.two_view.momentum import averaged, decay_at
from tests.tiny import images, tiny_learner


def test_decay_rises_from_its_start_to_exactly_one():
    assert float(decay_at(0, 0.99, 100)) == pytest.approx(0.99, abs=1e-7)
    assert float(decay_at(50, 0.99, 100)) == pytest.approx(0.995, abs=1e-7)
    assert float(decay_at(100, 0.99, 100)) == 1.0
    assert float(decay_at(150, 0.99, 100)) == 1.0  # does not come down again
    assert [decay_at(count, 0.999, None) for count in (0, 150)] == [0.999, 0.999]


def test_average_takes_only_what_the_target_has():
    target = {"a": {"x": jnp.array(1.0)}}
    params = {"a": {"x": jnp.array(3.0)}, "predictor": jnp.array(7.0)}
    assert averaged(target, params, 0.75) == {"a": {"x": 1.5}}


def run(name, steps, **overrides):
    overrides = {"objective": name, "mask.ratio": None, "model.depth": 2, "blocks": 2, **overrides}
    learner = tiny_learner(**overrides)
    states, step = [jax.jit(learner.init)(jax.random.key(0))], jax.jit(learner.train_step)
    for i in range(steps):
        state, _ = step(states[-1], {"image": images(seed=i)}, jax.random.key(1))
        states.append(state)
    return learner, states


def kernel(tree):
    return np.asarray(tree["layers"]["mlp"]["Dense_0"]["kernel"], np.float64)


def embed(tree):
    return np.asarray(tree["embed"]["kernel"], np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("name, after", [("byol", True), ("moco", False)])
def test_each_block_is_averaged_before_or_after_its_update(name, after):
    _, states = run(name, 3, **{"momentum.decay": 0.6, "momentum.steps": 4})
    for read, part in ((kernel, "blocks"), (embed, "stem")):
        seen = [getattr(state, part) for state in states]
        expected = read(seen[0].params)  # the average starts as a copy
        for i in range(3):
            decay = 1 - (1 - 0.6) * (np.cos(np.pi * i / 4) + 1) / 2
            source = read(seen[i + 1 if after else i].params)
            expected = decay * expected + (1 - decay) * source
            target = read(seen[i + 1].extra["target"])
            np.testing.assert_allclose(target, expected, rtol=1e-5, atol=1e-7)
        other = read(seen[3 if not after else 2].params)
        assert np.abs(target - other).max() > 1e-4  # the order makes a difference
        np.testing.assert_array_equal(seen[3].extra["count"], 3)


@pytest.mark.slow
def test_predictor_has_no_average_and_queue_is_moco_without_one():
    learner, (state, *_) = run("moco", 0)
    assert "predictor" in state.blocks.params["head"]
    assert set(state.blocks.extra["target"]["head"]) == {"readout", "projector"}
    learner, (state, *_) = run("moco", 0, **{"momentum.queue": 16})
    assert "predictor" not in state.blocks.params["head"]
    queue = np.asarray(state.blocks.extra["queue"])
    assert queue.shape == (2, 16, learner.objective.out)
    np.testing.assert_allclose(np.linalg.norm(queue, axis=-1), 1.0, rtol=1e-5)
    assert np.abs(queue[0] - queue[1]).max() > 0.1  # a queue of its own for each block


@pytest.mark.slow
def test_queue_takes_the_oldest_keys_out():
    _, states = run("moco", 3, **{"momentum.queue": 16})
    queues = [np.asarray(state.blocks.extra["queue"]) for state in states]
    changed = [(new != old).any(axis=-1) for old, new in itertools.pairwise(queues)]
    first, second = np.arange(16) < 8, np.arange(16) >= 8
    for rows, expected in zip(changed, [first, second, first], strict=True):
        np.testing.assert_array_equal(rows, np.stack([expected, expected]))
    np.testing.assert_allclose(np.linalg.norm(queues[-1], axis=-1), 1.0, rtol=1e-5)
