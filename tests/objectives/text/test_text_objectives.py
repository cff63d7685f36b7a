"""Next and masked tokens as local losses: what is predicted from what, isolated, the same under every strategy."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blockjax import config as config_lib
from blockjax.learner.build import make_learner
from blockjax.learner.placement import Placement, state_formats
from blockjax.objectives import TEXT_OBJECTIVES
from blockjax.objectives.text.cross_entropy import chunk_of, cross_entropy
from blockjax.sharding.mesh import make_mesh

STEPS = 20
LAST = {"head.shared": True, "head.trained_by": "last"}


def text_config(**overrides):
    """A tiny config of text, and any field set."""
    config = config_lib.default_config()
    config.objective, config.steps, config.batch_size = "next_token", STEPS, 8
    config.data.source, config.mesh.data = "text:stdlib", 1
    config.model.width, config.model.depth, config.model.heads = 16, 2, 2
    config.model.context, config.model.vocabulary, config.blocks = 12, 20, 2
    config.optimizer.base_learning_rate, config.optimizer.warmup_steps = 0.3, 0
    for field, value in overrides.items():
        config_lib.set_field(config, field, value)
    return config


def learner_of(**overrides):
    config = config_lib.resolve(text_config(**overrides), devices=1, platform="cpu")
    config_lib.fill_lengths(config, STEPS)
    return make_learner(config, STEPS)


def tokens(seed=0, count=8):
    return np.random.default_rng(seed).integers(0, 18, (count, 12)).astype(np.int32)


def train(learner, shape=(1, 1, 1), steps=4):
    """Returns losses [steps, K] and the last state."""
    mesh = make_mesh(shape, jax.devices()[: math.prod(shape)])
    placement = Placement(learner, mesh)
    step = placement.compile(8).call
    if learner.uses_host_memory:
        state = placement.init_for(step, jax.random.key(0))
    else:
        state = jax.device_put(jax.jit(learner.init)(jax.random.key(0)), state_formats(step))
    key = jax.device_put(
        jax.random.key(1), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    )
    at_once, losses = learner.batches or 1, []
    for i in range(0, steps, at_once):
        batches = [{"tokens": tokens(j)} for j in range(i, min(i + at_once, steps))]
        state, metrics = step(state, placement.place(batches), key)
        losses.append(np.reshape(metrics["loss"], (at_once, -1))[: len(batches)])
    return np.concatenate(losses), state


@functools.cache
def trained(**fields):
    return train(learner_of(**fields))[0]


def test_each_token_is_predicted_from_those_before_it():
    objective = learner_of().objective
    inputs, targets = objective.prepare(jax.random.key(0), {"tokens": jnp.asarray(tokens())})
    np.testing.assert_array_equal(targets["tokens"], tokens())
    np.testing.assert_array_equal(inputs["tokens"][:, 1:], tokens()[:, :-1])
    assert (inputs["tokens"][:, 0] == 18).all()  # the separator


def test_masked_tokens_are_berts():
    config = {"objective": "masked_token", "mask.ratio": 0.25, "model.vocabulary": 1000}
    objective = learner_of(**config).objective
    given = jnp.full((4000, 12), 7)
    inputs, targets = objective.prepare(jax.random.key(0), {"tokens": given})
    positions = np.asarray(targets["positions"])
    assert positions.shape == (4000, 3)
    assert all(len(set(row)) == 3 for row in positions.tolist())
    assert (np.asarray(targets["tokens"]) == 7).all()
    put = np.take_along_axis(np.asarray(inputs["tokens"]), positions, axis=1)
    shares = [(put == 999).mean(), ((put != 999) & (put != 7)).mean(), (put == 7).mean()]
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.015)
    assert put[put != 999].max() < 998  # no separator is put in
    untouched = np.ones((4000, 12), bool)
    np.put_along_axis(untouched, positions, False, axis=1)
    assert (np.asarray(inputs["tokens"])[untouched] == 7).all()
    assert learner_of(objective="masked_token").objective.ratio == 0.15


def test_masked_loss_looks_at_masked_places_only():
    objective = learner_of(objective="masked_token").objective
    head = objective.init_head(jax.random.key(0))
    streams = jax.random.normal(jax.random.key(1), (2, 12, 16))
    targets = {"tokens": jnp.array([[3, 4], [5, 6]]), "positions": jnp.array([[0, 9], [4, 2]])}
    losses = objective.token_losses(head, streams, targets)
    other = streams.at[:, 1].add(jnp.arange(16.0))
    np.testing.assert_array_equal(objective.token_losses(head, other, targets), losses)
    changed = (
        objective.token_losses(head, streams.at[0, 9].add(jnp.arange(16.0)), targets) != losses
    )
    assert changed.tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize("chunk", [1, 3, 12, None])
def test_a_loss_in_chunks_is_the_plain_one(chunk):
    features = jax.random.normal(jax.random.key(0), (4, 12, 16))
    readout = jax.random.normal(jax.random.key(1), (16, 20))
    targets = jnp.asarray(tokens(count=4))

    def plain(features, readout):
        logits = features @ readout
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]

    def chunked(features, readout):
        return cross_entropy(features, readout, targets, chunk)

    np.testing.assert_allclose(chunked(features, readout), plain(features, readout), rtol=1e-5)
    weights = jax.random.normal(jax.random.key(2), (4, 12))
    found, expected = (
        jax.grad(lambda *args, of=of: (of(*args) * weights).sum(), (0, 1))(features, readout)
        for of in (chunked, plain)
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_logits_of_a_large_vocabulary_never_stand_in_memory_whole():
    assert chunk_of(16, 1024, 32_000) == 32  # 2^24 logits are 32.8 tokens of each sequence
    assert chunk_of(8, 12, 20) == 12
    assert chunk_of(4096, 7, 50_000) == 1
    shapes = {
        "features": jax.ShapeDtypeStruct((16, 256, 64), jnp.float32),
        "readout": jax.ShapeDtypeStruct((64, 32_000), jnp.float32),
    }

    def loss(features, readout):
        return cross_entropy(features, readout, jnp.zeros((16, 256), jnp.int32)).sum()

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(*shapes.values()).compile()
    whole = 16 * 256 * 32_000 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < whole / 2


@pytest.mark.parametrize("objective", TEXT_OBJECTIVES)
@pytest.mark.parametrize("fields", [{}, {"model.tied": True}], ids=["own", "tied"])
def test_no_gradient_crosses_a_boundary(objective, fields, monkeypatch):
    # Adam's own derivative is infinite where a gradient is zero.
    monkeypatch.setattr("blockjax.learner.build.make_optimizer", lambda *_, **__: optax.sgd(0.0))
    learner = learner_of(objective=objective, **fields)
    start = jax.jit(learner.init)(jax.random.key(0))

    def losses(stem, blocks):
        state = start.replace(
            stem=start.stem.replace(params=stem), blocks=start.blocks.replace(params=blocks)
        )
        batch = {"tokens": jnp.asarray(tokens())}
        return learner.train_step(state, batch, jax.random.key(1))[1]["loss"]

    jacobian = jax.jit(jax.jacrev(losses, argnums=(0, 1)))
    of_stem, of_blocks = jacobian(start.stem.params, start.blocks.params)
    for loss in range(2):
        for block in range(2):
            sizes = [float(np.abs(leaf[loss, block]).max()) for leaf in jax.tree.leaves(of_blocks)]
            assert (max(sizes) > 0.0) == (loss == block), (loss, block)
    assert np.asarray(of_stem["embedding"][0]).any()
    assert not np.asarray(of_stem["embedding"][1]).any()


def test_a_tied_readout_is_the_embedding():
    learner = learner_of(**{"model.tied": True})
    state = jax.jit(learner.init)(jax.random.key(0))
    assert set(state.blocks.params["head"]) == {"norm"}
    objective, batch = learner.objective, {"tokens": jnp.asarray(tokens())}
    _, metrics = jax.jit(learner.train_step)(state, batch, jax.random.key(1))
    inputs, targets = objective.prepare(jax.random.key(0), batch)
    stream = learner.vit.stem(state.stem.params, inputs)
    first = jax.tree.map(lambda leaf: leaf[0], state.blocks.params)
    normed = objective.normed(first["head"], learner.vit.layers(first["layers"], stream))
    logits = normed @ state.stem.params["embedding"].T
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, targets["tokens"]).mean()
    np.testing.assert_allclose(metrics["loss"][0], expected, rtol=1e-5)


CROSSED = [
    ({}, {"strategy": "streamed"}, (1, 1, 1)),
    ({}, {"strategy": "pipelined", "pipeline.batches": 2}, (1, 1, 2)),
    ({}, {"pipeline.batches": 3}, (1, 1, 1)),
    ({}, {"strategy": "streamed", "pipeline.batches": 4, "remat": "layer"}, (2, 1, 1)),
    ({}, {"microbatches": 4, "loss.chunk": 3}, (2, 1, 1)),
    ({}, {"remat": "layer"}, (2, 2, 1)),
    ({"objective": "masked_token"}, {"strategy": "streamed"}, (1, 1, 1)),
    ({"objective": "masked_token"}, {}, (2, 2, 1)),
    ({"model.tied": True}, {"strategy": "streamed"}, (1, 1, 1)),
    ({"model.tied": True}, {"loss.chunk": 4}, (1, 2, 1)),
    ({**LAST, "head.refresh": 2}, {"strategy": "streamed"}, (1, 1, 1)),
    ({**LAST, "head.refresh": 2}, {"microbatches": 2}, (2, 2, 1)),
    ({"strategy": "end_to_end"}, {"strategy": "streamed_end_to_end"}, (1, 1, 1)),
    ({"strategy": "end_to_end", "model.tied": True}, {"remat": "layer"}, (2, 1, 1)),
    ({"model.norm": "rms_norm", "model.mlp": "swiglu", "model.bias": False}, {}, (1, 2, 1)),
    ({"model.positions": "learned"}, {"strategy": "streamed"}, (2, 1, 1)),
]


@pytest.mark.slow
@pytest.mark.parametrize("fields, others, shape", CROSSED)
def test_strategies_meshes_and_parts_of_a_batch_agree(fields, others, shape):
    got, _ = train(learner_of(**{**fields, **others}), shape)
    np.testing.assert_allclose(got, trained(**fields), rtol=2e-4)
    assert np.abs(np.diff(got, axis=0)).max() > 1e-3  # it moves


@pytest.mark.slow
def test_only_the_last_block_trains_a_shared_head_and_others_read_a_copy():
    fields = {"optimizer.name": "sgd", "optimizer.weight_decay": 0.0}
    learner = learner_of(**LAST, **fields, **{"head.refresh": 3})
    mean = learner_of(**fields, **{"head.shared": True})
    state = jax.jit(learner.init)(jax.random.key(0))
    step, key = jax.jit(learner.train_step), jax.random.key(1)
    heads, copies = [state.head.params], [state.head.extra["copy"]]
    for seed in range(4):
        state, _ = step(state, {"tokens": jnp.asarray(tokens(seed))}, key)
        heads.append(state.head.params)
        copies.append(state.head.extra["copy"])
    kernels = [np.asarray(head["readout"]["kernel"]) for head in heads]
    of_copies = [np.asarray(copy["readout"]["kernel"]) for copy in copies]
    for step_number, copied_from in enumerate([0, 0, 0, 3, 3]):
        np.testing.assert_array_equal(of_copies[step_number], kernels[copied_from])
    assert all((a != b).any() for a, b in itertools.pairwise(kernels))
    # The first update is that of the last block alone, not of the mean.
    own = learner_of(**fields)
    start = jax.jit(learner.init)(jax.random.key(0))
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), start.head.params)
    alone = jax.jit(own.init)(jax.random.key(0))
    alone = alone.replace(
        blocks=alone.blocks.replace(params={**alone.blocks.params, "head": stacked})
    )
    batch = {"tokens": jnp.asarray(tokens(0))}
    after, _ = jax.jit(own.train_step)(alone, batch, key)
    last = np.asarray(after.blocks.params["head"]["readout"]["kernel"])[1]
    np.testing.assert_allclose(kernels[1], last, rtol=1e-5, atol=1e-7)
    of_mean, _ = jax.jit(mean.train_step)(jax.jit(mean.init)(jax.random.key(0)), batch, key)
    assert np.abs(of_mean.head.params["readout"]["kernel"] - last).max() > 1e-5


def test_blocks_before_the_last_read_the_copy():
    learner = learner_of(**LAST, **{"head.refresh": 2})
    state = jax.jit(learner.init)(jax.random.key(0))
    other = jax.tree.map(lambda leaf: leaf + 1.0, state.head.extra["copy"])
    moved = state.replace(head=state.head.replace(extra={"copy": other}))
    losses = [
        learner.train_step(s, {"tokens": jnp.asarray(tokens())}, jax.random.key(1))[1]["loss"]
        for s in (state, moved)
    ]
    assert abs(losses[0][0] - losses[1][0]) > 1e-4
    np.testing.assert_allclose(losses[0][1], losses[1][1], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"consistency.weight": 0.1},
        {"overlap.window": 2},
        {"hybrid.every": 2},
        {"schedule": "sequential"},
        {"noise": 0.1},
        {"objective": "masked_token", "cross_block.blocks": 1},
        {"optimizer.name": "muon"},
    ],
    ids=str,
)
def test_couplings_and_optimizers_train_on_text(fields):
    losses, _ = train(learner_of(**fields))
    assert np.isfinite(losses[:, 0]).all()
    assert losses[3, 0] < losses[0, 0]
