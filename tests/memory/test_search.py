"""The search for the fastest setting that fits, with steps that are made up."""

import dataclasses

import pytest

from blockjax.memory.plan import _nothing
from blockjax.memory.profiles import DoesNotFit, MemoryProfile
from blockjax.memory.search import Limits, search
from blockjax.memory.settings import Setting
from blockjax.memory.sketch import Sketch
from blockjax.xla.roofline import Estimate

SPEEDS = {"end_to_end": 1.0, "blockwise": 1.4, "streamed": 2.0}
REMATS = {"none": 1.0, "layer": 1.3, "nested": 1.5, "offload": 1.6}
FIRST = [Setting(name, "none", 4, 1, 1, 16) for name in SPEEDS]


class Steps:
    """Steps whose seconds and bytes follow from the setting: states of 100 but streamed, and scratch of 1600."""

    def __init__(self, limit=1000, host=300, scratch=1600):
        self.limit, self.host, self.scratch, self.compiled = limit, host, scratch, []

    def seconds(self, setting):
        return SPEEDS[setting.strategy] * REMATS[setting.remat] * (1 + setting.microbatches / 100)

    def total(self, setting):
        saved = {"none": 1, "layer": 4, "nested": 8, "offload": 8}[setting.remat]
        states = 0 if setting.strategy == "streamed" else 100
        return states + self.scratch // saved // setting.microbatches

    def estimate(self, setting):
        seconds = self.seconds(setting)
        return Estimate(seconds, 0.0, seconds)

    def sketch(self, settings):
        return [
            Sketch(
                self.estimate(s),
                device=0 if s.strategy == "streamed" else 100,
                host=self.host if s.strategy == "streamed" else 0,
                images=1,
                rows=4,
                limit=self.limit,
            )
            for s in settings
        ]

    def compile(self, setting):
        self.compiled.append(setting)
        total = self.total(setting)
        if total > self.limit:
            raise DoesNotFit("the compiler refuses", total, self.limit)
        return MemoryProfile(total, 0, 0, 0, estimate=self.estimate(setting))

    def plan(self, limits=None, **options):
        return search(FIRST, self.sketch, self.compile, limits or Limits(), **options)


def all_settings():
    return [
        dataclasses.replace(root, remat=remat, microbatches=parts)
        for root in FIRST
        for remat in REMATS
        for parts in (1, 4, 16)
    ]


@pytest.mark.parametrize("limit", [120, 200, 400, 1000, 5000])
@pytest.mark.parametrize("scratch", [100, 1600, 16000])
def test_what_is_found_is_the_fastest_of_all_that_fit(limit, scratch):
    steps = Steps(limit, scratch=scratch)
    fitting = sorted((s for s in all_settings() if steps.total(s) <= limit), key=steps.seconds)
    plan = steps.plan(most=1000)
    if not fitting:
        assert not plan.fitting
        return
    assert plan.is_complete
    # Of what is further down more is found only where something before it does not fit.
    assert plan.fitting[0].setting == fitting[0]
    assert len(steps.compiled) == len({*steps.compiled}) <= len(all_settings())
    assert [c.seconds for c in plan.fitting] == sorted(c.seconds for c in plan.fitting)


def test_where_all_fits_only_what_is_wanted_is_compiled():
    steps = Steps(10_000)
    plan = steps.plan(wanted=2)
    assert [c.setting for c in plan.fitting] == FIRST[:2] == steps.compiled


def test_states_that_are_too_large_are_not_compiled():
    steps = Steps(90, scratch=80)
    plan = steps.plan()
    assert {s.strategy for s in steps.compiled} == {"streamed"}
    assert {c.refused for c in plan.refused} == {"states and images alone take 0.0 MiB of 0.0"}
    steps = Steps()
    plan = steps.plan(Limits(device=400, host=200), most=100)
    assert "streamed" not in {s.strategy for s in steps.compiled}
    assert plan.fitting[0].profile.total <= 400  # less than the device has
    (refused,) = (c for c in plan.refused if c.setting.strategy == "streamed")
    assert "of host memory for each device" in refused.refused and refused.needed == 300


def test_the_room_for_a_stay():
    def sketch(settings):
        return [
            Sketch(Estimate(1.0, 0.0, 1.0), 2**20 * (10 + s.batches), 0, 2**20, 4, 2**20 * 15)
            for s in settings
        ]

    plan = search([dataclasses.replace(FIRST[2], batches=9)], sketch, None, Limits())
    text = "states and images alone take 19.0 MiB of 15.0; pipeline.batches of at most 5 would"
    assert plan.refused[0].refused.startswith(text)
    assert text in _nothing(plan)


def test_no_more_is_compiled_than_allowed():
    steps = Steps(400)
    plan = steps.plan(most=2)
    assert plan.compiled == len(steps.compiled) == 2
    assert not plan.fitting and not plan.is_complete
    assert "after 2 compiled programs (--compiles for more)" in _nothing(plan)
    # What was compiled and fits counts, where something faster was not tried.
    steps = Steps(10_000)
    assert steps.plan(most=1).fitting and steps.plan(most=1).is_complete


def test_what_cannot_be_is_left_out():
    steps = Steps(10_000)

    def sketch(settings):
        made = zip(settings, steps.sketch(settings), strict=True)
        unknown = Estimate(1.0, 0.0, 1.0, None, None)
        return [
            "no such step"
            if s.strategy == "blockwise"
            else dataclasses.replace(known, estimate=unknown)
            if s.strategy == "streamed"
            else known
            for s, known in made
        ]

    def crashes(setting):
        raise ValueError("the compiler's process died")

    plan = search(FIRST, sketch, steps.compile, Limits())
    assert [c.setting for c in plan.fitting] == FIRST[:1]
    assert plan.left_out[FIRST[1]] == "no such step"
    assert "bandwidth is not known; it is known for t4" in plan.left_out[FIRST[2]]
    plan = search(FIRST, sketch, crashes, Limits())
    assert not plan.fitting and not plan.refused
    assert "no setting is possible: no such step; no estimate" in _nothing(plan)
    assert "the compiler's process died" in _nothing(plan)


def test_collectives_that_only_the_compiled_program_has_change_the_order():
    steps = Steps(10_000)

    def compile_setting(setting):
        found = steps.compile(setting)
        slow = Estimate(1.0, 0.0, 1.0, collectives=1.7)
        return dataclasses.replace(found, estimate=slow) if setting == FIRST[0] else found

    plan = search(FIRST, steps.sketch, compile_setting, Limits(), wanted=2)
    assert [c.setting.strategy for c in plan.fitting] == ["blockwise", "end_to_end"]
    assert len(steps.compiled) == 2


def test_what_stands_beside_a_root_is_tried():
    steps = Steps(10_000)
    other = dataclasses.replace(FIRST[1], blocks=2)
    steps.seconds = lambda setting: 0.5 if setting == other else 1.0
    plan = steps.plan(
        beside=lambda root: [other] if root.setting == FIRST[1] else [root.setting], wanted=1
    )
    assert plan.fitting[0].setting == other
