"""Measures speed: ratios against a baseline, taken in turns in one process."""

import argparse
import sys
from collections.abc import Sequence

from blockjax.benchmark import estimates as estimate_lib
from blockjax.benchmark import kernels as kernel_lib
from blockjax.benchmark import rivals
from blockjax.benchmark import stages as stages_lib
from blockjax.benchmark.input import input_path
from blockjax.benchmark.probes import probes
from blockjax.benchmark.steps import STRATEGIES, pipeline, preparation, step
from blockjax.config.files import load_config
from blockjax.config.variants import OPTIONS
from blockjax.report.table import render_table
from blockjax.xla.host_memory import keep_freed_memory
from blockjax.xla.targets import parse_target

BENCHMARKS = (
    "step",
    "prepare",
    "pipeline",
    "input",
    "stages",
    "kernel",
    "probes",
    "estimates",
    "rivals",
    "features",
)


def main() -> None:
    """Runs one benchmark and prints its table."""
    parser = argparse.ArgumentParser(
        prog="python -m blockjax.benchmark", description=__doc__, epilog=f"options: {OPTIONS}"
    )
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument(
        "--config",
        action="append",
        help="default: quickstart; of estimates, which takes several, three small ones",
    )
    parser.add_argument("--rounds", type=int, default=10, help="how often each variant is timed")
    parser.add_argument(
        "--strategies",
        help="of step, separated by commas; all are compared with the first (default: "
        f"{','.join(STRATEGIES)}); of estimates (default: {','.join(estimate_lib.STRATEGIES)})",
    )
    for name, default, text in (
        ("targets", "local", "devices to compile for, separated by commas: h100, v5e, ..."),
        ("shapes", ",".join(kernel_lib.SHAPES), "of batches of patches, separated by commas"),
        ("cases", ";".join(kernel_lib.CASES), "dtypes and normalisation, separated by semicolons"),
    ):
        parser.add_argument(
            f"--{name}", default=default, help=f"of kernel: {text} (default: %(default)s)"
        )
    for name, default, text in (
        ("stages", 4, "how many"),
        ("batches", 32, "how many from filling to draining the pipeline"),
        ("blocks", 6, "of each stage"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, help=f"of stages: {text} (default: %(default)s)"
        )
    for name, default, text in (
        ("examples", 50_000, "features that are learned from"),
        ("width", 192, "of the features"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, help=f"of probes: {text} (default: %(default)s)"
        )
    arguments = parser.parse_args()
    keep_freed_memory()  # as `blockjax.main` does
    try:
        if arguments.benchmark == "input":
            input_path(arguments.rounds)
            return
        if arguments.benchmark == "probes":
            probes(arguments.examples, arguments.width)
            return
        if arguments.benchmark == "features":
            rivals.features(arguments.rounds)
            return
        if arguments.benchmark == "stages":
            stages(arguments.stages, arguments.batches, arguments.blocks)
            return
        if arguments.benchmark == "kernel":
            kernel(
                arguments.targets.split(","),
                arguments.shapes.split(","),
                arguments.cases.split(";"),
            )
            return
        chosen = arguments.strategies and arguments.strategies.split(",")
        if arguments.benchmark == "estimates":
            configs = arguments.config or estimate_lib.CONFIGS
            estimate_lib.estimates(configs, chosen or estimate_lib.STRATEGIES, arguments.rounds)
            return
        config = load_config(arguments.config[-1] if arguments.config else "quickstart")
        if arguments.benchmark == "step":
            step(config, arguments.rounds, chosen or STRATEGIES)
        elif arguments.benchmark == "rivals":
            rivals.train(config, arguments.rounds)
        elif arguments.benchmark == "prepare":
            preparation(config, arguments.rounds)
        else:
            pipeline(config, arguments.rounds)
    except ValueError as error:
        sys.exit(f"error: {error}")


def stages(count: int, batches: int, blocks: int) -> None:
    """Prints how busy simulated stages are, block-wise and end to end with 1F1B, and what it takes."""
    runs = {"pipelined": stages_lib.blockwise(count, batches, blocks)}
    for microbatches in (1, count, 4 * count):
        name = f"end to end, 1F1B, {microbatches} microbatch{'es' if microbatches > 1 else ''}"
        runs[name] = stages_lib.one_forward_one_backward(count, batches, microbatches)
    render_table(
        f"simulated: {count} stages, {batches} batches, {blocks} blocks a stage; held: of a stage's activations",
        ["schedule", "busy", "held, first", "held, last", "streams sent"],
        [
            [name, f"{run.busy:.1%}", run.held[0], run.held[-1], run.sent]
            for name, run in runs.items()
        ],
    )


def kernel(targets: Sequence[str], shapes: Sequence[str], cases: Sequence[str]) -> None:
    """Prints for each implementation of the masked reconstruction loss what it moves and, on a device, its time."""
    for target in targets:
        rows, bandwidth = [], parse_target(target).bandwidth
        head = ["shape", "predictions, targets", "pass", "implementation", "moved MB", "/ least"]
        head += ["temp MB", "floor ms"]
        for row in kernel_lib.run(target, shapes, cases):
            print(
                f"{target}: {row.shape}, {row.case}, {row.part}, {row.implementation}", flush=True
            )
            rows.append([row.shape, row.case, row.part])
            rows[-1] += [row.implementation + (" (kernel)" if row.kernel else "")]
            rows[-1] += [round(row.moved / 1e6, 1), f"{row.moved / row.least:.2f}"]
            rows[-1] += [round(row.temp / 1e6, 1)]
            rows[-1] += ["-" if bandwidth is None else f"{1e3 * row.moved / bandwidth:.3f}"]
            if row.seconds is not None:
                rows[-1] += [f"{1e3 * row.seconds:.3f}", f"{row.copy_fraction:.0%}"]
                rows[-1] += [f"{row.error:.1e}"]
        if rows and len(rows[0]) > len(head):
            head += ["ms", "of a copy's speed", "error"]
        render_table(f"masked reconstruction loss, {target}", head, rows)


if __name__ == "__main__":
    main()
