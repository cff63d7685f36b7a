"""Pictures of numbers: losses, comparisons and evaluations."""

import collections
import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt

matplotlib.use("Agg")  # draws to files; needs no screen


def grid(rows: Mapping[str, np.ndarray]) -> bytes:
    """Draws rows of images, {name: [B, H, W, 3] in [0, 1]}, all with the same B; returns a PNG."""
    columns = len(next(iter(rows.values())))
    figure, axes = plt.subplots(len(rows), columns, figsize=(columns, len(rows)), squeeze=False)
    for row_axes, (name, row) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(row_axes, row, strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        row_axes[0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.subplots_adjust(wspace=0.05, hspace=0.05)
    return _png(figure)


def losses(rows: list[dict[str, Any]], strategy: str) -> bytes:
    """Draws each block's loss against the step, from the rows of metrics.jsonl; returns a PNG."""
    figure, axis = plt.subplots(figsize=(6, 4))
    # A block that waits for its turn, or had it, has none.
    keys = sorted({key for row in rows for key in row if key.endswith("/loss")}, key=_number)
    colors = plt.get_cmap("viridis")(np.linspace(0.0, 0.85, max(1, len(keys))))
    for key, color in zip(keys, colors, strict=False):
        steps = np.array([row["step"] for row in rows if key in row])
        values = np.array([row[key] for row in rows if key in row])
        axis.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        width = max(1, len(values) // 40)
        smooth = np.convolve(values, np.ones(width) / width, mode="valid")
        axis.plot(
            steps[width - 1 :], smooth, color=color, label=key.split("/")[0].replace("_", " ")
        )
    axis.set_xlabel("step")
    axis.set_ylabel("local loss" if len(keys) > 1 else "loss")
    axis.set_title(strategy)
    if keys:
        axis.legend(frameon=False, ncols=max(1, len(keys) // 8))
    axis.grid(alpha=0.3)
    return _png(figure)


def bits_per_byte(blocks: Mapping[str, float], others: Mapping[str, float]) -> bytes:
    """Draws the bits per byte that each block needs for held-out text, in order of depth; returns a PNG.

    Args:
      blocks: by name, "block_1".
      others: those of what is no network, by name: drawn as lines.
    """
    figure, axis = plt.subplots(figsize=(6, 4))
    numbers = [int(name.rpartition("_")[2]) for name in blocks]
    axis.plot(numbers, [*blocks.values()], marker="o", color="C0")
    for number, bits in zip(numbers, blocks.values(), strict=True):
        axis.annotate(
            f"{bits:.3f}", (number, bits), textcoords="offset points", xytext=(0, 7), ha="center"
        )
    for name, bits in others.items():
        axis.axhline(bits, color="gray", linestyle="--", linewidth=0.8)
        axis.annotate(
            name.replace("_", " "),
            (1.0, bits),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            xytext=(-2, 2),
            ha="right",
            color="gray",
            fontsize="small",
        )
    axis.set_xticks(numbers)
    axis.set_xlim(min(numbers) - 0.5, max(numbers) + 0.5)
    axis.set_xlabel("block")
    axis.set_ylabel("bits per byte of held-out text")
    axis.grid(alpha=0.3)
    return _png(figure)


def text_comparison(rows: Sequence[dict[str, Any]]) -> bytes:
    """Draws bits per byte over blocks, a line for each config, strategy and swept setting; returns a PNG.

    A line is the mean over seeds, with their range shaded; end to end it is the point of the last block.

    Args:
      rows: of `blockjax.compare.compare`, with bits per byte.
    """
    found = collections.defaultdict(list)
    for row in rows:
        found[row["config"], _setting(row)].append(row["bits_per_byte"])
    several = len({config for config, _ in found}) > 1
    figure, axis = plt.subplots(figsize=(6, 4))
    for number, ((config, setting), seeds) in enumerate(found.items()):
        blocks = [int(name.rpartition("_")[2]) for name in seeds[0]]
        values = np.array([[*bits.values()] for bits in seeds])
        drawn = {"color": f"C{number}"}
        label = f"{config}, {setting}" if several else setting
        axis.plot(blocks, values.mean(axis=0), marker="o", label=label, **drawn)
        low, high = values.min(axis=0), values.max(axis=0)
        if len(blocks) > 1:
            axis.fill_between(blocks, low, high, alpha=0.25, linewidth=0, **drawn)
        else:
            axis.vlines(blocks, low, high, alpha=0.5, linewidth=4, **drawn)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel("block")
    axis.set_ylabel("bits per byte of held-out text")
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)
    return _png(figure)


def _number(key):
    return int(key.partition("/")[0].rpartition("_")[2])


def comparison(rows: Sequence[dict[str, Any]]) -> bytes:
    """Draws the linear probes of each config's blocks, in order of depth, a line for each strategy and swept setting.

    A line is the mean over seeds, with their range shaded.

    Args:
      rows: of `blockjax.compare.compare`, with probes.

    Returns:
      A PNG.
    """
    configs = [*dict.fromkeys(row["config"] for row in rows)]
    strategies = [*dict.fromkeys(map(_setting, rows))]
    found, before = collections.defaultdict(list), []
    for row in rows:
        accuracy = {probe["features"]: probe["linear"] for probe in row["probes"]}
        pixels = accuracy.pop("pixels")
        before.append(accuracy.pop("untrained"))
        found[row["config"], _setting(row)].append([*accuracy.values()])
    depth = max(len(seeds[0]) for seeds in found.values())
    place = {config: i * (depth + 1) for i, config in enumerate(configs)}
    figure, axis = plt.subplots(figsize=(max(4.0, 1.0 + 0.9 * len(configs)), 3.5))
    for (config, strategy), seeds in found.items():
        blocks = place[config] + np.arange(len(seeds[0]))
        drawn = {"color": f"C{strategies.index(strategy)}"}
        axis.plot(blocks, np.mean(seeds, axis=0), marker=".", **drawn)
        axis.fill_between(
            blocks, np.min(seeds, axis=0), np.max(seeds, axis=0), alpha=0.25, linewidth=0, **drawn
        )
    for i, strategy in enumerate(strategies):
        axis.plot([], [], marker=".", color=f"C{i}", label=strategy)
    axis.axhline(
        float(np.mean(before)), color="gray", linestyle="--", linewidth=1, label="untrained"
    )
    axis.axhline(pixels, color="gray", linestyle=":", linewidth=1, label="pixels")
    centers = [start + (depth - 1) / 2 for start in place.values()]
    axis.set_xticks(centers, configs, rotation=30, ha="right")
    axis.set_xlim(-1, place[configs[-1]] + depth)
    axis.set_ylabel(f"linear probe of blocks 1 to {depth}")
    axis.legend(
        frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize="small"
    )
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    return _png(figure)


def _setting(row):
    fields = [f"{name}={value}" for name, value in row.get("fields", {}).items()]
    return ", ".join([row["strategy"], *fields])


def accuracy_and_memory(rows: Sequence[dict[str, Any]]) -> bytes:
    """Draws accuracy against the scratch memory of a step: a panel for each target, a point for each setting.

    Accuracy is that after fine-tuning with the first share of labels where there is one, else the best linear probe. A
    point is the mean over seeds, with a bar from the least to the greatest.

    Args:
      rows: of `blockjax.compare.compare`, with memory.

    Returns:
      A PNG.
    """
    targets = [*rows[0]["memory"]]
    settings = {}
    for row in rows:
        settings.setdefault(f"{row['config']}, {_setting(row)}", []).append(row)
    figure, axes = plt.subplots(
        1, len(targets), figsize=(4.5 * len(targets), 3.5), squeeze=False, sharey=True
    )
    for axis, target in zip(axes[0], targets, strict=True):
        for setting, seeds in settings.items():
            scratch = seeds[0]["memory"][target][0]
            values = [_accuracy(row) for row in seeds]
            if scratch is None or None in values:
                continue
            mean = float(np.mean(values))
            bar = [[mean - min(values)], [max(values) - mean]]
            axis.errorbar(scratch, mean, yerr=bar, fmt="o", capsize=2, label=setting)
        axis.set_xscale("log")
        axis.set_xlabel(f"scratch memory of a step on {target}, MiB")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel(
        "fine-tuned accuracy" if rows[0].get("finetuned") else "best linear probe"
    )
    axes[0, 0].legend(frameon=False, fontsize="x-small")
    return _png(figure)


def _accuracy(row):
    if row.get("finetuned"):
        return next(iter(row["finetuned"].values()))
    linear = [p["linear"] for p in row["probes"] if p["features"].startswith("block_")]
    return max(linear, default=None)


def evaluation(rows: Sequence[dict[str, Any]]) -> bytes:
    """Draws accuracy against block: a panel for each probe, a line for each readout, untrained and pixels beside.

    Args:
      rows: of `blockjax.evaluate.evaluate`.

    Returns:
      A PNG.
    """
    pixels, *rows = rows
    of_probe = [key for key in pixels if key not in ("encoder", "block", "readout")]
    of_probe = [key for key in of_probe if not key.endswith("_std")]
    readouts = [*dict.fromkeys(row["readout"] for row in rows)]
    columns = min(3, len(of_probe))
    lines = -(-len(of_probe) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(4 * columns, 3 * lines), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(of_probe) :]:
        axis.set_visible(False)
    colors = dict(zip(readouts, plt.get_cmap("tab10").colors, strict=False))
    for axis, key in zip(axes.flat, of_probe, strict=False):
        for (encoder, style), readout in itertools.product(
            (("trained", "o-"), ("untrained", "x:")), readouts
        ):
            found = [r for r in rows if (r["encoder"], r["readout"]) == (encoder, readout)]
            if found:
                blocks, values = [r["block"] for r in found], [r[key] for r in found]
                label = readout if encoder == "trained" else f"{readout}, untrained"
                axis.plot(blocks, values, style, color=colors[readout], label=label, markersize=4)
        axis.axhline(pixels[key], color="gray", linewidth=1, label="pixels")
        axis.set_title(key.replace("_", " "), fontsize="medium")
        axis.set_xlabel("block")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("accuracy")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, frameon=False, ncols=5, loc="outside lower center", fontsize="small"
    )
    return _png(figure)


def _png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()
