"""How the blocks are driven: train steps with one signature, `(state, batch, rng) -> (state, metrics)`."""

from blockjax.sharding.memory_spaces import host_memory_kinds
from blockjax.strategies.backpropagated import backpropagated
from blockjax.strategies.block import Block, block_key, block_update, with_stem
from blockjax.strategies.blockwise import blockwise
from blockjax.strategies.end_to_end import end_to_end
from blockjax.strategies.host_loop import HostLoop, host_loop
from blockjax.strategies.pipelined import pipelined
from blockjax.strategies.sequential import sequential
from blockjax.strategies.state import BlockState, TrainState, init_block_state, init_state
from blockjax.strategies.staying import staying
from blockjax.strategies.streamed import streamed
from blockjax.strategies.streamed_end_to_end import streamed_end_to_end

END_TO_END = ("end_to_end", "streamed_end_to_end")  # with one loss
# Of gradient-isolated blocks; each is `(blocks, *, stem, prepare) -> train_step`.
DRIVERS = {
    "blockwise": blockwise,
    "streamed": streamed,
    "pipelined": pipelined,
}

__all__ = [
    "DRIVERS",
    "END_TO_END",
    "Block",
    "BlockState",
    "HostLoop",
    "TrainState",
    "backpropagated",
    "block_key",
    "block_update",
    "blockwise",
    "end_to_end",
    "host_loop",
    "host_memory_kinds",
    "init_block_state",
    "init_state",
    "pipelined",
    "sequential",
    "staying",
    "streamed",
    "streamed_end_to_end",
    "with_stem",
]
