"""Two processes that talk over loopback train as one, and go on after one of them was killed."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from blockjax.config.files import load_config
from blockjax.training.run import Training
from blockjax.workdir.checkpoint import Checkpoints
from blockjax.workdir.metrics import read_metrics
from tests.tiny import images

ROOT = Path(__file__).parents[2]
STEPS = 12
FIELDS = {
    "steps": STEPS,
    "batch_size": 8,
    "blocks": 2,
    "model.width": 32,
    "model.depth": 2,
    "model.heads": 2,
    "model.patch_size": 8,
    "decoder.width": 32,
    "checkpoint.every": 4,
    "log.every": 1,
}


@pytest.fixture(autouse=True)
def unlabelled(tmp_path, monkeypatch):
    """Images without labels: there is nothing to probe."""
    path = tmp_path / "images.npz"
    np.savez(path, train_images=images(32), test_images=images(16, seed=1))
    monkeypatch.setitem(FIELDS, "data.source", f"arrays:{path}")


@contextlib.contextmanager
def two_processes(workdir, **fields):
    """Two processes of two devices each; killed at the end, if they are still there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "blockjax.main", "--config", "configs/digits.py"),
                *("--workdir", str(workdir), f"--coordinator=127.0.0.1:{port}"),
                *("--process_count=2", f"--process_id={i}"),
                *(f"--config.{field}={value}" for field, value in {**FIELDS, **fields}.items()),
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "JAX_NUM_CPU_DEVICES": "2",
                "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "xla"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def finish(workdir, **fields):
    with two_processes(workdir, **fields) as processes:
        outputs = [process.communicate(timeout=600) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], outputs[0][1][-2000:]
    assert "run         mae" not in outputs[1][0]  # only the first one speaks
    return outputs[0][0]


def config_here(**fields):
    config = load_config("configs/digits.py")
    for field, value in {**FIELDS, **fields}.items():
        group, _, name = field.rpartition(".")
        (config[group] if group else config)[name] = value
    return config


def state_here(workdir, **fields):
    """The final state, restored in this process with its eight devices."""
    run = Training(config_here(**fields), workdir)
    with contextlib.closing(Checkpoints(workdir / "checkpoints", keep=9)) as checkpoints:
        step, state, _ = checkpoints.restore_newest(run.abstract_state)
    assert step == int(state.step) == STEPS
    return jax.device_get(state)


def wait_for_step(step, workdir, process):
    deadline, metrics = time.time() + 600, workdir / "metrics.jsonl"
    while not metrics.exists() or len(read_metrics(metrics)) < step:
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.01)


def losses(workdir):
    rows = read_metrics(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return np.array([[row["block_1/loss"], row["block_2/loss"]] for row in rows])


@pytest.mark.slow
def test_stopped_killed_and_started_again(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(whole)
    with two_processes(killed) as (first, second):
        wait_for_step(1, killed, first)
        second.terminate()
        outputs = [process.communicate(timeout=120)[0] for process in (first, second)]
        assert first.returncode == second.returncode == 1
    (stopped,) = {
        re.search(r"stopped after step (\d+) of 12, with a checkpoint", text)[1] for text in outputs
    }
    assert len(read_metrics(killed / "metrics.jsonl")) == int(stopped) < 8
    with two_processes(killed) as (first, second):
        wait_for_step(6, killed, first)
        second.kill()
        output, errors = first.communicate(timeout=300)
        assert first.returncode in (1, -signal.SIGABRT)
        if first.returncode == 1:
            assert "error: process 0 of 2 stops" in errors and "Start the same command" in errors
        else:  # it waited for an answer until JAX noticed that the other one is silent, and ended it
            assert "another task died" in errors
    assert f"resume      at step {stopped}" in output
    assert len(read_metrics(killed / "metrics.jsonl")) < STEPS
    assert "resume      at step" in finish(killed)
    np.testing.assert_array_equal(losses(killed), losses(whole))
    ours, alone = state_here(killed), state_here(whole)
    chex.assert_trees_all_equal(ours, alone)
    Training(config_here(), tmp_path / "one").run()
    np.testing.assert_allclose(losses(whole), losses(tmp_path / "one"), rtol=1e-4)
    # Other strategies and meshes, in one process instead of two, get the same bits.
    for fields in (
        {"strategy": "streamed", "mesh.fsdp": 2},
        {"strategy": "pipelined", "mesh.block": 2},
    ):
        chex.assert_trees_all_equal(state_here(whole, **fields), alone)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--process_id=1"], "--coordinator and --process_count missing"),
        (
            ["--coordinator=127.0.0.1:1", "--process_count=2", "--process_id=2"],
            "--process_id=2 must be from 0 to --process_count - 1 = 1",
        ),
    ],
)
def test_flags_that_do_not_fit(flags, message):
    command = [sys.executable, "-m", "blockjax.main", "--config", "configs/digits.py", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and message in done.stdout + done.stderr
