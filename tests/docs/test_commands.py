"""Every command line of the pages, of results/ and of the headers of configs/ is one that blockjax takes.

Commands go through their own parsers, configs are loaded, changed and put together; data, devices and compilers are
left out. What is neither one of blockjax's nor in `_OTHERS` fails, unless a comment above says why it is not run.
That the commands also do what they say is tested where `_RUN_BY` says.
"""

import functools
import itertools
import re
import shlex
import tomllib

import pytest

from blockjax.config import config_names, default_config
from blockjax.objectives import OBJECTIVES
from tests.docs.commands import check, check_fragment
from tests.docs.pages import ROOT, SHELLS, codes, command_lines, documentation, words

_OF_PARSERS = ROOT / "docs" / "reference" / "commands.md"  # their own help
PAGES = [
    *(path for path in documentation() if path != _OF_PARSERS),
    *sorted((ROOT / "results").glob("*.md")),
    *sorted((ROOT / "configs").glob("*.py")),
]
# Words that stand for something of the reader's, and what is put in their place.
_STAND_INS = {
    "CONFIG": "quickstart",
    "FOLDER": "runs/mine",
    "FILES": "photo.png",
    "FOLDERS": "photos",
    "DATA": "data",
    "TARS": "tars",
    "FILE": "out.json",
    "DUMP": "dump",
    "D": "2",
    "K": "4",
    "S": "1",
    "N": "2",
    "FIRST_MACHINE": "10.0.0.1",
}
_STAND_IN = re.compile(rf"(?<![\w.])({'|'.join(_STAND_INS)})(?![\w.])")
# Lines of other programs, by their beginning, and why they are not run.
_OTHERS = {
    "pip install": "needs a network; its extras are checked",
    "python -m pip install": "needs a network; its extras are checked",
    "pip download": "needs a network",
    "python -m pytest": "runs the tests themselves",
    "python -m venv": "makes an environment",
    "python -m build": "tests/test_packaging.py builds the wheel",
    "python -m twine": "a release",
    "python -m sphinx": "tests/docs/test_site.py builds the site",
    "sphinx-build": "tests/docs/test_site.py builds the site",
    "jupyter": "tests/colabs runs the notebooks",
    "source": "enters an environment",
    ". ": "enters an environment",
    "export": "sets a variable of the shell",
    "cd": "changes the folder",
    "git": "fetches the repository",
    "cp -r results": "copies a folder of the repository",
    "unzip": "unpacks the reader's files",
    "tensorboard": "another program",
    "nvidia-smi": "needs a GPU",
    "gcloud": "needs a cloud",
    "ruff": "the linter",
    "lint-imports": "the linter",
}
# What a command prints, shown below it on a page.
_PRINTED = {
    "results/input.md": r"(Generating|Shuffling|Dataset|tfds:imagenet2012 is|data  |[\d.]+ epochs|step )",
}
# Where each command is run and not only read.
_RUN_BY = {
    "main": ("tests/docs/conftest.py", "def quickstart"),
    "finetune": ("tests/test_journey.py", 'command("finetune"'),
    "evaluate": ("tests/test_journey.py", 'command("evaluate"'),
    "export": ("tests/test_journey.py", 'command("export"'),
    "reconstruct": ("tests/test_journey.py", 'command("reconstruct"'),
    "compare": ("tests/test_compare.py", "def test_a_comparison_has_a_row_for_each_run"),
    "sample": ("tests/test_sample.py", "def test_the_command"),
    "gallery": ("tests/test_gallery.py", "def test_views_have_a_row_for_each_recipe"),
    "memory": ("tests/memory/test_command.py", "def test_the_whole_command"),
    "benchmark": ("tests/benchmark/test_benchmark.py", "def test_step_times_are_ratios"),
    "data.prepare": ("tests/data", "prepare("),
    "diagram": ("tests/test_diagram.py", "def test_the_command_writes_both_modes"),
}
_FIELD = re.compile(r"(?:--config\.)?((?:\w+\.)?\w+)(?:=.*)?")


@functools.cache
def all_codes():
    return [code for path in PAGES for code in codes(path)]


def shell_lines():
    """Returns the lines of shell blocks, and inline code that is a command, each with its place."""
    found = []
    for code in all_codes():
        if code.language is None:
            if re.match(
                r"(\w+=\S+ )*(taskset -c \d+ |srun )?python -m |pip install|blockjax --", code.text
            ):
                found.append((code, code.text))
        elif code.language in SHELLS:
            found += [(code, line) for line in command_lines(code)]
        else:
            found += [(code, line) for line in command_lines(code) if "-m blockjax" in line]
    return found


def whole(line):
    """Returns a line with what it leaves to the reader filled in."""
    if " [--" in line or line.startswith("[--"):  # a synopsis
        line = re.sub(r"\[|\]|--config\.FIELD=VALUE|\.\.\.", "", line)
    line = re.sub(r"configs/NAME\.py|runs/NAME", lambda m: m[0].replace("NAME", "mae"), line)
    line = _STAND_IN.sub(lambda match: _STAND_INS[match[0]], line)
    return re.sub(r"( --[\w-]+)? (…|\.\.\.)(?= |$)| --[\w-]+$(?<=--strategies)", "", line)


def split(line):
    """Returns blockjax's command and its arguments, or None if a line is of another program."""
    found = words(whole(line))
    while found and re.fullmatch(r"\w+=.*|taskset|-c|\d+|srun|nice|-n", found[0]):
        found = found[1:]
    if found[:1] == ["blockjax"]:
        return "main", found[1:]
    if found[:2] in (["python", "-m"], ["python3", "-m"]) and found[2:3]:
        package, _, command = found[2].partition(".")
        return (command, found[3:]) if package == "blockjax" else None
    return None


@functools.cache
def workdirs():
    """Returns the folders in which commands of the pages leave runs and exports."""
    found = {"runs/mae"}
    for _, line in shell_lines():
        command, arguments = split(line) or ("", [])
        flags = dict(itertools.pairwise(arguments))
        if command in ("main", "finetune", "compare"):
            config = flags.get("--config", "quickstart").partition(":")[0]
            name = config.rpartition("/")[2].removesuffix(".py")
            found.add(flags.get("--workdir", f"runs/{name}"))
        if "--output" in flags:
            found.add(flags["--output"])
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with what the repository's has, and the files that pages tell the reader to write."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for code in all_codes():
        if code.language == "python" and (name := re.match(r"# (\w+)\.py\n", code.text)):
            (tmp_path / f"{name[1]}.py").write_text(code.text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def lines_of(path):
    page = str(path.relative_to(ROOT))
    return [(code, line) for code, line in shell_lines() if code.page == page]


def wrong(code, line):
    """Returns what is wrong with a line; None if nothing is."""
    if (ours := split(line)) is not None:
        if not ours[1] and code.language is None:
            return None  # a command's name in a sentence
        try:
            check(*ours, workdirs())
        except ValueError as error:
            return str(error)
        return None
    bare = re.sub(r"^(\w+=\S+ )+", "", line)
    known = [start for start in _OTHERS if bare.startswith(start)]
    if "pip install" in bare:
        return _wrong_extras(bare)
    if known or re.match(_PRINTED.get(code.page, "$."), line):
        return None
    if re.fullmatch(r"srun python -m \.\.\.", line):
        return None
    return "no command that is known here: add a comment <!-- not run: why --> above, or name it in _OTHERS"


def _wrong_extras(line):
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    given = re.findall(r"(?:blockjax|\.)\[([\w,]+)\]", line)
    unknown = {extra for group in given for extra in group.split(",")} - set(known)
    return f"there are no extras {unknown}" if unknown else None


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES if lines_of(p)]
)
def test_command_lines_are_accepted(path, folder):
    found = [(code, line) for code, line in lines_of(path) if not code.not_run]
    bad = [f"{code}: {line}\n    {error}" for code, line in found if (error := wrong(code, line))]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("path", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES])
def test_flags_and_fields_in_sentences_exist(path, folder):
    bad = []
    config = default_config()
    groups = [name for name in config if hasattr(config[name], "keys")]
    for code in codes(path):
        if code.language is not None or code.not_run:
            continue
        text = whole(code.text)
        try:
            if text.startswith("--"):
                check_fragment([word for word in shlex.split(text) if "FIELD=VALUE" not in word])
            elif (match := _FIELD.fullmatch(text)) and match[1].partition(".")[0] in groups:
                group, _, name = match[1].partition(".")
                is_file = re.search(r"\.(json|jsonl|py|png|npz|safetensors|md)$", text)
                if name and name not in config[group] and not is_file:
                    raise ValueError(f"there is no field {match[1]}")
        except (ValueError, SystemExit) as error:
            bad.append(f"{code}: {code.text}\n    {error}")
    assert not bad, "\n".join(bad)


def test_files_of_the_repository_that_pages_name_exist():
    bad = []
    for code in all_codes():
        if code.language is None:
            name = code.text.partition(":")[0]
            path = re.fullmatch(
                r"(blockjax|tests|results|configs|docs|assets|colabs)/[\w./-]+", name
            )
            # assets/memory stands for memory.light.svg and memory.dark.svg.
            if path and "NAME" not in name and not any(ROOT.glob(f"{name.rstrip('/')}*")):
                bad.append(f"{code}: {name}")
        names = re.findall(r"(?<![\w/])configs/(\w+)\.py", code.text)
        bad += [f"{code}: configs/{n}.py" for n in names if n not in {*config_names(), "NAME"}]
    assert not bad, "\n".join(bad)


def test_every_objective_has_a_row_in_a_table():
    text = "\n".join(path.read_text() for path in documentation())
    assert [name for name in OBJECTIVES if f"| `{name}`" not in text] == []


def test_what_is_shown_is_also_run():
    """Every command of the pages is in the table of tests that run it, and these tests are there."""
    shown = {ours[0] for _, line in shell_lines() if (ours := split(line)) is not None}
    assert shown <= set(_RUN_BY)
    for command, (path, text) in _RUN_BY.items():
        files = [ROOT / path] if (ROOT / path).is_file() else (ROOT / path).rglob("test_*.py")
        assert any(text in file.read_text() for file in files), command


def test_reasons_are_given():
    for code in all_codes():
        assert code.not_run is None or len(code.not_run.split()) > 1, code
