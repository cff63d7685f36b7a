"""Progress: what a pipe and a terminal get, the ETA after a resume, and tables."""

import io
import itertools
import re

import pytest
from rich.console import Console

from blockjax.report.progress import Progress, _losses_text
from blockjax.report.table import render_table


class Clock:
    """Stands still until told."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run_plain(total, start, seconds_per_step, steps, losses=(0.8125, 0.75), first_seconds=0.0):
    """Returns the lines of a run whose first step takes `first_seconds` longer."""
    file, clock = io.StringIO(), Clock()
    with Progress(total, start, console=Console(file=file), clock=clock) as progress:
        clock.now += first_seconds
        for step in range(start + 1, start + steps + 1):
            clock.now += seconds_per_step
            progress.update(step, losses, 512.0)
    return file.getvalue().splitlines()


def test_plain_line_has_all_facts():
    lines = run_plain(total=100, start=0, seconds_per_step=2.0, steps=60)
    facts = "step 60/100 60%  0:02:00  ETA 0:01:20  512 images/s  loss 1:0.812 2:0.750"
    assert lines[-1] == facts


@pytest.mark.parametrize("start", [0, 900])
def test_eta_counts_only_steps_of_this_process_after_compilation(start):
    lines = run_plain(1000, start, seconds_per_step=1.0, steps=40, first_seconds=300.0)
    assert "ETA -:--:--" in lines[0]
    done = start + 31  # lines come every 10 seconds: after 1, 11, 21 and 31 steps
    left = 1000 - done
    assert lines[3].startswith(f"step {done}/1000 ")
    assert f"  0:05:31  ETA 0:{left // 60:02}:{left % 60:02}  " in lines[3]


def test_days_are_told():
    (line,) = run_plain(10**6, 0, seconds_per_step=1.0, steps=2)[-1:]
    assert "ETA -:--:--" in line
    line = run_plain(10**6, 0, seconds_per_step=1.0, steps=12)[-1]
    assert "ETA 11d 13:46:29" in line


def test_lines_are_rare():
    assert len(run_plain(1000, 0, seconds_per_step=0.001, steps=1000)) == 11  # first and tenths
    slow = run_plain(100_000, 0, seconds_per_step=1.0, steps=1000)
    assert len(slow) == 100
    assert run_plain(20, 15, seconds_per_step=0.001, steps=5)[-1].startswith("step 20/20 100%")


def test_disabled_shows_nothing():
    file = io.StringIO()
    with Progress(10, console=Console(file=file), enabled=False) as progress:
        progress.update(10, [0.5], 1.0)
        progress.print("text")
    assert file.getvalue() == ""


def test_losses_fit():
    losses = [0.8, 0.7, 0.6, 0.5]
    full = "loss 1:0.800 2:0.700 3:0.600 4:0.500"
    assert _losses_text(losses, len(full), "…") == full
    assert _losses_text(losses, len(full) - 1, "…") == "loss 1:0.800 2:0.700 … 4:0.500"
    assert _losses_text(losses, 5, "...") == "loss ... 4:0.500"
    assert _losses_text([1e-5], 50, "…") == "loss 1e-05"
    assert _losses_text([float("nan"), 123456.0], 50, "…") == "loss 1:- 2:1.2e+05"
    assert _losses_text([0.0], 50, "…") == "loss 0.000"


@pytest.mark.parametrize("width", [80, 100, 200])
def test_bar_on_a_terminal(width):
    file, clock = Terminal(), Clock()
    console = Console(file=file, width=width, color_system=None, legacy_windows=False)
    with Progress(1000, 400, console=console, clock=clock) as progress:
        progress.update(401, [0.5] * 24, 99.0)
        clock.now += 100
        progress.update(501, [0.25] * 24, 99.0)
        progress.print("between [brackets]")
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in file.getvalue().split("\n")]
    lines = [line.split("\r")[-1].rstrip() for line in lines]
    assert "between [brackets]" in lines
    bar = next(line for line in reversed(lines) if line)
    assert "501/1000 50%  0:01:40  ETA 0:08:19  99.0 images/s  loss" in bar
    assert bar.endswith("… 24:0.250")
    assert len(bar) <= min(width, 100)


def test_table_in_a_file_is_not_cut():
    file = io.StringIO()
    note = "a long note that goes on " * 8
    rows = [[1, 3, 0.51234, "ok"], [12, 6, None, note]]
    render_table("Probes", ["block", "layers", "kNN", "note"], rows, Console(file=file))
    lines = file.getvalue().splitlines()
    assert lines[0].strip() == "Probes"
    cells = [re.split("[│┃]", line)[1:-1] for line in lines]
    cells = [row for row in cells if row]
    assert len(cells) == 3
    assert [cell.strip() for cell in cells[1]] == ["1", "3", "0.512", "ok"]
    assert [cell.strip() for cell in cells[2]] == ["12", "6", "-", note.strip()]
    assert cells[1][0].endswith(" 1 ")  # to the right, under 12
    assert cells[1][3].startswith(" ok ")


def test_a_wide_table_goes_on_below_and_cuts_no_number():
    file = Terminal()
    console = Console(file=file, width=40, color_system=None, legacy_windows=False)
    columns = ["strategy", *(f"bytes of part {i}" for i in range(8)), "fits"]
    rows = [[name, *(f"{i},000.{k}" for i in range(8)), "yes"] for k, name in enumerate("ab")]
    render_table("Memory", columns, rows, console)
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 40
    assert sum("Memory" in line for line in lines) == 1
    bodies = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    for k, name in enumerate("ab"):
        found = [body[1:] for body in bodies if body[0] == name]
        assert len(found) > 1
        assert list(itertools.chain(*found)) == [*(f"{i},000.{k}" for i in range(8)), "yes"]


def test_a_notebook_gets_a_table_as_text(monkeypatch, capsys):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as its kernel has it
    render_table("Probes", ["block", "kNN"], [[1, 0.5]])
    text = capsys.readouterr().out
    assert "│ 0.500 │" in text and "\x1b" not in text


def test_table_fits_a_terminal():
    file = Terminal()
    console = Console(file=file, width=40, color_system=None, legacy_windows=False)
    render_table("Probes", ["block", "note"], [[1, "word " * 40]], console)
    assert max(len(line) for line in file.getvalue().splitlines()) <= 40
