"""Draws the pictures of memory and accuracy from the figures that lie beside this file, for light and for dark pages.

    python results/draw.py

writes assets/NAME.light.svg and assets/NAME.dark.svg; the commands that made the figures stand in results/memory.md.
"""

import argparse
import collections
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # draws to files; needs no screen
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

HERE = Path(__file__).parent
MIB = 2**20
LIGHT = {
    "ink": "#1f2328", "muted": "#57606a", "grid": "#d0d7de", "end_to_end": "#cf222e", "rival": "#9a6700",
    "blocks": ("#0a8a9f", "#0969da", "#6639ba", "#116329"),
}  # fmt: skip
DARK = {
    "ink": "#e6edf3", "muted": "#9da7b3", "grid": "#30363d", "end_to_end": "#ff7b72", "rival": "#d29922",
    "blocks": ("#76e3ea", "#58a6ff", "#bc8cff", "#56d364"),
}  # fmt: skip
THEMES = {"light": LIGHT, "dark": DARK}

# As `python -m blockjax.memory` calls them: in words, the colour, and of several the which, the marker, and the line.
DEPTH = {
    "end_to_end": ("end to end", "end_to_end", 0, "o", "-"),
    "end_to_end+remat": ("end to end, activations recomputed", "end_to_end", 0, "s", "--"),
    "streamed_end_to_end": ("end to end, layers fetched from the host in every batch", "rival", 0, "D", ":"),
    "blockwise+remat": ("block by block, activations recomputed", "blocks", 1, "s", "--"),
    "streamed+remat+stay16": ("block by block, a block fetched from the host for 16 batches", "blocks", 2, "^", "-"),
}  # fmt: skip
MARKERS = {
    "": "o", "window": "s", "cross_block": "D", "ladder": "^", "predictor": "v", "agreement": "P",
    "every_loss": "X",
}  # fmt: skip


def main() -> None:
    """Reads the flags, and draws all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--output", type=Path, default=HERE.parent / "assets", help="folder (default: assets)"
    )
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        for mode, colors in THEMES.items():
            (folder / f"{name}.{mode}.svg").write_bytes(drawn(draw, colors))
            print(folder / f"{name}.{mode}.svg")


def drawn(draw: Callable[[Mapping[str, Any]], Figure], colors: Mapping[str, Any]) -> bytes:
    """Returns the SVG of a picture in these colours, on a transparent background."""
    ink, muted = colors["ink"], colors["muted"]
    style = {
        "svg.fonttype": "path", "svg.hashsalt": "blockjax", "font.size": 9, "text.color": ink,
        "axes.labelcolor": ink, "axes.titlecolor": ink, "axes.titlesize": 10, "axes.edgecolor": muted,
        "xtick.color": muted, "ytick.color": muted, "xtick.labelcolor": ink, "ytick.labelcolor": ink,
        "axes.grid": True, "axes.grid.which": "major", "grid.color": colors["grid"], "axes.axisbelow": True,
        "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "lines.linewidth": 1.8,
        "lines.markersize": 5,
    }  # fmt: skip
    with plt.rc_context(style):
        figure = draw(colors)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    return buffer.getvalue()


def figures_of(name: str) -> list[dict[str, Any]]:
    """Returns the lines of a file of `python -m blockjax.memory --json`."""
    return json.loads((HERE / "memory" / f"{name}.json").read_text())


def memory_over_depth(colors: Mapping[str, Any]) -> Figure:
    """Draws scratch and total memory against layers."""
    lines = figures_of("depth")
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained", sharey=True)
    depths = sorted({line["depth"] for line in lines})
    titles = {
        "temp_bytes": "scratch memory: activations, gradients",
        "total_device_bytes": "all device memory, with parameters and optimizer",
    }
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for strategy, (name, color, which, marker, style) in DEPTH.items():
            own = sorted(
                (line["depth"], line[key] / MIB)
                for line in lines
                if line["strategy_name"] == strategy
            )
            axis.plot(
                *zip(*own, strict=True),
                color=_color(colors, color, which),
                marker=marker,
                linestyle=style,
                label=name,
            )
        _axis(axis, depths, "layers", title)
        _bytes(axis)
    _legend(figure, axes[0], "ViT-L/16, 64 images a step, compiled for an H100", 2)
    return figure


def sweep(colors: Mapping[str, Any]) -> Figure:
    """Draws memory, traffic and estimated time against the batches for which a block stays, a line for each K."""
    lines = figures_of("batches") + figures_of("blocks")
    rivals = [
        line
        for line in figures_of("depth")
        if line["depth"] == 24
        and line["strategy_name"] in ("end_to_end+remat", "streamed_end_to_end")
    ]
    panels = {
        "total_device_bytes": ("device memory", MIB),
        "host_link_bytes": ("over the host link, a batch", MIB),
        "estimated_seconds_in_turn": ("estimated time, ms a batch", 1e-3),
    }
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.9), layout="constrained")
    counts = sorted({line["blocks"] for line in lines})
    batches = sorted({line["batches"] for line in lines})
    for axis, (key, (title, scale)) in zip(axes, panels.items(), strict=True):
        for count, color, marker in zip(counts, colors["blocks"], "^sDo", strict=False):
            own = sorted(
                (line["batches"], line[key] / scale) for line in lines if line["blocks"] == count
            )
            label = f"{count} blocks of {_layers(24 // count)}"
            axis.plot(*zip(*own, strict=True), color=color, marker=marker, label=label)
        for line in rivals:
            name, color, which, _, style = DEPTH[line["strategy_name"]]
            if line[key]:
                axis.axhline(
                    line[key] / scale,
                    color=_color(colors, color, which),
                    linestyle=style,
                    label=name,
                )
        _axis(axis, batches, "batches for which a block stays (M)", title)
        if scale == MIB:
            _bytes(axis)
    _legend(
        figure,
        axes[0],
        "ViT-L/16, 24 layers, 64 images a batch, compiled for an H100; states of blocks in host memory",
        3,
    )
    return figure


def accuracy_and_memory(colors: Mapping[str, Any]) -> Figure:
    """Draws the linear probe of the last block against memory of a step; a bar spans the seeds' accuracies."""
    points = scenes()
    panels = {
        "temp_bytes": "scratch memory of a step, CPU",
        "total_device_bytes": "all memory of a step, CPU",
    }
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained", sharey=True)
    hues = {
        1: colors["end_to_end"],
        2: colors["blocks"][0],
        4: colors["blocks"][1],
        12: colors["blocks"][2],
    }
    for axis, (key, title) in zip(axes, panels.items(), strict=True):
        for (blocks, technique), (line, values) in points.items():
            mean = sum(values) / len(values)
            bar = [[mean - min(values)], [max(values) - mean]] if len(values) > 1 else None
            size = 7 if len(values) > 1 else 5.5
            face = hues[blocks] if not technique else "none"
            axis.errorbar(
                line[key] / MIB,
                mean,
                yerr=bar,
                fmt=MARKERS[technique],
                color=hues[blocks],
                capsize=3,
                markersize=size,
                markerfacecolor=face,
                markeredgewidth=1.5,
            )
        axis.set(title=title, xlabel="MiB")
        axis.set_xlim(left=0)
    axes[0].set_ylabel("linear probe of the last block")
    names = {1: "end to end (3 seeds)"} | {k: f"{k} blocks (3 seeds)" for k in (2, 4, 12)}
    handles = [
        Line2D([], [], color=hues[k], marker="o", linestyle="", label=name)
        for k, name in names.items()
    ]
    used = [name for name in MARKERS if name and any(t == name for _, t in points)]
    handles += [
        Line2D(
            [],
            [],
            color=colors["muted"],
            marker=MARKERS[name],
            markerfacecolor="none",
            linestyle="",
            label=f"with {name} (1 seed)",
        )
        for name in used
    ]
    title = "12 layers, 4,000 steps\non the embedded scenes"
    figure.legend(handles=handles, loc="outside right center", title=title)
    return figure


def scenes() -> dict[tuple[int, str], tuple[dict[str, Any], list[float]]]:
    """Returns by K and technique what is compiled of a step, and the accuracies of all seeds.

    12 layers, 4000 steps; end to end, which is K = 1, at the best of its learning rates.
    """
    compiled = {}
    for count in (2, 4, 12):
        for line in figures_of(f"scenes-{count}"):
            strategy, _, technique = line["strategy_name"].partition("+")
            compiled[1 if strategy == "end_to_end" else count, technique] = line
    found = collections.defaultdict(list)
    for count, technique in compiled:
        strategy = "end_to_end" if count == 1 else "+".join(filter(None, ["blockwise", technique]))
        rest = "optimizer.base_learning_rate=0.008" if count == 1 else f"blocks={count}"
        pattern = f"quickstart-{strategy}-model.depth=12-steps=4000-{rest}-[0-9]/summary.json"
        for path in sorted((HERE / "scenes").glob(pattern)):
            last = json.loads(path.read_text())["probes"][-1]
            found[count, technique].append(last["linear"])
    return {key: (compiled[key], values) for key, values in found.items()}


def _axis(axis, ticks: Sequence[int], xlabel, title):
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.set(title=title, xlabel=xlabel)


def _bytes(axis):
    """Labels an axis of MiB in MiB and GiB."""
    axis.yaxis.set_major_formatter(
        lambda size, _: f"{size / 1024:g} GiB" if size >= 1024 else f"{size:g} MiB"
    )


def _legend(figure, axis, title, columns):
    figure.legend(
        *axis.get_legend_handles_labels(), loc="outside upper center", ncols=columns, title=title
    )


def _color(colors, name, which):
    return colors[name][which] if name == "blocks" else colors[name]


def _layers(count):
    return "1 layer" if count == 1 else f"{count} layers"


PICTURES = {
    "memory": memory_over_depth,
    "sweep": sweep,
    "accuracy": accuracy_and_memory,
}

if __name__ == "__main__":
    main()
