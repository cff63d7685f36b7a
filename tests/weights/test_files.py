"""Weight files that cannot be used: each is a clear error, and nothing in them is executed."""

import json
import os

import numpy as np
import pytest

from blockjax.evaluate import evaluate
from blockjax.export import export
from blockjax.models.vit import ViT
from blockjax.weights import UnusableWeights, from_tensors, read_tensors, to_tensors
from blockjax.weights.files import write_tensors
from blockjax.weights.loading import load, open_weights
from tests.tiny import images
from tests.weights.made import made_weights


@pytest.fixture
def tensors():
    return to_tensors(made_weights(), "timm")


def test_tensors_come_back_as_they_were(tmp_path, tensors):
    write_tensors(tmp_path / "model.safetensors", tensors)
    back = read_tensors(tmp_path)
    assert set(back) == set(tensors)
    for name, value in tensors.items():
        np.testing.assert_array_equal(back[name], value)


def test_a_truncated_file(tmp_path, tensors):
    path = tmp_path / "model.safetensors"
    write_tensors(path, tensors)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UnusableWeights, match=r"model\.safetensors is damaged .*fetch it again"):
        read_tensors(path)
    path.write_bytes(b"x")
    with pytest.raises(UnusableWeights, match="is damaged"):
        read_tensors(path)


def test_missing_files(tmp_path):
    with pytest.raises(UnusableWeights, match="no such file or folder"):
        read_tensors(tmp_path / "nothing.safetensors")
    with pytest.raises(UnusableWeights, match="should have one file of weights, and has none"):
        read_tensors(tmp_path)
    (tmp_path / "a.npz").touch()
    with pytest.raises(UnusableWeights, match=r"must end in \.safetensors or \.pth"):
        read_tensors(tmp_path / "a.npz")
    for name in "ab":
        write_tensors(tmp_path / f"{name}.safetensors", {"x": np.zeros(2)})
    with pytest.raises(UnusableWeights, match=r"several: a\.safetensors, b\.safetensors; name one"):
        read_tensors(tmp_path)


def test_files_in_parts(tmp_path, tensors):
    names = sorted(tensors)
    parts = {"1.safetensors": names[::2], "2.safetensors": names[1::2]}
    for file, own in parts.items():
        write_tensors(tmp_path / file, {name: tensors[name] for name in own})
    index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert set(read_tensors(tmp_path)) == set(tensors)
    (tmp_path / "2.safetensors").unlink()
    with pytest.raises(UnusableWeights, match=r"2\.safetensors: there is no such file"):
        read_tensors(tmp_path)


def test_the_first_tensor_that_differs_is_named(tensors):
    name = "blocks.1.mlp.fc2.weight"
    with pytest.raises(
        UnusableWeights, match=rf"some\.pth: tensor {name} has shape \(48, 95\), .*\(48, 96\)"
    ):
        from_tensors({**tensors, name: tensors[name][:, 1:]}, source="some.pth")
    short = {n: v for n, v in tensors.items() if n != "blocks.2.attn.qkv.bias"}
    with pytest.raises(UnusableWeights, match=r"lacks the tensor blocks\.2\.attn\.qkv\.bias"):
        from_tensors(short, source="some.pth")
    gap = {n: v for n, v in tensors.items() if not n.startswith("blocks.1.")}
    with pytest.raises(UnusableWeights, match=r"has the layers \[0, 2\]"):
        from_tensors(gap, source="some.pth")
    with pytest.raises(
        UnusableWeights, match=r"belong to no ViT of this kind: blocks\.0\.ls1\.gamma \(48,\)"
    ):
        from_tensors({**tensors, "blocks.0.ls1.gamma": np.ones(48)}, source="some.pth")
    with pytest.raises(UnusableWeights, match=r"neither cls_token .* nor embeddings.* conv1"):
        from_tensors({"conv1": np.ones(3)}, source="some.pth")
    with pytest.raises(UnusableWeights, match=r"14 patches, CLS aside, are no square"):
        from_tensors({**tensors, "pos_embed": tensors["pos_embed"][:, :15]}, source="some.pth")
    with pytest.raises(UnusableWeights, match=r"width 48 is not divisible by 5 heads"):
        from_tensors(tensors, source="some.pth", heads=5)
    task = {"head.weight": np.ones((5, 48)), "head.bias": np.ones(5)}
    from_tensors({**tensors, **task}, source="some.pth")  # what belongs to a task is left out


def test_weights_have_no_blocks_to_choose(tmp_path, tensors):
    write_tensors(tmp_path / "model.safetensors", tensors)
    assert open_weights(tmp_path).vit.depth == 3
    with pytest.raises(ValueError, match="it has no blocks to choose"):
        load(tmp_path, blocks=2)


def test_what_stands_beside_the_weights_is_used(tmp_path, tensors):
    write_tensors(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text('{"num_attention_heads": 6, "layer_norm_eps": 1e-12}')
    vit = open_weights(tmp_path).vit
    assert (vit.heads, vit.norm_epsilon) == (6, 1e-12)
    before = open_weights(tmp_path).params["stem"]["embed"]["kernel"]
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
    )
    after = open_weights(tmp_path).params["stem"]["embed"]["kernel"]
    np.testing.assert_allclose(after[0], before[0] * 0.229 / 0.5, rtol=1e-5)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnusableWeights, match=r"config\.json cannot be read"):
        open_weights(tmp_path)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_payload_is_never_executed(tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    bait = tmp_path / "executed"
    for name, legacy in (("zip.pth", False), ("old.pth", True)):
        found = {"cls_token": torch.zeros(1, 1, 4), "payload": Payload(bait)}
        torch.save(found, tmp_path / name, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(UnusableWeights, match=r"holds more than tensors, .*refused"):
            read_tensors(tmp_path / name)
    assert not bait.exists()


def test_pytorch_files(tmp_path, tensors):
    """A state dict, also beside what a training script keeps; and files that are none."""
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    import argparse

    state = {name: torch.tensor(value) for name, value in tensors.items()}
    half = {name: value.bfloat16() for name, value in state.items()}
    cases = {
        "plain.pth": state,
        "mae.pth": {"model": state, "args": argparse.Namespace(lr=1.0), "epoch": 3},
        "half.bin": half,
    }
    for name, content in cases.items():
        torch.save(content, tmp_path / name)
        found = read_tensors(tmp_path / name)
        assert set(found) == set(tensors)
        tolerance = 0.01 if content is half else 0
        for key, value in found.items():
            assert value.dtype == np.float32
            np.testing.assert_allclose(value, tensors[key], rtol=tolerance)
    vit = open_weights(tmp_path / "mae.pth").vit
    assert vit == ViT(32, 8, 48, 3, 1, mlp_ratio=2.0)  # 64 channels a head, as far as there are
    (tmp_path / "cut.pth").write_bytes((tmp_path / "plain.pth").read_bytes()[:5000])
    (tmp_path / "text.pth").write_text("not found")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, message in (
        ("cut.pth", "is damaged"),
        ("text.pth", "refused|is damaged"),
        ("list.pth", "holds no named tensors"),
    ):
        with pytest.raises(UnusableWeights, match=message):
            read_tensors(tmp_path / name)


def test_heads_that_no_file_says(tmp_path, tensors, caplog):
    """Features are those of the right number; a guess is said, and what contradicts a file is refused."""
    path = tmp_path / "model.safetensors"
    write_tensors(path, tensors)
    features, params = load(path, heads=4)
    assert features.vit.heads == 4 and not caplog.records
    batch = images(2)
    right = features(params, batch)
    guessed, params = load(path)
    assert guessed.vit.heads == 1 and not np.allclose(guessed(params, batch), right, atol=1e-3)
    (record,) = caplog.records
    assert "1 are assumed, of 64 channels each" in record.getMessage()
    assert "heads=" in record.getMessage() and record.levelname == "WARNING"
    export(path, "timm", tmp_path / "timm", heads=4)
    assert load(tmp_path / "timm")[0].vit.heads == 4  # said beside it
    assert len(caplog.records) == 1
    for open_it in (
        lambda: load(tmp_path / "timm", heads=2),
        lambda: export(tmp_path / "timm", "mae", tmp_path / "mae", heads=2),
        lambda: evaluate(str(tmp_path / "timm"), heads=2),
    ):
        with pytest.raises(UnusableWeights, match=r"timm has 4 heads, and not 2; leave heads out"):
            open_it()
    for heads in (5, -1):
        with pytest.raises(UnusableWeights, match=rf"not divisible by {heads} heads; .*--heads"):
            load(path, heads=heads)
