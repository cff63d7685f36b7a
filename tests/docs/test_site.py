"""The site is built without a warning, and links of Markdown files and notebooks lead to what exists."""

import html.parser
import itertools
import json
import os
import re
import subprocess
import sys
import tomllib
import urllib.parse
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "results").rglob("*.md"), *DOCS.rglob("*.md")]
    if not {DOCS / "_build", DOCS / "notebooks"} & {*path.parents}
)
NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
_BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
MARKDOWN = MarkdownIt("commonmark").enable("table")


def test_the_site(tmp_path):
    """One test, as it is built once: without a warning, whole, and without a network."""
    pytest.importorskip("myst_nb")
    pytest.importorskip("sphinx_book_theme")
    site = tmp_path / "html"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    command += ["-d", str(tmp_path / "doctrees"), str(DOCS), str(site)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    paths = [path for path in site.rglob("*.html") if "_static" not in path.parts]
    pages = {path: _Page(path) for path in paths}
    assert _unreachable(site, pages) == set()
    assert _broken(site, pages) == []
    assert _fetched(pages) == set()
    for path in NOTEBOOKS:
        owner = REPOSITORY.removeprefix("https://github.com/")
        colab = f"https://colab.research.google.com/github/{owner}/blob/main/colabs/{path.name}"
        links = pages[site / "notebooks" / f"{path.stem}.html"].links
        assert colab in links
        assert [link for link in links if "/docs/notebooks/" in link] == []  # only copies


class _Page(html.parser.HTMLParser):
    """Links, sources and ids of a page of the site."""

    def __init__(self, path):
        super().__init__()
        self.links, self.sources, self.ids = set(), set(), set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if "id" in attrs:
            self.ids.add(attrs["id"])
        if tag == "a" and attrs.get("href"):
            self.links.add(attrs["href"])
        if tag in ("img", "script", "link") and (attrs.get("src") or attrs.get("href")):
            self.sources.add(attrs.get("src") or attrs["href"])


def _unreachable(site, pages):
    """Returns pages of docs/ and notebooks to which no links lead from the index."""
    wanted = {
        site / path.relative_to(DOCS).with_suffix(".html") for path in PAGES if DOCS in path.parents
    }
    wanted |= {site / "notebooks" / f"{path.stem}.html" for path in NOTEBOOKS}
    reached, waiting = set(), [site / "index.html"]
    while waiting:
        path = waiting.pop()
        if path in pages and path not in reached:
            reached.add(path)
            links = map(urllib.parse.urlsplit, pages[path].links)
            waiting += [(path.parent / link.path).resolve() for link in links if not link.scheme]
    return wanted - reached


def _broken(site, pages):
    """Returns links, images and scripts within the site that lead to nothing."""
    found = []
    for path, page in pages.items():
        for link in page.links | page.sources:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            name, anchor = map(urllib.parse.unquote, (parts.path, parts.fragment))
            target = (path.parent / name).resolve() if name else path
            if not target.exists() or (anchor and anchor not in pages[target].ids):
                found.append(f"{path.relative_to(site)}: {link}")
    return found


def _fetched(pages):
    """Returns what a browser would fetch from elsewhere."""
    sources = set().union(*(page.sources for page in pages.values()))
    return {source for source in sources if urllib.parse.urlsplit(source).netloc} - {_BADGE}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_of_a_page_lead_to_what_exists(path):
    assert [link for link in _links(path.read_text()) if not _leads(link, path.parent)] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_links_of_a_notebook_lead_to_what_exists(path):
    """In Colab there are only the other notebooks beside a notebook."""
    cells = json.loads(path.read_text())["cells"]
    text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    links = [link for link in _links(text) if not link.startswith("#")]
    others = [link for link in links if not link.startswith("https://")]
    assert {*others} <= {other.name for other in NOTEBOOKS}
    assert [link for link in links if not _leads(link, path.parent)] == []


def test_broken_links_are_found(tmp_path):
    (tmp_path / "page.md").write_text('# One word\n\n## `code` & More\n\n<a id="set"></a>\n')
    good = ("page.md", "page.md#one-word", "page.md#code--more", "page.md#set", "https://x.y/z")
    good += (f"{REPOSITORY}/blob/main/README.md", f"{REPOSITORY}/tree/main/docs", ".")
    bad = ("none.md", "page.md#two", f"{REPOSITORY}/blob/main/none.md", "none/", "page.html")
    text = " ".join(f"[text [x]]({link})" for link in good + bad)
    assert [*_links(text)] == [*good, *bad]
    assert [link for link in good + bad if not _leads(link, tmp_path)] == [*bad]


def _tokens(text):
    """Yields the tokens of a Markdown text, and after each those within it."""
    for token in MARKDOWN.parse(text):
        yield token
        yield from token.children or ()


def _links(text):
    """Yields links and images of Markdown, and those that it has as HTML."""
    for token in _tokens(text):
        if token.type in ("link_open", "image"):
            yield token.attrs.get("href") or token.attrs["src"]
        elif token.type in ("html_block", "html_inline"):
            for name, value in re.findall(r"\b(href|src|srcset)=\"([^\"]+)\"", token.content):
                yield value.split(" ")[0] if name == "srcset" else value


def _leads(link, folder):
    """Returns whether a link leads to a file of the repository and an anchor in it, or elsewhere."""
    parts = urllib.parse.urlsplit(link)
    own = re.match(rf"{REPOSITORY}/(?:blob|tree|raw)/main/(.*)", link.partition("#")[0])
    if own:
        target = ROOT / urllib.parse.unquote(own[1])
    elif parts.scheme:
        return True
    else:
        target = folder / urllib.parse.unquote(parts.path)
    if not target.exists():
        return False
    if not parts.fragment or target.suffix != ".md" or (own is None and not parts.path):
        return True
    return urllib.parse.unquote(parts.fragment) in _anchors(target.read_text())


def _anchors(text):
    """Returns the anchors of a Markdown file, as GitHub and the site make them of headings."""
    found = {*re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text)}
    tokens = MARKDOWN.parse(text)
    for opening, inline in itertools.pairwise(tokens):
        if opening.type == "heading_open":
            parts = [
                part.content for part in inline.children if part.type in ("text", "code_inline")
            ]
            slug = re.sub(r"[^\w\- ]", "", "".join(parts).strip().lower()).replace(" ", "-")
            count = next(
                n for n in itertools.count() if (f"{slug}-{n}" if n else slug) not in found
            )
            found.add(f"{slug}-{count}" if count else slug)
    return found
