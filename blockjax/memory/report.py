"""Memory profiles as tables on the screen."""

import itertools
from collections.abc import Callable
from typing import Any

from blockjax.memory.profiles import MIB
from blockjax.report.table import render_table
from blockjax.xla.rates import with_link


def report(
    lines: list[dict[str, Any]],
    *,
    max_batch: bool = False,
    measure: bool = False,
    breakdown: bool = False,
    all_columns: bool = False,
) -> None:
    """Prints lines of the JSON file: a table for each config and target, how memory grows with depth, and errors.

    Args:
      lines: see `python -m blockjax.memory --json`.
      max_batch: whether the largest batches were looked for.
      measure: whether steps were run.
      breakdown: whether to print what fills the memory at each peak.
      all_columns: whether to print all that is known.
    """
    for (source, target), group in itertools.groupby(
        lines, key=lambda line: (line["config"], line["target"])
    ):
        rows = list(group)
        if all("error" in row for row in rows):
            continue
        columns, table = _table(rows, max_batch, measure, all_columns)
        render_table(f"MiB per device, {source}, {target}", columns, table)
        if growth := _growth(rows):
            render_table(
                f"MiB per device for each layer more, {source}, {target}",
                ["strategy", "layers", "scratch (temp)", "total"],
                growth,
            )
    for line in lines:
        if "estimated_limit" in line and line["estimated_seconds"] is None:
            name = f"{line['strategy_name']}, {line['target']}"
            print(f"{name}: {without_figure(line['estimated_limit'])}", flush=True)
    for line in lines:
        if "error" in line:
            print(f"{line['strategy_name']}, {line['target']}: error: {line['error']}", flush=True)
    if breakdown:
        for line in lines:
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


def without_figure(limit: str) -> str:
    """Says why there is no estimate of the time: the rate of what limits it is not known."""
    if limit == "host link":
        return (
            "no estimate of the time, as states or activations cross the host link and its bandwidth is not known; it "
            f"is known for {', '.join(with_link())}"
        )
    return "no estimate of the time, as the bandwidth between the devices is not known"


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


def _table(lines, max_batch, measure, all_columns):
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

    def flops(line):  # of a batch
        return line["flops"] / line.get("batches", 1)

    def milliseconds(name):
        return lambda line: f"{1e3 * line[name]:.3g}" if line.get(name) is not None else None

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
        "FLOPs / first": lambda line: (
            round(flops(line) / flops(first), 3)
            if first and first.get("flops") and "flops" in line
            else None
        ),
        "fits": lambda line: {True: "yes", False: "no", None: "-"}[line.get("fits")],
    }
    if any(line.get("host_link_bytes") for line in lines):
        columns["host link, a batch"] = mib("host_link_bytes")
    if any("estimated_seconds" in line for line in lines):
        columns["~ms a batch"] = milliseconds("estimated_seconds")
        columns["~ms in turn"] = milliseconds("estimated_seconds_in_turn")
        columns["limited by"] = lambda line: line.get("estimated_limit")
    if max_batch:
        columns["largest batch"] = lambda line: line.get("max_batch")
    if measure:
        columns["measured"] = mib("measured_bytes")
        columns["total / measured"] = lambda line: (
            line["total_device_bytes"] / line["measured_bytes"]
            if line.get("measured_bytes")
            else None
        )
        columns["measured ms a batch"] = milliseconds("measured_seconds")
        columns["measured / ~ms"] = lambda line: (
            line["measured_seconds"] / line["estimated_seconds"]
            if line.get("measured_seconds") and line.get("estimated_seconds")
            else None
        )
    if all_columns:
        columns |= {
            "arguments": mib("argument_bytes"),
            "outputs": mib("output_bytes"),
            "alias": mib("alias_bytes"),
            "code": mib("generated_code_bytes"),
            "host": mib("host_bytes"),
            "TFLOP": lambda line: round(line["flops"] / 1e12, 3) if "flops" in line else None,
            "collectives": lambda line: (
                ", ".join(
                    f"{count} {name} ({line['collective_bytes'][name] / MIB:,.1f} a step)"
                    for name, count in line.get("collectives", {}).items()
                )
                or "none"
            ),
        }
    columns["compile s"] = lambda line: (
        round(line["compile_seconds"]) if "compile_seconds" in line else None
    )
    return list(columns), [[get(line) for get in columns.values()] for line in lines]
