"""The nearest config that needs less memory."""

import pytest

from blockjax import config as config_lib
from blockjax.memory.frugal import frugal_changes
from tests.tiny import tiny_config

REMAT, CUT = {"remat": "layer"}, {"remat": "layer", "microbatches": 16}
WHOLE = {**CUT, "strategy": "blockwise", "blocks": 4}
BLOCKS = {"strategy": "blockwise", "blocks": 4, "optimizer.in_host_memory": False}
HOST = {**WHOLE, "strategy": "streamed"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"strategy": "end_to_end", "batch_size": 64},
            [REMAT, {**REMAT, "microbatches": 4}, CUT, WHOLE, HOST,
             {**HOST, "batch_size": 16}, {**HOST, "microbatches": 4, "batch_size": 4}],
        ),
        (  # What is done already is not proposed; batches divide over 2 devices and the microbatches.
            {"remat": "layer", "blocks": 4, "microbatches": 4, "batch_size": 48, "mesh.data": -1},
            [{"strategy": "streamed"},
             {"strategy": "streamed", "microbatches": 2, "batch_size": 12},
             {"strategy": "streamed", "microbatches": 1, "batch_size": 2}],
        ),
        (  # Optimizer states alone are in host memory end to end only.
            {"strategy": "end_to_end", "remat": "layer", "optimizer.in_host_memory": True},
            [{"microbatches": 4}, {"microbatches": 4, **BLOCKS}, {"microbatches": 4, **BLOCKS, "strategy": "streamed"},
             {"microbatches": 2, **BLOCKS, "strategy": "streamed", "batch_size": 2}],
        ),
        (  # States are spread already, and must stay so.
            {"remat": "layer", "blocks": 2, "batch_size": 2, "strategy": "pipelined", "mesh.block": 2},
            [{"blocks": 4}],
        ),
        (  # Not in parts of a batch, of whose statistics the readout makes use.
            {"objective": "rotation", "head.readout": "cbe_gap", "remat": "layer", "blocks": 4},
            [{"strategy": "streamed"},
             {"strategy": "streamed", "microbatches": 1, "batch_size": 2}],
        ),
        (  # With another readout the loss is a mean over images.
            {"objective": "rotation", "head.readout": "gap", "remat": "layer", "blocks": 4},
            [{"microbatches": 4}, {"microbatches": 4, "strategy": "streamed"},
             {"microbatches": 2, "strategy": "streamed", "batch_size": 2}],
        ),
    ],
)  # fmt: skip
def test_frugal_changes_are_valid_configs_that_leave_the_most_alone_first(fields, expected):
    devices = 2 if fields.keys() & {"mesh.data", "mesh.block"} else 1
    config = config_lib.resolve(tiny_config(**fields), devices=devices, platform="cpu")
    changes = frugal_changes(config, devices)
    assert changes == expected
    for change in changes:
        changed = config.copy_and_resolve_references()
        for field, value in change.items():
            config_lib.set_field(changed, field, value)
        config_lib.resolve(changed, devices=devices, platform="cpu")
