import pytest

from bamboo.cli import main
from tests.text.runs import fit, last

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "while",
    "rain",
    "fell",
    "over",
    "old",
    "stone",
    "walls",
    "and",
    "nobody",
    "in",
    "town",
    "wanted",
    "to",
    "walk",
    "home",
]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A packed corpus of a few thousand tokens."""
    folder = tmp_path_factory.mktemp("text")
    for number in range(30):
        words = [WORDS[(number * 7 + place * (place % 5 + 1)) % len(WORDS)] for place in range(200)]
        (folder / f"{number:02}.txt").write_text(" ".join(words) + ".\n", encoding="utf-8")
    out = folder / "corpus"
    assert main(["tokenize", str(folder), "--out", str(out), "--vocab-size", "200", "--val-fraction", "0.2"]) == 0
    return out


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A checkpoint of a tiny model after a few steps on the text that comes with the dependencies."""
    folder = tmp_path_factory.mktemp("text_run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert fit("--trainer.max_steps", "3", "--trainer.log_every_n_steps", "1") == 0
    return last(folder)
