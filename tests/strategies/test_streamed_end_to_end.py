"""Layers in host memory, end to end: the numbers of `end_to_end`, what crosses the link, and what is refused."""

import json

import jax
import numpy as np
import pytest

from blockjax import config as config_lib
from blockjax.export import export
from blockjax.learner.placement import Placement
from blockjax.memory.profiles import compile_step
from blockjax.objectives import OBJECTIVES, TASKS
from blockjax.probes.pictures import reconstruction
from blockjax.sharding.mesh import make_mesh
from blockjax.training.run import Training
from blockjax.weights.loading import open_run, open_weights
from tests.objectives.test_local_losses import learner_of, train, trained_on_one_device
from tests.tiny import images, marked_data, tiny_config

TWO = {"model.depth": 2, "blocks": 2}
STREAMED = {"strategy": "streamed_end_to_end"}
AVERAGING = ("byol", "moco")


def check(name, shape=(1, 1, 1), rtol=1e-5, **fields):
    losses, state = trained_on_one_device(name, **TWO, **fields, strategy="end_to_end")
    learner = learner_of(name, **TWO, **fields, **STREAMED)
    got, other = train(learner, shape)
    np.testing.assert_allclose(got, losses, rtol=rtol)
    expected = learner_of(name, **TWO, **fields, strategy="end_to_end").backbone_params(state)
    trained = learner.backbone_params(other)
    assert jax.tree.structure(trained) == jax.tree.structure(expected)
    flat, _ = jax.tree_util.tree_flatten_with_path(trained)
    for (path, leaf), wanted in zip(flat, jax.tree.leaves(expected), strict=True):
        assert leaf.shape == wanted.shape
        if path[-1].key == "kernel":  # biases may have gradients of rounding only: Adam's steps
            np.testing.assert_allclose(*map(jax.device_get, (leaf, wanted)), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in AVERAGING])
def test_equals_end_to_end(name):
    """Head, layers and stem are updated apart, each with the gradient that the one loss has for it."""
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape, fields",
    [
        ((1, 1, 1), {"microbatches": 2}),
        ((1, 1, 1), {"optimizer.block_rates": "1,0.5"}),  # of blocks, of which there is one
        ((1, 1, 1), {"optimizer.layer_decay": 0.5, "optimizer.name": "adafactor"}),
        ((2, 2, 1), {}),
        ((2, 2, 1), {"microbatches": 2, "optimizer.name": "muon"}),
    ],
)
def test_under_other_options(shape, fields):
    check("mae", shape, rtol=2e-4, **fields)


@pytest.mark.slow
def test_metrics_and_rates_are_those_of_end_to_end():
    """One loss, the norm of all gradients together, and rates that fall from layer to layer."""
    found = []
    for strategy in ("end_to_end", "streamed_end_to_end"):
        learner = learner_of("mae", **TWO, strategy=strategy, **{"optimizer.layer_decay": 0.5})
        placement = Placement(learner, make_mesh((1, 1, 1), jax.devices()[:1]))
        step = placement.compile(8).call
        state = placement.init_for(step, jax.random.key(0))
        batch = placement.place([{"image": np.zeros((8, 32, 32, 3), np.uint8)}])
        found.append(jax.device_get(step(state, batch, jax.random.key(1))[1]))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4, 1)])
def test_what_crosses_the_host_link(shape):
    """Parameters twice to the device, optimizer states once, both once back, and each layer's input both ways.

    Every device moves its own images' inputs, and its parts of states.
    """
    placement = Placement(learner_of("mae", **TWO, **STREAMED), make_mesh(shape))
    moved = compile_step(placement, 8)[1].host_link
    rows = placement.learner.abstract_state().blocks

    def held(leaf, sharding):
        return int(np.prod(sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize

    sizes = jax.tree.map(held, rows, placement.shardings.blocks)
    states = 3 * sum(jax.tree.leaves(sizes.params)) + 2 * sum(jax.tree.leaves(sizes.opt_state))
    stream = jax.eval_shape(lambda: _first_stream(placement.learner))["tokens"]
    inputs = 2 * 2 * stream.size * stream.dtype.itemsize / np.prod(shape)
    assert moved == pytest.approx(states + inputs, abs=100)  # counts stay on the device


def _first_stream(learner):
    key = jax.random.key(0)
    batch = {"image": np.zeros((8, 32, 32, 3), np.uint8)}
    inputs, _ = learner.objective.prepare(key, batch)
    return learner.objective.stem(learner.vit, learner.vit.init_stem(key), inputs)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"optimizer.clip": 1.0}, r"optimizer.clip=1: .* set optimizer.clip=0, or strategy=end_to"),
        ({"noise": 0.25}, r"noise=0.25 .* set noise=0"),
        ({"objective": "byol"}, r"objective=byol keeps an average .* set strategy=end_to_end"),
        ({"objective": "moco"}, r"objective=moco keeps an average"),
        ({"objective": "classification", "classifier.drop_path": 0.1}, r"classifier.drop_path=0.1"),
        ({"objective": "classification", "tune_blocks": 1}, r"tune_blocks=1"),
        ({"pipeline.batches": 4}, r"pipeline.batches=4 .* strategy=streamed_end_to_end"),
        ({"model.unroll": 2}, r"model.unroll 2 does not divide the 1 layers"),
        ({"distillation.weight": 0.5}, r"strategy=streamed_end_to_end has one only"),
        ({"mask.schedule": "linear:0.9"}, r"streamed_end_to_end has one block"),
    ],
)
def test_what_layers_that_train_one_by_one_cannot_do(fields, message):
    config = tiny_config(**STREAMED, **{"classifier.classes": 4, "classifier.drop_path": 0.0})
    for field, value in fields.items():
        config_lib.set_field(config, field, value)
    with pytest.raises(ValueError, match=message):
        config_lib.resolve(config, devices=1, platform="cpu")


@pytest.mark.slow
def test_pictures_are_those_of_end_to_end():
    drawn = []
    for strategy in ("end_to_end", "streamed_end_to_end"):
        learner = learner_of("mae", **TWO, strategy=strategy)
        state = jax.jit(learner.init)(jax.random.key(0))
        drawn.append(reconstruction(learner, state, images(2), jax.random.key(1)))
    assert drawn[0] == drawn[1]


def test_averages_are_the_only_reason_to_refuse_an_objective():
    refused = [name for name in OBJECTIVES if TASKS[name].begin or TASKS[name].finish]
    assert sorted(refused) == sorted(AVERAGING)


def test_devices_that_do_not_address_host_memory(monkeypatch):
    monkeypatch.setattr("blockjax.learner.placement.addresses_host_memory", lambda device: False)
    placement = Placement(learner_of("mae", **TWO, **STREAMED), make_mesh((1, 1, 1)))
    with pytest.raises(ValueError, match=r"streamed_end_to_end .* set strategy=end_to_end"):
        _ = placement.shardings


@pytest.mark.slow
def test_a_run_is_as_any_other(tmp_path):
    """Trained, drawn, probed at two depths of four layers, exported and opened again."""
    fields = {"steps": 4, "blocks": 2, "log.every": 1, "mesh.data": -1, "data.flip": False}
    fields["data.source"] = f"arrays:{marked_data(tmp_path)}"
    workdir = tmp_path / "run"
    Training(tiny_config(**fields, **STREAMED), workdir).run()
    summary = json.loads((workdir / "summary.json").read_text())
    features = [row["features"] for row in summary["probes"]]
    assert [name for name in features if name.startswith("block")] == ["block_1", "block_2"]
    run = open_run(workdir)
    assert run.backbone.blocks == 2
    assert {leaf.shape[0] for leaf in jax.tree.leaves(run.params["layers"])} == {2}
    assert {leaf.shape[0] for leaf in jax.tree.leaves(run.params["heads"])} == {1}
    folder = export(workdir, "safetensors", tmp_path / "exported")
    assert open_weights(folder).vit.depth == 4
