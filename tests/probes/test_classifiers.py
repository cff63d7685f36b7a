"""Accuracy of trained classifiers."""

import jax
import jax.numpy as jnp
import pytest

from blockjax.training.report import report
from blockjax.training.run import Training
from tests.tiny import marked_data, tiny_config


def test_all_test_images_count(tmp_path, monkeypatch):
    """And not `probe.test_examples` of them, which is what probes of frozen features read."""
    fields = {"data.source": f"arrays:{marked_data(tmp_path)}", "data.flip": False, "steps": 1}
    fields |= {"objective": "classification", "mask.ratio": None, "mesh.data": -1}
    fields |= {"model.depth": 2, "blocks": 2, "probe.test_examples": 10}
    run = Training(tiny_config(**fields), tmp_path / "run")
    state = run.placement.init_in(run.placement.shardings, run.key("init"))
    blocks = state.blocks
    head = jax.tree.map(jnp.zeros_like, blocks.params["head"])  # always the first class
    blocks = blocks.replace(params={**blocks.params, "head": head})
    monkeypatch.setattr("blockjax.probes.classifiers.BATCH", 32)  # so that they come in parts
    monkeypatch.setattr("blockjax.probes.pictures.seen", lambda *_: b"")
    monkeypatch.setattr("blockjax.report.figures.losses", lambda *_: b"")
    (run.workdir / "metrics.jsonl").touch()
    summary = report(run, state.replace(blocks=blocks))
    assert [row["features"] for row in summary["accuracy"]] == ["block_1", "block_2"]
    # A quarter of 80 images; of ten none is.
    assert [row["top_1"] for row in summary["accuracy"]] == pytest.approx([0.25, 0.25])
