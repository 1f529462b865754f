"""The wheel: what is in it, and that it works from an environment that has never seen the repository."""

import site
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.runs import ROOT, TINY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    # From a copy of what git tracks or would track, so that nothing built earlier slips in.
    source = tmp_path_factory.mktemp("source")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in files.stdout.split("\n"):
        if (ROOT / name).is_file() and not name.startswith(("docs/", "notebooks/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", out, source], check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return path


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


def test_the_quickstart_runs_from_the_installed_wheel_in_another_folder(wheel, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    # The dependencies of this environment, without its editable install of the project.
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "env")}))
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    where = (
        "import bamboo, bamboo.configs, bamboo.analysis, bamboo.finetune as finetune;"
        "print(bamboo.__file__, finetune.__file__, bamboo.configs.__path__[0])"
    )
    out = subprocess.run([python, "-c", where], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
    assert all(path.startswith(str(tmp_path)) for path in out)
    bamboo = tmp_path / "env/bin/bamboo"
    command = [bamboo, "fit", "--config", "pretrain/quickstart", *TINY, "--trainer.max_epochs", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/quickstart/version_0/checkpoints/last.ckpt").is_file()
