"""The train steps of a config: one, or two of which each step takes one."""

from typing import Any

import jax
import ml_collections

from blockjax.extensions import chosen
from blockjax.sharding.rules import gathered
from blockjax.strategies import (
    DRIVERS,
    backpropagated,
    end_to_end,
    sequential,
    staying,
    streamed_end_to_end,
)
from blockjax.strategies.sequential import trained_block


def programs(
    config: ml_collections.ConfigDict, blocks: list, parts: dict[str, Any], steps: int
) -> dict[str, Any]:
    """Returns the fields of a `Learner` that say what it runs in which step.

    Args:
      config: resolved.
      blocks: one `Block` for each block.
      parts: what else drivers take: stem, prepare, sweep.
      steps: of the run.
    """
    if config.strategy == "end_to_end":
        return {"train_step": end_to_end(*blocks, **parts)}
    if config.strategy == "streamed_end_to_end":
        return {"train_step": streamed_end_to_end(*blocks, config.model.depth, **parts)}
    in_host_memory = config.strategy == "streamed"
    if config.strategy != "pipelined" and config.pipeline.batches > 1:
        step = staying(
            blocks,
            **parts,
            gather=gathered,
            in_host_memory=in_host_memory,
            streams_in_host_memory=config.pipeline.host_streams,
        )
        return {"train_step": step}
    if config.schedule == "sequential":
        first = sequential(blocks, **parts, steps=steps, in_host_memory=in_host_memory)

        def trained(step):
            block = trained_block(step, steps, config.blocks)
            return block, step + block * steps // -config.blocks  # its first step, rounded up

        return {"train_step": first, "trained": trained}
    if config.overlap.window == 2:
        first = backpropagated(
            blocks, **parts, every_loss=True, one_boundary=True, in_host_memory=in_host_memory
        )
    else:
        first = chosen("strategy", config.strategy, DRIVERS)(blocks, **parts)
    if config.overlap.alternate:
        return {
            "train_step": first,
            "other_step": backpropagated(
                blocks, **parts, every_loss=True, halves=_halves, in_host_memory=in_host_memory
            ),
            "takes_other": lambda step: bool(step % 2),
            "other_share": steps // 2 / steps,
            "program_names": (config.strategy, "boundaries in the middle of blocks"),
        }
    hybrid = config.hybrid
    if not hybrid.every and not hybrid.share:
        return {"train_step": first}
    last = round(hybrid.share * steps)

    def takes_other(step):
        is_turn = hybrid.every and (step + 1) % hybrid.every == 0
        return bool(is_turn) or step >= steps - last

    every_loss = hybrid.losses == "every"
    other = backpropagated(blocks, **parts, every_loss=every_loss, in_host_memory=in_host_memory)
    return {
        "train_step": first,
        "other_step": other,
        "takes_other": takes_other,
        "other_share": sum(map(takes_other, range(steps))) / steps,
        "program_names": (config.strategy, "backpropagation across blocks"),
    }


def _halves(params):
    """Returns a block's parameters twice, each with one half of its layers."""

    def with_layers(part):
        return {**params, "layers": jax.tree.map(part, params["layers"])}

    return (
        with_layers(lambda leaf: leaf[: len(leaf) // 2]),
        with_layers(lambda leaf: leaf[len(leaf) // 2 :]),
    )
