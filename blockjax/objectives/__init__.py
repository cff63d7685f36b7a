"""Objectives: pretext tasks. Each says how images become encoder inputs and targets, and what a block's loss is."""

from blockjax.objectives.mae import MaskedAutoencoder

OBJECTIVES = {"mae": MaskedAutoencoder}

__all__ = ["OBJECTIVES", "MaskedAutoencoder"]
