"""The wheel: what is in it. That it works from an environment of its own is what `test_docs.py` is about."""

import subprocess
import tomllib
import zipfile

import pytest

from tests.runs import ROOT

pytestmark = pytest.mark.slow


def test_it_holds_bamboo_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"bamboo", "bamboo_mae"}
    for package in ("analysis", "finetune", "configs"):
        assert f"bamboo/{package}/__init__.py" in names
    assert {
        "bamboo/py.typed",
        "bamboo/analysis/templates/page.html",
        "bamboo/analysis/measures/definitions.csv",
    } <= set(names)
    shipped = {
        name.removeprefix("bamboo/") for name in names if name.startswith("bamboo/configs/") and name.endswith(".yaml")
    }
    assert shipped == {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    packages = [p for top in ("bamboo", "analysis", "finetune", "configs") for p in (ROOT / top).rglob("*.py")]
    assert sum(name.endswith(".py") for name in names) == len(packages)


def test_its_requirements_are_those_of_the_project(wheel):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(archive.read(name).decode() for name in archive.namelist() if name.endswith("METADATA"))
    assert "Name: bamboo-mae" in metadata
    assert all(f"Requires-Dist: {requirement}" in metadata for requirement in project["dependencies"])
    assert not any("==" in requirement for requirement in project["dependencies"])


def test_it_is_the_wheel_that_is_imported_in_its_environment(installed, tmp_path):
    where = (
        "import bamboo, bamboo.configs, bamboo.analysis, bamboo.finetune as finetune;"
        "print(bamboo.__file__, finetune.__file__, bamboo.configs.__path__[0])"
    )
    command = [installed / "bin/python", "-c", where]
    out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
    assert all(path.startswith(str(installed)) for path in out)
