"""Runs side by side: what the comparison holds, and that it goes on where it was stopped."""

import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

from blockjax import compare as compare_lib
from blockjax.data.decode import CorruptImage
from blockjax.memory.jobs import Result
from blockjax.memory.profiles import MemoryProfile
from blockjax.report import figures
from blockjax.report.comparison import table
from blockjax.training.run import Interrupted, Training
from tests.tiny import images

CONFIG = """
from tests.tiny import tiny_config
def get_config(argument=None):
    return tiny_config(**{{"objective": "{objective}", "steps": 3, "mask.ratio": None, "mesh.data": -1,
                          "data.flip": False, "data.crop_scale": (1.0, 1.0),
                          "data.source": "arrays:{data}", "blocks": {blocks}}})
"""


@pytest.fixture
def files(tmp_path):
    """Two config files on a few images."""
    data = tmp_path / "squares.npz"
    np.savez(data, images=images(40), labels=np.arange(40) % 4)

    def write(name, objective, blocks=2):
        path = tmp_path / f"{name}.py"
        path.write_text(CONFIG.format(objective=objective, data=data, blocks=blocks))
        return str(path)

    return write


@pytest.mark.slow
def test_a_comparison_has_a_row_for_each_run_and_goes_on_where_it_stopped(
    files, tmp_path, monkeypatch
):
    configs, workdir = [files("mae", "mae"), files("turns", "rotation")], tmp_path / "out"
    trained = []

    def run(self):
        trained.append(self.workdir.name)
        if len(trained) == 3:
            raise Interrupted("stopped")
        return whole_run(self)

    whole_run = Training.run
    monkeypatch.setattr(Training, "run", run)
    strategies = ["blockwise", "end_to_end+remat"]
    with pytest.raises(Interrupted):
        compare_lib.compare(configs, strategies, [0, 1], workdir)
    assert len(json.loads((workdir / "comparison.json").read_text())) == 2
    rows = compare_lib.compare(configs, strategies, [0, 1], workdir)

    names = [
        f"{config}-{strategy}-{seed}"
        for config in ("mae", "turns")
        for strategy in strategies
        for seed in (0, 1)
    ]
    assert trained == [*names[:3], *names[2:]]  # what was done is not done again
    assert [f"{row['config']}-{row['strategy']}-{row['seed']}" for row in rows] == names
    assert json.loads((workdir / "comparison.json").read_text()) == rows
    for row in rows:
        losses = 1 if "end_to_end" in row["strategy"] else 2
        assert len(row["first"]) == len(row["last"]) == losses
        assert row["chance"] == pytest.approx(np.log(4) if row["config"] == "turns" else 1.0)
        assert [probe["features"] for probe in row["probes"][2:]] == ["block_1", "block_2"]
    assert rows[4]["first"] == pytest.approx([np.log(4)] * 2, abs=0.1)  # of the very first step
    assert rows[0]["last"] != rows[1]["last"]  # another seed
    saved = json.loads((workdir / "turns-end_to_end+remat-1" / "config.json").read_text())
    assert (saved["seed"], saved["strategy"], saved["remat"]) == (1, "end_to_end", "layer")
    runs, over_seeds = (workdir / "comparison.md").read_text().split("mean over seeds")
    for text, count in ((runs, len(rows)), (over_seeds, len(rows) // 2)):
        lines = text.splitlines()
        assert sum(line.startswith(("| mae |", "| turns |")) for line in lines) == count
    with Image.open(workdir / "comparison.png") as picture:
        assert min(picture.size) > 100


def test_the_table_has_the_figures_of_each_block():
    probes = [("pixels", 0.1, 0.2), ("untrained", 0.3, 0.4), ("block_1", 0.5, 0.7)]
    probes = [{"features": f, "knn": k, "linear": x} for f, k, x in probes]
    probes.append({"features": "block_2", "knn": 0.65, "linear": 0.6})
    row = {"config": "a", "strategy": "blockwise", "seed": 3, "steps": 5, "batch_size": 8}
    row |= {
        "first": [1.0, 2.0],
        "last": [0.5, 0.25],
        "chance": None,
        "rank": 4.04,
        "probes": probes,
    }
    unlabelled = {**row, "config": "b", "chance": 1.386, "rank": None, "probes": []}
    text = table([row, unlabelled])
    assert (
        "| a | blockwise | 3 | 5 x 8 | 1.00 2.00 | 0.50 0.25 | - | 4.0 "
        "| 0.300 | 0.400 | 0.500 0.650 | 0.700 0.600 | 0.700 |" in text
    )
    assert (
        "| b | blockwise | 3 | 5 x 8 | 1.00 2.00 | 0.50 0.25 | 1.39 | - | - | - | - | - | - |"
        in text
    )
    assert "Raw pixels: kNN 0.100, linear probe 0.200." in text
    assert "mean over seeds" not in text

    few = table([row, unlabelled], columns=("config", "best", "chance")).splitlines()
    assert few[0] == "| config | best | chance |"
    assert few[2:4] == ["| a | 0.700 | - |", "| b | - | 1.39 |"]
    with pytest.raises(ValueError, match=r"no column 'loss'; there are config, .*, best"):
        table([row], columns=("loss",))

    other = {**row, "seed": 4, "probes": [*probes[:2], {**probes[2], "linear": 0.5}, probes[3]]}
    shallow = {**row, "config": "c", "probes": probes[:3]}
    alike = [{**each, "seed": seed} for each in (unlabelled, shallow) for seed in (3, 4)]
    text = table([row, other, *alike])
    lines = text[text.index("mean over seeds") :].splitlines()[2:]
    assert lines == [
        "| config | strategy | seeds | block 1 | block 2 | best |",
        "|---|---|---|---|---|---|",
        "| a | blockwise | 2 | 0.600 (0.500 to 0.700) | 0.600 (0.600 to 0.600) | 0.650 (0.600 to 0.700) |",
        "| c | blockwise | 2 | 0.700 (0.700 to 0.700) | - | 0.700 (0.700 to 0.700) |",
    ]


def test_the_picture_has_a_line_of_blocks_for_each_config_and_strategy(monkeypatch):
    def row(config, strategy, *linear):
        names = ("pixels", "untrained", *(f"block_{k}" for k in range(1, len(linear) + 1)))
        probes = [
            {"features": name, "linear": value}
            for name, value in zip(names, (0.1, 0.2, *linear), strict=True)
        ]
        return {"config": config, "strategy": strategy, "probes": probes}

    rows = [
        *(row("a", "blockwise", 0.3, 0.5), row("a", "blockwise", 0.5, 0.6)),  # two seeds
        *(row("b", "blockwise", 0.7, 0.9), row("b", "end_to_end", 0.4, 0.8)),
    ]
    monkeypatch.setattr(figures, "_png", lambda figure: figure)
    (axis,) = figures.comparison(rows).axes
    drawn = [(line.get_color(), line.get_xydata().tolist()) for line in axis.get_lines()]
    for places, values, color in (
        ((0, 1), (0.4, 0.55), "C0"),
        ((3, 4), (0.7, 0.9), "C0"),
        ((3, 4), (0.4, 0.8), "C1"),
    ):
        expected = np.stack([places, values], axis=1)
        assert any(
            line == color and np.shape(points) == (2, 2) and np.allclose(points, expected)
            for line, points in drawn
        ), expected
    (ranged, *_) = axis.collections
    heights = ranged.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (0.3, 0.6)
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["blockwise", "end_to_end", "untrained", "pixels"]


def test_nothing_is_trained_before_all_configs_are_found_good(files, tmp_path, monkeypatch):
    monkeypatch.setattr(Training, "run", lambda self: pytest.fail("trained"))
    good, bad = files("good", "mae"), files("bad", "mae", blocks=3)
    with pytest.raises(ValueError, match="blocks"):
        compare_lib.compare([good, bad], ["blockwise"], [0], tmp_path / "out")
    with pytest.raises(ValueError, match="have one name twice"):
        compare_lib.compare([good, f"{good}:x=1"], ["blockwise"], [0], tmp_path / "out")


def test_bad_arguments_are_one_sentence(files, tmp_path, monkeypatch):
    for arguments, message in (
        (["nowhere.py"], "nowhere.py: there is no such file"),
        ([files("good", "mae"), "--strategies", "blockwise+rematt"], "option 'rematt' is unknown"),
        ([files("good", "mae"), "--seeds", "0,x"], "--seeds 0,x"),
    ):
        monkeypatch.setattr("sys.argv", ["compare", *arguments, "--workdir", str(tmp_path / "out")])
        with pytest.raises(SystemExit, match=re.escape(message)):
            compare_lib.main()


@pytest.mark.parametrize(
    "error, message",
    [
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out"), "error: out of memory .* Try"),
        (CorruptImage("a.png: cut short"), "error: a.png: cut short"),
        (Interrupted("SIGTERM: stopped"), "SIGTERM: stopped"),
    ],
)
def test_a_run_that_fails_says_why(error, message, files, tmp_path, monkeypatch):
    def run(self):
        raise error

    monkeypatch.setattr(Training, "run", run)
    arguments = [files("good", "mae"), "--workdir", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["compare", *arguments])
    with pytest.raises(SystemExit, match=message):
        compare_lib.main()


FINETUNE = """
from blockjax.config.files import load_config
def get_config():
    config = load_config("configs/finetune.py")
    config.steps, config.batch_size = 3, 8
    config.data.flip, config.data.crop_scale = False, (1.0, 1.0)
    return config
"""


@pytest.mark.slow
def test_a_sweep_fine_tunes_and_compiles_each_run_once(files, tmp_path, monkeypatch):
    config, workdir = files("mae", "mae"), tmp_path / "out"
    finetune = tmp_path / "finetune.py"
    finetune.write_text(FINETUNE)
    trained, compiled = [], []

    def run(self):
        trained.append(self.workdir.name)
        return whole_run(self)

    def job(config, target):
        compiled.append((config.blocks, config.strategy, target))
        return Result(MemoryProfile(1, 1, 1, 3 * 2**20))

    whole_run = Training.run
    monkeypatch.setattr(Training, "run", run)
    monkeypatch.setattr(compare_lib, "run_job", job)
    options = {
        "sweep": {"blocks": [2, 4]},
        "finetune": str(finetune),
        "labels": [0.5, 1.0],
        "targets": ["v5e"],
    }
    strategies = ["blockwise+ladder", "end_to_end"]
    rows = compare_lib.compare([config], strategies, [0], workdir, **options)
    names = [f"mae-{strategy}-blocks={k}-0" for strategy in strategies for k in (2, 4)]
    tails = ("", "-labels=0.5", "-labels=1")
    assert trained == [name + tail for name in names for tail in tails]
    assert compiled == [(k, s, "v5e") for s in ("blockwise", "end_to_end") for k in (2, 4)]
    again = compare_lib.compare([config], strategies, [0], workdir, **options)
    assert again == rows
    assert len(trained) == 12 and len(compiled) == 4
    saved = json.loads((workdir / "mae-blockwise+ladder-blocks=4-0" / "config.json").read_text())
    assert (saved["blocks"], saved["distillation"]["weight"]) == (4, 0.5)
    saved = json.loads((workdir / f"{names[0]}-labels=0.5" / "config.json").read_text())
    assert saved["backbone"] == str(workdir / names[0])
    assert (saved["data"]["fraction"], saved["objective"]) == (0.5, "classification")
    for row in rows:
        assert set(row["finetuned"]) == {"0.5", "1"}
        assert row["memory"]["v5e"] == [3.0, pytest.approx(3.0, abs=1e-4)]
    # The ladder's teacher takes the whole image, and more blocks have more decoders.
    assert rows[0]["gflops"] > 1.2 * rows[2]["gflops"]
    assert rows[1]["gflops"] > rows[0]["gflops"]
    text = (workdir / "comparison.md").read_text()
    assert "| config | strategy | blocks | seed |" in text
    assert "fine-tuned, 0.5 of labels | fine-tuned, 1 of labels | GFLOP" in text
    with Image.open(workdir / "comparison_memory.png") as picture:
        assert min(picture.size) > 100


def test_accuracy_stands_over_scratch_memory(monkeypatch):
    def row(strategy, accuracy, scratch):
        return {
            "config": "a",
            "strategy": strategy,
            "finetuned": {"0.1": accuracy, "1": 0.9},
            "memory": {"h100": [scratch, 50.0], "v5e": [2 * scratch, 60.0]},
            "probes": [],
        }

    rows = [row("x", 0.5, 10.0), row("x", 0.7, 10.0), row("y", 0.4, 20.0)]
    monkeypatch.setattr(figures, "_png", lambda figure: figure)
    left, right = figures.accuracy_and_memory(rows).axes
    for axis, factor in ((left, 1), (right, 2)):
        points = [container.lines[0].get_xydata()[0].tolist() for container in axis.containers]
        np.testing.assert_allclose(points, [[10.0 * factor, 0.6], [20.0 * factor, 0.4]])
    bar = left.containers[0].lines[2][0].get_segments()[0][:, 1]
    np.testing.assert_allclose(bar, [0.5, 0.7])


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--sweep", "blocks"], "--sweep blocks should be FIELD=VALUE,VALUE"),
        (["--sweep", "blocs=2,4"], "did you mean 'blocks'"),
        (["--sweep", "blocks=3"], "blocks 3 does not divide"),
        (["--labels", "0.1,x"], "--labels 0.1,x should be numbers"),
        (["--targets", "h101"], "h101"),
        (["--finetune", "nowhere.py"], "nowhere.py: there is no such file"),
    ],
)
def test_bad_axes_are_one_sentence(flags, message, files, tmp_path, monkeypatch):
    monkeypatch.setattr(Training, "run", lambda self: pytest.fail("trained"))
    arguments = [files("good", "mae"), "--workdir", str(tmp_path / "out"), *flags]
    monkeypatch.setattr("sys.argv", ["compare", *arguments])
    with pytest.raises(SystemExit, match=re.escape(message)):
        compare_lib.main()
