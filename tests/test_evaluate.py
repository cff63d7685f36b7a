"""The command that probes every block: its rows, its files, and what it refuses."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from blockjax import evaluate as command
from blockjax.evaluate import evaluate
from blockjax.export import export
from blockjax.reconstruct import reconstruct
from blockjax.training.run import Training
from blockjax.weights.loading import open_run
from tests.tiny import images, marked_data, tiny_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    data = marked_data(folder)
    fields = {"steps": 3, "mesh.data": -1, "data.source": f"arrays:{data}", "data.flip": False}
    Training(tiny_config(**fields, **{"blocks": 2, "log.every": 1}), folder / "run").run()
    return folder / "run", data


@pytest.mark.slow
def test_every_block_and_readout_has_a_row(run, tmp_path, capsys):
    workdir, _ = run
    result = evaluate(str(workdir), probes="knn,linear,few_shot", output=str(tmp_path))
    assert result == json.loads((tmp_path / "evaluation.json").read_text())
    with Image.open(tmp_path / "evaluation.png") as picture:
        assert min(picture.size) > 200
    rows = result["probes"]
    names = [(row["encoder"], row["block"], row["readout"]) for row in rows]
    assert names[0] == ("pixels", None, "pixels")
    assert len(set(names)) == len(names) == 1 + 2 * 3 + 2 * 4
    assert ("trained", 2, "own") in names and ("untrained", 2, "own") not in names
    for row in rows:
        assert {"knn_20", "knn_200", "linear", "few_shot_1", "few_shot_25_std"} <= set(row)
    best = {name: row["linear"] for name, row in zip(names, rows, strict=True)}
    assert best["trained", 2, "grid"] > 0.9  # where it is bright
    summary = json.loads((workdir / "summary.json").read_text())
    ours = {row["features"]: row["linear"] for row in summary["probes"]}
    assert best["pixels", None, "pixels"] == ours["pixels"]
    assert best["trained", 2, "grid"] == pytest.approx(ours["block_2"], abs=0.02)

    monitors = result["monitors"]
    losses = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()][-1]
    assert [row["block"] for row in monitors] == [1, 2]
    assert monitors[1]["loss"] == losses["block_2/loss"]
    gain = losses["block_1/loss"] - losses["block_2/loss"]
    assert monitors[0]["gain"] is None and monitors[1]["gain"] == pytest.approx(gain)
    assert monitors[0]["effective_rank"] > 1
    out = capsys.readouterr().out
    assert "block 2, untrained" in out and "few" in out


@pytest.mark.slow
@pytest.mark.parametrize("addressed", [True, False])
def test_states_in_host_memory_stay_there(run, tmp_path, addressed, monkeypatch):
    workdir, _ = run
    chosen = {"probes": "linear", "readouts": "mean,own"}
    expected = evaluate(str(workdir), **chosen, output=str(tmp_path / "expected"))
    copy = shutil.copytree(workdir, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "strategy": "streamed"}))
    if not addressed:
        monkeypatch.setattr(
            "blockjax.learner.placement.addresses_host_memory", lambda device: False
        )
    kernel = open_run(copy).params["layers"]["mlp"]["Dense_0"]["kernel"]
    assert kernel.sharding.memory_kind == ("pinned_host" if addressed else "device")
    assert kernel.sharding.device_set == set(jax.devices())
    found = evaluate(str(copy), **chosen)
    assert found["probes"] == expected["probes"]
    for attention in (False, True):
        pictures = []
        for folder in (workdir, copy):
            reconstruct(folder, output=tmp_path / "picture.png", attention=attention)
            pictures.append((tmp_path / "picture.png").read_bytes())
        assert pictures[0] == pictures[1]


@pytest.mark.slow
def test_a_choice_of_all(run, tmp_path):
    workdir, data = run
    chosen = {"blocks": "2", "readouts": "mean,cls", "probes": "linear", "train_examples": 100}
    result = evaluate(str(workdir), **chosen, output=str(tmp_path))
    assert result["train_examples"] == 100 and result["test_examples"] == 80
    assert {row["block"] for row in result["probes"]} == {None, 2}
    assert {row["readout"] for row in result["probes"]} == {"pixels", "mean", "cls"}
    # The same encoder after export, on data that is named: here every layer is a depth.
    folder = export(workdir, "timm", tmp_path / "timm")
    other = evaluate(str(folder), data=f"arrays:{data}", **{**chosen, "blocks": "4"})
    assert (folder / "evaluation.json").exists()
    ours, theirs = (
        {row["readout"]: row["linear"] for row in found["probes"] if row["encoder"] == "trained"}
        for found in (result, other)
    )
    assert ours == pytest.approx(theirs, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probes": "knn,svm"}, "--probes: 'svm' is unknown; it may be some of knn,linear"),
        ({"readouts": "max"}, "--readouts: 'max' is unknown; it may be some of grid,mean"),
        ({"blocks": "1,5"}, "--blocks 1,5: there are blocks 1 to 2"),
        ({"blocks": "last"}, "--blocks 'last' should be numbers separated by commas"),
        ({"pool": 3}, "--pool 3 does not divide the 4 x 4 grid"),
    ],
)
def test_arguments_that_cannot_be(run, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate(str(run[0]), **arguments)


@pytest.mark.slow
def test_data_without_labels(run, tmp_path):
    np.savez(tmp_path / "plain.npz", images=images(20))
    with pytest.raises(ValueError, match="has no labels, which probes need; give --data"):
        evaluate(str(run[0]), data=f"arrays:{tmp_path / 'plain.npz'}")
    folder = export(run[0], "timm", tmp_path / "timm")
    with pytest.raises(ValueError, match="--data is missing"):
        evaluate(str(folder))


def test_too_little_memory_is_one_sentence(monkeypatch):
    def full(**_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr("blockjax.evaluate.evaluate", full)
    monkeypatch.setattr("sys.argv", ["evaluate", "--workdir", "runs/there"])
    with pytest.raises(SystemExit, match=r"error: out of memory .* Try --readouts mean"):
        command.main()
