"""Compares the device memory of train steps: any config, any strategy, any accelerator, without having it."""

import argparse
import ast
import concurrent.futures
import contextlib
import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections

from blockjax import config as config_lib
from blockjax.memory import plot
from blockjax.memory.jobs import Result, run_job
from blockjax.memory.profiles import MIB, DoesNotFit
from blockjax.memory.targets import parse_target
from blockjax.progress import render_table
from blockjax.variants import BASELINES, OPTIONS, vary
from blockjax.writers import write_bytes_atomic, write_json_atomic

_EPILOG = f"""
strategies: end_to_end or blockwise, with options behind: {OPTIONS}.
targets: local (the attached devices), t4, v100, a100-40, a100, l4, h100, h200 (h100:8 for eight),
  v4, v5e, v5p, v6e, tpu7x (one chip; v5e:4x4 for a slice). TPUs need the extra tpu, GPUs the extra cuda.
example: python -m blockjax.memory --config configs/bim.py:model=s16,batch=64,blocks=12,data=embedded --targets h100,v5e
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure to find: a config changed for a strategy and a depth, on a target."""

    source: str
    variant: str
    target: str
    config: ml_collections.ConfigDict


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m blockjax.memory",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", action="append", required=True, metavar="FILE[:ARGUMENTS]", help="may be given several times; "
        "--config.FIELD=VALUE changes a field of all")  # fmt: skip
    add("--targets", "--target", default="local", help="what to compile for, with commas between")
    add("--strategies", default="blockwise,blockwise+remat", help="with commas between; see below")
    add("--no-baselines", action="store_true", help=f"leave out {', '.join(BASELINES)}")
    add("--depths", default="", help="such as 12,24,48; layers per block stay the config's")
    add("--batch", type=int, help="images per step, over all devices")
    add("--max-batch", action="store_true", help="find the largest batch that fits")
    add(
        "--measure",
        action="store_true",
        help="also run a few steps (target local) and show what they took",
    )
    add("--breakdown", action="store_true", help="name the largest buffers at the peak")
    add("--json", type=Path, metavar="FILE", help="write all figures, in bytes")
    add("--plot", type=Path, metavar="FILE.png", help="draw them: lines against depth, or bars")
    add("--timeline", type=Path, metavar="FILE.png", help="draw memory over the program's order")
    add("--dump", type=Path, metavar="FOLDER", help="keep what XLA writes about each program")
    add(
        "--all-columns",
        action="store_true",
        help="also arguments, outputs, alias, code, host, collectives",
    )
    add("--jobs", type=int, default=1, help="processes that compile at the same time")
    arguments, rest = parser.parse_known_args()
    try:
        rows = _rows(arguments, _overrides(rest))
    except ValueError as error:
        sys.exit(f"error: {error}")
    found = _run(rows, arguments)
    _report(found, arguments)
    if any("error" in line for line in found):
        sys.exit(1)


def largest_batch(total: Callable[[int], int | None], limit: int, start: int, multiple: int) -> int:
    """Returns the largest batch whose step fits, to 3 % of itself or one multiple.

    Memory is almost a line in the batch, so two figures tell about where it meets the limit.

    Args:
      total: batch -> bytes; None if the compiler refuses.
      limit: bytes of the device.
      start: first batch to try.
      multiple: the batch must be divisible by this.

    Returns:
      0 if not even `multiple` images fit.
    """
    known, low, high = {}, 0, math.inf
    batch = max(multiple, start // multiple * multiple)
    for attempt in itertools.count():
        known[batch] = total(batch)
        fits = known[batch] is not None and known[batch] <= limit
        low, high = (batch, high) if fits else (low, batch)
        step = max(multiple, int(0.03 * low) // multiple * multiple)
        if high - low <= step:
            return low
        batch = _meeting_point(known, limit)
        # What was refused lies on no line; and now and then halving guards against a line that is none.
        if batch is None or known.get(high, 0) is None or attempt % 4 == 3:
            batch = 2 * low if high == math.inf else (low + high) // 2
        batch = int(min(max(batch, low + step), high - multiple, 16 * max(low, multiple)))
        batch = batch // multiple * multiple


def _meeting_point(known, limit):
    """Returns the batch at which a line through the two known sizes nearest to the limit meets it."""
    points = [(batch, size) for batch, size in known.items() if size is not None]
    points = sorted(sorted(points, key=lambda point: abs(point[1] - limit))[:2])
    if len(points) < 2:
        return None
    (b0, s0), (b1, s1) = points
    return None if s1 <= s0 else int(b0 + (limit - s0) * (b1 - b0) / (s1 - s0))


def _overrides(rest):
    changes = {}
    for text in rest:
        field, equals, value = text.partition("=")
        if not (field.startswith("--config.") and equals):
            raise ValueError(
                f"argument {text!r} is unknown; see --help (fields: --config.FIELD=VALUE)"
            )
        with contextlib.suppress(ValueError, SyntaxError):  # what cannot be read is a word
            value = ast.literal_eval(value)
        changes[field.removeprefix("--config.")] = value
    return changes


def _rows(arguments, changes):
    from blockjax.main import load_config

    if arguments.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, not {arguments.jobs}")
    targets = [parse_target(name).name for name in arguments.targets.split(",")]
    if arguments.measure and set(targets) != {"local"}:
        raise ValueError("--measure runs the step on the attached device: --targets local")
    variants = [] if arguments.no_baselines else list(BASELINES)
    variants += [v for v in arguments.strategies.split(",") if v and v not in variants]
    rows = []
    for source, target in itertools.product(arguments.config, targets):
        base = load_config(source)
        for field, value in changes.items():
            config_lib.set_field(base, field, value)
        if arguments.batch is not None:
            base.batch_size = arguments.batch
        depth = config_lib.depth(base)
        try:
            depths = [int(d) for d in arguments.depths.split(",") if d] or [depth]
        except ValueError as error:
            raise ValueError(
                f"--depths {arguments.depths!r}: numbers with commas between"
            ) from error
        for layers, variant in itertools.product(depths, variants):
            config = base.copy_and_resolve_references()
            config.model.depth = layers
            config.blocks = max(1, layers * base.blocks // depth)
            rows.append(Row(source, variant, target, vary(config, variant)))
    return rows


def _run(rows, arguments):
    """Compiles all rows, shows each when it is there, and writes the JSON file anew each time."""
    found, begin = [None] * len(rows), time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        futures = {pool.submit(_line, row, i, arguments): i for i, row in enumerate(rows)}
        for done, future in enumerate(concurrent.futures.as_completed(futures), start=1):
            line = found[futures[future]] = future.result()
            left = (time.monotonic() - begin) / done * (len(rows) - done)
            name = f"{line['strategy_name']}, {line['depth']} layers, {line['target']}"
            said = (
                line.get("error")
                or line.get("refused")
                or (
                    f"scratch {line['temp_bytes'] / MIB:,.1f} MiB, total {line['total_device_bytes'] / MIB:,.1f} MiB"
                )
            )
            print(
                f"{done}/{len(rows)}  {name}: {said}  (about {left / 60:.0f} min left)", flush=True
            )
            if arguments.json:
                write_json_atomic(arguments.json, [line for line in found if line])
    return found


def _line(row, index, arguments):
    """Returns one line of the JSON file."""
    config = row.config
    line: dict[str, Any] = {
        "config": row.source,
        "strategy_name": row.variant,
        "strategy": config.strategy,
        "remat": config.remat,
        "microbatches": config.microbatches,
        "decoder": f"{config.decoder.kind} {config.decoder.depth}x{config.decoder.width}",
        "depth": config.model.depth,
        "blocks": 1 if config.strategy == "end_to_end" else config.blocks,
        "batch": config.batch_size,
        "target": row.target,
    }
    dump = (
        arguments.dump / f"{index:03}-{row.variant}-{row.target}".replace(":", "_")
        if arguments.dump
        else None
    )
    wanted = arguments.breakdown or arguments.timeline is not None
    try:
        try:
            result = run_job(
                config, row.target, measure=arguments.measure, breakdown=wanted, dump=dump
            )
        except DoesNotFit as error:
            line |= {"fits": False, "total_device_bytes": error.needed, "refused": str(error)}
            devices, limit, total = error.devices, error.limit, None
        else:
            line |= _figures(result)
            devices, limit, total = (
                result.profile.devices,
                result.profile.limit,
                result.profile.total,
            )
        if arguments.max_batch and limit is not None:
            line["max_batch"] = _max_batch(row, devices, limit, total)
    except (ValueError, FileNotFoundError) as error:
        line["error"] = " ".join(str(error).split())
    return line


def _figures(result: Result):
    p = result.profile
    figures = {
        "devices": p.devices,
        "argument_bytes": p.argument,
        "output_bytes": p.output,
        "alias_bytes": p.alias,
        "temp_bytes": p.temp,
        "generated_code_bytes": p.generated_code,
        "host_bytes": p.host,
        "total_device_bytes": p.total,
        "parameter_bytes": p.parameters,
        "optimizer_bytes": p.optimizer,
        "batch_bytes": p.batch,
        "flops": p.flops,
        "collectives": p.collectives,
        "limit_bytes": p.limit,
        "fits": p.fits,
        "compile_seconds": round(p.compile_seconds, 1),
    }
    if result.measured is not None:
        figures["measured_bytes"] = result.measured
    if result.breakdown is not None:
        figures["named_fraction"] = result.breakdown.named
        figures["breakdown"] = [dataclasses.asdict(part) for part in result.breakdown.parts]
        figures["timeline"] = result.breakdown.timeline
    return figures


def _max_batch(row, devices, limit, first):
    """Returns the largest batch that fits; `first` is what the row's own batch takes, None if it was refused."""

    def total(batch):
        if batch == row.config.batch_size:
            return first
        config = row.config.copy_and_resolve_references()
        config.batch_size = batch
        try:
            return run_job(config, row.target).profile.total
        except DoesNotFit:
            return None

    multiple = devices * row.config.microbatches
    return largest_batch(total, limit, row.config.batch_size, multiple)


def _report(found, arguments):
    for (source, target), group in itertools.groupby(
        found, key=lambda line: (line["config"], line["target"])
    ):
        lines = list(group)
        if all("error" in line for line in lines):
            continue
        columns, table = _table(lines, arguments)
        render_table(f"MiB per device, {source}, {target}", columns, table)
        if growth := _growth(lines):
            render_table(
                f"MiB per device for each layer more, {source}, {target}",
                ["strategy", "layers", "scratch (temp)", "total"],
                growth,
            )
    for line in found:
        if "error" in line:
            print(f"{line['strategy_name']}, {line['target']}: error: {line['error']}", flush=True)
    if arguments.breakdown:
        for line in found:
            if "breakdown" in line:
                render_table(
                    f"at the peak: {line['strategy_name']}, {line['depth']} layers, {line['target']}; "
                    f"{line['named_fraction']:.1%} of the bytes have a name",
                    ["MiB", "buffers", "shape", "origin"],
                    [
                        [f"{p['size'] / MIB:,.1f}", p["count"], p["shape"], p["origin"] or "-"]
                        for p in line["breakdown"][:25]
                    ],
                )
    if arguments.plot:
        write_bytes_atomic(arguments.plot, plot.comparison(found))
        print(f"figure: {arguments.plot}")
    if arguments.timeline:
        write_bytes_atomic(arguments.timeline, plot.timelines(found))
        print(f"figure: {arguments.timeline}")


def _growth(lines):
    """Returns strategy, depths, and scratch and total MiB per added layer, from each depth to the next."""
    rows = []
    known = [line for line in lines if "temp_bytes" in line]
    for name in dict.fromkeys(line["strategy_name"] for line in known):
        points = sorted(
            (line for line in known if line["strategy_name"] == name), key=lambda p: p["depth"]
        )
        for low, high in itertools.pairwise(points):
            layers = high["depth"] - low["depth"]
            per_layer = [
                f"{(high[key] - low[key]) / layers / MIB:,.3f}"
                for key in ("temp_bytes", "total_device_bytes")
            ]
            rows.append([name, f"{low['depth']} to {high['depth']}", *per_layer])
    return rows


def _table(lines, arguments):
    first = next((line for line in lines if "temp_bytes" in line), None)
    several = len({line["depth"] for line in lines}) > 1

    def mib(name):
        return lambda line: f"{line[name] / MIB:,.1f}" if line.get(name) is not None else None

    def ratio(name):
        return lambda line: (
            round(line[name] / first[name], 3)
            if first and first.get(name) and line.get(name) is not None
            else None
        )

    columns: dict[str, Callable[[dict], Any]] = {
        "strategy": lambda line: (
            line["strategy_name"] + (f", {line['depth']} layers" if several else "")
        ),
        "layers": lambda line: line["depth"],
        "blocks": lambda line: line["blocks"],
        "batch": lambda line: line["batch"],
        "parameters": mib("parameter_bytes"),
        "optimizer": mib("optimizer_bytes"),
        "images": mib("batch_bytes"),
        "scratch (temp)": mib("temp_bytes"),
        "total": mib("total_device_bytes"),
        "scratch / first": ratio("temp_bytes"),
        "total / first": ratio("total_device_bytes"),
        "FLOPs / first": ratio("flops"),
        "fits": lambda line: {True: "yes", False: "no", None: "-"}[line.get("fits")],
    }
    if arguments.max_batch:
        columns["largest batch"] = lambda line: line.get("max_batch")
    if arguments.measure:
        columns["measured"] = mib("measured_bytes")
        columns["total / measured"] = lambda line: (
            line["total_device_bytes"] / line["measured_bytes"]
            if line.get("measured_bytes")
            else None
        )
    if arguments.all_columns:
        columns |= {
            "arguments": mib("argument_bytes"),
            "outputs": mib("output_bytes"),
            "alias": mib("alias_bytes"),
            "code": mib("generated_code_bytes"),
            "host": mib("host_bytes"),
            "TFLOP": lambda line: round(line["flops"] / 1e12, 3) if "flops" in line else None,
            "collectives": lambda line: (
                ", ".join(f"{n} {name}" for name, n in line.get("collectives", {}).items())
                or "none"
            ),
        }
    columns["compile s"] = lambda line: (
        round(line["compile_seconds"]) if "compile_seconds" in line else None
    )
    return list(columns), [[get(line) for get in columns.values()] for line in lines]


if __name__ == "__main__":
    main()
