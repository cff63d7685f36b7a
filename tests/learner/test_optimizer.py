import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blockjax.config.defaults import OPTIMIZERS
from blockjax.learner.optimizer import (
    decayed,
    layer_rates,
    learning_rate_schedule,
    make_optimizer,
    scaled,
)
from tests.objectives.test_local_losses import learner_of, train
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


NUMBERS = {"weight_decay": 0.1, "b1": 0.9, "b2": 0.95}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_layer_is_updated_by_itself(name):
    """However many layers a block stacks; by Optax' optimizer for each layer alone."""
    optimizer = make_optimizer(lambda step: 0.1 / (1 + step), name=name, **NUMBERS)

    def tensors(seed, *leading):
        keys = jax.random.split(jax.random.key(seed), 2)
        kernel = jax.random.normal(keys[0], (*leading, 130, 140))
        return {"dense": {"kernel": kernel, "bias": jax.random.normal(keys[1], (*leading, 140))}}

    params = {"layers": tensors(0, 3), "head": tensors(1)}
    state = optimizer.init(params)
    alone = [jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]) for i in range(3)]
    alone.append(params["head"])
    states = [optimizer.init(part) for part in alone]
    for seed in range(3):
        # Layers whose gradients differ in size, which a norm over all of them would mix.
        size = jnp.array([1.0, 10.0, 0.1]).reshape(3, 1, 1)
        grads = {"layers": tensors(2 + seed, 3), "head": tensors(9 + seed)}
        kernel = grads["layers"]["dense"]["kernel"] * size
        grads["layers"]["dense"]["kernel"] = kernel
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        of_each = [jax.tree.map(lambda leaf, i=i: leaf[i], grads["layers"]) for i in range(3)]
        of_each.append(grads["head"])
        for i, part in enumerate(of_each):
            updates, states[i] = optimizer.update(part, states[i], alone[i])
            alone[i] = optax.apply_updates(alone[i], updates)
    for i in range(3):
        got = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, alone[i]
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        params["head"],
        alone[3],
    )


def test_second_moments_of_adafactor_are_factored():
    optimizer = make_optimizer(lambda step: 0.1, name="adafactor", **NUMBERS)
    state = optimizer.init({"layers": {"kernel": jnp.zeros((3, 130, 140))}})
    sizes = [leaf.size for leaf in jax.tree.leaves(state)]
    momentum = 3 * 130 * 140  # in bfloat16
    assert sorted(sizes)[-1] == momentum and sum(sizes) < momentum + 3 * (130 + 140) + 30


def test_muon_leaves_embeddings_and_last_layers_to_adam():
    learner = tiny_learner(**{"optimizer.name": "muon"})
    state = learner.abstract_state()
    names = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.blocks.opt_state)
        if "muon" in jax.tree_util.keystr(path) and leaf.ndim > 2
    ]
    assert any("Dense_0" in name for name in names) and any("query" in name for name in names)
    assert not any("pixels" in name or "embed" in name for name in names)
    of_stem = jax.tree_util.tree_leaves_with_path(state.stem.opt_state)
    assert not any("muon" in jax.tree_util.keystr(p) and leaf.ndim > 1 for p, leaf in of_stem)


def test_an_unknown_optimizer_is_named():
    with pytest.raises(ValueError, match=r"optimizer.name 'adam' .* adamw"):
        tiny_learner(**{"optimizer.name": "adam"})


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adamw"])
def test_strategies_and_meshes_agree(name):
    """States are split, streamed and kept for several batches as Adam's are."""
    fields = {"model.depth": 2, "blocks": 2, "model.width": 128, "optimizer.name": name}
    losses, _ = train(learner_of("mae", **fields), (1, 1, 1))
    assert np.isfinite(losses).all() and np.abs(losses[2] - losses[0]).min() > 1e-6
    for more, shape in (
        ({"strategy": "streamed", "pipeline.batches": 2}, (1, 1, 1)),
        ({"optimizer.clip": 0.0}, (2, 2, 1)),
    ):
        got, _ = train(learner_of("mae", **fields, **more), shape)
        np.testing.assert_allclose(got, losses, rtol=3e-4)
