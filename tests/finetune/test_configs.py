"""Every shipped configuration says what its name says; one of each family trains, evaluates and predicts."""

import re

import pytest

from bamboo.cli import main
from bamboo.fit.compose import compose, resolve
from tests.finetune.folders import write_classes
from tests.finetune.runs import SIZES, last, pretrain, run
from tests.runs import CONFIGS, ROOT

FAMILIES = ("imagenet", "linear", "attentive", "scratch")


def settings(path):
    return resolve(compose(path))


@pytest.mark.parametrize("name", ["digits", "linear_digits", "scratch_digits"])
def test_classifiers_of_digits_have_the_sizes_of_the_encoder_that_the_quickstart_trains(name):
    ours, theirs = (
        settings(CONFIGS / path)["model"]["init_args"] for path in (f"finetune/{name}.yaml", "pretrain/quickstart.yaml")
    )
    for key in ("shape", "image_size", "patch_size", "in_chans"):
        assert ours[key] == theirs[key], key


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a data set and a pretrained encoder, which is the working directory."""
    folder = tmp_path_factory.mktemp("place")
    write_classes(folder / "images/train", 0, 60)
    write_classes(folder / "images/val", 100, 20)
    small = ("--trainer.max_steps", "1", "--trainer.limit_val_batches", "0", "--trainer.callbacks", "[]")
    (folder / "configs").symlink_to(CONFIGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert pretrain(*small, "--data.init_args.in_chans", "3", "--model.init_args.in_chans", "3") == 0
        yield folder


REDUCED = [
    *("--model.init_args.patch_size", "4", "--model.init_args.num_classes", "10", "--data.init_args.batch_size", "20"),
    *("--data.init_args.num_workers", "0", "--trainer.accelerator", "cpu", "--trainer.precision", "32-true"),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_one_of_each_family_trains(place, family):
    small = [*REDUCED, "--data.init_args.root", "images"]
    encoder = ["--model.init_args.encoder", "runs/quickstart/version_0/checkpoints/last.ckpt"]
    start = [] if family == "scratch" else encoder
    assert run("fit", *small, *start, "--trainer.max_epochs", "1", config=family) == 0
    name = f"{'finetune' if family == 'imagenet' else family}-2x32"
    assert last(place, name).is_file()


def commands():
    text = (ROOT / "docs/finetuning.md").read_text()
    return [
        line
        for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]


def test_the_commands_of_the_page_run(place, capsys):
    classifier = place / "runs/finetune-2x32/version_9/checkpoints/last.ckpt"
    small = [*REDUCED, "--data.init_args.root", "images", "--trainer.max_epochs", "1"]
    encoder = ["--model.init_args.encoder", "scratch"]
    assert run("fit", *small, "--trainer.logger.init_args.version", "9", *encoder, config="imagenet") == 0
    sizes = [*SIZES, *REDUCED]
    for line in commands():
        _, verb, *rest = line.split()
        swap = {"CHECKPOINT": "runs/quickstart/version_0/checkpoints/last.ckpt", "/path/to/images": "images"}
        swap["CLASSIFIER"] = str(classifier)
        words = [swap.get(word, word) for word in rest]
        options = {"fit": [*sizes, "--trainer.max_epochs", "1"], "validate": sizes, "predict": sizes}.get(verb, [])
        # Options of the callback that a page adds last stay last.
        cut = next((i for i, word in enumerate(words) if "callbacks+" in word), len(words))
        assert main([verb, *words[:cut], *options, *words[cut:]]) == 0, line
    out = capsys.readouterr().out
    assert re.search(r"val/samples\W+20\.0", out)
    assert "20 predictions in predictions.csv" in out
