"""Every Python block of the pages runs, from the first to the last of a page, in one namespace.

A block is left out where a comment right above it says why, <!-- not run: it needs a TPU -->. A block that begins with
a comment of a file's name, # denoise.py, is written to that file and imported from there.
What a page uses without defining it is in `names` of the conftest; runs that it opens are tiny ones.
"""

import importlib
import re
import sys

import numpy as np
import pytest

from blockjax.training.run import Training
from tests.docs.conftest import shrunk
from tests.docs.pages import ROOT, codes, documentation

# Of extras for comparison with other libraries.
_OPTIONAL = ("torch", "transformers", "timm", "sklearn", "matplotlib_inline")
_FILE = re.compile(r"# (\w+)\.py\n")


def snippets(path):
    return [code for code in codes(path) if code.language in ("python", "py", "pycon")]


def page(path):
    found = snippets(path)
    trains = any(re.search("runs/|exported", code.text) for code in found if not code.not_run)
    marks = [pytest.mark.slow] if trains else []
    return pytest.param(path, id=str(path.relative_to(ROOT)), marks=marks)


PAGES = [path for path in documentation() if snippets(path)]


@pytest.fixture
def modules(monkeypatch):
    """Forgets the modules that a page defines."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if "site-packages" not in (getattr(sys.modules[name], "__file__", None) or "site-packages"):
            del sys.modules[name]


@pytest.mark.parametrize("path", [page(path) for path in PAGES])
def test_blocks_of_a_page_run(path, place, names, modules, monkeypatch):
    found = [code for code in snippets(path) if not code.not_run]
    for package in _OPTIONAL:
        if any(re.search(rf"^\s*(import|from) {package}\b", c.text, re.M) for c in found):
            pytest.importorskip(package)
    init = Training.__init__
    monkeypatch.setattr(
        Training, "__init__", lambda self, config, workdir: init(self, shrunk(config), workdir)
    )
    folder = place("\n".join(code.text for code in found))
    names["__name__"] = "snippet"
    for code in found:
        if name := _FILE.match(code.text):
            (folder / f"{name[1]}.py").write_text(code.text)
            importlib.invalidate_caches()
            names |= vars(importlib.import_module(name[1]))
            continue
        text = "\n" * (code.line - 1) + code.text  # so that errors name the page's line
        exec(compile(text, str(ROOT / code.page), "exec"), names)


def test_a_block_of_ones_own():
    """The example of block-wise training without ViT: short, and its losses fall from block to block."""
    texts = {code.text for path in PAGES for code in snippets(path)}
    (text,) = [text for text in texts if "# three blocks, stacked" in text]
    assert len([line for line in text.splitlines() if line.strip()]) <= 25
    names = {}
    exec(text, names)
    last = names["metrics"]["loss"]
    jax, x = names["jax"], names["x"]
    params = jax.vmap(names["init"])(jax.random.split(jax.random.key(0), 3))
    start = names["init_state"](names["block"].optimizer, params)
    _, first = names["train_step"](start, (x, np.sin(x[:, :4])), jax.random.key(2))
    assert last.shape == (3,)
    assert np.all(last < 0.3 * first["loss"])
    assert last[2] < last[0]  # a later block builds on the earlier ones


def test_reasons_are_given():
    """A block that is not run has a reason of a few words."""
    for path in PAGES:
        for code in snippets(path):
            assert code.not_run is None or len(code.not_run.split()) > 1, code
