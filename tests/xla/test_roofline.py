"""Estimates of time, against arithmetic by hand."""

import pytest

from blockjax.xla.rates import Rates, rates_of, with_link
from blockjax.xla.roofline import estimate
from blockjax.xla.targets import parse_target
from blockjax.xla.work import Work

RATES = Rates(bfloat16=200.0, float32=100.0, memory=10.0, link=5.0, collectives=2.0)


def test_operations_run_one_after_another_each_at_its_own_limit():
    found = estimate(
        [Work(600.0, False, 20.0, turns=2.0), Work(100.0, True, 30.0), Work(0.0, False, 10.0)],
        RATES,
    )
    assert found.compute == 2 * 6.0 + 0.5
    assert found.memory == 2 * 2.0 + 3.0 + 1.0
    assert found.operations == 2 * 6.0 + 3.0 + 1.0
    assert (found.seconds, found.seconds_in_turn, found.limit) == (16.0, 16.0, "compute")


def test_devices_share_the_work_and_each_has_its_own_link():
    work = [Work(800.0, False, 0.0), Work(0.0, False, 40.0)]
    found = estimate(work, RATES, devices=4, to_device=20.0, to_host=10.0)
    assert (found.operations, found.link, found.link_in_turn) == (3.0, 4.0, 6.0)
    assert (found.seconds, found.seconds_in_turn, found.limit) == (4.0, 9.0, "host link")


def test_limits():
    assert estimate([Work(10.0, False, 90.0)], RATES).limit == "memory"
    sent = estimate([], RATES, collectives={"all-reduce": 4.0, "all-gather": 2.0})
    assert (sent.collectives, sent.limit) == ((2 * 4.0 + 2.0) / 2.0, "collectives")


def test_what_has_no_figure_is_not_made_up():
    rates = Rates(200.0, 100.0, 10.0)
    work = [Work(100.0, False, 0.0)]
    assert estimate(work, rates).seconds == 1.0
    for given, limit in (
        ({"to_device": 1.0}, "host link"),
        ({"collectives": {"all-gather": 1.0}}, "collectives"),
    ):
        found = estimate(work, rates, **given)
        assert (found.seconds, found.seconds_in_turn, found.limit) == (None, None, limit)


def test_rates_of_targets():
    assert rates_of(parse_target("local")) is None
    v5e, h100, t4 = (rates_of(parse_target(name)) for name in ("v5e:4x4", "h100:8", "t4"))
    assert v5e.bfloat16 == v5e.float32 == 197e12
    assert 2 * h100.float32 <= 1.001 * h100.bfloat16 <= 2.01 * h100.float32
    assert t4.bfloat16 == t4.float32
    assert h100.memory == parse_target("h100").bandwidth
    assert rates_of(parse_target("tpu7x")).link is None
    assert "tpu7x" not in with_link() and {"v5e", "h100"} <= {*with_link()}


@pytest.mark.slow
def test_measured_rates():
    import jax

    from blockjax.xla.calibration import measured_rates

    one = measured_rates(jax.devices()[:1])
    assert min(one.float32, one.bfloat16, one.memory, one.link) > 1e6
    assert one.collectives is None
    assert measured_rates(jax.devices()[:2]).collectives > 0
