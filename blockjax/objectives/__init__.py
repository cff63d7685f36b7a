"""Objectives: pretext tasks. Each says how images become encoder inputs and targets, and what a block's loss is."""

from blockjax.objectives.barlow_twins import BarlowTwins
from blockjax.objectives.beit import Beit
from blockjax.objectives.byol import BYOL
from blockjax.objectives.classification import Classification
from blockjax.objectives.context import ContextPrediction
from blockjax.objectives.jigsaw import Jigsaw
from blockjax.objectives.mae import MaskedAutoencoder
from blockjax.objectives.moco import MoCo
from blockjax.objectives.objective import Objective
from blockjax.objectives.rotation import Rotation
from blockjax.objectives.simclr import SimCLR
from blockjax.objectives.vicreg import VICReg

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

# What a run may train on: pretext tasks, and labels.
TASKS = {**OBJECTIVES, "classification": Classification}

__all__ = ["OBJECTIVES", "TASKS", "Objective"]
