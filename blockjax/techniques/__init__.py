"""Techniques: functions Block -> Block, applied between `Block(...)` and the driver."""

import ml_collections

from blockjax.extensions import chosen
from blockjax.models.vit import ViT
from blockjax.objectives import Objective
from blockjax.techniques.consistency import Agreement, Prediction
from blockjax.techniques.cross_block import WHICH, CrossBlock
from blockjax.techniques.distillation import TEACHERS, Distillation
from blockjax.techniques.noise import with_noise
from blockjax.techniques.technique import Technique

CONSISTENCIES = ("predictor", "agreement")


def make_techniques(
    config: ml_collections.ConfigDict, vit: ViT, objective: Objective, steps: int
) -> tuple[Technique, ...]:
    """Returns the techniques that a resolved config switches on, in the order in which they are applied to a block."""
    found = []
    if config.distillation.weight:
        found.append(
            Distillation(
                objective=objective,
                vit=vit,
                blocks=config.blocks,
                teacher=config.distillation.teacher,
                weight=config.distillation.weight,
                ramp=round(config.distillation.ramp * steps),
                decay=config.distillation.decay,
            )
        )
    if config.cross_block.blocks:
        found.append(
            CrossBlock(config.cross_block.blocks, config.cross_block.which, vit.width, vit.dtype)
        )
    if config.consistency.weight:
        weight = config.consistency.weight
        is_prediction = config.consistency.kind == "predictor"
        found.append(
            Prediction(weight, vit.width, vit.dtype) if is_prediction else Agreement(weight)
        )
    for technique in own_techniques(config):
        found.append(technique.from_config(config, vit, objective, steps))
    return tuple(found)


def own_techniques(config: ml_collections.ConfigDict) -> list[type[Technique]]:
    """Returns the classes that `techniques` names, `module:Name` with commas between.

    Raises:
      ValueError: there is no such class; says why.
    """
    names = [name.strip() for name in (config.techniques or "").split(",")]
    return [chosen("techniques", name, {}, Technique) for name in names if name]


__all__ = [
    "CONSISTENCIES",
    "TEACHERS",
    "WHICH",
    "Technique",
    "make_techniques",
    "own_techniques",
    "with_noise",
]
