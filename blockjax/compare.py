r"""Trains configs under several strategies, settings and seeds, and shows side by side what their blocks learned.

    python -m blockjax.compare simclr rotation --workdir runs/compare
    python -m blockjax.compare quickstart --strategies end_to_end,blockwise,blockwise+ladder \
        --sweep blocks=2,4 --seeds 0,1,2 --finetune finetune --labels 0.1 --workdir runs/study

One run after another; each has a folder of its own in the workdir, as `python -m blockjax.main` leaves it. Stopped, the
same command goes on where it was. After each run comparison.md, comparison.json and comparison.png are written anew,
and with --targets comparison_memory.png, accuracy against memory. A folder that holds config.json, summary.json and
metrics.jsonl only counts as a finished run.
"""

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
from absl import logging

from blockjax.config.fields import check_field, set_field
from blockjax.config.files import config_name, load_config
from blockjax.config.modality import is_text
from blockjax.config.variants import OPTIONS, vary
from blockjax.memory.jobs import run_job
from blockjax.memory.profiles import MIB, DoesNotFit
from blockjax.report import figures
from blockjax.report.command import begin, check_devices, what_happened
from blockjax.report.comparison import table
from blockjax.training.run import Interrupted, Training
from blockjax.workdir.checkpoint import NotSaved
from blockjax.workdir.files import write_bytes_atomic, write_json_atomic
from blockjax.workdir.metrics import read_metrics
from blockjax.xla.flops import matmul_flops
from blockjax.xla.targets import parse_target

_SUMMARY = "summary.json"  # a run writes it last


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Attributes:
      name: of its config.
      file: of its config.
      strategy: as `blockjax.config.variants.vary` takes it.
      fields: what is swept, with this run's values.
      seed: of weights, masks, views and the order of images.
    """

    name: str
    file: str
    strategy: str
    fields: dict[str, Any]
    seed: int

    @property
    def folder(self) -> str:
        """The name of the run's folder."""
        swept = [f"{field}={value}" for field, value in self.fields.items()]
        return "-".join([self.name, self.strategy, *swept, str(self.seed)]).replace("/", "_")

    def config(self) -> ml_collections.ConfigDict:
        """Returns its config."""
        config = load_config(self.file)
        for field, value in self.fields.items():
            set_field(config, field, value)
        config = vary(config, self.strategy)
        config.seed = self.seed
        return config


def main() -> None:
    """Reads the flags, and runs and compares."""
    parser = argparse.ArgumentParser(
        prog="python -m blockjax.compare",
        description=__doc__,
        epilog=f"options of strategies: {OPTIONS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "configs", nargs="+", help="configs, by name or file, with :arguments if they take any"
    )
    parser.add_argument("--workdir", required=True, help="folder of the runs and the comparison")
    parser.add_argument(
        "--strategies",
        default="blockwise,end_to_end",
        help="separated by commas (default: %(default)s)",
    )
    parser.add_argument("--seeds", default="0", help="separated by commas (default: %(default)s)")
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="FIELD=VALUE,...",
        help="values of a config field; given several times, every combination is run",
    )
    parser.add_argument(
        "--finetune", metavar="CONFIG", help="also fine-tune every run with this config"
    )
    parser.add_argument(
        "--labels", default="0.1", help="shares of the labels to fine-tune with (default: 0.1)"
    )
    parser.add_argument(
        "--targets", default="", help="also compile every step for these accelerators: h100,v5e"
    )
    arguments = parser.parse_args()
    logging.set_verbosity(logging.WARNING)
    begin()
    check_devices()
    try:
        compare(
            arguments.configs,
            arguments.strategies.split(","),
            _numbers("--seeds", arguments.seeds, int),
            arguments.workdir,
            sweep=dict(_axis(text) for text in arguments.sweep),
            finetune=arguments.finetune,
            labels=_numbers("--labels", arguments.labels, float),
            targets=[target for target in arguments.targets.split(",") if target],
        )
    except Interrupted as stop:
        sys.exit(str(stop))
    except (ValueError, FloatingPointError, NotSaved) as error:
        sys.exit(f"error: {error}")
    except (jax.errors.JaxRuntimeError, OSError) as error:
        sys.exit(what_happened(error, arguments.workdir) or f"error: {error}")


def _numbers(flag, text, kind):
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        what = "integers" if kind is int else "numbers"
        raise ValueError(f"{flag} {text} should be {what} separated by commas") from None


def _axis(text):
    """Reads FIELD=VALUE,VALUE; values are numbers, True, False and text."""
    field, equals, values = text.partition("=")
    if not equals or not values:
        raise ValueError(f"--sweep {text} should be FIELD=VALUE,VALUE, such as blocks=2,4")
    return field, [_value(part) for part in values.split(",")]


def _value(text):
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"True": True, "False": False}.get(text, text)


def compare(
    files: Sequence[str],
    strategies: Sequence[str],
    seeds: Sequence[int],
    workdir: str | os.PathLike,
    *,
    sweep: dict[str, Sequence[Any]] | None = None,
    finetune: str | None = None,
    labels: Sequence[float] = (0.1,),
    targets: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Trains what is not trained yet, and writes the comparison.

    Args:
      files: configs, by file or by name, as `--config` takes them.
      strategies: as `blockjax.config.variants.vary` takes them.
      seeds: of weights, masks, views and the order of images.
      workdir: where the runs' folders are.
      sweep: values by config field, of which every combination is run.
      finetune: a config by which every run is fine-tuned; None for none.
      labels: shares of the labels that fine-tuning gets.
      targets: accelerators for which each step is compiled, see `blockjax.xla.targets.parse_target`.

    Returns:
      A row for each run, see `row_of`.

    Raises:
      ValueError: two files have one name, or a config or its data cannot be used; before anything is trained.
    """
    names = [config_name(file) for file in files]
    if len(set(names)) < len(names):
        raise ValueError(
            f"the configs {', '.join(files)} have one name twice; copy one to a file of another name"
        )
    for target in targets:
        parse_target(target)
    sweep = sweep or {}
    cells = [
        Cell(name, file, strategy, dict(zip(sweep, values, strict=True)), seed)
        for (name, file), strategy, values, seed in itertools.product(
            zip(names, files, strict=True), strategies, itertools.product(*sweep.values()), seeds
        )
    ]
    folders = [Path(workdir) / cell.folder for cell in cells]
    for cell, folder in zip(cells, folders, strict=True):  # all are checked before any is trained
        for field in sweep:
            check_field(cell.config(), field)
        Training(cell.config(), folder)
    if finetune is not None:
        load_config(finetune)
        for cell in cells:
            if is_text(cell.config()):
                raise ValueError(
                    f"--finetune {finetune} learns classes of images, and {cell.name} learns from text; leave it out"
                )
    rows, seconds = [], []
    for number, (cell, folder) in enumerate(zip(cells, folders, strict=True), start=1):
        left = statistics.mean(seconds) * (len(cells) - number + 1) if seconds else None
        about = "" if left is None else f"; about {max(1, round(left / 60))} min left"
        what = ", ".join([cell.strategy, *(f"{k}={v}" for k, v in cell.fields.items())])
        print(
            f"\n{number} of {len(cells)}: {cell.name}, {what}, seed {cell.seed}{about}", flush=True
        )
        start, found = time.monotonic(), _found(folder)
        run = _finished(Training(cell.config(), folder))
        row = {"config": cell.name, "strategy": cell.strategy, "fields": cell.fields}
        row |= {"seed": cell.seed} | row_of(run) | {"gflops": _gflops(run)}
        if finetune is not None:
            row["finetuned"] = {f"{share:g}": _finetuned(finetune, run, share) for share in labels}
        if targets:
            row["memory"] = {target: _memory(folder, cell.config(), target) for target in targets}
        rows.append(row)
        if not found:
            seconds.append(time.monotonic() - start)
        _write(Path(workdir), rows)
    print("\n" + table(rows), flush=True)
    return rows


def _found(folder):
    return (folder / _SUMMARY).exists()


def _finished(run):
    if not _found(run.workdir):
        run.run()
    return run


def _finetuned(file, run, share):
    """Returns the accuracy after fine-tuning the whole encoder with a share of the labels."""
    config = load_config(file)
    config.backbone, config.seed = str(run.workdir), run.config.seed
    config.data.source, config.data.dir = run.config.data.source, run.config.data.dir
    config.data.fraction = share
    folder = run.workdir.parent / f"{run.workdir.name}-labels={share:g}"
    if not _found(folder):
        _finished(Training(config, folder))
    return json.loads((folder / _SUMMARY).read_text())["accuracy"][-1]["top_1"]


def _gflops(run):
    """Returns the matrix products of a step, in 10^9 operations, over all devices; the mean over a run."""
    placement, learner = run.placement, run.learner
    if placement.is_looped:
        traced = placement.trace_loop(run.config.batch_size)
        turns = 1, learner.rows - 1
    else:
        traced, turns = placement.traces(run.config.batch_size), learner.turns
    counted = zip(traced, turns, strict=True)
    return sum(times * matmul_flops(part.jaxpr) for part, times in counted) / 1e9


def _memory(folder, config, target):
    """Returns scratch and total on a device in MiB; None where the step does not fit. Compiled once."""
    kept = folder / f"memory_{target.replace(':', '_')}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    try:
        profile = run_job(config, target).profile
        found = [profile.temp / MIB, profile.total / MIB]
    except DoesNotFit:
        found = [None, None]
    write_json_atomic(kept, found)
    return found


def _write(workdir, rows):
    write_json_atomic(workdir / "comparison.json", rows)
    write_bytes_atomic(workdir / "comparison.md", table(rows).encode())
    if all(row["probes"] for row in rows):
        write_bytes_atomic(workdir / "comparison.png", figures.comparison(rows))
    if all(row["bits_per_byte"] for row in rows):
        write_bytes_atomic(workdir / "comparison.png", figures.text_comparison(rows))
    if all(row.get("memory") and row["probes"] for row in rows):
        write_bytes_atomic(workdir / "comparison_memory.png", figures.accuracy_and_memory(rows))


def row_of(run: Training) -> dict[str, Any]:
    """Returns what the files of a finished run say.

    Returns:
      {"steps", "batch_size", "seconds"; "first" and "last": the losses of all blocks at the first and the last step
      that they have; "chance": see `Objective.chance`; "rank" and "std": the least `effective_rank` and `feature_std`
      of all blocks at the last step; "probes": see `blockjax.evaluate.probe_blocks`; "bits_per_byte": of text, by
      block}.
    """
    summary = json.loads((run.workdir / _SUMMARY).read_text())
    metrics = read_metrics(run.workdir / "metrics.jsonl")
    first, last = _latest(reversed(metrics)), _latest(metrics)
    of_last_block = {
        key.partition("/")[2]: value for key, value in last.items() if key.startswith("block_")
    }
    return {
        "steps": summary["steps"],
        "batch_size": run.config.batch_size,
        "seconds": summary["seconds"],
        "first": _of_blocks(first, "loss"),
        "last": _of_blocks(last, "loss"),
        "chance": run.learner.objective.chance(of_last_block),
        "rank": min(_of_blocks(last, "effective_rank"), default=None),
        "std": min(_of_blocks(last, "feature_std"), default=None),
        "probes": summary["probes"],
        "bits_per_byte": summary.get("bits_per_byte"),
    }


def _latest(metrics):
    """Returns the latest value of everything: blocks that train one after the other have none in the last row."""
    found = {}
    for row in metrics:
        found |= row
    return found


def _of_blocks(row, metric):
    found = {key: value for key, value in row.items() if key.endswith(f"/{metric}")}
    return [found[key] for key in sorted(found, key=lambda key: int(key.split("/")[0][6:]))]


if __name__ == "__main__":
    main()
