"""Objectives: pretext tasks. Each says how images become encoder inputs and targets, and what a block's loss is."""

from blockjax.extensions import chosen
from blockjax.objectives.classification import Classification
from blockjax.objectives.masked.beit import Beit
from blockjax.objectives.masked.mae import MaskedAutoencoder
from blockjax.objectives.objective import Objective
from blockjax.objectives.rotation import Rotation
from blockjax.objectives.text.masked_token import MaskedToken
from blockjax.objectives.text.next_token import NextToken
from blockjax.objectives.tiles.context import ContextPrediction
from blockjax.objectives.tiles.jigsaw import Jigsaw
from blockjax.objectives.two_view.barlow_twins import BarlowTwins
from blockjax.objectives.two_view.byol import BYOL
from blockjax.objectives.two_view.moco import MoCo
from blockjax.objectives.two_view.simclr import SimCLR
from blockjax.objectives.two_view.vicreg import VICReg

OBJECTIVES = {
    "mae": MaskedAutoencoder,
    "beit": Beit,
    "rotation": Rotation,
    "jigsaw": Jigsaw,
    "context": ContextPrediction,
    "simclr": SimCLR,
    "moco": MoCo,
    "byol": BYOL,
    "barlow_twins": BarlowTwins,
    "vicreg": VICReg,
}

# Of text, by the same name as in configs.
TEXT_OBJECTIVES = {"next_token": NextToken, "masked_token": MaskedToken}

# What a run may train on: pretext tasks of images, labels, and text.
TASKS = {**OBJECTIVES, "classification": Classification, **TEXT_OBJECTIVES}


def find_task(name: str) -> type[Objective]:
    """Returns the objective of this name, or your own, `module:Name`.

    Raises:
      ValueError: there is none; says why.
    """
    return chosen("objective", name, TASKS, Objective)


__all__ = ["OBJECTIVES", "TASKS", "TEXT_OBJECTIVES", "Objective", "find_task"]
