"""What the pages show: fenced blocks, inline code, and the command lines in them."""

import ast
import dataclasses
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHELLS = ("", "console", "bash", "sh", "shell")
# Right above a block, or the line of inline code.
_NOTE = re.compile(r"<!--\s*not run:\s*(.+?)\s*-->", re.S)
_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,}|~{3,})\s*(?P<language>[^`\s]*)[^`]*$")
_BUILT = ("_build", "notebooks", "jupyter_execute")


@dataclasses.dataclass(frozen=True)
class Code:
    """A piece of code on a page.

    Attributes:
      page: relative to the repository.
      line: from 1, of its first line.
      language: of a fence, "" where it names none; None for inline code.
      text: without fence and indent.
      not_run: why it is not run, or None.
    """

    page: str
    line: int
    language: str | None
    text: str
    not_run: str | None = None

    def __str__(self):
        return f"{self.page}:{self.line}"


def documentation() -> list[Path]:
    """README.md and all pages of docs/."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path for path in found if not set(_BUILT) & set(path.relative_to(ROOT).parts)]


def fences_of(page: str, text: str) -> tuple[list[Code], str]:
    """Returns the fenced blocks of a page, and its text with those blanked out."""
    lines, found, rest = text.splitlines(), [], []
    number = 0
    while number < len(lines):
        opened = _FENCE.match(lines[number])
        if not opened:
            rest.append(lines[number])
            number += 1
            continue
        start, body = number + 1, []
        ticks, indent = opened["ticks"], len(opened["indent"])
        number += 1
        while number < len(lines) and not re.fullmatch(
            rf" *{ticks[0]}{{{len(ticks)},}} *", lines[number]
        ):
            body.append(
                lines[number][indent:] if lines[number][:indent].isspace() else lines[number]
            )
            number += 1
        assert number < len(lines), f"{page}:{start}: a fence is not closed"
        code = "\n".join(body) + "\n"
        found.append(Code(page, start + 1, opened["language"], code, _note(lines, start - 1)))
        number += 1
        rest += [""] * (number - start + 1)
    return found, "\n".join(rest)


def inline_of(page: str, text: str) -> list[Code]:
    """Returns the inline code of a page without its fenced blocks; it may go over a line's end."""
    found = []
    for match in re.finditer(
        r"(?<!`)(`+)(?!`)((?:[^`\n]|\n(?!\s*\n)|(?!\1)`)+?)(?<!`)\1(?!`)", text
    ):
        line = text.count("\n", 0, match.start()) + 1
        code = " ".join(match[2].split())
        found.append(Code(page, line, None, code, _note(text.splitlines(), line - 1)))
    return found


def codes(path: Path) -> list[Code]:
    """Returns the blocks and the inline code of a page, or the indented blocks of a config's docstring."""
    page, text = str(path.relative_to(ROOT)), path.read_text()
    if path.suffix == ".py":
        text = ast.get_docstring(ast.parse(text), clean=True) or ""
        text = re.sub(r"((?:^    .*\n?)+)", r"```\n\1\n```\n", text, flags=re.M)
    fences, rest = fences_of(page, text)
    return fences + inline_of(page, rest)


def command_lines(code: Code) -> list[str]:
    """Returns the command lines of a shell block or of inline code, joined where a backslash ends a line.

    Where some lines begin with a prompt, "$ ", the others are what is printed.
    """
    lines = code.text.replace("\\\n", "").splitlines()
    prompted = [line for line in lines if line.startswith("$ ")]
    lines = [line.removeprefix("$ ").strip() for line in prompted or lines]
    lines = [line for line in lines if line and not line.startswith("#")]
    return [part.strip() for line in lines for part in re.split(r"\s&&\s|;\s", line)]


def words(line: str) -> list[str]:
    """Returns the words of a command line as a shell gives them to the command, without a comment."""
    return shlex.split(line, comments=True)


def _note(lines, index):
    """Returns the reason in a comment right above a line, past empty ones; None where there is none."""
    above = "\n".join(lines[max(0, index - 4) : index]).rstrip()
    found = [match for match in _NOTE.finditer(above) if match.end() == len(above)]
    return " ".join(found[-1][1].split()) if found else None
