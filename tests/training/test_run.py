"""The whole loop on a tiny run: what it writes, that it resumes exactly, and how it fails."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from PIL import Image

import blockjax
from blockjax.config.files import load_config
from blockjax.export import export
from blockjax.memory import MIB, DoesNotFit, MemoryProfile
from blockjax.sharding.rules import warn_once
from blockjax.training import log, signals
from blockjax.training.run import Interrupted, Training
from blockjax.weights import read_tensors
from blockjax.workdir.checkpoint import Checkpoints
from blockjax.workdir.metrics import read_metrics
from tests.tiny import images, tiny_config

STEPS = 12
TIMES = ("seconds", "images_per_second", "data/wait_share")  # what clocks measure


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """Four classes of coloured squares, as an npz file."""
    path = tmp_path_factory.mktemp("data") / "squares.npz"
    labels = np.arange(96) % 4
    pictures = images(96)
    for picture, label in zip(pictures, labels, strict=True):
        row, column = divmod(int(label), 2)
        picture[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = (250, 10, 10)
    np.savez(
        path,
        train_images=pictures[:64],
        train_labels=labels[:64],
        test_images=pictures[64:],
        test_labels=labels[64:],
    )
    return path


def config_of(source, **overrides):
    fields = {
        "steps": STEPS,
        "mesh.data": -1,
        "data.source": f"arrays:{source}",
        "data.shift": 2,
        "data.flip": False,
        "checkpoint.every": 4,
        "log.every": 1,
        "log.monitor_every": 5,
        "optimizer.warmup_steps": 2,
    }
    return tiny_config(**{**fields, **overrides})


@pytest.fixture(scope="module")
def finished(arrays, tmp_path_factory):
    """An uninterrupted run and its summary."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workdir, Training(config_of(arrays), workdir).run()


def comparable(workdir):
    """The rows of metrics.jsonl without what clocks measured."""
    rows = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def final_state(config, workdir, steps=STEPS):
    run = Training(config, workdir)
    with contextlib.closing(Checkpoints(workdir / "checkpoints", keep=9)) as checkpoints:
        _, state, _ = checkpoints.restore_newest(run.abstract_state)
    assert int(state.step) == steps
    return jax.device_get(state)


@pytest.mark.slow
def test_what_a_run_writes(finished):
    workdir, summary = finished
    rows = read_metrics(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for row in rows:
        assert row["examples"] == row["step"] * 8
        assert {*TIMES, "learning_rate"} <= row.keys()
        assert 0.0 <= row["data/wait_share"] <= 1.0
        assert all(np.isfinite(row[f"block_{k}/loss"]) for k in (1, 2, 3, 4))
    monitored = [row["step"] for row in rows if "block_4/effective_rank" in row]
    assert monitored == [5, 10, STEPS]
    assert 1.0 <= rows[-1]["block_4/effective_rank"] <= 8.0  # a batch has 8 images
    assert rows[0]["learning_rate"] == 0.0 and rows[2]["learning_rate"] > rows[-1]["learning_rate"]
    assert json.loads((workdir / "summary.json").read_text()) == summary
    assert summary["strategy"] == "blockwise" and summary["steps"] == STEPS
    names = ["pixels", "untrained", "block_1", "block_2", "block_3", "block_4"]
    assert [row["features"] for row in summary["probes"]] == names
    assert all(0 <= row["knn"] <= 1 and 0 <= row["linear"] <= 1 for row in summary["probes"])
    assert (
        summary["probes"][0]["linear"] > 0.9
    )  # red squares are easy in pixels: labels and images match
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["model"]["width"] == 32 and saved["dtype"] == "float32"
    for name in ("reconstruction", "losses"):
        with Image.open(workdir / "figures" / f"{name}.png") as picture:
            assert (
                picture.width > 300
                and len(set(picture.convert("L").resize((64, 64)).tobytes())) > 10
            )


@pytest.mark.slow
def test_a_finished_run_does_not_train_again(finished, arrays, monkeypatch):
    workdir, summary = finished
    monkeypatch.setattr(Training, "_compile", None)  # nor compile
    before = (workdir / "metrics.jsonl").read_bytes()
    again = Training(config_of(arrays), workdir).run()
    assert (workdir / "metrics.jsonl").read_bytes() == before
    assert again == summary


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on_exactly(
    finished, arrays, tmp_path, monkeypatch
):
    steps_seen = []
    original = log.MetricsLog.step

    def stop_at_step_6(self, step, *rest):
        original(self, step, *rest)
        steps_seen.append(step)
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    workdir = tmp_path / "stopped"
    monkeypatch.setattr(log.MetricsLog, "step", stop_at_step_6)
    with pytest.raises(
        Interrupted, match=r"SIGTERM: stopped after step \d+ of 12, with a checkpoint in"
    ):
        Training(config_of(arrays), workdir).run()
    monkeypatch.setattr(log.MetricsLog, "step", original)
    assert max(steps_seen) < STEPS
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    # A line that a killed process had only half written:
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "exam')
    summary = Training(config_of(arrays), workdir).run()
    whole, expected = finished
    assert comparable(workdir) == comparable(whole)
    seconds = [row["seconds"] for row in read_metrics(workdir / "metrics.jsonl")]
    assert seconds == sorted(seconds)  # of training, over both runs
    assert summary["probes"] == expected["probes"]
    chex.assert_trees_all_equal(
        final_state(config_of(arrays), workdir), final_state(config_of(arrays), whole)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective, fields",
    [
        ("beit", {"tokenizer.codes": 8, "tokenizer.kind": "exemplar"}),  # what was fitted
        ("moco", {"momentum.queue": 16, "views.recipe": "cifar-mim"}),  # averages and queues
    ],
)
def test_what_no_gradient_trains_is_saved_too(objective, fields, arrays, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "blockjax.training.report._probes",
        lambda run, state: [
            {"features": name, "knn": 0, "linear": 0} for name in ("pixels", "untrained", "block_1")
        ],
    )
    small = {"head.hidden": 16, "head.width": 16, "head.expansion": 16, "mask.ratio": None}
    config = config_of(arrays, objective=objective, **small, **fields)
    Training(config, tmp_path / "whole").run()
    original = log.MetricsLog.step

    def stop_at_step_6(self, step, *rest):
        original(self, step, *rest)
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(log.MetricsLog, "step", stop_at_step_6)
    with pytest.raises(Interrupted):
        Training(config, tmp_path / "stopped").run()
    monkeypatch.setattr(log.MetricsLog, "step", original)
    Training(config, tmp_path / "stopped").run()
    assert comparable(tmp_path / "stopped") == comparable(tmp_path / "whole")
    whole = final_state(config, tmp_path / "whole")
    chex.assert_trees_all_equal(final_state(config, tmp_path / "stopped"), whole)
    kept = whole.fitted if objective == "beit" else whole.blocks.extra["queue"]
    assert np.abs(kept).max() > 0.0
    with Image.open(tmp_path / "whole" / "figures" / "views.png") as picture:
        assert picture.width > 300


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {
            "hybrid.every": 4,
            "hybrid.share": 0.1,
            "distillation.weight": 0.5,
            "distillation.decay": 0.5,
            "cross_block.blocks": 1,
        },
        {"head.shared": True, "consistency.weight": 0.1},
        {"schedule": "sequential"},
    ],
    ids=["hybrid_ladder", "shared_head", "sequential"],
)
def test_coupled_blocks_go_on_exactly_and_travel(fields, arrays, tmp_path, monkeypatch, capsys):
    """Two programs, a head that is no block's, blocks that wait: saved, resumed, drawn, probed, exported."""
    config = config_of(arrays, **fields)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    summary = Training(config, whole).run()
    original = log.MetricsLog.step

    def stop_at_step_6(self, step, *rest):
        original(self, step, *rest)
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(log.MetricsLog, "step", stop_at_step_6)
    with pytest.raises(Interrupted):
        Training(config, stopped).run()
    monkeypatch.setattr(log.MetricsLog, "step", original)
    again = Training(config, stopped).run()
    assert again["probes"] == summary["probes"]
    assert comparable(stopped) == comparable(whole)
    state = final_state(config, whole)
    chex.assert_trees_all_equal(final_state(config, stopped), state)
    said = capsys.readouterr().out
    assert ("in steps of backpropagation across blocks" in said) == ("hybrid.every" in fields)
    assert ("in the head that they share" in said) == ("head.shared" in fields)
    rows = read_metrics(whole / "metrics.jsonl")
    losses = [sorted(key for key in row if key.endswith("/loss")) for row in rows]
    if "schedule" in fields:
        assert losses == [[f"block_{1 + i // 3}/loss"] for i in range(STEPS)]
        rates = [row["learning_rate"] for row in rows]
        assert rates == rates[:3] * 4 and rates[2] < rates[0]
    else:
        assert all(len(found) == 4 for found in losses)
    encoder, params = blockjax.load(whole, blocks=3)
    assert encoder(params, images(2)).shape == (2, 32)
    with Image.open(whole / "figures" / "reconstruction.png") as picture:
        assert picture.width > 300
    export(whole, "huggingface", tmp_path / "out", blocks=2)
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 1000
    assert not any("link" in name for name in read_tensors(tmp_path / "out"))


@pytest.mark.slow
def test_signs_of_collapse_are_said_once_for_each_block(arrays, tmp_path, monkeypatch, capsys):
    def symptoms(self, metrics, progress):
        return ["all is lost"] if metrics["loss"] > 0 and progress > 0.5 else []

    monkeypatch.setattr("blockjax.objectives.masked.mae.MaskedAutoencoder.symptoms", symptoms)
    monkeypatch.setattr("blockjax.training.run.report", lambda run, state: {})
    Training(config_of(arrays), tmp_path).run()
    said = [line for line in capsys.readouterr().out.splitlines() if "all is lost" in line]
    assert said == [f"warning: step 7, block {k}: all is lost" for k in (1, 2, 3, 4)]


@pytest.mark.slow
def test_a_truncated_checkpoint_falls_back_to_the_one_before(
    finished, arrays, tmp_path, monkeypatch
):
    workdir = shutil.copytree(finished[0], tmp_path / "damaged")
    monkeypatch.setattr("blockjax.training.run.report", lambda run, state: {})
    newest = workdir / "checkpoints" / f"{STEPS:08}"
    files = [path for path in newest.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    Training(config_of(arrays), workdir).run()
    assert comparable(workdir) == comparable(finished[0])
    chex.assert_trees_all_equal(
        final_state(config_of(arrays), workdir), final_state(config_of(arrays), finished[0])
    )


def stop_after(stop, config, workdir, monkeypatch):
    """Runs, with a SIGTERM when this step is logged."""
    original = log.MetricsLog.step

    def step(self, step, *rest):
        original(self, step, *rest)
        if step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(log.MetricsLog, "step", step)
        Training(config, workdir).run()


@pytest.mark.slow
def test_goes_on_where_devices_address_no_host_memory(
    finished, arrays, tmp_path, monkeypatch, caplog
):
    """Blockwise, then streamed with states on the CPU: stopped, and to the end."""
    workdir = tmp_path / "copied"
    stop_after(2, config_of(arrays), workdir, monkeypatch)
    config = config_of(arrays, strategy="streamed", **{"mesh.data": 4, "mesh.fsdp": 2})
    monkeypatch.setattr("blockjax.learner.placement.addresses_host_memory", lambda device: False)
    warn_once.cache_clear()  # another test may have had it
    stop_after(6, config, workdir, monkeypatch)
    assert "one program for each block's update, and copies between" in caplog.text
    step = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    states = [final_state(config, workdir, step) for config in (config, config_of(arrays))]
    chex.assert_trees_all_equal(*states)
    run = Training(config, workdir)
    for leaf in jax.tree.leaves(run.abstract_state.blocks):
        assert leaf.sharding.device_set == {jax.devices("cpu")[0]}
    assert [row["features"] for row in run.run()["probes"]][-2:] == ["block_3", "block_4"]
    for row, expected in zip(comparable(workdir), comparable(finished[0]), strict=True):
        for name, value in expected.items():
            np.testing.assert_allclose(row[name], value, rtol=1e-3, err_msg=name)


@pytest.mark.slow
def test_goes_on_under_another_strategy_and_mesh(finished, arrays, tmp_path, monkeypatch):
    """Blockwise on eight devices, then streamed, where blocks stay, then pipelined; states arrive bit by bit."""
    workdir = tmp_path / "moved"
    runs = [
        config_of(arrays, **fields)
        for fields in (
            {},
            {"strategy": "streamed", "mesh.data": 4, "mesh.fsdp": 2, "pipeline.batches": 2},
            # 8 steps done, 4 left: one whole group and a part of one.
            {"strategy": "pipelined", "mesh.data": 4, "mesh.block": 2, "pipeline.batches": 3},
        )
    ]
    for config, stop in zip(runs[:2], (3, 6), strict=True):
        stop_after(stop, config, workdir, monkeypatch)
    steps = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    states = [final_state(config, workdir, max(steps)) for config in runs]
    chex.assert_trees_all_equal(*states)
    summary = Training(runs[2], workdir).run()
    assert summary["strategy"] == "pipelined"
    assert [row["step"] for row in comparable(workdir)] == list(range(1, STEPS + 1))
    for row, expected in zip(comparable(workdir), comparable(finished[0]), strict=True):
        if row["step"] > 5:  # features are looked at after all batches of a call
            expected = {name: expected[name] for name in row if name in expected}
        if row["step"] > 9:
            assert ("block_1/cosine" in row) == (row["step"] in (11, STEPS))
        for name, value in expected.items():
            np.testing.assert_allclose(row[name], value, rtol=1e-3, err_msg=name)
    with pytest.raises(ValueError, match="strategy: pipelined -> end_to_end"):
        Training(config_of(arrays, strategy="end_to_end"), workdir)


@pytest.mark.slow
def test_nan_stops_with_step_and_block(arrays, tmp_path):
    config = config_of(
        arrays, **{"optimizer.base_learning_rate": 1e30, "optimizer.warmup_steps": 0}
    )
    with pytest.raises(FloatingPointError, match=r"step \d+: (loss|gradient norm) of .*block \d"):
        Training(config, tmp_path / "nan").run()
    rows = read_metrics(tmp_path / "nan" / "metrics.jsonl")
    assert all(np.isfinite(list(row.values())).all() for row in rows)


@pytest.fixture
def interrupt_handler():
    """Sets the handler of SIGINT for a test; the tests themselves may run where it is ignored."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, before)


def test_a_second_signal_has_its_usual_effect(interrupt_handler):
    interrupt_handler(signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), signals.caught_signals() as caught:
        os.kill(os.getpid(), signal.SIGINT)
        assert caught == [signal.SIGINT]
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_signal_stays_ignored(interrupt_handler):
    interrupt_handler(signal.SIG_IGN)
    with signals.caught_signals() as caught:
        os.kill(os.getpid(), signal.SIGINT)
        assert not caught


@pytest.mark.parametrize(
    ("needed", "message"),
    [
        (
            lambda learner, batch: 100 if learner.vit.remat == "none" else 40,
            "--config.remat=layer needs 40 MiB",
        ),
        (
            lambda learner, batch: 5 * batch,
            "--config.remat=layer --config.microbatches=1 --config.blocks=4 --config.strategy=streamed "
            "--config.batch_size=8 needs 40 MiB",
        ),
        (lambda learner, batch: 100, "no config near this one fits"),
    ],
)
def test_a_step_that_does_not_fit_names_what_would(arrays, tmp_path, monkeypatch, needed, message):
    def compiled(placement, batch_size, limit):
        size = needed(placement.learner, batch_size) * MIB
        return None, MemoryProfile(argument=0, output=0, alias=0, temp=size, limit=limit)

    monkeypatch.setattr("blockjax.training.run.local_limit", lambda device: 50 * MIB)
    monkeypatch.setattr("blockjax.training.run.compile_step", compiled)
    monkeypatch.setattr("blockjax.memory.frugal.compile_step", compiled)
    config = config_of(arrays, blocks=2, batch_size=32, **{"mesh.data": -1})
    with pytest.raises(
        DoesNotFit, match=rf"needs 1\d0 MiB on each device, which has 50; .*{message}"
    ):
        Training(config, tmp_path).run()


def test_a_workdir_belongs_to_one_config(arrays, tmp_path):
    workdir = tmp_path / "run"
    Training(config_of(arrays), workdir)
    with pytest.raises(ValueError, match=r"another config:\n  mask.ratio: 0.625 -> 0.5\n"):
        Training(config_of(arrays, **{"mask.ratio": 0.5}), workdir)
    Training(config_of(arrays, **{"log.every": 3}), workdir)  # this may change


def test_a_workdir_that_cannot_be_written(arrays, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--workdir .*file.* cannot be written"):
        Training(config_of(arrays), tmp_path / "file" / "run")


def test_the_batch_must_fit_the_data(arrays, tmp_path):
    with pytest.raises(
        ValueError, match=r"batch_size 128 is larger than the training set.*64 examples"
    ):
        Training(config_of(arrays, batch_size=128), tmp_path)
    with pytest.raises(ValueError, match="nowhere"):
        Training(config_of("nowhere.npz"), tmp_path)


@pytest.mark.slow
def test_images_without_labels_pretrain(tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, picture in enumerate(images(40)):
        Image.fromarray(picture).save(folder / f"{i:02}.png")
    config = config_of("", **{"data.source": f"folder:{folder}", "log.every": 5})
    summary = Training(config, tmp_path / "run").run()
    assert summary["probes"] == []
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [
        1,
        5,
        10,
        12,
    ]  # the first and the last are always written
    out = capsys.readouterr().out
    assert "has no labels; pretraining does not need them" in out and "resume" not in out
    assert (tmp_path / "run" / "figures" / "reconstruction.png").exists()


KILLED_STEPS = 120


def command_fields(arrays):
    return {
        "mesh.data": -1,
        "steps": KILLED_STEPS,
        "batch_size": 8,
        "model.image_size": 16,
        "model.width": 32,
        "model.heads": 2,
        "model.patch_size": 4,
        "decoder.width": 32,
        "data.source": f"arrays:{arrays}",
        "checkpoint.every": 20,
        "log.every": 1,
    }


def command(workdir, arrays, *flags):
    return [
        *(sys.executable, "-m", "blockjax.main", "--config", "configs/digits.py"),
        *("--workdir", str(workdir)),
        *(f"--config.{field}={value}" for field, value in command_fields(arrays).items()),
        *flags,
    ]


@pytest.mark.slow
def test_kill_9_in_the_middle(arrays, tmp_path):
    root = Path(__file__).parents[2]

    def finish(workdir):
        done = subprocess.run(command(workdir, arrays), cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    finish(tmp_path / "whole")
    process = subprocess.Popen(
        command(tmp_path / "killed", arrays), cwd=root, stdout=subprocess.DEVNULL
    )
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.time() + 300
    checkpoints = tmp_path / "killed" / "checkpoints"
    # A checkpoint is written while training goes on; without a whole one the run would start anew.
    while (
        not any(path.name.isdigit() for path in checkpoints.glob("*"))
        or len(read_metrics(metrics)) % 20 < 5
    ):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.002)
    process.kill()
    process.wait()
    reached = read_metrics(metrics)[-1]["step"]
    assert 20 <= reached < KILLED_STEPS
    output = finish(tmp_path / "killed")
    assert "resume      at step" in output
    assert comparable(tmp_path / "killed") == comparable(tmp_path / "whole")
    assert len(comparable(tmp_path / "whole")) == KILLED_STEPS
    config = load_config("configs/digits.py")
    for field, value in command_fields(arrays).items():
        group, _, name = field.rpartition(".")
        (config[group] if group else config)[name] = value
    chex.assert_trees_all_equal(
        final_state(config, tmp_path / "killed", KILLED_STEPS),
        final_state(config, tmp_path / "whole", KILLED_STEPS),
    )
    summaries = [
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("killed", "whole")
    ]
    assert summaries[0]["probes"] == summaries[1]["probes"]


@pytest.mark.slow
def test_command_line_errors_are_sentences(arrays, tmp_path):
    root = Path(__file__).parents[2]

    def fails(*flags):
        done = subprocess.run(
            command(tmp_path / "run", arrays, *flags), cwd=root, capture_output=True, text=True
        )
        assert done.returncode != 0
        assert "Traceback" not in done.stderr, done.stderr[-1500:]
        return done.stdout + done.stderr

    assert "blocks 3 does not divide the depth of 4 layers" in fails("--config.blocks=3")
    assert "did you mean 'batch_size'" in fails("--config.batch_sise=3")
    assert "no such file" in fails("--config=nosuch.py")
    alone = [sys.executable, "-m", "blockjax.main", "--config", "nosuch.py"]
    done = subprocess.run(alone, cwd=root, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "nosuch.py" in done.stderr
    assert "config argument 'sice=3' is unknown" in fails("--config=configs/bim.py:sice=3")
