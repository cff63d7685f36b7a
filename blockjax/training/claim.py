"""A workdir belongs to one run."""

import os
from pathlib import Path

import jax
import ml_collections

from blockjax import config as config_lib
from blockjax.checks import given_path
from blockjax.workdir.files import check_writable, write_json_atomic, writing
from blockjax.workdir.metrics import read_metrics


def claim_workdir(workdir: str | os.PathLike, config: ml_collections.ConfigDict) -> Path:
    """Makes the workdir and writes config.json, or checks that the config there describes the same run.

    Raises:
      ValueError: the folder cannot be written, belongs to a run with another config (names the fields), or holds
        something that no run left.
    """
    workdir = given_path("--workdir", workdir)
    check_writable("--workdir", workdir)
    path, new = workdir / "config.json", config_lib.to_json(config)
    if path.exists():
        saved = config_lib.to_json(config_lib.read_saved(path))
        if changed := config_lib.differences(saved, new):
            raise ValueError(
                f"--workdir {workdir} holds a run with another config:\n  "
                + "\n  ".join(changed)
                + "\nchoose another --workdir, or set these fields back to go on with that run"
            )
    _check_parts(workdir)
    if jax.process_index() == 0:
        with writing("--workdir", workdir):
            write_json_atomic(path, new)
    return workdir


def _check_parts(workdir):
    """Checks what a run goes on with, before anything is compiled."""
    for name in ("checkpoints", "figures", "tensorboard"):
        if (workdir / name).exists() and not (workdir / name).is_dir():
            raise ValueError(
                f"{workdir / name} is a file, and a run keeps a folder there; move it away, or choose another --workdir"
            )
    if (workdir / "metrics.jsonl").exists():
        read_metrics(workdir / "metrics.jsonl")
