"""Metrics files: exact floats, resume after any cut, TensorBoard that cannot stop a run."""

import json
import math
import struct
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from blockjax.workdir import files
from blockjax.workdir.files import write_bytes_atomic, write_json_atomic
from blockjax.workdir.metrics import MetricsFile, Writer, read_metrics


def test_floats_keep_every_bit(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**32, 500, dtype=np.uint32).view(np.float32)
    values = values[np.isfinite(values)]
    writer = Writer(tmp_path, enabled=True)
    for step, value in enumerate(values):
        writer.write(step, {"numpy": value, "jax": jnp.float32(value)})
    writer.close()
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(len(values)))
    for name in ("numpy", "jax"):
        got = np.array([row[name] for row in rows], np.float64)
        assert (got == values.astype(np.float64)).all()
        assert got.astype(np.float32).tobytes() == values.tobytes()


def test_kinds_of_scalars(tmp_path):
    writer = Writer(tmp_path, enabled=True)
    metrics = {"int": np.int32(3), "half": jnp.bfloat16(0.5), "one": np.ones(1), "nan": math.nan}
    writer.write(1, metrics | {"bool": True})
    (row,) = read_metrics(tmp_path / "metrics.jsonl")
    assert math.isnan(row.pop("nan"))
    assert row == {"step": 1, "int": 3, "half": 0.5, "one": 1.0, "bool": 1}
    assert isinstance(row["int"], int)
    assert isinstance(row["half"], float)
    with pytest.raises(ValueError, match=r"'losses' is float32 of shape \(4,\)"):
        writer.write(2, {"losses": np.zeros(4, np.float32)})
    with pytest.raises(ValueError, match="'name'"):
        writer.write(2, {"name": "text"})
    writer.close()


def test_rows_are_on_disk_at_once(tmp_path):
    writer = Writer(tmp_path, enabled=True)
    writer.write(1, {"loss": 0.5})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]
    writer.close()


def test_disabled_writes_nothing(tmp_path):
    writer = Writer(tmp_path / "run", enabled=False)
    writer.write(1, {"loss": 0.5})
    assert writer.resume_after(1) is None
    writer.close()
    assert not (tmp_path / "run").exists()


def test_resume_drops_later_rows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert MetricsFile(path).resume_after(10) is None
    file = MetricsFile(path)
    for step in (10, 20, 30):
        file.append({"step": step, "loss": 1 / step})
    original = path.read_bytes().splitlines(keepends=True)
    assert file.resume_after(20) == {"step": 20, "loss": 1 / 20}
    assert path.read_bytes() == b"".join(original[:2])
    file.append({"step": 30, "loss": 3.0})
    file.close()
    assert [row["loss"] for row in read_metrics(path)] == [1 / 10, 1 / 20, 3.0]
    assert MetricsFile(path).resume_after(0) is None
    assert path.read_bytes() == b""


def test_any_cut_of_the_last_line_is_survived(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 1, "loss": 0.25}, {"step": 2, "loss": 0.125}]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    first = text.index(b"\n") + 1
    for length in range(first, len(text) + 1):
        path.write_bytes(text[:length])
        kept = rows if length >= len(text) - 1 else rows[:1]
        assert read_metrics(path) == kept
        file = MetricsFile(path)
        assert file.resume_after(2) == kept[-1]
        file.append({"step": 3})
        file.close()
        assert read_metrics(path) == [*kept, {"step": 3}]


def test_damage_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"line 2 of .*metrics\.jsonl"):
        read_metrics(path)


def test_atomic_files(tmp_path, monkeypatch):
    path = tmp_path / "new" / "config.json"
    write_json_atomic(path, {"a": np.float32(0.5), "b": jnp.arange(3), "c": [1, None]})
    assert json.loads(path.read_text()) == {"a": 0.5, "b": [0, 1, 2], "c": [1, None]}
    before = path.read_bytes()
    with path.open("rb") as reader:  # what a reader has open stays whole
        write_bytes_atomic(path, b"x" * 1000)
        assert reader.read() == before
    assert path.read_bytes() == b"x" * 1000
    before = path.read_bytes()

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_bytes_atomic(path, b"y" * 1000)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["config.json"]


def read_events(folder):
    """Parses event files (length, its CRC, protocol buffer, its CRC) in order of their names."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            yield event_pb2.Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def test_tensorboard_events(tmp_path):
    pytest.importorskip("tensorboardX")
    for start in (0, 1):
        writer = Writer(tmp_path, enabled=True)
        writer.resume_after(start)
        for step in (start + 1, start + 2):
            writer.write(step, {"block_1/loss": 0.5 * step, "block_2/loss": 0.25 * step})
        writer.close()
    events = list(read_events(tmp_path / "tensorboard"))
    values = [(e.step, {v.tag: v.simple_value for v in e.summary.value}) for e in events]
    assert [value for value in values if value[1]] == [
        (step, {"block_1/loss": 0.5 * step, "block_2/loss": 0.25 * step}) for step in (1, 2, 2, 3)
    ]
    # The second session hides steps 2 and later of the first.
    sessions = [e.step for e in events if e.HasField("session_log")]
    assert sessions == [2]


@pytest.fixture
def warnings_logged(monkeypatch):
    messages = []
    monkeypatch.setattr(logging, "warning", lambda message, *args: messages.append(message % args))
    return messages


def test_tensorboard_failure_stops_nothing(tmp_path, monkeypatch, warnings_logged):
    event_file_writer = pytest.importorskip("tensorboardX.event_file_writer")

    def fail(self, event):
        raise OSError("disk full")

    monkeypatch.setattr(event_file_writer.EventsWriter, "write_event", fail)
    writer = Writer(tmp_path, enabled=True)
    for step in range(50):
        writer.write(step, {"loss": 0.5})
    writer.close()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 50
    assert len(warnings_logged) == 1
    assert "disk full" in warnings_logged[0]


def test_works_without_tensorboardx(tmp_path, monkeypatch, warnings_logged):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    writer = Writer(tmp_path, enabled=True)
    writer.write(1, {"loss": 0.5})
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert not warnings_logged
