"""What was trained opens again: as blocks of a run, and after export in every format."""

import json

import jax
import numpy as np
import pytest

import blockjax
from blockjax import config as config_lib
from blockjax.export import FORMATS, export
from blockjax.models.vit import ViT
from blockjax.training.run import Training
from blockjax.weights import UnusableWeights
from blockjax.weights import loading as transfer
from tests.tiny import images, tiny_config, tiny_learner


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
    """Short runs: block-wise, and end to end with MAE's own decoder."""
    folder = tmp_path_factory.mktemp("runs")
    data = folder / "squares.npz"
    np.savez(data, images=images(40), labels=np.arange(40) % 4)
    fields = {"steps": 2, "mesh.data": -1, "data.source": f"arrays:{data}", "data.flip": False}
    runs = {
        "blockwise": {"blocks": 2},
        "end_to_end": {"strategy": "end_to_end", "decoder.kind": "self_attention", "blocks": 4},
    }
    found = {}
    for name, own in runs.items():
        found[name] = folder / name
        Training(tiny_config(**fields, **own), found[name]).run()
    return found


@pytest.mark.slow
def test_a_config_comes_back(workdirs):
    saved = json.loads((workdirs["blockwise"] / "config.json").read_text())
    assert config_lib.to_json(config_lib.from_json(saved)) == saved
    del saved["noise"]  # written by an older version
    assert config_lib.from_json(saved).noise == 0.0
    with pytest.raises(ValueError, match="no such field"):
        config_lib.from_json({**saved, "model": {"colour": 1}})


@pytest.mark.slow
def test_blocks_of_a_run(workdirs):
    run = transfer.open_run(workdirs["blockwise"])
    assert run.step == 2
    batch = images(3)
    inputs = run.backbone.vit.inputs(batch)

    def normed(head, tokens):
        return run.backbone.normed(head["norm"], tokens)[:, 1:].mean(axis=1)

    _, expected = run.backbone.read(run.params, inputs, lambda tokens: (), normed)
    for blocks in (1, 2):
        features, params = blockjax.load(workdirs["blockwise"], blocks=blocks)
        assert features.vit.depth == 2 * blocks
        np.testing.assert_allclose(features(params, batch), expected[blocks - 1], atol=1e-5)
    with pytest.raises(ValueError, match=r"3 blocks: the run in .* has 2; give 1 to 2"):
        blockjax.load(workdirs["blockwise"], blocks=3)
    before = run.untrained["stem"]["embed"]["kernel"]
    assert not np.allclose(before, run.params["stem"]["embed"]["kernel"], atol=1e-4)


@pytest.mark.slow
def test_depths_of_an_end_to_end_run(workdirs):
    """Only the last has a head, and so a LayerNorm that was trained, and a decoder."""
    run = transfer.open_run(workdirs["end_to_end"])
    last, inner = run.weights(), run.weights(2)
    assert last.vit.depth == 4 and inner.vit.depth == 2
    assert last.decoder is not None and inner.decoder is None
    assert np.ptp(last.params["norm"]["scale"]) > 0
    assert np.ptp(inner.params["norm"]["scale"]) == 0
    np.testing.assert_array_equal(
        inner.params["layers"]["mlp"]["Dense_0"]["bias"],
        last.params["layers"]["mlp"]["Dense_0"]["bias"][:2],
    )


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("strategy", ["blockwise", "end_to_end"])
def test_what_is_exported_opens_again(workdirs, tmp_path, form, strategy):
    output = export(workdirs[strategy], form, tmp_path / "out")
    batch = images(3)
    before, after = (blockjax.load(path) for path in (workdirs[strategy], output))
    np.testing.assert_allclose(after[0](after[1], batch), before[0](before[1], batch), atol=1e-5)
    weights = transfer.open_weights(output)
    assert (weights.decoder is not None) == (
        strategy == "end_to_end" and form in ("huggingface", "mae")
    )
    card = (output / "README.md").read_text()
    assert "| block_1 |" in card and "2 steps of 8 images" in card and '"batch_size": 8' in card
    assert not list(tmp_path.glob(".*"))
    # From one format to another.
    other = export(output, "timm", tmp_path / "other")
    again = blockjax.load(other)
    np.testing.assert_allclose(again[0](again[1], batch), before[0](before[1], batch), atol=1e-5)


@pytest.mark.slow
def test_exports_that_cannot_be(workdirs, tmp_path):
    with pytest.raises(
        ValueError, match="--format 'onnx' is unknown; it may be one of huggingface"
    ):
        export(workdirs["blockwise"], "onnx", tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="full exists; name a folder that does not"):
        export(workdirs["blockwise"], "timm", tmp_path / "full")
    with pytest.raises(ValueError, match=r"holds no run: there is no config\.json"):
        transfer.open_run(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written: "):
        export(workdirs["blockwise"], "timm", tmp_path / "file" / "out")
    output = export(workdirs["blockwise"], "safetensors", tmp_path / "own")
    said = json.loads((output / "config.json").read_text())
    said["vit"]["width"] = 64
    (output / "config.json").write_text(json.dumps(said))
    with pytest.raises(
        UnusableWeights, match=r"tensor [a-z.]+ is of shape \(4, 32\); .* asks for \(4, 64\)"
    ):
        blockjax.load(output)
    del said["vit"]["depth"]
    (output / "config.json").write_text(json.dumps(said))
    with pytest.raises(UnusableWeights, match="does not describe an encoder: 'depth'"):
        blockjax.load(output)


@pytest.mark.slow
def test_half_an_export_leaves_nothing(workdirs, tmp_path, monkeypatch):
    def full(path, tensors):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("blockjax.export.write_tensors", full)
    with pytest.raises(ValueError, match="cannot be written: No space left"):
        export(workdirs["blockwise"], "timm", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_encoder_alone():
    """Without what belongs to its training: a mask token, recomputation, a frozen embedding."""
    fields = {"objective": "beit", "mask.ratio": None, "remat": "layer", "tokenizer.codes": 16}
    learner = tiny_learner(**fields, **{"model.freeze_embedding": True})
    state = jax.jit(learner.init)(jax.random.key(0))
    assert "mask_token" in state.stem.params
    weights = transfer.Run(None, None, learner, state, 0).weights(3)
    assert "mask_token" not in weights.params["stem"]
    assert weights.vit == ViT(32, 8, 32, 3, 2)
    assert weights.params["layers"]["norm_1"]["scale"].shape == (3, 32)
