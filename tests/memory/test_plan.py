"""`python -m blockjax.memory --plan`."""

import json
import sys

import pytest

from blockjax.memory import __main__ as memory_command
from blockjax.memory.plan import parse_size, show_plan
from blockjax.memory.profiles import MIB, MemoryProfile
from blockjax.memory.search import Candidate, Plan
from blockjax.memory.settings import Setting
from blockjax.memory.sketch import Sketch
from blockjax.xla.roofline import Estimate
from tests.memory.test_command import command, config_file  # noqa: F401
from tests.tiny import tiny_config


def test_sizes():
    assert parse_size("--plan", "16GiB") == 2**34
    assert parse_size("--plan", "1.5 MB") == 1_500_000
    for text in ("16", "GiB", "0GiB", "-1GiB", "16 gigabytes"):
        with pytest.raises(ValueError, match=r"--plan .*a size is a number and one of MiB, GiB"):
            parse_size("--plan", text)


def test_errors_before_anything_is_traced(config_file, monkeypatch):  # noqa: F811
    monkeypatch.setattr(memory_command, "_local_rates", lambda: pytest.fail("too late"))
    for arguments, message in (
        (["--plan", "much"], "a size is a number"),
        (["--plan", "--host-memory", "3"], "--host-memory '3': a size"),
        (["--plan", "--measure"], "--measure does not go with --plan"),
        (["--plan", "--targets", "v5e,h100"], "--plan takes one --config and one of --targets"),
        (["--plan", "--compiles", "0"], "--compiles must be at least 1"),
        (["--plan", "--batch", "8,many"], "--batch '8,many': numbers separated by commas"),
        (["--plan", "--batch", "0"], "--batch '0': numbers are at least 1"),
        (["--blocks", "2"], "--blocks goes with --plan only"),
        (["--batch", "8,16"], "--batch takes several numbers with --plan only"),
        (["--config.pipeline.batches=21"], "pipeline.batches=21 is more batches than the run has"),
        (
            ["--plan", "--targets", "v5e", "--config.pipeline.batches=21"],
            "set it to at most 20",
        ),
        (["--plan", "--targets", "v5e", "--strategies", "blockwise+remat"], "strategy"),
    ):
        monkeypatch.setattr(sys, "argv", ["memory", "--config", str(config_file), *arguments])
        with pytest.raises(SystemExit) as end:
            memory_command.main()
        assert end.value.code.startswith("error: ") and message in end.value.code, arguments


def test_a_plan_says_how_to_run_it(capsys):
    estimate = Estimate(0.01, 0.0, 0.01, link=0.02, link_in_turn=0.04)
    setting = Setting("streamed", "layer", 2, 4, 1, 8)
    candidate = Candidate(
        setting,
        Sketch(estimate, 0, 3 * MIB, 0, 2, None),
        MemoryProfile(2 * MIB, 0, 0, 0, estimate=estimate),
    )
    plan = Plan([candidate], [], {}, 1, True)
    show_plan(plan, "a.py", tiny_config(blocks=2), "v5e")
    out = capsys.readouterr().out
    assert "400" in out and "host link" in out and "3.0" in out
    assert (
        "python -m blockjax.main --config a.py --config.strategy=streamed --config.remat=layer "
        "--config.pipeline.batches=4 --workdir WORKDIR\n"
    ) in out


@pytest.mark.slow
def test_the_whole_plan(config_file, tmp_path):  # noqa: F811
    out = tmp_path / "plan.json"
    ran = command(
        "--config", config_file, "--config.mesh.data=-1", "--batch", 8, "--plan", "1GiB", "--blocks", "4",
        "--strategies", "blockwise,streamed", "--host-memory", "1MiB", "--json", out, "--compiles", 1,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    first, *rest = json.loads(out.read_text())
    assert (first["strategy"], first["blocks"], first["fits"]) == ("blockwise", 4, True)
    assert first["total_device_bytes"] < 2**30 and first["estimated_seconds"] > 0
    # All blocks' states, for which the host has no room.
    assert {line["strategy"] for line in rest} == {"streamed"}
    assert all("of host memory for each device" in line["refused"] for line in rest)
    assert "to run the fastest: python -m blockjax.main" in ran.stdout
