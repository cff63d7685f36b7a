"""What a run wrote about itself, read again: config.json."""

import json
from pathlib import Path

import ml_collections

from blockjax.config.defaults import STRATEGIES
from blockjax.config.fields import check_fields, flatten, from_json
from blockjax.config.modality import is_text
from blockjax.config.resolve import check_sizes
from blockjax.extensions import NotAllowed, check_allowed, chosen
from blockjax.objectives import find_task

# Open in a config file, and filled in in every run's.
_FILLED = (
    *("model.width", "model.depth", "model.heads"),
    *("dtype", "optimizer.warmup_steps", "checkpoint.every"),
)
_KINDS = ("embedded", "tfds", "folder", "arrays", "text")  # of `data.source`
_OF_IMAGES, _OF_TEXT = ("decoder.heads",), ("model.context", "model.vocabulary")


def read_saved(path: Path) -> ml_collections.ConfigDict:
    """Returns the config that a run wrote to its config.json, with all that `resolve` filled in.

    Raises:
      ValueError: it cannot be read, is none, lacks a field that every run has, has values that fit no model, or names
        code that may not be imported, see `blockjax.extensions.check_allowed`.
    """
    try:
        config = from_json(json.loads(path.read_text()))
        check_fields(config)
        check_allowed(_names(config))
        task = find_task(config.objective)
        chosen("strategy", config.strategy, dict.fromkeys(STRATEGIES))
        of_modality = _OF_TEXT if is_text(config) else _OF_IMAGES
        needed = (*_FILLED, *of_modality, *task.defaults(config))
        found = flatten(config.to_dict())
        if missing := [field for field in needed if found[field] in (None, "auto")]:
            raise ValueError(f"it lacks {', '.join(missing)}, which the run had")
        check_sizes(config)
    except NotAllowed as error:
        raise ValueError(f"{path}: {error}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{path} cannot be read: {reason}; restore it, or choose another --workdir"
        ) from error
    return config


def _names(config):
    """Returns the values of fields that may name code of a user's own."""
    techniques = (config.techniques or "").split(",")
    source = config.data.source
    sources = [] if source.partition(":")[0] in _KINDS else [source]
    return [config.objective, config.strategy, config.decoder.kind, *techniques, *sources]
