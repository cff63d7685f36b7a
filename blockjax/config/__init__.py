"""Configs: every field and its default, what is filled in and checked, files, fields by name, recipes."""

from blockjax.config.defaults import DTYPES, REMATS, STRATEGIES, default_config
from blockjax.config.fields import (
    check_field,
    differences,
    from_json,
    read_saved,
    set_field,
    to_json,
)
from blockjax.config.files import load_config, parse_argument
from blockjax.config.resolve import depth, fill_lengths, resolve, total_steps

__all__ = [
    "DTYPES",
    "REMATS",
    "STRATEGIES",
    "check_field",
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
