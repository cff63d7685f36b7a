"""Which couplings of blocks go together, and with which strategy, objective and number of blocks."""

import ml_collections

from blockjax.checks import Bound, one_of
from blockjax.config.defaults import STRATEGIES
from blockjax.objectives import TASKS, find_task
from blockjax.strategies import END_TO_END
from blockjax.techniques import CONSISTENCIES, TEACHERS, WHICH

SCHEDULES = ("simultaneous", "sequential")
LOSSES = ("last", "every")
TRAINED_BY = ("all", "last")  # blocks train a head that they share

BOUNDS = {
    "consistency.weight": Bound(0, 1e3),
    "distillation.weight": Bound(0, 1),
    "distillation.ramp": Bound(0, 1),
    "distillation.decay": Bound(0, 1, below=True),
    "cross_block.blocks": Bound(0, 2**16),
    "hybrid.every": Bound(0, 2**31 - 1),
    "hybrid.share": Bound(0, 1),
    "overlap.window": Bound(1, 2),
}
# What couples blocks, by the field that switches it on, and the value at which it is off.
SWITCHES = {
    "consistency.weight": 0,
    "distillation.weight": 0,
    "cross_block.blocks": 0,
    "hybrid.every": 0,
    "hybrid.share": 0,
    "overlap.window": 1,
    "overlap.alternate": False,
    "head.shared": False,
    "schedule": "simultaneous",
}


# Of those, what changes how the blocks are driven.
_DRIVEN = ("hybrid", "overlap", "head", "schedule")


def couplings(config: ml_collections.ConfigDict) -> list[str]:
    """Returns the fields by which blocks are coupled, "consistency.weight=0.1"."""
    found = {field: _value(config, field) for field in SWITCHES}
    return [f"{field}={value}" for field, value in found.items() if value != SWITCHES[field]]


def check_coupling(config: ml_collections.ConfigDict) -> None:
    """Checks a config that is fully resolved.

    Raises:
      ValueError: a coupling that strategy, objective, number of blocks or another coupling cannot have; says what would
        fit.
    """
    one_of("consistency.kind", config.consistency.kind, CONSISTENCIES)
    one_of("distillation.teacher", config.distillation.teacher, TEACHERS)
    one_of("cross_block.which", config.cross_block.which, WHICH)
    one_of("hybrid.losses", config.hybrid.losses, LOSSES)
    one_of("schedule", config.schedule, SCHEDULES)
    one_of("head.trained_by", config.head.trained_by, TRAINED_BY)
    _check_trained_by(config.head)
    chosen = couplings(config)
    if not chosen:
        return
    field = chosen[0].partition("=")[0]
    off = f"set {field}={SWITCHES[field]}"
    if config.strategy in END_TO_END:
        raise ValueError(
            f"{chosen[0]} couples blocks, and strategy={config.strategy} has one only; {off}, or strategy=blockwise"
        )
    if config.blocks == 1:
        raise ValueError(
            f"{chosen[0]} couples blocks, and blocks=1 is one only; {off}, or a larger blocks"
        )
    if config.cross_block.blocks >= config.blocks:
        raise ValueError(
            f"cross_block.blocks={config.cross_block.blocks}: the last of blocks={config.blocks} has only "
            f"{config.blocks - 1} before it; set it to at most that"
        )
    if config.distillation.weight:
        _check_distillation(config)
    if config.consistency.weight and config.consistency.kind == "agreement":
        _check_agreement(config)
    _check_loops(config)


def differing_blocks(config: ml_collections.ConfigDict) -> str | None:
    """Says why blocks, on arrays of different shapes, cannot run in one loop, and what to set; None where they can."""
    if config.mask.schedule != "constant":
        return f"mask.schedule {config.mask.schedule!r} drops tokens between blocks; set mask.schedule=constant"
    fractions = config.decoder.block_fractions
    if fractions is not None and len(set(fractions.split(","))) > 1:
        return f"decoder.block_fractions={fractions} lets blocks decode different numbers of patches; leave it out"
    return None


def check_stay(config: ml_collections.ConfigDict) -> None:
    """Checks whether blocks can train on several batches one after another, each block before the next.

    Raises:
      ValueError: the strategy or a coupling needs all blocks at the same batch; or streams change their shape.
    """
    batches = config.pipeline.batches
    if config.pipeline.host_streams and (batches == 1 or config.strategy == "pipelined"):
        raise ValueError(
            "pipeline.host_streams=True: streams wait in host memory only where a block stays for several batches; "
            f"set it to False, or pipeline.batches above {batches} and strategy=blockwise or streamed"
        )
    if batches == 1 or config.strategy == "pipelined":
        return
    given = f"pipeline.batches={batches} lets a block train on {batches} batches before the next one does"
    if config.strategy not in STRATEGIES:
        raise ValueError(
            f"{given}, and strategy={config.strategy} is a driver for one batch; set pipeline.batches=1, or "
            "strategy=blockwise"
        )
    if config.strategy in END_TO_END:
        raise ValueError(
            f"{given}, and under strategy={config.strategy} gradients come back through all layers for each batch; set "
            "pipeline.batches=1, or strategy=blockwise"
        )
    crossing = [text for text in couplings(config) if text.startswith(_DRIVEN)]
    if config.distillation.weight and config.distillation.teacher == "top":
        crossing.append("distillation.teacher=top")
    if crossing:
        raise ValueError(
            f"{given}, and {crossing[0]} needs all blocks at the same batch; set pipeline.batches=1, or leave it out"
        )
    if differs := differing_blocks(config):
        raise ValueError(f"{given}, in one loop, and {differs}, or set pipeline.batches=1")


def _check_distillation(config):
    chosen = config.distillation
    if find_task(config.objective).predicted_width is None:
        fitting = ", ".join(name for name, task in TASKS.items() if task.predicted_width)
        raise ValueError(
            f"distillation.weight={chosen.weight:g}: heads learn what another block makes of masked patches, and "
            f"objective={config.objective} predicts none; set it to 0, or objective to one of {fitting}"
        )
    if chosen.teacher == "top" and config.strategy == "pipelined":
        raise ValueError(
            "distillation.teacher=top: under strategy=pipelined lower blocks have trained on later batches when the "
            "top block comes to a batch; set distillation.teacher=ladder, or strategy=blockwise"
        )


def _check_agreement(config):
    if config.loss.implementation not in (None, "xla"):
        raise ValueError(
            "consistency.kind=agreement takes the gradient of a gradient, which loss.implementation="
            f"{config.loss.implementation} does not have; set loss.implementation=xla, or consistency.kind=predictor"
        )


def _check_loops(config):
    """Checks what changes how the blocks are driven."""
    crossing = [text for text in couplings(config) if text.startswith(_DRIVEN)]
    if not crossing:
        return
    if config.strategy not in STRATEGIES:
        raise ValueError(
            f"{crossing[0]} drives the blocks in a way of its own, and so does strategy={config.strategy}; set "
            "strategy=blockwise, or leave it out"
        )
    if config.strategy == "pipelined":
        reasons = {
            "hybrid": "gradients that come back would need a schedule such as 1F1B",
            "overlap": "a gradient that comes back to the stage before would find it at another batch",
            "head": "stages are at different batches, and so cannot train one head on the same batch",
            "schedule": "stages whose blocks are frozen, or not yet there, would idle",
        }
        reason = next(reasons[name] for name in reasons if crossing[0].startswith(name))
        raise ValueError(
            f"{crossing[0]}: under strategy=pipelined {reason}; set strategy=blockwise or streamed"
        )
    if differs := differing_blocks(config):
        raise ValueError(f"{crossing[0]} runs all blocks in one loop, and {differs}")
    if config.schedule == "sequential":
        _check_sequential(config)
    if config.overlap.alternate:
        _check_alternate(config)
    if config.head.shared and any(text.startswith(("hybrid", "overlap")) for text in crossing):
        raise ValueError(
            f"head.shared=True and {crossing[0]}: the loop that goes back through the blocks has a head for each; set "
            "head.shared=False"
        )
    if config.head.shared:
        _check_no_average(config, "head.shared", "head")


def _check_trained_by(head):
    if head.trained_by == "last" and not head.shared:
        raise ValueError(
            "head.trained_by=last is for a head that all blocks share; set head.shared=True, or head.trained_by=all"
        )
    if head.refresh > 1 and head.trained_by != "last":
        raise ValueError(
            f"head.refresh={head.refresh} is for a copy of the last block's head; set head.trained_by=last, or "
            "head.refresh=1"
        )


def _check_no_average(config, field, of):
    task = find_task(config.objective)
    if task.begin is not None or task.finish is not None:
        raise ValueError(
            f"{field}=True: objective={config.objective} keeps an average of each block's {of}; set {field}=False"
        )


def _check_alternate(config):
    layers = config.model.depth // config.blocks
    if layers % 2:
        raise ValueError(
            f"overlap.alternate=True puts boundaries in the middle of blocks, and model.depth={config.model.depth} in "
            f"blocks={config.blocks} gives each {layers} layers; set overlap.alternate=False, or blocks so that the "
            "layers of each are even"
        )
    others = [text for text in couplings(config) if text.startswith(("hybrid", "overlap.window"))]
    if others:
        raise ValueError(
            f"overlap.alternate=True and {others[0]} are two ways to cross boundaries; set one of them only"
        )
    _check_no_average(config, "overlap.alternate", "layers")


def _check_sequential(config):
    others = [
        text
        for text in couplings(config)
        if text.startswith(("hybrid", "overlap", "head")) or text.startswith("distillation")
    ]
    if config.distillation.weight and config.distillation.teacher == "ladder":
        others = [text for text in others if not text.startswith("distillation")]
    if others:
        raise ValueError(
            f"schedule=sequential trains one block after the other, and {others[0]} needs later blocks; set "
            "schedule=simultaneous, or leave it out"
        )


def _value(config, field):
    for name in field.split("."):
        config = config[name]
    return config
