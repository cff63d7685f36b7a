"""How the pages become a site: `python -m sphinx -W -b html docs docs/_build/html`. Nothing is fetched."""

import importlib
import inspect
import os
import re
import shutil
import sys
import tomllib
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))  # the API's pages are of this code, wherever blockjax is installed
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import blockjax  # noqa: E402

REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
BRANCH = "main"
LOGGER = logging.getLogger(__name__)

project = "blockjax"
author = copyright = "The blockjax authors"
version = release = blockjax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.linkcode"]
exclude_patterns = ["_build"]
nitpicky = True
# Types of other packages, whose pages a build without a network cannot know.
nitpick_ignore_regex = [(r"py:.*", r"(?!blockjax).*")]
# Parts of documented classes that are no part of the API.
nitpick_ignore = [
    ("py:class", "blockjax.learner.learner.Learner"),
    ("py:class", "blockjax.models.decoders.SelfAttentionDecoder"),
]

highlight_language = "bash"  # of fences that name no language
smartquotes = False  # --flags and "texts" stay what they are
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # notebooks show what they were saved with; a test runs them

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes as a list

html_theme = "sphinx_book_theme"
html_title = f"blockjax {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = True  # behind the buttons that download a page
html_theme_options = {
    "repository_url": REPOSITORY,
    "repository_branch": BRANCH,
    "path_to_docs": "docs",
    "use_repository_button": True,
    "use_source_button": True,
    "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "navbar_persistent": [],  # there is a search field in the sidebar
}
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system


def linkcode_resolve(domain, info):
    """Returns the address of an object's source."""
    found = importlib.import_module(info["module"])
    for name in info["fullname"].split("."):
        found = getattr(found, name, None)
    found = inspect.unwrap(found.fget if isinstance(found, property) else found)
    try:
        path = Path(inspect.getsourcefile(found)).relative_to(ROOT).as_posix()
        lines, first = inspect.getsourcelines(found)
    except TypeError:  # an attribute
        return None
    return f"{REPOSITORY}/blob/{BRANCH}/{path}#L{first}-L{first + len(lines) - 1}"


class Links(SphinxTransform):
    """Turns links to files of the repository that are no pages into links to its address.

    So a page's `../configs/quickstart.py` leads there on GitHub and on the site. Links of a file that a page includes
    count from that file, and those to a notebook lead to its page.
    """

    default_priority = 200

    def apply(self, **kwargs):
        """Replaces the links, and warns of files that do not exist."""
        links = (addnodes.pending_xref, addnodes.download_reference)
        for node in list(self.document.findall(lambda node: isinstance(node, links))):
            if node.get("reftype") == "myst":
                self._replace(node)

    def _replace(self, node):
        target, anchor = node["reftarget"], node.get("reftargetid")
        if node.get("refdomain") == "doc":  # from the top of the pages, without an ending
            path = (DOCS / f"{target}.md").resolve()
            path = path if path.exists() else path.with_suffix(".ipynb")
        else:
            target, _, anchor = target.partition("#")
            path = (Path(node.source).parent / target).resolve()
        if not target:
            return
        if path.parent == ROOT / "colabs":
            path = DOCS / "notebooks" / path.name
        is_page = path.is_relative_to(DOCS) and path.suffix in (".md", ".ipynb")
        if is_page and path.exists():
            page = path.relative_to(DOCS).with_suffix("").as_posix()
            known = {
                "reftype": "myst",
                "refdoc": node["refdoc"],
                "refexplicit": node["refexplicit"],
            }
            known |= {"refdomain": "doc", "reftarget": page, "reftargetid": anchor or None}
            new = addnodes.pending_xref("", *node.children, **known)
        elif path.is_relative_to(DOCS):  # nothing to change; if it does not exist, MyST says so
            return
        elif path.exists():
            kind = "tree" if path.is_dir() else "blob"
            address = f"{REPOSITORY}/{kind}/{BRANCH}/{path.relative_to(ROOT).as_posix()}"
            address += f"#{anchor}" if anchor else ""
            new = nodes.reference("", "", *node.children, refuri=address, internal=False)
        else:
            LOGGER.warning("there is no file %s", target, location=node, type="blockjax")
            return
        new.source, new.line = node.source, node.line
        node.replace_self(new)


class Pictures(SphinxTransform):
    """Turns <picture>, which GitHub shows light or dark, into the two images between which the theme chooses."""

    default_priority = 200

    def apply(self, **kwargs):
        """Replaces the elements."""
        for node in list(self.document.findall(nodes.raw)):
            if node.astext().startswith("<picture>"):
                dark = re.search(r'srcset="(.*?)"', node.astext())[1]
                light, alt = (
                    re.search(rf'{name}="(.*?)"', node.astext())[1] for name in ("src", "alt")
                )
                images = [
                    nodes.image(uri=uri, alt=alt, classes=[shown])
                    for uri, shown in ((light, "only-light"), (dark, "only-dark"))
                ]
                for image in images:
                    image.source, image.line = node.source, node.line
                node.replace_self(images)


class Dashes(SphinxTransform):
    """Sphinx writes "name -- description" and leaves the dash to what would also change --flags."""

    default_priority = 750

    def apply(self, **kwargs):
        """Replaces the dashes."""
        for node in list(self.document.findall(nodes.Text)):
            if node == " -- ":
                node.parent.replace(node, nodes.Text(" – "))


def _copy_notebooks():
    """Copies the notebooks, which lie where Colab opens them, to where they are pages."""
    target = DOCS / "notebooks"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for path in sorted((ROOT / "colabs").glob("*.ipynb")):
        shutil.copy2(path, target)  # with its time: what did not change is not read again


def _point_to_notebooks(app, pagename, templatename, context, doctree):
    """Lets the buttons of notebooks lead to where they lie in the repository."""
    for group in context.get("header_buttons", ()):
        for button in group.get("buttons", [group]):
            if "url" in button:
                button["url"] = button["url"].replace("/docs/notebooks/", "/colabs/")


def _literals(app, what, name, obj, options, lines):
    """Docstrings have names in single backticks; in the markup of Sphinx code has two."""
    text = re.sub(r"(?<!`)`([^`]+)`(?!`)(?=(\w?))", _literal, "\n".join(lines))
    lines[:] = text.splitlines()


def _literal(found):
    return f"``{found[1]}``" + ("\\ " if found[2] else "")


def setup(app):
    """Connects what is above."""
    _copy_notebooks()
    app.connect("autodoc-process-docstring", _literals, priority=400)  # before napoleon
    app.add_transform(Links)
    app.add_transform(Pictures)
    app.add_transform(Dashes)
    app.connect("html-page-context", _point_to_notebooks, priority=502)  # after the theme's
