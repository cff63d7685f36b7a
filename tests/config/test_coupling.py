"""Couplings of blocks that do not fit together: refused before anything is compiled, with what would fit."""

import pytest

from blockjax import config as config_lib
from blockjax.config.coupling import SWITCHES, couplings
from blockjax.config.variants import COUPLINGS, vary
from tests.tiny import tiny_config


def resolved(**overrides):
    return config_lib.resolve(tiny_config(**overrides), devices=1, platform="cpu")


@pytest.mark.parametrize(
    "overrides, message",
    [
        (
            {"strategy": "end_to_end", "distillation.weight": 0.5},
            r"distillation.weight=0.5 couples blocks, and strategy=end_to_end has one only; set distillation.weight=0",
        ),
        (
            {"blocks": 1, "overlap.window": 2},
            r"overlap.window=2 couples blocks, and blocks=1 is one only; set overlap.window=1",
        ),
        ({"blocks": 1, "schedule": "sequential"}, r"set schedule=simultaneous, or a larger blocks"),
        (
            {"objective": "rotation", "distillation.weight": 0.5},
            r"objective=rotation predicts none; set it to 0, or objective to one of mae, beit$",
        ),
        (
            {
                "strategy": "pipelined",
                "distillation.weight": 0.5,
                "distillation.teacher": "top",
            },
            r"teacher=top: under strategy=pipelined .* set distillation.teacher=ladder",
        ),
        ({"cross_block.blocks": 4}, r"blocks=4 has only 3 before it; set it to at most that"),
        (
            {
                "consistency.weight": 0.1,
                "consistency.kind": "agreement",
                "loss.implementation": "pallas",
            },
            r"loss.implementation=pallas does not have; set loss.implementation=xla",
        ),
        ({"consistency.kind": "predicter"}, r"consistency.kind 'predicter' .* mean 'predictor'"),
        ({"distillation.teacher": "up"}, r"distillation.teacher 'up' .* ladder, top"),
        ({"cross_block.which": "last"}, r"cross_block.which 'last' .* latest, first"),
        ({"hybrid.losses": "all"}, r"hybrid.losses 'all' .* last, every"),
        ({"schedule": "sequental"}, r"schedule 'sequental' .* did you mean 'sequential'"),
        ({"overlap.window": 3}, r"overlap.window must be .*, not 3"),
        ({"overlap.window": 0}, r"overlap.window must be .*, not 0"),
        ({"hybrid.every": -1}, r"hybrid.every must be at least 0, not -1"),
        ({"hybrid.share": 1.5}, r"hybrid.share must be from 0 to 1, not 1.5"),
        (
            {"distillation.weight": float("nan")},
            r"distillation.weight must be from 0 to 1, not nan",
        ),
        ({"distillation.decay": 1.0}, r"distillation.decay must be from 0 to below 1, not 1"),
        (
            {"strategy": "pipelined", "hybrid.every": 2},
            r"hybrid.every=2: under strategy=pipelined .*1F1B; set strategy=blockwise or streamed",
        ),
        ({"strategy": "pipelined", "overlap.window": 2}, r"set strategy=blockwise or streamed"),
        ({"strategy": "pipelined", "head.shared": True}, r"head.shared=True: under .*pipelined"),
        (
            {"strategy": "pipelined", "schedule": "sequential"},
            r"schedule=sequential: under .* idle",
        ),
        (
            {"mask.ratio": 0.25, "mask.schedule": "linear:0.5", "head.shared": True},
            r"head.shared=True runs all blocks in one loop.*set mask.schedule=constant",
        ),
        (
            {"head.shared": True, "hybrid.every": 2},
            r"head.shared=True and hybrid.every=2: .* set head.shared=False",
        ),
        (
            {"head.shared": True, "objective": "byol", "mask.ratio": None},
            r"head.shared=True: objective=byol keeps an average",
        ),
        (
            {
                "schedule": "sequential",
                "distillation.weight": 0.5,
                "distillation.teacher": "top",
            },
            r"schedule=sequential .*, and distillation.weight=0.5 needs later blocks",
        ),
        (
            {"schedule": "sequential", "hybrid.share": 0.1},
            r"and hybrid.share=0.1 needs later blocks",
        ),
        (
            {"overlap.alternate": True},
            r"model.depth=4 in blocks=4 gives each 1 layers; set overlap.alternate=False, or blocks",
        ),
        (
            {"overlap.alternate": True, "blocks": 2, "hybrid.every": 2},
            r"overlap.alternate=True and hybrid.every=2 are two ways",
        ),
        (
            {"overlap.alternate": True, "blocks": 2, "objective": "byol"},
            r"objective=byol keeps an average of each block's layers; set overlap.alternate=False",
        ),
        (
            {"overlap.alternate": True, "strategy": "pipelined", "blocks": 2},
            r"overlap.alternate=True: under strategy=pipelined .*; set strategy=blockwise",
        ),
        (
            {"schedule": "sequential", "overlap.window": 2},
            r"and overlap.window=2 needs later blocks",
        ),
    ],
)
def test_what_does_not_fit_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        resolved(**overrides)


def test_sequential_needs_a_step_for_each_block():
    config = resolved(schedule="sequential")
    with pytest.raises(ValueError, match=r"blocks=4 its part of 3 steps; set steps to at least 4"):
        config_lib.fill_lengths(config, 3)


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"strategy": "end_to_end", "pipeline.batches": 4},
            r"pipeline.batches=4 .* under strategy=end_to_end .*; set pipeline.batches=1",
        ),
        ({"hybrid.every": 2}, r"and hybrid.every=2 needs all blocks at the same batch"),
        ({"head.shared": True}, r"and head.shared=True needs all blocks"),
        ({"schedule": "sequential"}, r"and schedule=sequential needs all blocks"),
        (
            {"distillation.weight": 0.5, "distillation.teacher": "top"},
            r"and distillation.teacher=top needs all blocks .*; set pipeline.batches=1, or leave it",
        ),
        ({"mask.ratio": 0.25, "mask.schedule": "linear:0.75"}, r"set mask.schedule=constant, or"),
        ({"decoder.block_fractions": "1,1,1,0.5"}, r"leave it out, or set pipeline.batches=1"),
        (
            {"pipeline.batches": 1, "pipeline.host_streams": True},
            r"host_streams=True: .* set it to False, or pipeline.batches above 1 and strategy=",
        ),
        ({"pipeline.host_streams": True, "strategy": "pipelined"}, r"host_streams=True: .* False"),
    ],
)
def test_blocks_that_cannot_stay_for_several_batches(fields, message):
    with pytest.raises(ValueError, match=message):
        config_lib.resolve(
            tiny_config(**{"pipeline.batches": 4, **fields}), devices=1, platform="cpu"
        )


def test_nothing_is_coupled_unless_it_is_asked_for():
    assert couplings(tiny_config()) == []


@pytest.mark.parametrize("name", COUPLINGS)
def test_a_named_coupling_is_one_that_can_be_had(name):
    config = vary(tiny_config(**{"model.depth": 8}), f"blockwise+{name}")  # halves need two layers
    assert len(couplings(config_lib.resolve(config, devices=1, platform="cpu"))) == 1


def test_the_end_to_end_twins_of_a_config_whose_blocks_stay_do_not():
    config = tiny_config(**{"pipeline.batches": 4, "pipeline.host_streams": True})
    for strategy in ("end_to_end", "streamed_end_to_end"):
        twin = config_lib.resolve(vary(config, strategy), devices=1, platform="cpu")
        assert (twin.pipeline.batches, twin.pipeline.host_streams) == (1, False)
    stays = vary(tiny_config(), "streamed+stay7+host_streams")
    assert (stays.pipeline.batches, stays.pipeline.host_streams) == (7, True)


def test_the_end_to_end_twin_of_a_coupled_config_has_no_couplings():
    every = {field: value for fields in COUPLINGS.values() for field, value in fields.items()}
    twin = vary(tiny_config(**every), "end_to_end")
    assert couplings(twin) == []
    assert set(every) >= set(SWITCHES)
    config_lib.resolve(twin, devices=1, platform="cpu")
