"""Every objective as a local loss: isolated, and the same numbers on every mesh and under every strategy."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blockjax import config as config_lib
from blockjax.learner.placement import Placement, state_formats
from blockjax.objectives import OBJECTIVES
from blockjax.sharding.mesh import make_mesh
from tests.tiny import images, tiny_config, tiny_learner

TWO_VIEW = ("simclr", "moco", "byol", "barlow_twins", "vicreg")
EVERY = [pytest.param(name, id=name, marks=pytest.mark.slow) for name in OBJECTIVES]


def learner_of(name, **overrides):
    """A tiny learner; colours are left as they are, since their jitter takes longest to compile."""
    small = {"head.hidden": 16, "head.width": 16, "head.expansion": 16}
    if name in TWO_VIEW:
        small["views.recipe"] = "cifar-mim"
    if name in ("jigsaw", "context"):
        small |= {"model.patch_size": 4, "tiles.permutations": 10, "tiles.per_image": 2}
    if name == "beit":
        small["tokenizer.codes"] = 6
    rate = {"optimizer.base_learning_rate": 0.01}
    return tiny_learner(objective=name, **{"mask.ratio": None, **small, **rate, **overrides})


def start_of(learner):
    """The first state, with something fitted where the objective needs that."""
    state = jax.jit(learner.init)(jax.random.key(0))
    if state.fitted is None:
        return state
    return state.replace(fitted=jax.random.normal(jax.random.key(9), state.fitted.shape))


@pytest.mark.parametrize("name", EVERY)
def test_no_gradient_crosses_a_boundary(name, monkeypatch):
    # Adam's own derivative is infinite where a gradient is zero.
    monkeypatch.setattr("blockjax.learner.build.make_optimizer", lambda *_, **__: optax.sgd(0.0))
    learner = learner_of(name, **{"model.depth": 2, "blocks": 2})
    start, batch = start_of(learner), {"image": images()}

    def losses(stem, blocks):
        state = start.replace(
            stem=start.stem.replace(params=stem), blocks=start.blocks.replace(params=blocks)
        )
        return learner.train_step(state, batch, jax.random.key(1))[1]["loss"]

    jacobian = jax.jit(jax.jacrev(losses, argnums=(0, 1)))
    of_stem, of_blocks = jacobian(start.stem.params, start.blocks.params)
    for loss in range(2):
        for block in range(2):
            sizes = [float(np.abs(leaf[loss, block]).max()) for leaf in jax.tree.leaves(of_blocks)]
            assert (max(sizes) > 0.0) == (loss == block), (loss, block)
    stem_sizes = [float(np.abs(leaf[0]).max()) for leaf in jax.tree.leaves(of_stem)]
    assert max(stem_sizes) > 0.0
    assert all(not np.asarray(leaf[1]).any() for leaf in jax.tree.leaves(of_stem))


def train(learner, shape, steps=3):
    """Returns losses [steps, K] and the last state."""
    mesh = make_mesh(shape, jax.devices()[: int(np.prod(shape))])
    placement = Placement(learner, mesh)
    step = placement.compile(8).call
    if learner.uses_host_memory:
        state = placement.init_for(step, jax.random.key(0))
    else:  # one program on all meshes
        state = jax.device_put(jax.jit(learner.init)(jax.random.key(0)), state_formats(step))
    if state.fitted is not None:
        fitted = np.asarray(jax.random.normal(jax.random.key(9), state.fitted.shape))
        state = state.replace(fitted=jax.device_put(fitted, state.fitted.format))
    key = jax.device_put(
        jax.random.key(1), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    )
    at_once, losses = learner.batches or 1, []
    for i in range(0, steps, at_once):
        batches = [{"image": images(seed=j)} for j in range(i, min(i + at_once, steps))]
        state, metrics = step(state, placement.place(batches), key)
        losses.append(np.reshape(metrics["loss"], (at_once, -1))[: len(batches)])
    return np.concatenate(losses), state


@functools.cache
def trained_on_one_device(name, steps=3, **overrides):
    return train(learner_of(name, **overrides), (1, 1, 1), steps)


@pytest.mark.parametrize("name", EVERY)
def test_batch_split_over_devices_gives_the_same_losses(name):
    fields = {"model.depth": 2, "blocks": 2}
    losses, _ = trained_on_one_device(name, **fields)
    split, _ = train(learner_of(name, **fields), (4, 1, 1))
    # Statistics of each device's own two images would be off by tens of per cent.
    np.testing.assert_allclose(split, losses, rtol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("strategy, shape", [("streamed", (1, 1, 1)), ("pipelined", (1, 1, 2))])
@pytest.mark.parametrize(
    "name, overrides",
    [("byol", {}), ("moco", {"momentum.queue": 16}), ("beit", {}), ("jigsaw", {})],
)
def test_strategies_agree(name, overrides, strategy, shape):
    overrides = {"model.depth": 2, "blocks": 2, **overrides}
    losses, state = trained_on_one_device(name, **overrides)
    batches = {"pipeline.batches": 2} if strategy == "pipelined" else {}
    got, other = train(learner_of(name, **overrides, **batches, strategy=strategy), shape)
    np.testing.assert_allclose(got, losses, rtol=1e-4)
    for part in ("stem", "blocks"):
        own, expected = getattr(other, part).extra, getattr(state, part).extra
        chex.assert_trees_all_close(jax.device_get(own), jax.device_get(expected), atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy, remat, shape",
    [
        ("end_to_end", "nested", (1, 1, 1)),
        ("end_to_end", "offload", (1, 1, 1)),
        ("blockwise", "offload", (1, 1, 1)),
        ("streamed", "nested", (1, 1, 1)),
    ],
)
def test_rematerialisation_changes_no_number(strategy, remat, shape):
    fields = {"model.depth": 4, "blocks": 2}
    rows = {"strategy": "end_to_end"} if strategy == "end_to_end" else {}
    losses, _ = trained_on_one_device("mae", **fields, **rows)
    learner = learner_of("mae", **fields, strategy=strategy, remat=remat)
    got, _ = train(learner, shape)
    np.testing.assert_allclose(got, losses, rtol=2e-4)


def first_step(learner):
    """Returns the state after one step and its metrics; start and step are one program."""
    batch = {"image": images()}
    return jax.jit(lambda key: learner.train_step(start_of(learner), batch, key))(jax.random.key(1))


@pytest.mark.parametrize("name", EVERY)
def test_end_to_end_is_one_loss(name):
    learner = learner_of(name, strategy="end_to_end", **{"model.depth": 2, "blocks": 2})
    state, metrics = first_step(learner)
    for value in metrics.values():
        assert value.shape == (1,)
        assert np.isfinite(value).all()
    # The head trains, and so does the first layer, through all others.
    moments = state.blocks.opt_state[0].mu
    assert float(np.abs(moments["layers"]["mlp"]["Dense_0"]["kernel"][0, 0]).max()) > 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["simclr", "moco", "barlow_twins", "vicreg", "rotation", "context"]
)
def test_chance_is_the_loss_of_features_that_are_alike(name):
    learner = learner_of(name)
    objective, state = learner.objective, start_of(learner)
    inputs, targets = objective.prepare(jax.random.key(0), {"image": images()})
    params = jax.tree.map(lambda leaf: leaf[0], state.blocks.params)
    # Images and views alike, but the tokens of one not.
    token = jax.random.normal(jax.random.key(2), (5, 32))
    stream = jnp.broadcast_to(token, (*inputs["patches"].shape[:2], 5, 32))
    if name == "moco":
        head = {**params["head"], "target": params["head"]}
        stream = {"tokens": stream, "target": stream}
    else:
        head = params["head"]
    loss, metrics = objective.loss(head, stream, targets, jax.random.key(3))
    assert float(loss) == pytest.approx(objective.chance({**metrics, "loss": loss}), rel=0.02)


def test_chance_that_is_known_without_features():
    assert learner_of("mae").objective.chance({}) == 1.0
    assert learner_of("mae", **{"loss.normalize_pixels": False}).objective.chance({}) is None
    assert learner_of("byol").objective.chance({}) == 4.0
    assert learner_of("jigsaw").objective.chance({}) == pytest.approx(np.log(10))
    assert learner_of("beit").objective.chance({"token_entropy": 1.5}) == 1.5
    assert learner_of("moco", **{"momentum.queue": 16}).objective.chance({}) == np.log(17)


@pytest.mark.parametrize("name", ["barlow_twins", "simclr", "jigsaw"])
def test_microbatches_are_refused_where_the_loss_is_no_mean_over_images(name):
    with pytest.raises(ValueError, match=f"microbatches=2: the loss of {name} compares"):
        learner_of(name, microbatches=2)
    assert learner_of("rotation", microbatches=2)


@pytest.mark.parametrize("name", TWO_VIEW)
def test_one_image_leaves_nothing_to_compare(name):
    config = tiny_config(objective=name, batch_size=1)
    with pytest.raises(ValueError, match="batch_size 1 leaves nothing to compare"):
        config_lib.resolve(config, devices=1, platform="cpu")


def test_masking_schedules_are_for_mae():
    config = tiny_config(objective="simclr", **{"mask.schedule": "linear:0.9"})
    with pytest.raises(ValueError, match="drops tokens that objective simclr needs"):
        config_lib.resolve(config, devices=1, platform="cpu")


def test_unknown_readouts_and_recipes_are_named():
    with pytest.raises(ValueError, match=r"readout 'gpa' is unknown; did you mean 'gap'"):
        learner_of("rotation", **{"head.readout": "gpa"})
    with pytest.raises(ValueError, match=r"views.recipe 'byoll' is unknown"):
        learner_of("byol", **{"views.recipe": "byoll"})


@pytest.mark.slow
def test_noise_reaches_the_local_loss():
    losses = []
    for noise in (0.0, 0.25):
        learner = learner_of("rotation", noise=noise, **{"model.depth": 2, "blocks": 2})
        _, metrics = first_step(learner)
        losses.append(metrics["loss"])
    assert np.abs(losses[0] - losses[1]).min() > 1e-5
