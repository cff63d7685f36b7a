"""A workdir belongs to one run."""

import json
import os
from pathlib import Path

import jax
import ml_collections

from blockjax import config as config_lib
from blockjax.workdir.files import write_json_atomic


def claim_workdir(workdir: Path, config: ml_collections.ConfigDict) -> Path:
    """Makes the workdir and writes config.json, or checks that the config there describes the same run.

    Raises:
      ValueError: the folder cannot be written, or belongs to a run with another config; names the fields.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"--workdir {workdir} cannot be written: {error.strerror}; choose another folder"
        ) from error
    path, new = workdir / "config.json", config_lib.to_json(config)
    if path.exists():
        try:
            saved = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(
                f"{path} cannot be read ({error}); choose another --workdir"
            ) from error
        if changed := config_lib.differences(saved, new):
            raise ValueError(
                f"--workdir {workdir} holds a run with another config:\n  "
                + "\n  ".join(changed)
                + "\nchoose another --workdir, or set these fields back to go on with that run"
            )
    if jax.process_index() == 0:
        write_json_atomic(path, new)
    return workdir
