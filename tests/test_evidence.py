"""The commands of docs/evidence.md that need a network: every name is one of timm's with weights, and they run."""

import re
import shlex
import subprocess

import pytest
import timm

from bamboo.analysis.profiles import Comparison
from bamboo.cli import main
from tests.runs import ROOT

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "evidence.md").read_text()
SHAPE = {"embed_dim": 24, "depth": 2, "num_heads": 2}


def expanded(block: str) -> list[list[str]]:
    """The words after `bamboo` of each command of a block, as the shell expands them."""
    script = f'bamboo() {{ printf "%q " "$@"; echo; }}\n{block}'
    lines = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, check=True).stdout.splitlines()
    return [shlex.split(line) for line in lines]


def test_the_loop_over_public_checkpoints_runs_on_models_that_timm_has_weights_of(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    create, created = timm.create_model, list[str]()

    def small(name: str, pretrained: bool = False, **options):
        created.append(name)
        return create(name, **{**SHAPE, **options})

    monkeypatch.setattr(timm, "create_model", small)
    (block,) = re.findall(r"^```text\n([^`]*?timm:[^`]*?)```", PAGE, re.MULTILINE)
    commands = expanded(block.replace("/path/to/images", "digits"))
    for words in commands:
        assert main([*words, "--samples", "3", "--pictures", "0"]) == 0
        found = Comparison.load(words[words.index("--out") + 1]).profiles
        assert len(found) == 6
        assert all(profile.has("excess_similarity") for profile in found)
    assert len(set(created)) == 12
    assert set(created) <= set(timm.list_pretrained())
