"""`python -m blockjax.benchmark rivals` and `features`."""

import sys

import pytest

from blockjax.benchmark import rivals
from tests.benchmark.test_benchmark import rows
from tests.tiny import tiny_config

pytest.importorskip("transformers")


@pytest.mark.slow
def test_train_steps_are_ratios_to_those_of_transformers(capsys):
    rivals.train(tiny_config(**{"mesh.data": -1}), 1)
    table = rows(capsys.readouterr().out)
    base, one = map(float, table["transformers"])
    assert one == 1.0
    for name in ("end_to_end", "end_to_end+remat", "blockwise"):
        ms, ratio = map(float, table[name])
        assert ratio == pytest.approx(ms / base, rel=0.1)


def test_what_cannot_be_compared(monkeypatch):
    with pytest.raises(ValueError, match="ViTMAE trains 'mae'"):
        rivals.train(tiny_config(objective="rotation"), 1)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ValueError, match="torch is not installed"):
        rivals.features(1)
