"""What a run wrote about itself, read again: config.json."""

import json
from pathlib import Path

import ml_collections

from blockjax.checks import one_of
from blockjax.config.defaults import STRATEGIES
from blockjax.config.fields import check_fields, flatten, from_json
from blockjax.config.modality import is_text
from blockjax.config.resolve import check_sizes
from blockjax.objectives import TASKS

# Open in a config file, and filled in in every run's.
_FILLED = (
    *("model.width", "model.depth", "model.heads"),
    *("dtype", "optimizer.warmup_steps", "checkpoint.every"),
)
_OF_IMAGES, _OF_TEXT = ("decoder.heads",), ("model.context", "model.vocabulary")


def read_saved(path: Path) -> ml_collections.ConfigDict:
    """Returns the config that a run wrote to its config.json, with all that `resolve` filled in.

    Raises:
      ValueError: it cannot be read, is none, lacks a field that every run has, or has values that fit no model.
    """
    try:
        config = from_json(json.loads(path.read_text()))
        check_fields(config)
        one_of("objective", config.objective, TASKS)
        one_of("strategy", config.strategy, STRATEGIES)
        of_modality = _OF_TEXT if is_text(config) else _OF_IMAGES
        needed = (*_FILLED, *of_modality, *TASKS[config.objective].defaults(config))
        found = flatten(config.to_dict())
        if missing := [field for field in needed if found[field] in (None, "auto")]:
            raise ValueError(f"it lacks {', '.join(missing)}, which the run had")
        check_sizes(config)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{path} cannot be read: {reason}; restore it, or choose another --workdir"
        ) from error
    return config
