"""Files that are written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np


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
