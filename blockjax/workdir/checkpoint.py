"""Asynchronous checkpoints of train state and data position; the only file that knows orbax.

A checkpoint is a folder named by its step:

    00000100/state/         the arrays, written by orbax
    00000100/metadata.json  the step, every leaf's name, shape and dtype, and the data position
    00000100/manifest.json  size and CRC-32 of every other file

It is written under a name that is not a number and renamed when complete, so a numbered folder is
whole unless its files were damaged afterwards. orbax notices most damage, by many kinds of
exception, but not a flipped bit in an array; hence the manifest: it alone decides what is damaged.
"""

import dataclasses
import json
import logging as python_logging
import os
import shutil
import time
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint.experimental import v1 as ocp

PyTree = Any

_UNFINISHED = ".unfinished"  # being written, or being deleted


class UnusableCheckpoint(ValueError):
    """Every checkpoint is damaged, or the newest one belongs to another model."""


class NotSaved(OSError):
    """A checkpoint cannot be written; those before it are whole."""


class Checkpoints:
    """The checkpoints of one run.

    Use it in `contextlib.closing`: a program that ends while orbax is writing can hang.

    Args:
      directory: Folder that holds them; created by the first save. With several processes it must
        be one that all of them see.
      keep: How many of the newest checkpoints stay.

    Raises:
      ValueError: If `keep` is less than 1.
      UnusableCheckpoint: If there is a file in the folder's place.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int):
        if keep < 1:
            raise ValueError(f"keep must be at least 1 checkpoint, given {keep}")
        self._directory = Path(directory).absolute()
        if self._directory.exists() and not self._directory.is_dir():
            raise UnusableCheckpoint(
                f"{self._directory} is a file, and a run keeps a folder there; move it away"
            )
        self._keep = keep
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future | None = None
        self._saving: int | None = None
        python_logging.getLogger("absl").addFilter(_is_not_orbax_chatter)

    def steps(self) -> list[int]:
        """Returns the steps of all finished checkpoints, oldest first."""
        if not self._directory.exists():
            return []
        return sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdigit())

    def save(self, step: int, state: PyTree, data_state: dict) -> None:
        """Starts to save; does nothing if a checkpoint of this step exists.

        Returns as soon as the arrays are in host memory, so the caller may donate `state` to its
        next step at once; files are written in the background. Waits for the save before, if that
        is still being written.

        Args:
          step: Number of train steps done.
          state: Any pytree of jax.Arrays.
          data_state: JSON-able position of the data iterator, equal on all processes.

        Raises:
          TypeError: If `data_state` is not JSON-able.
          NotSaved: this save, or the one before, cannot be written.
        """
        self.wait()
        if step in self.steps():
            return
        self._saving = step
        metadata = json.dumps({"step": step, "leaves": _leaves(state), "data_state": data_state})
        unfinished = self._folder(step).with_suffix(_UNFINISHED)
        try:
            if jax.process_index() == 0:
                for stale in self._directory.glob(f"*{_UNFINISHED}"):
                    shutil.rmtree(stale)
                unfinished.mkdir(parents=True)
            arrays = ocp.save_async(unfinished / "state", _as_dicts(state))
        except OSError as error:
            raise self._not_saved(error) from error
        self._pending = self._writer.submit(self._finish, arrays, unfinished, metadata)

    def _finish(self, arrays: ocp.AsyncResponse, unfinished: Path, metadata: str) -> None:
        """Completes a checkpoint, gives it its name, and deletes those that are too old."""
        arrays.result()
        if jax.process_index() > 0:
            return
        (unfinished / "metadata.json").write_text(metadata)
        files = {
            path.relative_to(unfinished).as_posix(): _size_and_crc(path)
            for path in sorted(unfinished.rglob("*"))
            if path.is_file()
        }
        (unfinished / "manifest.json").write_text(json.dumps(files, indent=1))
        unfinished.rename(unfinished.with_suffix(""))
        for step in self.steps()[: -self._keep]:
            # Renamed first: a run killed while it deletes must not leave half a checkpoint.
            old = self._folder(step)
            shutil.rmtree(old.rename(old.with_suffix(_UNFINISHED)))

    def wait(self) -> None:
        """Blocks until everything is written.

        Raises:
          NotSaved: it cannot be; the checkpoints before are whole.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except Exception as error:  # orbax passes on what its libraries raise, of many types
            raise self._not_saved(error) from error
        finally:
            if jax.process_count() > 1:  # process 0 gives the name, all must see it
                multihost_utils.sync_global_devices("checkpoint")

    def _not_saved(self, error):
        """Returns a sentence on what could not be written, and removes what was: it takes room for nothing."""
        if jax.process_index() == 0:
            _remove(self._folder(self._saving).with_suffix(_UNFINISHED))
        whole = self.steps()
        newest = (
            f"the newest whole one is of step {whole[-1]}" if whole else "there is none before it"
        )
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:1000]
        return NotSaved(
            f"the checkpoint of step {self._saving} cannot be written to {self._directory}: {reason}; {newest}. Free "
            "space, lift the limit on file sizes, or set --config.checkpoint.keep=1, and start the same command again"
        )

    def close(self) -> None:
        """Waits as `wait` does and stops the background thread."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def restore_newest(self, abstract_state: PyTree) -> tuple[int, PyTree, dict] | None:
        """Restores the newest whole checkpoint.

        Damaged checkpoints that are newer are moved to the folder `<directory>_damaged`, so that
        their steps can be saved again.

        Args:
          abstract_state: Pytree of jax.ShapeDtypeStruct with shardings, on which the arrays arrive;
            they may differ from the shardings and the number of devices that were saved.

        Returns:
          `(step, state, data_state)`, or None if there is no checkpoint.

        Raises:
          UnusableCheckpoint: If checkpoints exist but all are damaged (then none is moved), or if
            the newest holds other leaves, shapes or dtypes than `abstract_state`.
        """
        self.wait()
        step = self._newest_whole() if jax.process_index() == 0 else 0
        if jax.process_count() > 1:
            step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        if step == _NO_CHECKPOINT:
            return None
        if step == _ALL_DAMAGED:
            raise UnusableCheckpoint(
                f"every checkpoint in {self._directory} is damaged (steps {self.steps()}): "
                "choose another workdir, or delete this folder to start from step 0"
            )
        metadata = json.loads((self._folder(step) / "metadata.json").read_text())
        _check_leaves(_leaves(abstract_state), metadata["leaves"], self._folder(step))
        dicts = ocp.load(self._folder(step) / "state", _as_dicts(abstract_state))
        return step, _from_dicts(abstract_state, dicts), metadata["data_state"]

    def _newest_whole(self) -> int:
        """Finds the newest whole checkpoint and moves damaged newer ones away."""
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            damage = _find_damage(self._folder(step))
            if damage is None:
                break
            damaged[step] = damage
        else:
            return _ALL_DAMAGED if damaged else _NO_CHECKPOINT
        for damaged_step, damage in damaged.items():
            moved = self._move_away(self._folder(damaged_step))
            logging.warning(
                "checkpoint of step %d is damaged (%s): moved to %s, using step %d instead",
                *(damaged_step, damage, moved, step),
            )
        return step

    def _move_away(self, folder: Path) -> Path:
        """Moves a folder to the sibling folder for damaged checkpoints; returns its new path."""
        sibling = self._directory.with_name(f"{self._directory.name}_damaged")
        sibling.mkdir(exist_ok=True)
        target = sibling / folder.name
        count = 1
        while target.exists():
            count += 1
            target = sibling / f"{folder.name}_{count}"
        return folder.rename(target)

    def _folder(self, step: int) -> Path:
        return self._directory / f"{step:08d}"


_NO_CHECKPOINT = -1
_ALL_DAMAGED = -2


def _remove(folder):
    """Deletes a folder in which threads of orbax may still write what does not fit either."""
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)


def _size_and_crc(path: Path) -> list[int]:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            crc = zlib.crc32(chunk, crc)
        return [file.tell(), crc]


def _find_damage(folder: Path) -> str | None:
    """Compares a checkpoint with its manifest; says what is wrong, or None."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        files = {name: (size, crc) for name, (size, crc) in manifest.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return "manifest.json is missing or unreadable"
    if "metadata.json" not in files:
        return "manifest.json lacks metadata.json"
    for name, (size, crc) in files.items():
        try:
            found_size, found_crc = _size_and_crc(folder / name)
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if found_size != size:
            return f"{name} has {found_size} bytes instead of {size}"
        if found_crc != crc:
            return f"{name} has contents other than those written"
    return None


def _as_dicts(node: PyTree) -> PyTree:
    """Turns the state's dataclasses into dicts of the fields that are not None.

    orbax would look for an empty field too, so that a field could not be added without making all
    checkpoints unreadable.
    """
    if not dataclasses.is_dataclass(node):
        return node
    values = {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
    return {name: _as_dicts(value) for name, value in values.items() if value is not None}


def _from_dicts(like: PyTree, dicts: PyTree) -> PyTree:
    """Undoes `_as_dicts`, with dataclasses as in `like`."""
    if not dataclasses.is_dataclass(like):
        return dicts
    return like.replace(
        **{name: _from_dicts(getattr(like, name), value) for name, value in dicts.items()}
    )


def _leaves(tree: PyTree) -> dict[str, list]:
    """Returns [shape, dtype] of every leaf by its name."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): [list(leaf.shape), str(leaf.dtype)] for path, leaf in flat}


def _check_leaves(expected: dict[str, list], saved: dict[str, list], folder: Path) -> None:
    """Raises UnusableCheckpoint that names the first leaf in which a checkpoint differs."""
    for name in [*expected, *saved]:
        if expected.get(name) != saved.get(name):
            ours, theirs = (
                f"{tuple(leaf[name][0])} {leaf[name][1]}" if name in leaf else "absent"
                for leaf in (expected, saved)
            )
            raise UnusableCheckpoint(
                f"the checkpoint {folder} does not fit this config: leaf {name} is {theirs} in the "
                f"checkpoint and {ours} in the config; restore the config that the run was started "
                "with, or choose another workdir"
            )


def _is_not_orbax_chatter(record: python_logging.LogRecord) -> bool:
    # orbax logs dozens of INFO lines per save to the logger that this package uses as well.
    return record.levelno > python_logging.INFO or f"{os.sep}orbax{os.sep}" not in record.pathname
