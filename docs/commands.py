"""Writes reference/commands.md: every command with its flags, from the parsers themselves.

python docs/commands.py
"""

import argparse
import contextlib
import importlib
import inspect
import re
import textwrap
from pathlib import Path
from unittest import mock

from absl import flags
from marks import marked

PAGE = Path(__file__).parent / "reference" / "commands.md"
COMMANDS = (
    *("main", "finetune", "compare", "evaluate", "export", "reconstruct", "sample", "gallery"),
    *("diagram", "memory", "benchmark", "data.prepare"),
)
_HEAD = """# Commands

Each is a module, run by `python -m blockjax.NAME`; `blockjax` is short for `python -m blockjax.main`. A config is
always a file, or the name of one that comes with blockjax (`quickstart`; `bim:model=b16` with an argument).
[Configuration](configuration.md) lists what `--config.FIELD=VALUE` can change.
"""
_MAIN = """Trains a config, and goes on where a run of the same workdir was stopped.

    python -m blockjax.main --config CONFIG [--workdir FOLDER] [--config.FIELD=VALUE ...]

It says what it will do before it starts, and ends with probes of every block, a table and pictures."""


def parser_of(command: str) -> argparse.ArgumentParser:
    """Returns the parser that a command makes, as it is when it reads the command line."""
    module = importlib.import_module(_module(command))
    found = []

    def take(parser, *args, **kwargs):
        found.append(parser)
        raise SystemExit

    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", take),
        mock.patch.object(argparse.ArgumentParser, "parse_known_args", take),
        contextlib.suppress(SystemExit),
    ):
        module.main()
    return found[0]


def flags_of(command: str) -> list[tuple[str, str]]:
    """Returns the flags of a command, each with what it says of itself."""
    if command in ("main", "finetune"):  # they share the flags of absl
        importlib.import_module("blockjax.main")
        return [
            (f"--{flag.name}", _said(flag.help, flag.default, False))
            for flag in flags.FLAGS.get_key_flags_for_module("blockjax.main")
        ]
    parser, found = parser_of(command), []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        name = ", ".join(action.option_strings) or (action.metavar or action.dest)
        if action.nargs != 0 and action.option_strings:
            name += f" {action.metavar or action.dest.upper()}"
        text = (action.help or "") % {**vars(action), "prog": parser.prog}
        if action.choices:
            text = f"{text}; one of {', '.join(action.choices)}".removeprefix("; ")
        found.append((name, _said(text, action.default, action.required)))
    return found


def page() -> str:
    """Returns the page."""
    parts = [_HEAD]
    for command in COMMANDS:
        text, epilog = _MAIN, None
        if command != "main":
            text = inspect.cleandoc(importlib.import_module(_module(command)).__doc__)
        if command not in ("main", "finetune"):
            epilog = parser_of(command).epilog
        parts.append(f"## {command}\n\n{_markdown(text)}\n")
        if command == "finetune":
            continue
        rows = [f"| `{name}` | {marked(text)} |" for name, text in flags_of(command)]
        parts.append("\n".join(["| Flag | What it is |", "|---|---|", *rows, ""]))
        if epilog:
            lines = re.sub(r"\n +", " ", epilog.strip()).splitlines()
            lines = [textwrap.fill(line, 100, subsequent_indent="  ") for line in lines]
            parts.append("\n".join(["```text", *lines, "```", ""]))
    return "\n".join(parts).rstrip() + "\n"


def _module(command):
    return f"blockjax.{command}" + (".__main__" if command in ("memory", "benchmark") else "")


def _said(text, default, required):
    """Returns what a flag says, with its default."""
    if required:
        return f"{text} (required)".strip()
    if default in (None, "", False) or default == [] or "default" in text.lower():
        return text
    return f"{text} (default: {default})".strip()


def _markdown(text):
    """Returns a module's description, whose indented parts are commands, as Markdown."""
    parts = re.split(r"((?:^    .*\n?)+)", text, flags=re.M)
    parts[::2] = map(marked, parts[::2])
    parts[1::2] = [f"```bash\n{textwrap.dedent(part).rstrip()}\n```\n" for part in parts[1::2]]
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
