"""How the command ends: every failure is a sentence and an exit status."""

import re
from types import SimpleNamespace

import jax
import pytest

from blockjax import main
from blockjax.data.decode import CorruptImage
from blockjax.memory import DoesNotFit
from blockjax.training import run as pretrain
from blockjax.workdir.checkpoint import UnusableCheckpoint


@pytest.mark.parametrize(
    ("where", "error", "status", "printed"),
    [
        ("init", ValueError("blocks 3 does not fit"), "error: blocks 3 does not fit", ""),
        ("run", FloatingPointError("step 2 is nan"), "error: step 2 is nan", ""),
        ("run", DoesNotFit("the step needs 9 MiB"), "error: the step needs 9 MiB", ""),
        ("run", UnusableCheckpoint("all are damaged"), "error: all are damaged", ""),
        (
            "run",
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 9 bytes"),
            re.compile("error: out of memory .*allocating 9 bytes.*. Try --config.remat=layer"),
            "",
        ),
        ("run", CorruptImage("a.png: cut short"), "error: a.png: cut short", ""),
        ("run", pretrain.Interrupted("SIGTERM: stopped"), 1, "SIGTERM: stopped\n"),
    ],
)
def test_failures_are_sentences(where, error, status, printed, monkeypatch, capsys):
    class Failing:
        def __init__(self, config, workdir):
            if where == "init":
                raise error

        def run(self):
            raise error

    monkeypatch.setattr(pretrain, "Training", Failing)
    monkeypatch.setattr(main, "_CONFIG", SimpleNamespace(value={}))
    monkeypatch.setattr(main, "_WORKDIR", SimpleNamespace(value="runs/x"))
    monkeypatch.setattr(main, "begin", lambda: None)
    with pytest.raises(SystemExit) as end:
        main._main(["blockjax"])
    if isinstance(status, re.Pattern):
        assert status.match(end.value.code)
    else:
        assert end.value.code == status
    assert capsys.readouterr().out == printed


def test_a_config_is_needed_and_nothing_else(monkeypatch):
    monkeypatch.setattr(main, "_CONFIG", SimpleNamespace(value=None))
    with pytest.raises(main.app.UsageError, match="--config is missing"):
        main._main(["blockjax"])
    with pytest.raises(main.app.UsageError, match="unexpected arguments: steps=3"):
        main._main(["blockjax", "steps=3"])
