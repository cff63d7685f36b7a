"""Runs side by side, as tables in Markdown."""

import statistics
from collections.abc import Sequence
from typing import Any


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Returns rows of `blockjax.compare.compare` as a table, and a second one over seeds where there are several.

    Losses and probes of blocks are in order of depth.

    Args:
      rows: the runs.
      columns: headings of those to show; default all.

    Raises:
      ValueError: there is no such column.
    """
    fields, labels, targets = _columns(rows)
    head = (
        *(
            "config",
            "strategy",
            *fields,
            "seed",
            "steps x images",
            "loss, first",
            "loss, last",
            "chance",
        ),
        *(results := list(dict.fromkeys(name for row in rows for name in _results(row)))),
        *(f"fine-tuned, {label} of labels" for label in labels),
        *("GFLOP a step", "seconds"),
        *(f"{target} MiB: scratch, total" for target in targets),
    )
    shown = head if columns is None else tuple(columns)
    for name in shown:
        if name not in head:
            raise ValueError(f"there is no column {name!r}; there are {', '.join(head)}")
    lines = _head(shown)
    for row in rows:
        cells = [row["config"], row["strategy"], *_swept(row, fields), str(row["seed"])]
        cells += [f"{row['steps']} x {row['batch_size']}"]
        cells += [_figures(row["first"], 2), _figures(row["last"], 2)]
        cells += [_figures([row["chance"]], 2)]
        cells += [_results(row).get(name, "-") for name in results]
        tuned = row.get("finetuned", {})
        cells += [_figures([tuned.get(label)], 3) for label in labels]
        cells += [_figures([row.get("gflops")], 1), _figures([row.get("seconds")], 0)]
        cells += [_figures(row.get("memory", {}).get(target, [None]), 0) for target in targets]
        cells = [cells[head.index(name)] for name in shown]
        lines.append("| " + " | ".join(cells) + " |")
    if rows and rows[0]["probes"]:
        pixels = rows[0]["probes"][0]
        lines += ["", f"Raw pixels: kNN {pixels['knn']:.3f}, linear probe {pixels['linear']:.3f}."]
    return "\n".join(lines + _over_seeds(rows)) + "\n"


def _results(row):
    """Returns what the blocks of a run were tested for, as cells by column."""
    if row.get("bits_per_byte"):
        bits = _tested(row)
        return {"bits per byte": _figures(bits, 3), "least": _figures([min(bits)], 3)}
    untrained = [probe for probe in row["probes"] if probe["features"] == "untrained"]
    linear = _of_probes(row, "linear")
    return {
        "least rank": _figures([row["rank"]], 1),
        "untrained: kNN": _figures([probe["knn"] for probe in untrained], 3),
        "linear": _figures([probe["linear"] for probe in untrained], 3),
        "kNN": _figures(_of_probes(row, "knn"), 3),
        "linear probe": _figures(linear, 3),
        "best": _figures([max(linear, default=None)], 3),
    }


def _tested(row):
    """Returns the figure of each block on which runs are compared: bits per byte of text, or the linear probe."""
    bits = row.get("bits_per_byte")
    return [*bits.values()] if bits else _of_probes(row, "linear")


def _over_seeds(rows):
    """Lines of a table with the mean and the range over the seeds of what is equal but for them."""
    fields, labels, _ = _columns(rows)
    found = {}
    for row in rows:
        key = (row["config"], row["strategy"], *_swept(row, fields))
        found.setdefault(key, []).append(row)
    found = {
        key: seeds
        for key, seeds in found.items()
        if len(seeds) > 1 and all(_tested(row) for row in seeds)
    }
    if not found:
        return []
    depth = max(len(_tested(seeds[0])) for seeds in found.values())
    text = any(row.get("bits_per_byte") for row in rows)
    blocks = [f"block {k}" for k in range(1, depth + 1)]
    tuned = [f"fine-tuned, {label} of labels" for label in labels]
    what = "Bits per byte" if text else "Linear probes"
    lines = ["", f"{what}, mean over seeds (least to greatest):", ""]
    lines += _head(
        ("config", "strategy", *fields, "seeds", *blocks, "least" if text else "best", *tuned)
    )
    for key, seeds in found.items():
        tested = [_tested(row) for row in seeds]
        best = map(min if text else max, tested)
        of_blocks = ["-"] * (depth - len(tested[0])) if text else []  # end to end has the last only
        of_blocks += [*map(_mean_and_range, zip(*tested, strict=True))]
        of_blocks += ["-"] * (depth - len(of_blocks))
        cells = [*key, str(len(seeds)), *of_blocks, _mean_and_range([*best])]
        for label in labels:
            values = [row.get("finetuned", {}).get(label) for row in seeds]
            cells.append("-" if None in values else _mean_and_range(values))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _columns(rows):
    """Returns the fields that were swept, the shares of labels and the targets that some row has."""

    def names(key):
        return [*dict.fromkeys(name for row in rows for name in row.get(key, {}))]

    return names("fields"), names("finetuned"), names("memory")


def _swept(row, fields):
    return [str(row.get("fields", {}).get(field, "-")) for field in fields]


def _head(cells):
    return ["| " + " | ".join(cells) + " |", "|" + "---|" * len(cells)]


def _of_probes(row, kind):
    return [probe[kind] for probe in row["probes"] if probe["features"].startswith("block_")]


def _mean_and_range(values):
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _figures(values, digits):
    return " ".join("-" if value is None else f"{value:.{digits}f}" for value in values) or "-"
