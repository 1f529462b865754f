import io
from contextlib import redirect_stdout

import pytest

from bamboo.cli import main
from tests.text.runs import fit, last

TEXT = "the cat sat on a mat while rain fell over old stone walls and nobody in town wanted to walk home"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A packed corpus of a few thousand tokens."""
    folder, source = tmp_path_factory.mktemp("text"), TEXT.split()
    for number in range(30):
        words = [source[(number * 7 + place * (place % 5 + 1)) % len(source)] for place in range(200)]
        (folder / f"{number:02}.txt").write_text(" ".join(words) + ".\n", encoding="utf-8")
    out = folder / "corpus"
    assert main(["tokenize", str(folder), "--out", str(out), "--vocab-size", "200", "--val-fraction", "0.2"]) == 0
    return out


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The folder and the output of a short run of a tiny model on the text that comes with the dependencies."""
    folder, output = tmp_path_factory.mktemp("text_run"), io.StringIO()
    steps = ["--trainer.max_steps=4", "--trainer.val_check_interval=4", "--trainer.limit_val_batches=2"]
    sizes = ["--data.init_args.vocab_size=500", "--data.init_args.batch_size=8", "--trainer.log_every_n_steps=1"]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output):
        patch.chdir(folder)
        assert fit(*steps, *sizes) == 0
    return folder, output.getvalue()


@pytest.fixture(scope="session")
def checkpoint(run):
    """Of that run."""
    return last(run[0])
