"""Couplings that change how the blocks are driven: what trains when, and the same numbers under every strategy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blockjax.learner.placement import Placement
from blockjax.memory.profiles import compile_step
from blockjax.sharding.mesh import make_mesh
from blockjax.strategies import block_key
from tests.objectives.test_local_losses import learner_of, start_of, train
from tests.tiny import STEPS, images

THREE = {"model.depth": 3, "blocks": 3}
COUPLINGS = {
    "hybrid": {"hybrid.every": 2},
    "hybrid_every_loss": {"hybrid.every": 1, "hybrid.losses": "every"},
    "hybrid_share": {"hybrid.share": 0.9},
    "window": {"overlap.window": 2},
    "alternate": {"overlap.alternate": True, "model.depth": 6},
    "alternate_ladder": {
        "overlap.alternate": True,
        "model.depth": 6,
        "distillation.weight": 0.5,
        "cross_block.blocks": 1,
    },
    "shared": {"head.shared": True},
    "sequential": {"schedule": "sequential"},
    "window_hybrid": {"overlap.window": 2, "hybrid.every": 2},
    "hybrid_ladder": {
        "hybrid.every": 2,
        "distillation.weight": 0.5,
        "distillation.decay": 0.5,
        "cross_block.blocks": 1,
    },
    "window_agreement": {
        "overlap.window": 2,
        "consistency.weight": 0.5,
        "consistency.kind": "agreement",
    },
    "shared_ladder": {"head.shared": True, "distillation.weight": 0.5},
    "sequential_ladder": {"schedule": "sequential", "distillation.weight": 0.5},
}


@functools.cache
def on_one_device(name, objective="mae"):
    return trained(learner_of(objective, **{**THREE, **COUPLINGS[name]}), name, (1, 1, 1))


def trained(learner, name, shape):
    # All of a sequential run, in which every block has its turn.
    return train(learner, shape, STEPS if "sequential" in name else 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, objective, strategy, shape",
    [
        *((name, "mae", "streamed", (1, 1, 1)) for name in COUPLINGS),
        *((name, "mae", "blockwise", (2, 2, 1)) for name in COUPLINGS),
        ("hybrid", "byol", "streamed", (1, 1, 1)),
        ("window", "simclr", "streamed", (2, 1, 1)),
        ("alternate", "rotation", "streamed", (2, 1, 1)),
        ("shared", "beit", "streamed", (1, 1, 1)),
        ("sequential", "moco", "streamed", (1, 1, 1)),
        ("sequential", "rotation", "streamed", (2, 1, 1)),
        ("hybrid_share", "jigsaw", "streamed", (1, 1, 1)),
    ],
)
def test_strategies_and_meshes_agree(name, objective, strategy, shape):
    losses, state = on_one_device(name, objective)
    learner = learner_of(objective, **{**THREE, **COUPLINGS[name]}, strategy=strategy)
    got, other = trained(learner, name, shape)
    np.testing.assert_allclose(got, losses, rtol=3e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3),
        jax.device_get(other.head),
        jax.device_get(state.head),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["hybrid_ladder", "window_agreement", "shared_ladder", "sequential_ladder"]
)
def test_activations_in_bfloat16(name):
    fields = {**THREE, **COUPLINGS[name], "dtype": "bfloat16"}
    losses, _ = trained(learner_of("mae", **fields), name, (1, 1, 1))
    expected, _ = on_one_device(name)
    there = np.isfinite(expected)
    assert (np.isfinite(losses) == there).all()
    np.testing.assert_allclose(losses[there], expected[there], rtol=0.05)


@pytest.mark.slow
def test_sequential_trains_one_block_after_the_other():
    learner = learner_of("mae", **THREE, **COUPLINGS["sequential"])
    step, state = jax.jit(learner.train_step), start_of(learner)
    turns = []
    for number in range(STEPS):
        new, metrics = step(state, {"image": images()}, jax.random.key(1))
        moved = [
            max(
                float(jnp.abs(a[k] - b[k]).max())
                for a, b in zip(
                    jax.tree.leaves(new.blocks.params),
                    jax.tree.leaves(state.blocks.params),
                    strict=True,
                )
            )
            for k in range(3)
        ]
        stem = max(
            float(jnp.abs(a - b).max())
            for a, b in zip(
                jax.tree.leaves(new.stem.params), jax.tree.leaves(state.stem.params), strict=True
            )
        )
        block, updates = learner.trained(number)
        turns.append(block)
        assert [size > 0 for size in moved] == [k == block for k in range(3)], number
        assert (stem > 0) == (block == 0)
        assert np.isfinite(metrics["loss"]).tolist() == [k == block for k in range(3)]
        # AdamW counts the updates by which its learning rate goes.
        assert int(state.blocks.opt_state[0].count[block]) == updates
        state = new
    assert turns == sorted(turns)
    assert [turns.count(k) for k in range(3)] == [7, 7, 6]
    assert learner.learning_rate(7) == learner.learning_rate(0)


@pytest.mark.slow
def test_a_frozen_block_goes_on_as_it_was_and_the_next_one_learns_on_it():
    """The first stage is that of a run of one block's encoder."""
    learner = learner_of("mae", **THREE, **COUPLINGS["sequential"])
    alone = learner_of("mae", **THREE)
    a, b = start_of(learner), start_of(alone)
    for seed in range(3):
        batch = {"image": images(seed=seed)}
        a, of_a = jax.jit(learner.train_step)(a, batch, jax.random.key(1))
        b, of_b = jax.jit(alone.train_step)(b, batch, jax.random.key(1))
        if seed == 0:  # later the learning rates differ
            np.testing.assert_allclose(of_a["loss"][0], of_b["loss"][0], rtol=1e-6)


@pytest.mark.slow
def test_a_shared_head_learns_from_the_mean_of_all_blocks():
    fields = {**THREE, "optimizer.weight_decay": 0.0}
    learner, alone = learner_of("mae", **fields, **COUPLINGS["shared"]), learner_of("mae", **fields)
    state = start_of(learner)
    assert "head" not in state.blocks.params
    own = start_of(alone)
    heads = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), state.head.params)
    own = own.replace(blocks=own.blocks.replace(params={**own.blocks.params, "head": heads}))
    batch = {"image": images()}
    new, metrics = jax.jit(learner.train_step)(state, batch, jax.random.key(1))
    other, expected = jax.jit(alone.train_step)(own, batch, jax.random.key(1))
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-6)
    # Adam's first moment is a tenth of the gradient.
    moments, of_blocks = new.head.opt_state[0].mu["head"], other.blocks.opt_state[0].mu["head"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b.mean(axis=0), rtol=1e-4, atol=1e-8),
        moments,
        of_blocks,
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7),
        new.blocks.params["layers"],
        other.blocks.params["layers"],
    )
    given = learner.backbone_params(new)["heads"]
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, np.stack([b] * 3)), given, new.head.params
    )


@pytest.mark.slow
def test_hybrid_takes_the_other_program_when_it_should():
    learner = learner_of("mae", **THREE, **{"hybrid.every": 5, "hybrid.share": 0.1})
    assert [s for s in range(STEPS) if learner.takes_other(s)] == [4, 9, 14, 18, 19]
    assert learner.other_share == 5 / 20
    placement = Placement(learner, make_mesh((1, 1, 1), jax.devices()[:1]))
    step, profile = compile_step(placement, 8)
    assert [step.at(s) is step.other for s in (3, 4, 5)] == [False, True, False]
    assert list(profile.programs) == ["blockwise", "backpropagation across blocks"]
    assert profile.total == max(profile.programs.values())
    parts = [
        compile_step(Placement(learner_of("mae", **THREE, **fields), placement.mesh), 8)[1].flops
        for fields in ({}, {"hybrid.every": 1})
    ]
    np.testing.assert_allclose(profile.flops, 0.75 * parts[0] + 0.25 * parts[1], rtol=1e-6)


@pytest.mark.slow
def test_shifted_boundaries_cut_each_block_in_the_middle():
    """The last head reads all layers in their order, wherever boundaries lie; the others read a layer less."""
    fields = {**THREE, **COUPLINGS["alternate"]}
    learner = learner_of("mae", **fields)
    assert [learner.takes_other(step) for step in range(4)] == [False, True, False, True]
    state, batch, key = start_of(learner), {"image": images()}, jax.random.key(1)
    one, other = (
        jax.jit(step)(state, batch, key)[1]["loss"]
        for step in (learner.train_step, learner.other_step)
    )
    np.testing.assert_allclose(other[2], one[2], rtol=1e-5)
    vit, params = learner.vit, state.blocks.params
    inputs, targets = learner.objective.prepare(block_key(key, 0, 0), batch)
    first = jax.tree.map(lambda leaf: leaf[0], params)
    tokens = vit.layers(
        jax.tree.map(lambda leaf: leaf[:1], first["layers"]), vit.stem(state.stem.params, inputs)
    )
    expected, _ = learner.objective.loss(first["head"], tokens, targets, None)
    np.testing.assert_allclose(other[0], expected, rtol=1e-5)
    assert abs(other[0] - one[0]) > 1e-4


@pytest.mark.slow
def test_hybrid_steps_train_the_first_layer_by_the_last_loss():
    """With one head only that learns from pixels, the encoder still moves."""
    learner = learner_of("mae", **THREE, **{"hybrid.every": 1})
    start = start_of(learner)
    changed = jax.tree.map(lambda leaf: leaf.at[2].add(0.05), start.blocks.params["head"])
    other = start.replace(
        blocks=start.blocks.replace(params={**start.blocks.params, "head": changed})
    )
    step = jax.jit(learner.other_step)
    batch = {"image": images()}
    one, two = (step(state, batch, jax.random.key(1))[0] for state in (start, other))
    first = [state.blocks.params["layers"]["mlp"]["Dense_0"]["kernel"][0] for state in (one, two)]
    assert float(jnp.abs(first[0] - first[1]).max()) > 0.0
