"""A folder as the pages assume it: in it lie tiny runs where they say that a run is."""

import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from blockjax.export import export
from blockjax.training.run import Training
from tests.docs.pages import ROOT, codes, command_lines, documentation, words
from tests.tiny import images, marked_data
from tests.tiny_text import tiny_text_config

# What makes any config of images train in seconds, and probes and pictures with it.
SMALL = {
    "steps": 2,
    "batch_size": 8,
    "model.width": 32,
    "model.heads": 2,
    "decoder.width": 32,
    "log.every": 1,
    "probe.train_examples": 48,
    "probe.test_examples": 24,
    "tokenizer.examples": 64,
    "tokenizer.codes": 8,
}


def shrunk(config):
    """Returns a config as it is trained here: numbers are no greater than those of `SMALL`."""
    config = config.copy_and_resolve_references()
    for field, value in SMALL.items():
        group, _, name = field.rpartition(".")
        part = config[group] if group else config
        if field == "steps" and part.epochs is not None:
            part.epochs = None
        if part[name] is None or part[name] > value:
            part[name] = value
    return config


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory):
    """The workdir of the quickstart, trained by the command of the pages, at a tiny size, on a few labelled images."""
    folder = tmp_path_factory.mktemp("quickstart")
    lines = [line for path in documentation() for c in codes(path) for line in command_lines(c)]
    lines = [words(line) for line in lines if "-m blockjax.main" in line]
    (_, *command), *_ = [line for line in lines if line[-2:] == ["--workdir", "runs/quickstart"]]
    small = {**SMALL, "model.depth": 4, "data.source": f"arrays:{marked_data(folder)}"}
    del small["model.heads"], small["tokenizer.codes"]
    command += [f"--config.{field}={value}" for field, value in small.items()]
    (folder / "configs").symlink_to(ROOT / "configs")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
    }
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "block_4" in done.stdout
    return folder / "runs" / "quickstart"


@pytest.fixture(scope="session")
def text_run(tmp_path_factory):
    """The workdir of a tiny run of text, in four blocks as that of configs/text.py."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "poems").mkdir()
    for k in range(20):
        (folder / "poems" / f"{k}.txt").write_text(f"def verse_{k}(): return {k}\n" * 20)
    config = tiny_text_config(**{"blocks": 4, "data.source": f"text:{folder / 'poems'}"})
    Training(config, folder / "run").run()
    return folder / "run"


@pytest.fixture
def place(tmp_path, monkeypatch, request):
    """Returns a function that puts the runs and exports that a text names where they belong; tests run there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def put(text):
        for name, fixture in (("quickstart", "quickstart"), ("text", "text_run")):
            if f"runs/{name}" in text and not (tmp_path / "runs" / name).exists():
                shutil.copytree(request.getfixturevalue(fixture), tmp_path / "runs" / name)
        if '"exported"' in text:
            export(request.getfixturevalue("quickstart"), "huggingface", tmp_path / "exported", 3)
        return tmp_path

    with jax.numpy_rank_promotion("allow"):  # as it is for users
        yield put


@pytest.fixture
def names():
    """Names that a page may use without a definition."""
    return {"images": images(4), "np": np}
