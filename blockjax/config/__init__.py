"""Configs: every field and its default, what is filled in and checked, files, fields by name, recipes."""

from blockjax.config.defaults import DTYPES, REMATS, STRATEGIES, default_config
from blockjax.config.fields import (
    check_field,
    check_fields,
    differences,
    from_json,
    set_field,
    to_json,
)
from blockjax.config.files import config_names, load_config, parse_argument
from blockjax.config.resolve import (
    check_encoder,
    check_sizes,
    depth,
    fill_lengths,
    resolve,
    total_steps,
)
from blockjax.config.saved import read_saved

__all__ = [
    "DTYPES",
    "REMATS",
    "STRATEGIES",
    "check_encoder",
    "check_field",
    "check_fields",
    "check_sizes",
    "config_names",
    "default_config",
    "depth",
    "differences",
    "fill_lengths",
    "from_json",
    "load_config",
    "parse_argument",
    "read_saved",
    "resolve",
    "set_field",
    "to_json",
    "total_steps",
]
