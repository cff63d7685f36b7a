"""Trains several configs, each under several strategies and seeds, and shows side by side what their blocks learned.

    python -m blockjax.compare configs/simclr.py configs/rotation.py --workdir runs/compare

One run after another; each has a folder of its own in the workdir, as `python -m blockjax.main` leaves it. Stopped, the
same command goes on where it was. After each run comparison.md, comparison.json and comparison.png are written anew.
"""

import argparse
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
from absl import logging

from blockjax.config.files import load_config
from blockjax.config.variants import OPTIONS, vary
from blockjax.report import figures
from blockjax.report.command import begin, check_devices, what_happened
from blockjax.training.run import Interrupted, Training
from blockjax.workdir.checkpoint import NotSaved
from blockjax.workdir.files import write_bytes_atomic, write_json_atomic
from blockjax.workdir.metrics import read_metrics

_SUMMARY = "summary.json"  # a run writes it last


def main() -> None:
    """Reads the flags, and runs and compares."""
    parser = argparse.ArgumentParser(
        prog="python -m blockjax.compare",
        description=__doc__,
        epilog=f"options of strategies: {OPTIONS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("configs", nargs="+", help="config files, with :arguments if they take any")
    parser.add_argument("--workdir", required=True, help="folder of the runs and the comparison")
    parser.add_argument(
        "--strategies",
        default="blockwise,end_to_end",
        help="with commas between (default: %(default)s)",
    )
    parser.add_argument("--seeds", default="0", help="with commas between (default: %(default)s)")
    arguments = parser.parse_args()
    logging.set_verbosity(logging.WARNING)
    begin()
    check_devices()
    try:
        seeds = _integers(arguments.seeds)
        compare(arguments.configs, arguments.strategies.split(","), seeds, arguments.workdir)
    except Interrupted as stop:
        sys.exit(str(stop))
    except (ValueError, FloatingPointError, NotSaved) as error:
        sys.exit(f"error: {error}")
    except (jax.errors.JaxRuntimeError, OSError) as error:
        sys.exit(what_happened(error, arguments.workdir) or f"error: {error}")


def _integers(text):
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise ValueError(f"--seeds {text} should be integers with commas between") from None


def compare(
    files: Sequence[str],
    strategies: Sequence[str],
    seeds: Sequence[int],
    workdir: str | os.PathLike,
) -> list[dict[str, Any]]:
    """Trains what is not trained yet, and writes the comparison.

    Args:
      files: config files, as `--config` takes them.
      strategies: as `blockjax.config.variants.vary` takes them.
      seeds: of weights, masks, views and the order of images.
      workdir: where the runs' folders are.

    Returns:
      A row for each run, see `row_of`.

    Raises:
      ValueError: two files have one name, or a config or its data cannot be used; before anything is trained.
    """
    names = [Path(file.partition(":")[0]).stem for file in files]
    if len(set(names)) < len(names):
        raise ValueError(
            f"the configs {', '.join(files)} have one name twice; copy one to a file of another name"
        )
    runs = [
        (name, file, strategy, seed)
        for (name, file), strategy, seed in itertools.product(
            zip(names, files, strict=True), strategies, seeds
        )
    ]
    for run in runs:  # all are checked before any is trained
        _open(*run, workdir)
    rows, seconds = [], []
    for number, (name, file, strategy, seed) in enumerate(runs, start=1):
        run = _open(name, file, strategy, seed, workdir)
        if not (run.workdir / _SUMMARY).exists():
            left = statistics.mean(seconds) * (len(runs) - number + 1) if seconds else None
            about = "" if left is None else f"; about {max(1, round(left / 60))} min left"
            print(f"\n{number} of {len(runs)}: {name}, {strategy}, seed {seed}{about}", flush=True)
            start = time.monotonic()
            run.run()
            seconds.append(time.monotonic() - start)
        rows.append({"config": name, "strategy": strategy, "seed": seed} | row_of(run))
        write_json_atomic(Path(workdir) / "comparison.json", rows)
        write_bytes_atomic(Path(workdir) / "comparison.md", table(rows).encode())
        if all(row["probes"] for row in rows):
            write_bytes_atomic(Path(workdir) / "comparison.png", figures.comparison(rows))
    print("\n" + table(rows), flush=True)
    return rows


def _open(name, file, strategy, seed, workdir):
    config = vary(load_config(file), strategy)
    config.seed = seed
    return Training(config, Path(workdir) / f"{name}-{strategy}-{seed}")


def row_of(run: Training) -> dict[str, Any]:
    """Returns what the files of a finished run say.

    Returns:
      {"steps", "batch_size", "seconds"; "first" and "last": the losses of all blocks at the first and the last step;
      "chance": see `Objective.chance`; "rank" and "std": the least `effective_rank` and `feature_std` of all blocks at
      the last step; "probes": see `blockjax.evaluate.probe_blocks`}.
    """
    summary = json.loads((run.workdir / _SUMMARY).read_text())
    metrics = read_metrics(run.workdir / "metrics.jsonl")
    last = metrics[-1]
    of_last_block = {
        key.partition("/")[2]: value for key, value in last.items() if key.startswith("block_")
    }
    return {
        "steps": summary["steps"],
        "batch_size": run.config.batch_size,
        "seconds": summary["seconds"],
        "first": _of_blocks(metrics[0], "loss"),
        "last": _of_blocks(last, "loss"),
        "chance": run.learner.objective.chance(of_last_block),
        "rank": min(_of_blocks(last, "effective_rank"), default=None),
        "std": min(_of_blocks(last, "feature_std"), default=None),
        "probes": summary["probes"],
    }


def _of_blocks(row, metric):
    return [value for key, value in row.items() if key.endswith(f"/{metric}")]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns rows of `compare` as a table in Markdown, and a second one over seeds where there are several.

    Losses and probes of blocks are in order of depth.
    """
    head = (
        *("config", "strategy", "seed", "steps x images", "loss, first", "loss, last", "chance"),
        *("least rank", "untrained: kNN", "linear", "kNN", "linear probe", "best"),
    )
    lines = _head(head)
    for row in rows:
        probes = {probe["features"]: probe for probe in row["probes"]}
        untrained = [probes["untrained"]] if probes else []
        cells = [row["config"], row["strategy"], str(row["seed"])]
        cells += [f"{row['steps']} x {row['batch_size']}"]
        cells += [_figures(row["first"], 2), _figures(row["last"], 2)]
        cells += [_figures([row["chance"]], 2), _figures([row["rank"]], 1)]
        cells += [_figures([probe[kind] for probe in untrained], 3) for kind in ("knn", "linear")]
        linear = _of_probes(row, "linear")
        cells += [_figures(_of_probes(row, "knn"), 3), _figures(linear, 3)]
        cells += [_figures([max(linear, default=None)], 3)]
        lines.append("| " + " | ".join(cells) + " |")
    if rows and rows[0]["probes"]:
        pixels = rows[0]["probes"][0]
        lines += ["", f"Raw pixels: kNN {pixels['knn']:.3f}, linear probe {pixels['linear']:.3f}."]
    return "\n".join(lines + _over_seeds(rows)) + "\n"


def _over_seeds(rows):
    """Lines of a table of linear probes: for each config and strategy the mean and the range over its seeds."""
    found = {}
    for row in rows:
        found.setdefault((row["config"], row["strategy"]), []).append(_of_probes(row, "linear"))
    found = {key: seeds for key, seeds in found.items() if len(seeds) > 1 and all(seeds)}
    if not found:
        return []
    depth = max(len(seeds[0]) for seeds in found.values())
    blocks = [f"block {k}" for k in range(1, depth + 1)]
    lines = ["", "Linear probes, mean over seeds (least to greatest):", ""]
    lines += _head(("config", "strategy", "seeds", *blocks, "best"))
    for (config, strategy), seeds in found.items():
        cells = [config, strategy, str(len(seeds)), *map(_mean_and_range, zip(*seeds, strict=True))]
        cells += ["-"] * (depth - len(seeds[0])) + [_mean_and_range([*map(max, seeds)])]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _head(cells):
    return ["| " + " | ".join(cells) + " |", "|" + "---|" * len(cells)]


def _of_probes(row, kind):
    return [probe[kind] for probe in row["probes"] if probe["features"].startswith("block_")]


def _mean_and_range(values):
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _figures(values, digits):
    return " ".join("-" if value is None else f"{value:.{digits}f}" for value in values) or "-"


if __name__ == "__main__":
    main()
