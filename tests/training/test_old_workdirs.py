"""A workdir that an earlier version wrote goes on: fields, names in checkpoints and numbers are those of then.

`written_before.tar.gz` holds two runs of 12 steps, two blocks of one layer each: their checkpoints of step 6, and the
metrics of all 12 steps.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from blockjax import config as config_lib
from blockjax.training.run import Training
from blockjax.weights.loading import open_run
from blockjax.workdir.metrics import read_metrics

WRITTEN = Path(__file__).with_name("written_before.tar.gz")


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["mae", "byol"])  # plain blocks; averages and two streams
def test_goes_on(objective, tmp_path, monkeypatch):
    with tarfile.open(WRITTEN) as archive:
        archive.extractall(tmp_path, filter="data")
    workdir = tmp_path / objective
    assert open_run(workdir).step == 6
    expected = read_metrics(workdir / "metrics.jsonl")
    config = config_lib.from_json(json.loads((workdir / "config.json").read_text()))
    config.mesh.data = -1
    monkeypatch.setattr("blockjax.training.run.report", lambda run, state: {})
    Training(config, workdir).run()
    rows = read_metrics(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 13))
    for row, then in zip(rows[6:], expected[6:], strict=True):
        for block in (1, 2):
            # Processors, and flags of the compiler, round in other ways.
            np.testing.assert_allclose(
                row[f"block_{block}/loss"], then[f"block_{block}/loss"], rtol=2e-3
            )
