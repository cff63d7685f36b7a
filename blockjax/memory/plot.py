"""Pictures of memory profiles."""

import io
from typing import Any

import matplotlib

matplotlib.use("Agg")  # draws to files; needs no screen
from matplotlib import pyplot as plt

from blockjax.memory.profiles import MIB

_STYLES = {"end_to_end": ("tab:red", "tab:orange", "tab:brown", "tab:pink")}
_STYLES["blockwise"] = ("tab:blue", "tab:cyan", "tab:green", "tab:purple")


def comparison(lines: list[dict[str, Any]]) -> bytes:
    """Draws lines of the JSON file: against depth if there are several depths, else as bars; returns a PNG.

    A row of panels for each config and target.
    """
    groups: dict[tuple[str, str], list[dict]] = {}
    for line in lines:
        if line.get("total_device_bytes"):
            groups.setdefault((line["config"], line["target"]), []).append(line)
    several = len({line["depth"] for line in lines}) > 1
    return _depths(groups) if several else _bars(groups)


def timelines(lines: list[dict[str, Any]]) -> bytes:
    """Draws the bytes in use over the order of each program, scaled to its length; returns a PNG."""
    figure, axis = plt.subplots(figsize=(8, 4.5))
    colors = _colors(lines)
    for line in lines:
        if points := line.get("timeline"):
            end = max(place for place, _ in points) or 1
            label = f"{line['strategy_name']}, {line['depth']} layers, {line['target']}"
            axis.step(
                [place / end for place, _ in points],
                [size / MIB for _, size in points],
                where="post", label=label, linewidth=1, color=colors[line["strategy_name"]],
            )  # fmt: skip
    axis.set(
        xlabel="place in the program (a loop's body counts once)",
        ylabel="MiB in use on a device",
        xlim=(0, 1),
    )
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, fontsize=8)
    axis.grid(alpha=0.3)
    return _png(figure)


def _depths(groups):
    figure, panels = plt.subplots(
        len(groups) or 1, 2, figsize=(11, 3.6 * max(1, len(groups))), squeeze=False
    )
    for row, ((config, target), lines) in zip(panels, groups.items(), strict=False):
        colors = _colors(lines)
        for axis, (key, title) in zip(
            row, (("temp_bytes", "scratch (temp)"), ("total_device_bytes", "total")), strict=True
        ):
            for name, color in colors.items():
                points = sorted(
                    (line["depth"], line[key] / MIB)
                    for line in lines
                    if line["strategy_name"] == name and line.get(key)
                )
                if points:
                    axis.plot(*zip(*points, strict=True), marker="o", color=color, label=name)
            axis.set(title=f"{title}, {target}", xlabel="layers", ylabel="MiB per device")
            axis.set_yscale("log", base=2)
            axis.yaxis.set_major_formatter("{x:,.0f}")
            axis.set_xticks(sorted({line["depth"] for line in lines}))
            axis.grid(alpha=0.3)
        row[1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        row[0].annotate(config, (0, 1.15), xycoords="axes fraction", fontsize=8)
    figure.tight_layout()
    return _png(figure)


_PARTS = (
    ("parameters", "parameter_bytes", "tab:gray"),
    ("optimizer state", "optimizer_bytes", "silver"),
    ("images", "batch_bytes", "tab:olive"),
    ("scratch (temp)", "temp_bytes", "tab:blue"),
)


def _bars(groups):
    figure, panels = plt.subplots(
        len(groups) or 1, 1, figsize=(8, 1 + 2.4 * max(1, len(groups))), squeeze=False
    )
    for (axis,), ((config, target), lines) in zip(panels, groups.items(), strict=False):
        names = [line["strategy_name"] for line in lines]
        left = [0.0] * len(lines)
        for label, key, color in _PARTS:
            sizes = [(line.get(key) or 0) / MIB for line in lines]
            axis.barh(names, sizes, left=left, label=label, color=color)
            left = [a + b for a, b in zip(left, sizes, strict=True)]
        for i, line in enumerate(lines):
            total = line["total_device_bytes"] / MIB
            refused = "temp_bytes" not in line
            text = f" {total:,.0f}" + (" (does not fit)" if line.get("fits") is False else "")
            if refused:
                axis.barh(names[i], total, color="none", edgecolor="tab:red", linestyle="--")
            axis.text(max(total, left[i]), i, text, va="center", fontsize=8)
        axis.invert_yaxis()
        axis.set(title=f"{target}, {config}", xlabel="MiB per device")
        axis.title.set_fontsize(9)
        axis.margins(x=0.2)
        axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return _png(figure)


def _colors(lines):
    names = list(dict.fromkeys(line["strategy_name"] for line in lines))
    taken = {"end_to_end": 0, "blockwise": 0}
    colors = {}
    for name in names:
        strategy = name.split("+")[0]
        palette = _STYLES.get(strategy, ("black",))
        colors[name] = palette[taken.get(strategy, 0) % len(palette)]
        taken[strategy] = taken.get(strategy, 0) + 1
    return colors


def _png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()
