"""metrics.jsonl and TensorBoard events."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from blockjax.workdir.files import write_bytes_atomic


class Writer:
    """Writes metrics to `workdir/metrics.jsonl` and, with tensorboardX, `workdir/tensorboard`.

    Args:
      workdir: The folder of the run; created if needed.
      enabled: Whether this process writes; only process 0 should.
    """

    def __init__(self, workdir: str | os.PathLike, *, enabled: bool):
        self._metrics_file = MetricsFile(Path(workdir) / "metrics.jsonl") if enabled else None
        self._tensorboard = _TensorBoard(Path(workdir) / "tensorboard") if enabled else None

    def resume_after(self, step: int) -> dict | None:
        """Forgets what was written for later steps; call it before the first `write`.

        Args:
          step: The step of the checkpoint that the run goes on from; 0 for a new start.

        Returns:
          The last row kept, or None if there is none or this process does not write.
        """
        if self._metrics_file is None:
            return None
        self._tensorboard.purge_after(step)
        return self._metrics_file.resume_after(step)

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one row.

        Args:
          step: Number of train steps done.
          metrics: Scalars by name: Python, numpy or jax. Float32 values keep every bit.

        Raises:
          ValueError: If a metric is not a scalar.
        """
        if self._metrics_file is None:
            return
        row = {name: _to_number(name, value) for name, value in metrics.items()}
        self._metrics_file.append({"step": step, **row})
        self._tensorboard.write(step, row)

    def close(self) -> None:
        """Closes the files."""
        if self._metrics_file is not None:
            self._metrics_file.close()
            self._tensorboard.close()


class MetricsFile:
    """A file with one JSON object per logged step; every row has the key `step`."""

    def __init__(self, path: str | os.PathLike):
        self._path = Path(path)
        self._file = None

    def append(self, row: dict) -> None:
        """Writes and flushes one row."""
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a")
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def resume_after(self, step: int) -> dict | None:
        """Drops rows of steps after `step` and a partial last line; returns the last kept row."""
        self.close()
        if not self._path.exists():
            return None
        rows = [row for row in read_metrics(self._path) if row["step"] <= step]
        # repr-exact floats make reading and writing again the identity.
        write_bytes_atomic(self._path, "".join(json.dumps(row) + "\n" for row in rows).encode())
        return rows[-1] if rows else None

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class _TensorBoard:
    """Event files, if tensorboardX is there; whatever fails here is logged and never raised.

    The events are written in the calling thread: the background thread of tensorboardX's
    SummaryWriter dies on a write error, and then the training thread waits for it forever.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._purge_step: int | None = None
        self._events = None
        try:
            import tensorboardX.event_file_writer  # noqa: F401

            self._works = True
        except ImportError:
            self._works = False
        except Exception as error:  # an installation whose parts do not fit raises anything
            self._give_up(error)

    def purge_after(self, step: int) -> None:
        """Makes TensorBoard hide what earlier event files hold after `step`."""
        if self._folder.exists():
            self._purge_step = step + 1

    def write(self, step: int, row: dict[str, float]) -> None:
        if not self._works:
            return
        try:
            from tensorboardX.proto.event_pb2 import Event, SessionLog
            from tensorboardX.proto.summary_pb2 import Summary

            if self._events is None:
                self._events = self._open()
                if self._purge_step is not None:
                    start = SessionLog(status=SessionLog.START)
                    self._events.write_event(Event(step=self._purge_step, session_log=start))
            values = [Summary.Value(tag=name, simple_value=row[name]) for name in row]
            event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
            self._events.write_event(event)
            self._events.flush()
        except Exception as error:
            self._give_up(error)

    def _open(self):
        from tensorboardX.event_file_writer import EventsWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        # Its own name has whole seconds only: two runs in one second would share a file.
        return EventsWriter(str(self._folder / "events"), filename_suffix=f".{time.time_ns()}")

    def close(self) -> None:
        events, self._events = self._events, None
        if events is None:
            return
        try:
            events.close()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._works = False
        logging.warning(
            "TensorBoard events stop here (%s: %s); metrics.jsonl has all metrics",
            *(type(error).__name__, error),
        )


def read_metrics(path: str | os.PathLike) -> list[dict]:
    """Reads the rows of a metrics file; a last line that was cut off is left out.

    Raises:
      ValueError: the file cannot be read, or another line is not a row.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; move it away") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or "step" not in row:
                raise ValueError(line)
            rows.append(row)
        except ValueError:
            if number < len(lines):
                raise ValueError(
                    f"line {number} of {path} is not a row of metrics: repair or delete that line"
                ) from None
    return rows


def _to_number(name: str, value: Any) -> float | int:
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biufV":  # V: bfloat16 and its kin
        raise ValueError(
            f"metric {name!r} is {array.dtype} of shape {array.shape}: only scalars can be "
            "written, so give one metric per block or layer"
        )
    return int(array.item()) if array.dtype.kind in "biu" else float(array.item())
