"""The pictures of memory and accuracy show the figures that lie in results/."""

import importlib.util
import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt

RESULTS = Path(__file__).parents[2] / "results"
if not RESULTS.is_dir():
    pytest.skip("a source distribution has no results", allow_module_level=True)

SPEC = importlib.util.spec_from_file_location("draw", RESULTS / "draw.py")
draw = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(draw)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def lines_of(axis):
    return {line.get_label(): line.get_xydata().tolist() for line in axis.lines}


def figures_of(name):
    return json.loads((RESULTS / "memory" / f"{name}.json").read_text())


def test_both_modes_of_all_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["draw.py", "--output", str(tmp_path)])
    draw.main()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{p}.{m}.svg" for p in ("memory", "sweep", "accuracy") for m in ("light", "dark")}  # fmt: skip
    for path in tmp_path.iterdir():
        text = path.read_text()
        assert ET.fromstring(text).tag.endswith("svg") and len(text) < 100_000
        own, other = ("light", "dark") if "light" in path.name else ("dark", "light")
        ink = {mode: colors["ink"] in text for mode, colors in draw.THEMES.items()}
        assert ink[own] and not ink[other]


def test_memory_over_depth_is_what_was_compiled():
    figure = draw.memory_over_depth(draw.LIGHT)
    for axis, key in zip(figure.axes, ("temp_bytes", "total_device_bytes"), strict=True):
        drawn = lines_of(axis)
        assert len(drawn) == 5
        for line in figures_of("depth"):
            name = draw.DEPTH[line["strategy_name"]][0]
            assert [line["depth"], line[key] / 2**20] in drawn[name]
        assert all(len(points) == 4 for points in drawn.values())


def test_the_sweep_is_what_was_compiled():
    figure = draw.sweep(draw.LIGHT)
    keys = {"total_device_bytes": 2**20, "host_link_bytes": 2**20, "estimated_seconds_in_turn": 1e-3}  # fmt: skip
    for axis, (key, scale) in zip(figure.axes, keys.items(), strict=True):
        drawn = lines_of(axis)
        for line in figures_of("batches") + figures_of("blocks"):
            layers = 24 // line["blocks"]
            name = f"{line['blocks']} blocks of {layers} layer{'s' * (layers > 1)}"
            assert [line["batches"], line[key] / scale] in drawn[name]
        (rival,) = [
            line
            for line in figures_of("depth")
            if (line["depth"], line["strategy_name"]) == (24, "streamed_end_to_end")
        ]
        points = np.array(drawn["end to end, layers fetched from the host in every batch"])
        np.testing.assert_array_equal(points[:, 1], rival[key] / scale)


def test_accuracies_are_those_of_the_runs():
    figure = draw.accuracy_and_memory(draw.LIGHT)
    for axis, key in zip(figure.axes, ("temp_bytes", "total_device_bytes"), strict=True):
        drawn = {tuple(np.round(c.lines[0].get_xydata()[0], 6)): c for c in axis.containers}
        for blocks, strategy in ((1, "end_to_end"), (2, "blockwise"), (4, "blockwise"), (12, "blockwise")):  # fmt: skip
            rest = f"blocks={blocks}" if blocks > 1 else "optimizer.base_learning_rate=0.008"
            runs = f"quickstart-{strategy}-model.depth=12-steps=4000-{rest}"
            found = [
                json.loads((RESULTS / "scenes" / f"{runs}-{seed}" / "summary.json").read_text())
                for seed in (0, 1, 2)
            ]
            found = [summary["probes"][-1]["linear"] for summary in found]
            (line,) = [
                line
                for line in figures_of(f"scenes-{blocks if blocks > 1 else 4}")
                if line["strategy_name"] == strategy
            ]
            container = drawn[tuple(np.round([line[key] / 2**20, np.mean(found)], 6))]
            (bar,) = container.lines[2]
            low, high = bar.get_segments()[0][:, 1]
            np.testing.assert_allclose([low, high], [min(found), max(found)])
        assert len(drawn) == len(draw.scenes())
