"""Fine-tuning: what an encoder starts from, which labels it sees, and that it is the command's own run."""

import json

import jax
import numpy as np
import pytest

from blockjax.data.sources import open_source
from blockjax.data.sources.source import fraction_of
from blockjax.evaluate import evaluate
from blockjax.export import export
from blockjax.models.position import resized_positions, sincos_2d
from blockjax.training.run import Training
from blockjax.weights import UnusableWeights
from blockjax.weights.loading import open_run
from configs import finetune as finetune_config
from tests.tiny import images, marked_data, tiny_config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The source of images of four classes."""
    return f"arrays:{marked_data(tmp_path_factory.mktemp('data'))}"


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory):
    """A short block-wise run on those images, and its data."""
    folder = tmp_path_factory.mktemp("pretrained")
    fields = {"steps": 3, "mesh.data": -1, "data.source": data, "data.flip": False}
    Training(tiny_config(**fields), folder / "run").run()
    return folder / "run", data


def config_of(pretrained, steps=40, **overrides):
    workdir, data = pretrained
    config = finetune_config.get_config()
    config.backbone, config.data.source = str(workdir), data
    config.steps, config.batch_size, config.data.shift = steps, 64, 0
    config.optimizer.base_learning_rate = 0.02
    config.classifier.pool = 1
    for field, value in overrides.items():
        group, _, name = field.rpartition(".")
        with config.ignore_type():
            (config[group] if group else config)[name] = value
    return config


@pytest.mark.slow
def test_an_encoder_learns_classes(pretrained, tmp_path):
    summary = Training(config_of(pretrained), tmp_path / "run").run()
    (row,) = summary["accuracy"]
    assert row["features"] == "block_4" and row["top_1"] > 0.9
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert (tmp_path / "run" / "figures" / "views.png").is_file()
    # It opens like any other run, and goes on.
    assert open_run(tmp_path / "run").weights().vit.depth == 4
    probed = evaluate(str(tmp_path / "run"), probes="linear", output=str(tmp_path))["probes"]
    assert {row["readout"] for row in probed} == {"pixels", "grid", "mean", "cls"}
    again = Training(config_of(pretrained), tmp_path / "run").run()
    assert again["accuracy"] == summary["accuracy"]


@pytest.mark.slow
def test_every_block_has_a_classifier(pretrained, tmp_path):
    config = config_of(pretrained, strategy="blockwise")
    summary = Training(config, tmp_path / "run").run()
    assert [row["features"] for row in summary["accuracy"]] == [f"block_{k}" for k in (1, 2, 3, 4)]
    assert max(row["top_1"] for row in summary["accuracy"]) > 0.8


def first_params(run):
    state = jax.jit(run.learner.init)(jax.random.key(0))
    return jax.tree.map(np.asarray, state.blocks.params["layers"])


@pytest.mark.slow
def test_the_encoder_starts_from_the_backbone(pretrained, tmp_path):
    """All blocks or the first ones; of a run or of exported weights; or random numbers of the same size."""
    workdir, _ = pretrained
    kernel = open_run(workdir).params["layers"]["mlp"]["Dense_0"]["kernel"].reshape(4, 32, 128)
    folder = export(workdir, "huggingface", tmp_path / "exported", blocks=2)
    frozen = {"tune_blocks": 0, "steps": 1}
    for name, fields, depth in (
        ("whole", {}, 4),
        ("three", {"depth_blocks": 3}, 3),
        ("weights", {"backbone": str(folder)}, 2),
    ):
        run = Training(config_of(pretrained, **frozen, **fields), tmp_path / name)
        run.run()
        config = run.config
        assert (config.model.depth, config.blocks, config.model.width) == (depth, depth, 32)
        assert config.model.patch_size == 8 and config.classifier.classes == 4
        found = open_run(tmp_path / name).weights().params["layers"]["mlp"]["Dense_0"]["kernel"]
        np.testing.assert_allclose(found, kernel[:depth], atol=1e-6)
    run = Training(config_of(pretrained, **frozen, from_scratch=True), tmp_path / "scratch")
    run.run()
    found = open_run(tmp_path / "scratch").weights().params["layers"]["mlp"]["Dense_0"]["kernel"]
    assert found.shape == kernel.shape and not np.allclose(found, kernel, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["mae", "byol"])
def test_pretraining_goes_on_from_weights(pretrained, tmp_path, objective):
    """With another objective: averages start as copies of the encoder, too."""
    workdir, data = pretrained
    fields = {"steps": 1, "mesh.data": -1, "data.source": data, "data.flip": False}
    fields |= {"mask.ratio": None, "objective": objective, "backbone": str(workdir)}
    fields["optimizer.base_learning_rate"] = 0.0
    Training(tiny_config(**fields), tmp_path / "run").run()
    run, before = open_run(tmp_path / "run"), open_run(workdir)
    for part in ("stem", "layers"):
        for a, b in zip(*(jax.tree.leaves(r.params[part]) for r in (run, before)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    if objective == "byol":
        target = run.state.blocks.extra["target"]["layers"]
        for a, b in zip(*map(jax.tree.leaves, (target, before.params["layers"])), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
def test_backbones_that_do_not_fit(pretrained, tmp_path):
    workdir, data = pretrained
    start = {"backbone": str(workdir), "data.source": data, "mesh.data": -1, "data.flip": False}
    with pytest.raises(
        UnusableWeights, match=r"layers\.\S+ has shape \(4, 32\), .* \(4, 48\).*width 32"
    ):
        Training(tiny_config(**start, **{"model.width": 48}), tmp_path / "a")
    with pytest.raises(
        UnusableWeights, match=r"layers\.\S+ has shape \(4, 32\), .* asks for \(8, 32\)"
    ):
        Training(tiny_config(**start, **{"model.depth": 8}), tmp_path / "b")
    with pytest.raises(
        UnusableWeights, match=r"stem\.embed\.kernel has shape \(192, 32\), .*\(48, 32\)"
    ):
        Training(tiny_config(**start, **{"model.patch_size": 4}), tmp_path / "c")
    with pytest.raises(UnusableWeights, match=r"has 2 heads, and not 4; .*model\.heads"):
        Training(tiny_config(**start, **{"model.heads": 4}), tmp_path / "d")
    with pytest.raises(ValueError, match=r"9 blocks: the run in .* has 4"):
        Training(config_of(pretrained, depth_blocks=9), tmp_path / "e")
    with pytest.raises(ValueError, match=r"backbone is missing: set --config\.backbone"):
        Training(config_of(pretrained, backbone=None), tmp_path / "f")
    with pytest.raises(ValueError, match="depth_blocks, grow and from_scratch say what to do with"):
        Training(tiny_config(**{"data.source": data, "depth_blocks": 1}), tmp_path / "g")
    with pytest.raises(UnusableWeights, match="no such file or folder"):
        Training(config_of(pretrained, backbone=str(tmp_path / "none")), tmp_path / "h")
    with pytest.raises(ValueError, match=r"classifier\.classes=3, but .* has 4 classes"):
        Training(config_of(pretrained, **{"classifier.classes": 3}), tmp_path / "i")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["blockwise", "end_to_end", "streamed"])
def test_pretraining_goes_on_above_frozen_blocks(pretrained, tmp_path, strategy):
    workdir, _ = pretrained
    kernel = open_run(workdir).params["layers"]["mlp"]["Dense_0"]["kernel"].reshape(4, 32, 128)
    fields = {"objective": "mae", "strategy": strategy, "steps": 1, "tune_blocks": 1}
    config = config_of(pretrained, **fields, **{"optimizer.warmup_steps": 0})
    Training(config, tmp_path / "more").run()
    found = open_run(tmp_path / "more").weights().params["layers"]["mlp"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(found[:3], kernel[:3])
    assert np.abs(found[3] - kernel[3]).max() > 1e-6


@pytest.mark.slow
def test_a_run_opens_whatever_batches_its_config_says(data, tmp_path):
    """Once every run said eight, also those whose blocks cannot stay for several batches."""
    fields = {"steps": 1, "mesh.data": -1, "data.source": data, "data.flip": False}
    fields |= {"mask.ratio": 0.25, "mask.schedule": "linear:0.75"}
    Training(tiny_config(**fields), tmp_path / "old").run()
    path = tmp_path / "old" / "config.json"
    config = json.loads(path.read_text())
    config["pipeline"]["batches"] = 8
    path.write_text(json.dumps(config))
    assert open_run(tmp_path / "old").step == 1


@pytest.mark.slow
def test_other_image_sizes(pretrained, tmp_path):
    """Positions are those between the old ones, which a classifier alone leaves as they are."""
    config = config_of(pretrained, steps=1, tune_blocks=0, **{"model.image_size": 48})
    run = Training(config, tmp_path / "a")
    assert run.learner.vit.grid == (6, 6)
    run.run()
    Training(config, tmp_path / "a").run()  # goes on, and finds itself done
    expected = resized_positions(sincos_2d(4, 4, 32), (4, 4), (6, 6))
    np.testing.assert_array_equal(open_run(tmp_path / "a").params["stem"]["positions"], expected)
    learned = Training(
        config_of(pretrained, steps=1, **{"model.image_size": 48, "model.learned_positions": True}),
        tmp_path / "b",
    )
    learned.run()
    table = open_run(tmp_path / "b").params["stem"]["positions"]
    assert table.shape == (36, 32)
    folder = export(tmp_path / "b", "timm", tmp_path / "timm")
    again = Training(config_of(pretrained, steps=1, backbone=str(folder)), tmp_path / "c")
    assert again.learner.vit.learned_positions and again.learner.vit.image_size == 48


def test_a_fraction_of_each_class(data):
    source = open_source(data, "train")
    for fraction, count in ((0.1, 6), (0.001, 1), (1.0, 60)):
        part = fraction_of(source, fraction, seed=0)
        assert np.bincount(part.labels).tolist() == [count] * 4
    small, large = (fraction_of(source, share, seed=0) for share in (0.1, 0.2))
    names = [{part.name(i) for i in range(len(part))} for part in (small, large)]
    assert names[0] < names[1]
    other = fraction_of(source, 0.1, seed=1)
    assert {other.name(i) for i in range(24)} != names[0]
    assert small[3]["label"] == small.labels[3]
    np.testing.assert_array_equal(small[3]["image"], source[int(small._indices[3])]["image"])
    assert "24 examples of" in small.description


@pytest.mark.slow
def test_data_without_labels(pretrained, tmp_path):
    np.savez(tmp_path / "plain.npz", images=images(80))
    config = config_of(pretrained, **{"data.source": f"arrays:{tmp_path / 'plain.npz'}"})
    with pytest.raises(ValueError, match="has no labels, which objective=classification learns"):
        Training(config, tmp_path / "run")
    labels = np.arange(80) % 4
    np.savez(
        tmp_path / "half.npz", train_images=images(80), train_labels=labels, test_images=images(8)
    )
    config = config_of(pretrained, **{"data.source": f"arrays:{tmp_path / 'half.npz'}"})
    with pytest.raises(ValueError, match=r"half\.npz \[test\] has no labels"):
        Training(config, tmp_path / "run")
