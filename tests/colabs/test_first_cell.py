"""The first cell of every notebook installs what the accelerator needs, and nothing where blockjax is there."""

import glob
import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ADDRESS = "git+https://github.com/blockjax/blockjax"


def first_cell():
    cells = json.loads((ROOT / "colabs" / "quickstart.ipynb").read_text())["cells"]
    return "".join(next(cell for cell in cells if cell["cell_type"] == "code")["source"])


@pytest.fixture
def run(monkeypatch, capsys):
    """A function that runs the cell on a made machine, and returns what it installed and printed."""

    def run_on(*, jax="0.7.2", there=False, imported=False, devices=(), driver=None, tpu=""):
        commands = []

        def command(words, **options):
            assert options["check"]
            commands.append(words)
            return types.SimpleNamespace(stdout=f"{driver}\n")

        def find_spec(name):
            return {"jax": jax, "blockjax": there}[name] or None

        fake = types.SimpleNamespace(devices=lambda: ["a device"])
        monkeypatch.setattr(importlib.util, "find_spec", find_spec)
        monkeypatch.setattr(importlib.metadata, "version", {"jax": jax}.__getitem__)
        monkeypatch.setattr(
            glob, "glob", lambda pattern: [d for d in devices if matches(d, pattern)]
        )
        monkeypatch.setattr(shutil, "which", lambda name: name if driver else None)
        monkeypatch.setattr(subprocess, "run", command)
        monkeypatch.setenv("COLAB_TPU_1VM", tpu)
        # The cell's `import jax` finds the made one, which counts as imported before only where it is said.
        monkeypatch.setattr(sys, "modules", dict(sys.modules))
        monkeypatch.delitem(sys.modules, "jax")
        if imported:
            sys.modules["jax"] = fake
        code = first_cell()
        before, _, after = code.rpartition("import jax")
        exec(before, {"__name__": "__main__"})
        exec(after.partition("\n")[2], {"jax": fake})
        if driver:  # an older JAX's plugin for CUDA does not go with a newer one
            (removed,) = [words for words in commands if "uninstall" in words]
            assert removed[-2:] == ["jax-cuda12-plugin", "jax-cuda12-pjrt"]
        installed = [words[-1] for words in commands if "install" in words]
        return installed, capsys.readouterr().out

    return run_on


def matches(device, pattern):
    return Path(device).match(pattern)


def test_installs_nothing_where_blockjax_is_there(run):
    assert run(jax="0.10.2", there=True, imported=True, tpu="1") == ([], "['a device']\n")
    assert run(jax="0.11.0.1", there=True) == ([], "['a device']\n")


@pytest.mark.parametrize(
    ("machine", "extra"),
    [
        ({}, ""),
        ({"jax": ""}, ""),
        ({"there": True, "jax": "0.7.2"}, ""),
        ({"tpu": "1"}, "[tpu]"),
        ({"devices": ["/dev/accel0"]}, "[tpu]"),
        ({"devices": ["/dev/vfio/0", "/dev/vfio/vfio"]}, "[tpu]"),
        ({"devices": ["/dev/vfio/vfio"]}, ""),  # of any machine with virtual ones
        ({"driver": "580.82.07"}, "[cuda13]"),
        ({"driver": "575.57.08\n575.57.08"}, "[cuda12]"),
    ],
)
def test_installs_what_the_accelerator_needs(run, machine, extra):
    assert run(**machine) == ([f"blockjax{extra} @ {ADDRESS}"], "['a device']\n")
    assert not extra or extra.strip("[]") in PROJECT["optional-dependencies"]


def test_asks_for_a_new_session_where_an_older_jax_was_imported(run):
    with pytest.raises(RuntimeError, match="restart the session"):
        run(imported=True, tpu="1")


def test_knows_which_jax_blockjax_needs():
    (needed,) = [
        re.match(r"jax>=([\d.]+)$", text)
        for text in PROJECT["dependencies"]
        if text.startswith("jax>")
    ]
    (known,) = re.findall(r"< \[([\d, ]+)\]", first_cell())
    assert known.replace(", ", ".") == needed[1]
    assert len(first_cell().splitlines()) <= 25
