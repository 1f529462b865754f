"""The table of mutants fits the sources and tests, and a run of it says what became of each."""

import ast
import re
import shutil
import subprocess
import sys

from tests.mutants.__main__ import LEFT_OUT
from tests.mutants.table import ROOT, read_mutants

MUTANTS = read_mutants()
PACKAGES = {
    *(
        "bamboo",
        "bamboo/vision",
        "bamboo/text",
        "bamboo/checkpoints",
        "bamboo/cli",
        "bamboo/fit",
        "bamboo/scaling",
        "bamboo/study",
        "analysis",
    ),
    *("finetune", "finetune/glue", "configs/pretrain", "configs/finetune"),
}


def test_every_mutant_changes_its_file_and_names_a_test_that_is_there():
    for mutant in MUTANTS:
        assert not mutant.problem(), mutant
        path, _, name = mutant.test.partition("::")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert not name or name.partition("[")[0] in tests, mutant
    assert len(set(MUTANTS)) == len(MUTANTS) >= 40
    assert {mutant.file.rpartition("/")[0] for mutant in MUTANTS} >= PACKAGES


TEST = """
from importlib.util import find_spec
from pathlib import Path

from bamboo.seeds import derive_seed


def test_one():
    import bamboo.configs, bamboo.finetune.glue.tasks

    assert derive_seed(1) > 9
    assert Path(find_spec("bamboo.analysis").origin).is_relative_to(Path.cwd())


def test_two():
    assert False
"""

RUN = """
import numpy, PIL.Image, pytest  # once, for all that are forked

from tests.mutants.__main__ import run_all
from tests.mutants.table import Mutant

one = "tests/test_it.py::test_one"
print(run_all([
    Mutant("bamboo/seeds.py", ">> 1", "* 0", one),
    Mutant("bamboo/seeds.py", ">> 1", ">> 2", one),
    Mutant("configs/__init__.py", "\\n", "\\nraise ImportError\\n", one),
    Mutant("finetune/glue/tasks.py", "def own_task", "raise ImportError\\ndef own_task", one),
    Mutant("bamboo/seeds.py", "nowhere", "", one),
    Mutant("bamboo/seeds.py", ">> 1", ">> 2", "tests/test_it.py::test_two"),
    Mutant("bamboo/seeds.py", ">> 1", ">> 2", "tests/test_it.py::test_three"),
], workers=2), "wrong")
"""


def test_a_run_tells_what_was_killed_from_what_survived_and_what_is_broken(tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(ROOT, tree, ignore=LEFT_OUT)
    (tree / "tests/test_it.py").write_text(TEST)
    (tree / "configs/__init__.py").write_text("\n")
    files = ("bamboo/seeds.py", "configs/__init__.py", "finetune/glue/tasks.py")
    before = [(tree / file).read_text() for file in files]
    out = subprocess.run([sys.executable, "-c", RUN], cwd=tree, capture_output=True, text=True, check=True).stdout
    states = [
        re.findall(rf"^(killed|SURVIVED|BROKEN) .*{text}", out, re.MULTILINE)
        for text in (
            r">> 1  ->  \* 0",
            r">> 1  ->  >> 2  \[test_it.py::test_one",
            r"configs/__init__",
            "finetune/glue/tasks",
            "nowhere .*occurs 0 times",
            "test_two.*does not pass without",
            "test_three.*does not pass without",
        )
    ]
    assert states == [["killed"], ["SURVIVED"], ["killed"], ["killed"], ["BROKEN"], ["BROKEN"], ["BROKEN"]], out
    assert out.endswith("4 wrong\n")
    assert [(tree / file).read_text() for file in files] == before
