"""Every notebook runs from top to bottom, and stands in the repository as a full run on a CPU left it."""

import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))
COLAB = "https://colab.research.google.com"
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind="code"):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


@every_notebook
@pytest.mark.slow
def test_runs(path, tmp_path, monkeypatch):
    """Small, in an empty folder, by a kernel of this interpreter; an error in any cell is raised."""
    nbclient = pytest.importorskip("nbclient")
    kernelspec = pytest.importorskip("ipykernel.kernelspec")
    import jupyter_client
    import nbformat
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager

    class Own(KernelSpecManager):
        def get_kernel_spec(self, name):
            return KernelSpec(**kernelspec.get_kernel_dict())

    # The kernel has the suite's flags, that compile fast, and its compiled programs.
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "BLOCKJAX_SMALL": "1",
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    folder = tmp_path / "empty"
    folder.mkdir()
    nbclient.NotebookClient(
        nbformat.read(path, as_version=4),
        km=jupyter_client.AsyncKernelManager(kernel_spec_manager=Own()),
        timeout=600,
        resources={"metadata": {"path": str(folder)}},
    ).execute(env=environment, cleanup_kc=True)  # as it did not make the manager itself


def test_there_are_notebooks():
    assert {"quickstart", "memory_profiles", "scale"} <= {path.stem for path in NOTEBOOKS}


@every_notebook
def test_begins_with_a_title_and_the_way_to_colab(path):
    first = json.loads(path.read_text())["cells"][0]
    assert first["cell_type"] == "markdown" and source(first).startswith("# ")
    badge, address = re.search(r"\[!\[Open in Colab\]\((.*?)\)\]\((.*?)\)", source(first)).groups()
    assert badge == f"{COLAB}/assets/colab-badge.svg"
    assert address == f"{COLAB}/github/blockjax/blockjax/blob/main/colabs/{path.name}"


def test_all_install_blockjax_by_the_same_first_cell():
    assert len({source(cells(path)[0]) for path in NOTEBOOKS}) == 1


@every_notebook
def test_shows_a_full_run_without_errors(path):
    code = cells(path)
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert "error" not in {output["output_type"] for output in outputs}
    # Each has one cell that says whether the run was small, and shows it.
    (small,) = [cell for cell in code if source(cell).endswith("\nSMALL")]
    shown = small["outputs"][-1]
    assert "".join(shown["data"]["text/plain"]) == "False"
    assert any("image/png" in output.get("data", {}) for output in outputs)


@every_notebook
def test_is_small_and_tells_nothing_of_the_machine(path):
    assert path.stat().st_size < 600_000
    outputs = [output for cell in cells(path) for output in cell["outputs"]]
    for output in outputs:
        output.get("data", {}).pop("image/png", None)
    text = json.dumps(outputs)
    assert "\\u001b[" not in text  # codes of a terminal
    assert re.findall(r"(?<![\w<:/.])/\w+/\w+", text) == []  # absolute paths
