"""Compares the device memory of train steps: any config, any strategy, any accelerator, without having it."""

import argparse
import ast
import concurrent.futures
import contextlib
import dataclasses
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

from blockjax import config as config_lib
from blockjax.config.variants import BASELINES, OPTIONS, baselines, vary
from blockjax.memory import plot
from blockjax.memory.batches import largest_batch
from blockjax.memory.jobs import Result, local_rates, run_job
from blockjax.memory.plan import lines as plan_lines
from blockjax.memory.plan import make_plan, parse_size, show_plan
from blockjax.memory.profiles import MIB, DoesNotFit
from blockjax.memory.report import report
from blockjax.memory.search import Limits
from blockjax.memory.settings import check_stay_fits_run
from blockjax.strategies import END_TO_END
from blockjax.workdir.files import write_bytes_atomic, write_json_atomic
from blockjax.xla.targets import parse_target

_EPILOG = f"""
strategies: end_to_end or blockwise, with options behind: {OPTIONS}.
~ms a batch is an estimate: the longest of matrix products or memory, host link and collectives, at the best rates that
  the maker names (measured ones for local), as if they overlapped; ~ms in turn is their sum. Real steps take longer.
targets: local (the attached devices), t4, v100, a100-40, a100, l4, h100, h200 (h100:8 for eight),
  v4, v5e, v5p, v6e, tpu7x (one chip; v5e:4x4 for a slice). TPUs need the extra tpu, GPUs the extra cuda12 or cuda13.
--plan chooses strategy, rematerialisation, blocks (K), batches for which a block stays (M) and microbatches. The batch
  stays the config's, as the learning rate is scaled with it; microbatches make it fit. --batch 64,256 lets it choose
  from several. Blocks and strategy change what is learned: --blocks and --strategies fix them. It compiles the fastest
  setting by the estimate first, and goes on until three fit, which takes about a minute for each.
example: python -m blockjax.memory --config bim:model=s16,batch=64,blocks=12,data=embedded --targets h100,v5e
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure to find: a config changed for a strategy and a depth, on a target."""

    source: str
    variant: str
    target: str
    config: ml_collections.ConfigDict


def main(words: Sequence[str] | None = None) -> None:
    """Runs the command line; in a notebook on these words instead."""
    parser = argparse.ArgumentParser(
        prog="python -m blockjax.memory",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", action="append", required=True, metavar="CONFIG[:ARGUMENTS]", help="name or file; may be given "
        "several times; --config.FIELD=VALUE changes a field of all")  # fmt: skip
    add("--targets", "--target", default="local", help="what to compile for, separated by commas")
    add(
        "--strategies",
        help="separated by commas; see below (default: blockwise,blockwise+remat; of --plan all)",
    )
    add("--no-baselines", action="store_true", help=f"leave out {', '.join(BASELINES)}")
    add("--depths", default="", help="such as 12,24,48; layers per block stay the config's")
    add(
        "--batch",
        help="images per step, over all devices; of --plan several, separated by commas, to choose from",
    )
    add("--max-batch", action="store_true", help="find the largest batch that fits")
    add(
        "--measure",
        action="store_true",
        help="also run a few steps (target local) and show what they took, memory and time",
    )
    add("--breakdown", action="store_true", help="name the largest buffers at the peak")
    add("--json", type=Path, metavar="FILE", help="write all figures, in bytes")
    add("--plot", type=Path, metavar="FILE.png", help="draw them: lines against depth, or bars")
    add("--timeline", type=Path, metavar="FILE.png", help="draw memory over the program's order")
    add("--dump", type=Path, metavar="FOLDER", help="keep what XLA writes about each program")
    add(
        "--all-columns",
        action="store_true",
        help="also show arguments, outputs, alias, code, host, collectives",
    )
    add("--jobs", type=int, default=1, help="processes that compile at the same time")
    add(
        "--plan",
        nargs="?",
        const="",
        metavar="MEMORY",
        help="find the fastest setting that fits this much memory of a device (16GiB; default: what it has)",
    )
    add(
        "--host-memory",
        metavar="MEMORY",
        help="of --plan: host memory that each device may use (default: any)",
    )
    add(
        "--blocks",
        help="of --plan: numbers of blocks (K) to choose from, separated by commas (default: doublings)",
    )
    add(
        "--compiles",
        type=int,
        default=20,
        metavar="N",
        help="of --plan: compile at most so many programs (default: 20)",
    )
    arguments, rest = parser.parse_known_args(words)
    try:
        changes = _overrides(rest)
        if arguments.plan is not None:
            _plan(arguments, changes)
            return
        rows = _rows(arguments, changes)
    except ValueError as error:
        sys.exit(f"error: {error}")
    rates = None
    if any(row.target == "local" for row in rows):
        rates = _local_rates()
    found = _run(rows, arguments, rates)
    report(
        found,
        max_batch=arguments.max_batch,
        measure=arguments.measure,
        breakdown=arguments.breakdown,
        all_columns=arguments.all_columns,
    )
    for path, draw in (
        (arguments.plot, plot.comparison),
        (arguments.timeline, plot.timelines),
    ):
        if path:
            write_bytes_atomic(path, draw(found))
            print(f"figure: {path}")
    if any("error" in line for line in found):
        sys.exit(1)


def _local_rates():
    print("measuring the rates of the attached devices, for estimates of the time", flush=True)
    return local_rates()


def _plan(arguments, changes):
    """Looks for the fastest settings that fit, and prints them."""
    if len(arguments.config) > 1 or "," in arguments.targets:
        raise ValueError("--plan takes one --config and one of --targets")
    for name in ("depths", "max_batch", "measure", "breakdown", "plot", "timeline", "dump"):
        if getattr(arguments, name):
            raise ValueError(
                f"--{name.replace('_', '-')} does not go with --plan; run it on what --plan finds"
            )
    if arguments.compiles < 1:
        raise ValueError(f"--compiles must be at least 1, not {arguments.compiles}")
    source, target = arguments.config[0], parse_target(arguments.targets).name
    sizes = {"--plan": arguments.plan, "--host-memory": arguments.host_memory}
    limits = Limits(*(parse_size(name, text) if text else None for name, text in sizes.items()))
    config = _changed(source, changes)
    options = {
        "strategies": [name for name in (arguments.strategies or "").split(",") if name],
        "blocks": _numbers("--blocks", arguments.blocks),
        "batches": _numbers("--batch", arguments.batch),
    }
    rates = _local_rates() if target == "local" else None
    plan = make_plan(config, target, rates, limits, **options, most=arguments.compiles)
    show_plan(plan, source, config, target)
    if arguments.json:
        write_json_atomic(arguments.json, plan_lines(plan))


def _changed(source, changes):
    from blockjax.config.files import load_config

    config = load_config(source)
    for field, value in changes.items():
        config_lib.set_field(config, field, value)
    config_lib.check_fields(config)
    return config


def _numbers(option, text):
    try:
        found = [int(number) for number in (text or "").split(",") if number]
    except ValueError as error:
        raise ValueError(f"{option} {text!r}: numbers separated by commas") from error
    if any(number < 1 for number in found):
        raise ValueError(f"{option} {text!r}: numbers are at least 1")
    return found


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
    if arguments.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, not {arguments.jobs}")
    targets = [parse_target(name).name for name in arguments.targets.split(",")]
    if arguments.measure and set(targets) != {"local"}:
        raise ValueError("--measure runs the step on the attached device: --targets local")
    for name in ("host_memory", "blocks"):
        if getattr(arguments, name):
            raise ValueError(f"--{name.replace('_', '-')} goes with --plan only")
    rows, batch = [], _numbers("--batch", arguments.batch)
    if len(batch) > 1:
        raise ValueError("--batch takes several numbers with --plan only")
    for source, target in itertools.product(arguments.config, targets):
        base = _changed(source, changes)
        if batch:
            base.batch_size = batch[0]
        check_stay_fits_run(base)
        variants = [] if arguments.no_baselines else baselines(base)
        chosen = arguments.strategies or "blockwise,blockwise+remat"
        variants += [v for v in chosen.split(",") if v and v not in variants]
        depth = config_lib.depth(base)
        depths = _numbers("--depths", arguments.depths) or [depth]
        for layers, variant in itertools.product(depths, variants):
            config = base.copy_and_resolve_references()
            config.model.depth = layers
            config.blocks = max(1, layers * base.blocks // depth)
            rows.append(Row(source, variant, target, vary(config, variant)))
    return rows


def _run(rows, arguments, rates):
    """Compiles all rows, shows each when it is there, and writes the JSON file anew each time."""
    found, begin = [None] * len(rows), time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        futures = {pool.submit(_line, row, i, arguments, rates): i for i, row in enumerate(rows)}
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


def _line(row, index, arguments, rates=None):
    """Returns one line of the JSON file; `rates` are those of local."""
    config = row.config
    line: dict[str, Any] = {
        "config": row.source,
        "strategy_name": row.variant,
        "strategy": config.strategy,
        "remat": config.remat,
        "microbatches": config.microbatches,
        "decoder": f"{config.decoder.kind} {config.decoder.depth}x{config.decoder.width}",
        "depth": config.model.depth,
        "blocks": 1 if config.strategy in END_TO_END else config.blocks,
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
                config,
                row.target,
                measure=arguments.measure,
                breakdown=wanted,
                dump=dump,
                rates=rates if row.target == "local" else None,
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
        "host_link_bytes": p.host_link,
        "total_device_bytes": p.total,
        "parameter_bytes": p.parameters,
        "optimizer_bytes": p.optimizer,
        "batch_bytes": p.batch,
        "flops": p.flops,
        "collectives": p.collectives,
        "collective_bytes": p.collective_bytes,
        "limit_bytes": p.limit,
        "fits": p.fits,
        "compile_seconds": round(p.compile_seconds, 1),
        "batches": p.batches,
    }
    if p.estimate is not None:
        figures["estimated_seconds"] = p.estimate.seconds
        figures["estimated_seconds_in_turn"] = p.estimate.seconds_in_turn
        figures["estimated_limit"] = p.estimate.limit
        figures["estimated_parts"] = dataclasses.asdict(p.estimate)
    if result.seconds is not None:
        figures["measured_seconds"] = result.seconds
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


if __name__ == "__main__":
    main()
