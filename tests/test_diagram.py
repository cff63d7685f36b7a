"""The picture of which loss trains which block."""

import dataclasses
import functools
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from blockjax import diagram
from blockjax.report.diagram import THEMES, draw, held
from tests.tiny import tiny_config

THREE = {"model.depth": 6, "blocks": 3}
# Rows are losses; columns the stem and three blocks.
ISOLATED = [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
WINDOWS = [[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1]]


@functools.cache
def network(**fields):
    return diagram.network(tiny_config(**THREE, **fields))


def arrows(svg):
    """The gradients that are drawn: (loss, block) within a column, and (losses, block) across a boundary."""
    found = [
        path.get("data-name")
        for path in ET.fromstring(svg).iter()
        if path.get("class") == "gradient"
    ]
    return {name for name in found if name}


@pytest.mark.parametrize(
    "fields, reached, drawn",
    [
        ({}, ISOLATED, {"stem", "1-1", "2-2", "3-3"}),
        ({"strategy": "end_to_end"}, [[1, 1, 1, 1]], {"stem", "1-3", "3>2", "3>1"}),
        ({"overlap.window": 2}, WINDOWS, {"stem", "1-1", "2-2", "3-3", "2>1", "3>2"}),
    ],
)
def test_gradients_are_those_of_the_train_step(fields, reached, drawn):
    found = network(**fields)
    np.testing.assert_array_equal(found.reached, np.array(reached, bool))
    assert arrows(draw([found], "light")) == drawn


def test_one_block_is_held_at_a_time_or_all():
    by_block, whole = held(network()), held(network(strategy="end_to_end"))
    np.testing.assert_array_equal(by_block, np.eye(3, dtype=bool))
    assert [sum(moment) for moment in whole] == [1, 2, 3, 2, 1]


def test_what_is_written_is_counted_in_the_state():
    text = draw([network()], "dark")
    # Two layers of width 32: attention 4 * 32 * 33, MLP 32 * 128 * 2 + 160, two norms of 64.
    assert network().block == 2 * (4 * 32 * 33 + 2 * 32 * 128 + 160 + 2 * 64)
    assert network().optimizers == 3 and network(strategy="end_to_end").optimizers == 1
    assert "25.4 k parameters" in text and "2 layers, 32 wide" in text
    assert THEMES["dark"]["ink"] in text and THEMES["light"]["ink"] not in text


def test_many_blocks_are_abridged():
    reached = np.eye(12, 13, 1, dtype=bool)
    reached[0, 0] = True
    text = draw([dataclasses.replace(network(), reached=reached)], "light")
    assert arrows(text) == {"stem", "1-1", "2-2", "12-12"} and "…" in text


def test_the_command_writes_both_modes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(diagram, "load_config", lambda name: tiny_config(**THREE))
    drawn = {
        name: network(**({"strategy": name} if name == "end_to_end" else {}))
        for name in ("blockwise", "end_to_end")
    }
    monkeypatch.setattr(diagram, "network", lambda config: drawn[config.strategy])
    command = ["diagram", "--config", "any", "--output", str(tmp_path / "a")]
    monkeypatch.setattr(sys, "argv", command)
    diagram.main()
    light, dark = ((tmp_path / f"a.{mode}.svg").read_text() for mode in ("light", "dark"))
    assert light != dark and arrows(light) == arrows(dark)
    assert "Block by block" in light and "End to end" in light
    monkeypatch.setattr(sys, "argv", [*command, "--confg.steps=1"])
    with pytest.raises(SystemExit, match="is unknown"):
        diagram.main()


@pytest.mark.parametrize(
    "fields, named",
    [
        ({"strategy": "streamed"}, "the gradients of blockwise"),
        ({"distillation.weight": 0.5}, "distillation.weight=0.5"),
        ({"head.shared": True}, "head.shared=True"),
        ({"consistency.weight": 0.5, "consistency.kind": "agreement"}, "consistency.weight=0.5"),
    ],
)
def test_what_cannot_be_drawn_is_refused(fields, named):
    with pytest.raises(ValueError, match=named):
        diagram.gradients(tiny_config(**THREE, **fields))
