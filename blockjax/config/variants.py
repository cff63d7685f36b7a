"""A strategy with options in one word, such as "end_to_end+remat": the rows of comparisons."""

import ml_collections

from blockjax.config.resolve import depth
from blockjax.objectives import TASKS

# With the same decoder, so that only the training differs. They stand in every comparison of memory.
BASELINES = ("end_to_end", "end_to_end+remat", "end_to_end+remat+accumulate4")
OPTIONS = "+remat, +accumulateN (N microbatches), +unroll, +mae_decoder (MAE's own: 8 layers of width 512, all patches)"


def baselines(config: ml_collections.ConfigDict) -> list[str]:
    """Returns those of `BASELINES` that the config's objective can have: microbatches need a mean over images."""
    objective = TASKS.get(config.objective)
    if objective is None or objective.means_over_images:
        return list(BASELINES)
    return [variant for variant in BASELINES if "accumulate" not in variant]


def vary(config: ml_collections.ConfigDict, variant: str) -> ml_collections.ConfigDict:
    """Returns a config under a strategy with options, such as "end_to_end+remat+accumulate4".

    Raises:
      ValueError: an unknown option.
    """
    config = config.copy_and_resolve_references()
    config.strategy, *options = variant.split("+")
    config.remat, config.microbatches, config.model.unroll = "none", 1, 1
    if config.strategy != "pipelined" and config.mesh.block != 1:
        config.mesh.block, config.mesh.data = 1, -1  # the others split the batch over all devices
    for option in options:
        if option == "remat":
            config.remat = "layer"
        elif option.startswith("accumulate") and option[10:].isdigit():
            config.microbatches = int(option[10:])
        elif option == "unroll":
            blocks = 1 if config.strategy == "end_to_end" else config.blocks
            config.model.unroll = depth(config) // blocks
        elif option == "mae_decoder":
            config.decoder.kind = "self_attention"
            config.decoder.depth, config.decoder.width, config.decoder.fraction = 8, 512, 1.0
        else:
            raise ValueError(
                f"strategy {variant!r}: option {option!r} is unknown; there is {OPTIONS}"
            )
    return config
