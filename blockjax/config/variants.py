"""A strategy with options in one word, such as "end_to_end+remat": the rows of comparisons."""

import ml_collections

from blockjax.config.coupling import SWITCHES
from blockjax.config.fields import set_field
from blockjax.config.resolve import depth, layers_at_once
from blockjax.objectives import find_task
from blockjax.strategies import END_TO_END

# With the same decoder, so that only the training differs. They stand in every comparison of memory.
BASELINES = ("end_to_end", "end_to_end+remat", "end_to_end+remat+accumulate4")
# Couplings of blocks by name, each with the strength from which to start.
COUPLINGS = {
    "predictor": {"consistency.weight": 0.05},
    "agreement": {"consistency.weight": 0.05, "consistency.kind": "agreement"},
    "ladder": {"distillation.weight": 0.5},
    "top": {"distillation.weight": 0.2, "distillation.teacher": "top"},
    "cross_block": {"cross_block.blocks": 1, "cross_block.which": "first"},
    "hybrid": {"hybrid.every": 10},
    "hybrid_end": {"hybrid.share": 0.1},
    "every_loss": {"hybrid.every": 1, "hybrid.losses": "every"},
    "window": {"overlap.window": 2},
    "alternate": {"overlap.alternate": True},
    "shared_head": {"head.shared": True},
    "sequential": {"schedule": "sequential"},
}
REMATERIALISATIONS = {"remat": "layer", "nested_remat": "nested", "offload": "offload"}
OPTIONS = (
    "+remat, +nested_remat, +offload (inputs of layers in host memory), +accumulateN (N microbatches), "
    "+stayM (blocks stay for M batches), +host_streams (of these, in host memory), "
    "+host_states (optimizer states in host memory, of end_to_end), +unroll, "
    "+mae_decoder (MAE's own: 8 layers of width 512, all patches), "
    f"and of blocks: {', '.join('+' + name for name in COUPLINGS)}"
)


def baselines(config: ml_collections.ConfigDict) -> list[str]:
    """Returns those of `BASELINES` that the config's objective can have: microbatches need a mean over images."""
    if find_task(config.objective).means_over_images:
        return list(BASELINES)
    return [variant for variant in BASELINES if "accumulate" not in variant]


def vary(config: ml_collections.ConfigDict, variant: str) -> ml_collections.ConfigDict:
    """Returns a config under a strategy with options, such as "end_to_end+remat+accumulate4".

    What another strategy cannot have of the config's own settings is set back.

    Raises:
      ValueError: an unknown option.
    """
    config = config.copy_and_resolve_references()
    config.strategy, *options = variant.split("+")
    config.remat, config.microbatches, config.model.unroll = "none", 1, 1
    config.optimizer.in_host_memory = False
    if config.strategy != "pipelined" and config.mesh.block != 1:
        config.mesh.block, config.mesh.data = 1, -1  # the others split the batch over all devices
    if config.strategy in END_TO_END:  # its only block has nothing to be coupled with
        for field, off in SWITCHES.items():
            set_field(config, field, off)
        config.pipeline.batches, config.pipeline.host_streams = 1, False
    for option in options:
        if option in COUPLINGS:
            for field, value in COUPLINGS[option].items():
                set_field(config, field, value)
        elif option in REMATERIALISATIONS:
            config.remat = REMATERIALISATIONS[option]
        elif option.startswith("accumulate") and option[10:].isdigit():
            config.microbatches = int(option[10:])
        elif option.startswith("stay") and option[4:].isdigit():
            config.pipeline.batches = int(option[4:])
        elif option == "host_streams":
            config.pipeline.host_streams = True
        elif option == "host_states":
            config.optimizer.in_host_memory = True
        elif option == "unroll":
            config.model.unroll = layers_at_once(config, depth(config))
        elif option == "mae_decoder":
            config.decoder.kind = "self_attention"
            config.decoder.depth, config.decoder.width, config.decoder.fraction = 8, 512, 1.0
        else:
            raise ValueError(
                f"strategy {variant!r}: option {option!r} is unknown; there is {OPTIONS}"
            )
    return config
