"""Every notebook runs at small settings, and is committed with the outputs of a whole, clean run.

Those outputs are made in notebooks/ by `jupyter execute --inplace --NotebookClient.record_timing=False *.ipynb`.
"""

import ast
import re

import nbformat
import pytest
from nbclient import NotebookClient

from tests.runs import ROOT

pytestmark = pytest.mark.slow

SMALL = {
    "01_quickstart.ipynb": {"EPOCHS": 6, "SAMPLES": 64},
    "02_over_smoothing.ipynb": {"EPOCHS": 6, "SAMPLES": 8},
    "03_depth_vs_width.ipynb": {
        "SHAPES": [(1, 64), (4, 32)],
        "SEEDS": 1,
        "FLOPS": 5e9,
        "FRACTION": 0.1,
    },
    "04_text.ipynb": {"STEPS": 10},
}
"""Values for the first code cell, the one that is tagged `parameters`."""

UNWANTED = {
    "an absolute path": r"(?<![\w.:/<-])(/[\w.-]+){2,}|\b[A-Z]:\\",
    "a temporary name": r"\btmp\w{6,}",
    "a time of day": r"\b\d{1,2}:\d\d:\d\d\b",
    "a progress bar": r"\r|█|it/s\b",
    "a warning": r"Warning\b",
}


def read(name):
    return nbformat.read(ROOT / "notebooks" / name, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def errors(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs if output.output_type == "error"]


def texts(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            yield output.get("text", "")
            yield from (text for kind, text in output.get("data", {}).items() if kind.startswith("text/"))


def test_all_notebooks_are_listed_here():
    assert {path.name for path in (ROOT / "notebooks").glob("*.ipynb")} == set(SMALL)


@pytest.mark.parametrize("name", SMALL)
def test_it_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    notebook = read(name)
    settings = code_cells(notebook)[0]
    settings.source = "\n".join(f"{key} = {value}" for key, value in SMALL[name].items())
    # The kernel of this Python: neither one that the user has installed, nor whatever `python` is on the path.
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "jupyter"))
    work = tmp_path / "notebooks"
    work.mkdir()
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(work)}}).execute()
    assert not errors(notebook)  # of a magic, too, which the client does not count as one
    assert {path.name for path in work.iterdir()} <= {"runs"}


@pytest.mark.parametrize("name", SMALL)
def test_its_first_cell_of_code_holds_the_settings(name):
    first, *others = code_cells(read(name))
    assert first.metadata.tags == ["parameters"]
    assert not any("parameters" in cell.metadata.get("tags", []) for cell in others)
    assert {line.targets[0].id for line in ast.parse(first.source).body} == SMALL[name].keys()


@pytest.mark.parametrize("name", SMALL)
def test_it_is_committed_with_the_outputs_of_one_run_without_errors(name):
    notebook = read(name)
    cells = code_cells(notebook)
    assert not errors(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs) >= 2
    assert (ROOT / "notebooks" / name).stat().st_size < 1_000_000


@pytest.mark.parametrize("name", SMALL)
def test_its_outputs_hold_nothing_of_the_machine_that_made_them(name):
    notebook = read(name)
    assert not any("execution" in cell.metadata for cell in notebook.cells)  # when each cell ran
    for text in texts(notebook):
        for what, pattern in UNWANTED.items():
            found = re.search(pattern, text)
            assert not found, f"{what}: {text[max(found.start() - 40, 0) : found.end() + 40]!r}"


@pytest.mark.parametrize("name", SMALL)
def test_its_links_lead_somewhere(name):
    for cell in read(name).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)#]+)", cell.source):
                assert (ROOT / "notebooks" / target).exists(), target
