"""`python -m blockjax.memory`: rows, strategies, and the whole command."""

import argparse
import json
import subprocess
import sys

import pytest

from blockjax.config.variants import BASELINES, baselines, vary
from blockjax.memory import MemoryProfile
from blockjax.memory import __main__ as memory_command
from blockjax.memory.__main__ import Row
from blockjax.memory.jobs import Result, run_job
from blockjax.memory.profiles import DoesNotFit
from tests.tiny import tiny_config


def test_strategies_with_options():
    config = vary(tiny_config(), "end_to_end+remat+accumulate4")
    assert (config.strategy, config.remat, config.microbatches) == ("end_to_end", "layer", 4)
    config = vary(config, "blockwise")
    assert (config.strategy, config.remat, config.microbatches) == ("blockwise", "none", 1)
    assert vary(tiny_config(), "blockwise+unroll").model.unroll == 1
    assert vary(tiny_config(), "end_to_end+unroll").model.unroll == 4
    assert vary(tiny_config(), "end_to_end+mae_decoder").decoder.depth == 8
    for option, remat in (("nested_remat", "nested"), ("offload", "offload")):
        assert vary(tiny_config(), f"end_to_end+{option}").remat == remat
    with pytest.raises(ValueError, match=r"option 'rematt' is unknown; there is \+remat"):
        vary(tiny_config(), "blockwise+rematt")


def line_of(monkeypatch, job, target="v5e:2x2", **options):
    """Returns the line of a row whose compilations `job(batch) -> total bytes` makes up; 4 devices of 1000 bytes."""

    def run(config, target, **rest):
        total = job(config.batch_size)
        if total > 1000:
            raise DoesNotFit("too much", None, limit=1000, devices=4)
        return Result(MemoryProfile(total, 0, 0, 0, limit=1000, devices=4))

    monkeypatch.setattr(memory_command, "run_job", run)
    arguments = argparse.Namespace(
        dump=None, breakdown=False, timeline=None, measure=False, max_batch=True
    )
    config = tiny_config(**{"batch_size": 16, "microbatches": 2, **options})
    return memory_command._line(Row("file.py", "blockwise", target, config), 0, arguments)


@pytest.mark.parametrize("batch", [16, 256])
def test_the_largest_batch_divides_over_devices_and_microbatches(monkeypatch, batch):
    def job(batch):
        assert batch % 8 == 0
        return 100 + 9 * batch

    line = line_of(monkeypatch, job, batch_size=batch)
    assert line["max_batch"] == 96
    assert line["fits"] == (batch == 16)
    assert ("refused" in line) == (batch == 256)


def test_a_crash_on_the_way_to_the_largest_batch_keeps_the_row(monkeypatch):
    def job(batch):
        if batch != 16:
            raise ValueError("the compiler's process died")
        return 500

    line = line_of(monkeypatch, job)
    assert line["total_device_bytes"] == 500
    assert line["error"] == "the compiler's process died"


def test_a_crash_names_the_signal(monkeypatch, tmp_path):
    killer = tmp_path / "python"
    killer.write_text("#!/bin/sh\necho first >&2\necho the last words >&2\nkill -SEGV $$\n")
    killer.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killer))
    with pytest.raises(ValueError, match=r"died \(SIGSEGV\): the last words"):
        run_job(tiny_config(), "local")


@pytest.mark.parametrize(
    "text",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.50G of 15.75G hbm. x",
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (21.50G) exceeds available HBM (15.75G). x",
    ],
)
def test_a_compiler_that_refuses_says_how_much_it_needs(text):
    from blockjax.memory.profiles import _does_not_fit

    error = _does_not_fit(text, limit=16 * 2**30, devices=4)
    assert isinstance(error, DoesNotFit)
    assert (error.needed, error.limit, error.devices) == (int(21.5 * 2**30), 16 * 2**30, 4)
    assert "needs 21.50 GiB and the device has 15.75 GiB" in str(error)


CONFIG = """
from blockjax.config.variants import BASELINES, vary
from tests.tiny import tiny_config
def get_config():
    return tiny_config()
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    return path


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "blockjax.memory", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=540,
    )


@pytest.mark.slow
def test_the_whole_command(config_file, tmp_path):
    out = tmp_path / "rows.json"
    ran = command(
        "--config", config_file, "--config.model.depth=8", "--strategies", "blockwise,nonsense",
        "--breakdown", "--measure", "--json", out, "--plot", tmp_path / "bars.png",
        "--timeline", tmp_path / "time.png", "--jobs", 2,
    )  # fmt: skip
    rows = {row["strategy_name"]: row for row in json.loads(out.read_text())}
    assert list(rows) == [*BASELINES, "blockwise", "nonsense"]
    assert ran.returncode == 1  # one row failed, the others are there
    assert "strategy 'nonsense' is unknown" in rows["nonsense"]["error"]
    row = rows["blockwise"]
    assert row["depth"] == 8
    assert (
        row["total_device_bytes"]
        == row["argument_bytes"] + row["output_bytes"] - row["alias_bytes"] + row["temp_bytes"]
    )
    assert row["parameter_bytes"] * 2 <= row["optimizer_bytes"] <= row["parameter_bytes"] * 2.01
    assert row["named_fraction"] > 0.9
    assert sum(part["size"] for part in row["breakdown"]) == pytest.approx(
        row["total_device_bytes"], rel=0.05
    )
    assert row["measured_bytes"] > row["total_device_bytes"] / 2
    assert rows["end_to_end+remat"]["flops"] > rows["end_to_end"]["flops"]
    # The rates are measured, and no step is as fast as they are.
    assert 0 < row["estimated_seconds"] <= row["estimated_seconds_in_turn"]
    assert row["estimated_seconds"] < row["measured_seconds"]
    assert rows["end_to_end+remat+accumulate4"]["temp_bytes"] < rows["end_to_end"]["temp_bytes"]
    for name in ("bars.png", "time.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_errors_before_anything_is_compiled(config_file, monkeypatch):
    for arguments, message in (
        (["--targets", "h1000"], "target 'h1000' is unknown"),
        (["--targets", "v5e", "--measure"], "--measure runs the step on the attached device"),
        (["--config.blocks=four"], "blocks must be a whole number, not 'four'"),
        (["--config.model.dept=3"], "no such field; did you mean 'model.depth'"),
        (["--nonsense"], "argument '--nonsense' is unknown"),
        (["--config", "configs/finetune.py"], "model.patch_size, blocks missing: only training"),
    ):
        monkeypatch.setattr(sys, "argv", ["memory", "--config", str(config_file), *arguments])
        with pytest.raises(SystemExit) as end:
            memory_command.main()
        assert end.value.code.startswith("error: ") and message in end.value.code


def test_microbatches_are_no_baseline_where_the_loss_is_no_mean_over_images():
    assert baselines(tiny_config()) == list(BASELINES)
    assert baselines(tiny_config(objective="simclr")) == ["end_to_end", "end_to_end+remat"]


def test_takes_words_instead_of_the_command_line():
    with pytest.raises(SystemExit, match="target 'mars' is unknown"):
        memory_command.main(["--config", "digits", "--targets", "mars"])
