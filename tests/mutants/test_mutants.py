"""The table of mutants fits the sources, and the runner's copy is what a mutated test imports."""

import ast
import subprocess
import sys

import pytest

from tests.mutants.__main__ import changed, copy_tree, environment, run, verdict
from tests.mutants.table import ROOT, Mutant, read_mutants

MUTANTS = read_mutants()
PACKAGES = (
    *("bamboo", "bamboo/vision", "bamboo/text", "bamboo/checkpoints", "bamboo/cli", "analysis", "finetune"),
    *("finetune/glue", "configs/pretrain", "configs/finetune"),
)


def test_every_mutant_changes_its_file_and_names_a_test_that_is_there():
    for mutant in MUTANTS:
        assert mutant.mutated() != (ROOT / mutant.file).read_text(encoding="utf-8"), mutant
        path, _, name = mutant.test.partition("::")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert not name or name.partition("[")[0] in tests, mutant
    assert len(set(MUTANTS)) == len(MUTANTS) >= 40
    assert set(PACKAGES) <= {mutant.file.rpartition("/")[0] for mutant in MUTANTS}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return copy_tree(tmp_path_factory.mktemp("copy"))


def test_what_is_imported_is_the_copy(root):
    modules = {"bamboo.errors": "bamboo/errors.py", "bamboo.analysis": "analysis/__init__.py"}
    modules |= {"bamboo.finetune.tables": "finetune/tables.py", "bamboo.configs": "configs/__init__.py"}
    for module, file in modules.items():
        path = root / file
        text = path.read_text(encoding="utf-8")
        path.write_text("raise ImportError('the mutated copy')\n" + text, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-c", f"import {module}"], cwd=root, env=environment(root), capture_output=True, text=True
        )
        path.write_text(text, encoding="utf-8")
        assert "the mutated copy" in done.stderr, module


def test_a_mutant_lives_in_the_copy_alone_and_is_told_from_a_test_that_fails_anyway(root):
    (root / "tests/test_it.py").write_text(
        "from bamboo.seeds import derive_seed\ndef test_one(): assert derive_seed(1) > 9\ndef test_two(): assert 0\n"
    )
    mutant = Mutant("bamboo/seeds.py", ">> 1", "* 0", "tests/test_it.py::test_one")
    original = (root / "bamboo/seeds.py").read_text()
    unchanged = {test: run(root, test) for test in (mutant.test, "tests/test_it.py::test_two")}
    assert [outcome.state for outcome in unchanged.values()] == ["passed", "failed"]
    assert verdict(root, mutant, unchanged)[0] == "killed"
    assert verdict(root, mutant._replace(new=">> 2"), unchanged)[0] == "SURVIVED"
    assert verdict(root, mutant._replace(test="tests/test_it.py::test_two"), unchanged)[0] == "TEST FAILS UNCHANGED"
    assert "occurs 0 times" in verdict(root, mutant._replace(old="nowhere"), unchanged)[0]
    assert run(root, "tests/none.py").state == "broken"
    with pytest.raises(KeyboardInterrupt), changed(root, mutant):
        raise KeyboardInterrupt
    assert (root / "bamboo/seeds.py").read_text() == original == (ROOT / "bamboo/seeds.py").read_text()
