"""The floors of the house: who may import whom, as the section `importlinter` of pyproject.toml says."""

import os
import subprocess
import sys

import pytest

from tests.runs import ROOT

LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(sys.argv[1], no_cache=True))"


def lint(folder):
    """Holds the package against its contracts as it is once installed: all folders within `bamboo`."""
    command = [sys.executable, "-c", LINT, str(ROOT / "pyproject.toml")]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def installed(tmp_path):
    (tmp_path / "bamboo").mkdir()
    for path in (*(ROOT / "bamboo").iterdir(), *(ROOT / name for name in ("analysis", "finetune", "configs"))):
        (tmp_path / "bamboo" / path.name).symlink_to(path)
    return tmp_path


def test_every_module_imports_from_floors_below_it_alone_and_in_no_circle(installed):
    report = lint(installed)
    assert report.returncode == 0, report.stdout
    assert "2 kept, 0 broken" in report.stdout


def test_an_import_from_a_floor_above_is_found(installed):
    shapes = installed / "bamboo" / "shapes.py"
    shapes.unlink()
    shapes.write_text("from bamboo.analysis import profile\n")
    report = lint(installed)
    assert report.returncode == 1
    assert "bamboo.shapes is not allowed to import bamboo.analysis" in report.stdout
