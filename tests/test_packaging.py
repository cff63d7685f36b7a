"""What is built, what it brings along, and what the files around the code say about it."""

import itertools
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

import blockjax
from blockjax.config import config_names

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def python(code, folder, path=ROOT):
    """Returns what a program prints in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The folder of a source distribution, and of the wheel that is built from it."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def wheel(dist):
    (path,) = dist.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_has_the_package_its_data_and_the_configs(wheel):
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "blockjax").rglob("*.py")}
    wanted |= {f"blockjax/configs/{name}.py" for name in config_names()} | {"blockjax/py.typed"}
    data = {path.name for path in (ROOT / "blockjax" / "data" / "embedded").glob("[!_]*.[jn]p[gz]")}
    assert len(data) == 12
    wanted |= {f"blockjax/data/embedded/{name}" for name in data | {"NOTICE"}}
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == wanted


def test_nothing_else_in_the_wheel_is_large(wheel):
    large = [info.filename for info in wheel.infolist() if info.file_size > 64 * 2**10]
    assert large == ["blockjax/data/embedded/digits.npz"]


def test_the_wheel_says_what_it_is(wheel):
    folder = f"blockjax-{blockjax.__version__}.dist-info"
    metadata = Parser().parsestr(wheel.read(f"{folder}/METADATA").decode())
    assert metadata["Version"] == blockjax.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {f"{folder}/licenses/{name}" for name in ("LICENSE", "NOTICE")} <= {*wheel.namelist()}
    scripts = wheel.read(f"{folder}/entry_points.txt").decode()
    assert "blockjax = blockjax.main:main" in scripts
    addresses = dict(address.split(", ") for address in metadata.get_all("Project-URL"))
    assert {"Homepage", "Repository", "Documentation", "Changelog"} == {*addresses}
    assert all(address.startswith(addresses["Repository"]) for address in addresses.values())


def test_the_readme_of_the_wheel_links_to_the_repository(wheel):
    """It is shown where no files of the repository lie beside it."""
    folder = f"blockjax-{blockjax.__version__}.dist-info"
    readme = Parser().parsestr(wheel.read(f"{folder}/METADATA").decode()).get_payload()
    source = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\((.+?)\)", readme) + re.findall(r'(?:src|srcset)="(.+?)"', readme)
    assert len(links) == len(re.findall(r"\]\(|(?:src|srcset)=", source)) > 10
    assert [link for link in links if not link.startswith("https://")] == []
    assert f"({PROJECT['urls']['Repository']}/blob/main/docs/results.md)" in readme


def test_the_source_distribution_has_tests_and_no_results(dist):
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = [name.split("/", 1)[1] for name in archive.getnames()]
    assert {"tests/test_packaging.py", "configs/quickstart.py", "CHANGELOG.md"} <= {*names}
    large = {"results", "assets", "colabs", "runs", "dist"}
    assert {name.split("/")[0] for name in names}.isdisjoint(large)
    made = ("docs/_build/", "docs/notebooks/", "tests/docs/", "tests/colabs/")
    assert [name for name in names if name.startswith(made)] == []


def test_an_editable_install_is_the_clone_and_copies_nothing(tmp_path):
    pytest.importorskip("hatchling")
    python(f"from hatchling.build import build_editable as build; build({str(tmp_path)!r})", ROOT)
    (path,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        (link,) = [name for name in archive.namelist() if ".dist-info/" not in name]
        assert link.endswith(".pth")
        assert Path(archive.read(link).decode().strip()) == ROOT


def test_configs_of_a_wheel_are_found_by_name_in_an_empty_folder(wheel, tmp_path):
    wheel.extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    code = """if True:
        import blockjax.config
        print(blockjax.__file__)
        for name in blockjax.config.config_names():
            blockjax.config.load_config(name)
            print(name)
        print(blockjax.config.load_config("simclr:steps=7").steps)
    """
    file, *names, steps = python(code, tmp_path / "empty", tmp_path / "site").splitlines()
    assert Path(file).is_relative_to(tmp_path)
    assert names == config_names()
    assert steps == "7"


# Runs the command as the installed script does: `__main__` is another file than blockjax/main.py.
_SCRIPT = """
import contextlib, sys
from unittest import mock
from blockjax.main import main

class Training:
    def __init__(self, config, workdir):
        print("trains", config.model.patch_size, config.steps, workdir)
    def run(self):
        pass

def call(*argv):
    sys.argv = ["blockjax", *argv]
    with contextlib.suppress(SystemExit), mock.patch("blockjax.training.run.Training", Training):
        main()

call("--config", "bim:model=ti4,size=32,data=embedded,epochs=1.5", "--config.steps=3")
call("--help")
"""


def test_the_command_takes_a_name_and_shows_its_flags(tmp_path):
    printed = python(_SCRIPT, tmp_path)
    assert printed.startswith("trains 4 3 runs/bim\n")
    assert re.search(r"--config:.*--workdir:", printed, flags=re.S)


def test_importing_blockjax_imports_little(tmp_path):
    heavy = {"tensorflow", "tensorflow_datasets", "torch", "transformers", "sklearn", "timm"}
    heavy |= {"matplotlib", "PIL", "scipy", "grain", "orbax", "flax", "optax"}
    code = "import sys, blockjax; print(*sys.modules)"
    assert heavy.isdisjoint(python(code, tmp_path).split())


def test_files_beside_the_code_name_its_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == blockjax.__version__
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]
    heading = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)[1]
    assert blockjax.__version__ in heading


def test_extras_that_are_named_exist():
    extras = PROJECT["optional-dependencies"]
    named = {
        (path.name, extra)
        for path in [*ROOT.glob("*.md"), *(ROOT / ".ci").iterdir(), *WORKFLOWS]
        for listed in re.findall(r"-e '\.\[([\w,]+)\]'", path.read_text())
        for extra in listed.split(",")
    }
    assert len(named) > 5
    assert {extra for _, extra in named} <= {*extras}
    for requirement in itertools.chain(*extras.values()):
        inner = re.match(r"blockjax\[(\w+)\]", requirement)
        assert inner is None or inner[1] in extras


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_are_jobs_of_steps_that_a_shell_can_read(path):
    workflow = yaml.load(path.read_text(), yaml.BaseLoader)  # a plain `on` would be True
    assert {"name", "on", "jobs", "permissions"} <= {*workflow}
    pythons = {text.rpartition(" ")[2] for text in PROJECT["classifiers"] if ":: 3." in text}
    for job in workflow["jobs"].values():
        assert {"runs-on", "timeout-minutes", "steps"} <= {*job}
        matrix = job.get("strategy", {}).get("matrix")
        assert matrix is None or {*matrix["python"]} == pythons
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step), step
            command = step.get("run", "")
            assert subprocess.run(["bash", "-n", "-c", command]).returncode == 0, command
            for script in re.findall(r"\.ci/\w+", command):
                assert os.access(ROOT / script, os.X_OK), script


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_forms_for_issues_ask_for_something(path):
    form = yaml.safe_load(path.read_text())
    assert form["name"] and form["description"]
    assert {field["type"] for field in form["body"]} <= {"textarea", "input", "markdown"}
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len({*ids})
    assert all(field["attributes"]["label"] for field in form["body"])


def test_there_are_workflows_and_forms():
    assert [path.stem for path in WORKFLOWS] == ["docs", "release", "tests"]
    assert [path.stem for path in FORMS] == ["bug", "feature"]
