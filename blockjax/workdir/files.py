"""Files that are written whole or not at all."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


@contextlib.contextmanager
def writing(name: str, folder: str | os.PathLike) -> Iterator[None]:
    """Turns what the system says about writing to a folder that a person named into a sentence.

    Args:
      name: of the flag.
      folder: its value.

    Raises:
      ValueError: something could not be written there.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"{name} {folder} cannot be written: {error.strerror}; choose another folder, or make room there"
        ) from error


def check_writable(name: str, folder: Path) -> None:
    """Makes a folder, and checks that files can be made in it.

    Raises:
      ValueError: they cannot.
    """
    with writing(name, folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()


def write_json_atomic(path: str | os.PathLike, obj: Any) -> None:
    """Writes an object as indented JSON; numpy and jax arrays become lists and numbers."""
    text = json.dumps(obj, indent=2, default=lambda value: np.asarray(value).tolist())
    write_bytes_atomic(path, (text + "\n").encode())


def write_bytes_atomic(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file so that at any time either the old or the whole new one is there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
