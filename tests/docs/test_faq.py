"""The FAQ quotes messages that the code still has."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FAQ = ROOT / "docs" / "faq.md"
QUOTED = re.findall(r"```text\n(.*?)\n```", FAQ.read_text(), flags=re.S)


def _text(node):
    """Returns a string of the source, "…" for what is filled in; None of another expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[-.\w]*[sd]", "…", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            _text(part) if isinstance(part, ast.Constant) else "…" for part in node.values
        )
    return None


@pytest.fixture(scope="module")
def messages():
    found = set()
    for path in (ROOT / "blockjax").rglob("*.py"):
        tree = ast.parse(path.read_text())
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
        }
        found |= {_text(node) for node in ast.walk(tree) if id(node) not in docstrings}
    return found - {None}


def test_some_are_quoted():
    assert len(QUOTED) >= 20


@pytest.mark.parametrize("quoted", QUOTED)
def test_is_what_the_code_says(quoted, messages):
    assert re.search(r"\w{3,}", quoted)
    parts = [re.escape(part) for part in quoted.split("…")]
    pattern = re.compile(".*?".join(parts), flags=re.S)
    assert any(pattern.search(message) for message in messages)
