"""How the blocks are driven: train steps with one signature, `(state, batch, rng) -> (state, metrics)`."""

from blockjax.strategies.block import Block, BlockState, block_update, with_stem
from blockjax.strategies.blockwise import blockwise
from blockjax.strategies.end_to_end import end_to_end

__all__ = ["Block", "BlockState", "block_update", "blockwise", "end_to_end", "with_stem"]
