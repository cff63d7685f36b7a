import pytest

from blockjax.config import default_config
from blockjax.data import turbo
from blockjax.training import waiting


class Meter:
    """A config, and the seconds waited."""

    def __init__(self, workers=0):
        self.config = default_config()
        self.config.data.workers = workers
        self.waited = 0.0
        self.waiting = waiting.Waiting(self.config, lambda: self.waited, 100.0)

    def step(self, now, waited):
        self.waited += waited
        return self.waiting.share(now), self.waiting.warning()


@pytest.fixture(autouse=True)
def cores(monkeypatch):
    monkeypatch.setattr(waiting, "cpu_count", lambda: 8)
    monkeypatch.setattr(turbo, "INSTALLED", True)


def test_share_is_of_the_interval():
    meter = Meter()
    assert meter.step(104.0, 1.0)[0] == 0.25
    assert meter.step(108.0, 3.0)[0] == 0.75
    assert meter.step(112.0, 0.0)[0] == 0.0
    assert meter.step(113.0, 5.0)[0] == 1.0  # a batch that was asked for after the step


def test_one_warning_after_the_start():
    meter = Meter()
    assert meter.step(130.0, 30.0)[1] is None  # workers start
    assert meter.step(135.0, 4.0)[1] is None  # too short to judge
    warning = meter.step(141.0, 4.0)[1]
    assert "for 73% of the time the devices wait for data" in warning
    assert meter.step(160.0, 19.0)[1] is None  # once


def test_no_warning_where_little_is_waited():
    meter = Meter()
    meter.step(101.0, 1.0)
    for step in range(1, 50):
        assert meter.step(101.0 + 11 * step, 0.9)[1] is None
    assert meter.step(101.0 + 11 * 50, 5.0)[1]  # it is judged by itself


@pytest.mark.parametrize(
    ("workers", "installed", "expected", "missing"),
    [
        (0, True, ["data.workers=8 (now threads of one process"], ["blockjax[turbo]"]),
        (2, False, ["data.workers=8 (now 2 processes", "blockjax[turbo]"], []),
        (8, False, ["blockjax[turbo]"], ["data.workers"]),
        (8, True, ["smaller, 64 pixels"], ["data.workers", "blockjax[turbo]"]),
    ],
)
def test_remedies_fit_the_config(workers, installed, expected, missing, monkeypatch):
    monkeypatch.setattr(turbo, "INSTALLED", installed)
    meter = Meter(workers)
    meter.config.model.image_size = 32
    meter.step(101.0, 1.0)
    warning = meter.step(120.0, 19.0)[1]
    assert all(text in warning for text in expected)
    assert not any(text in warning for text in missing)


def test_text_needs_no_smaller_images(monkeypatch):
    monkeypatch.setattr(turbo, "INSTALLED", False)
    meter = Meter()
    meter.config.objective = "next_token"
    meter.step(101.0, 1.0)
    warning = meter.step(120.0, 19.0)[1]
    assert "data.workers=8" in warning and "more cores" in warning
    assert "image" not in warning and "turbo" not in warning
