"""The training loop and all that a run does around a step."""
