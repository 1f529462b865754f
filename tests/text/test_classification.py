from types import SimpleNamespace

import pytest
import torch

from bamboo.analysis.model_sources import open_model
from bamboo.cli import main
from bamboo.errors import InputError
from bamboo.text.classification import TextClassification
from bamboo.text.data import ShippedEnglish, read_glosses
from bamboo.text.glosses import GlossSubjects
from tests.runs import CONFIGS, load, scalars
from tests.text.runs import TINY, last

SMALL = {"shape": {"depth": 2, "width": 16, "heads": 2}, "vocab_size": 500, "max_positions": 32}


@pytest.fixture(scope="module", params=["token", "avg"])
def run(request, tmp_path_factory):
    """The folder of a short run from the command line, by what its head reads."""
    config = ["--config", str(CONFIGS / "finetune/scratch_glosses.yaml"), *TINY, "--data.init_args.vocab_size=500"]
    steps = ["--trainer.max_steps=40", "--trainer.val_check_interval=40"]
    folder = tmp_path_factory.mktemp("glosses")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", *config, *steps, "--model.init_args.pool", request.param]) == 0
    return folder


def test_there_are_as_many_definitions_as_imagenet_has_classes_and_each_has_a_subject():
    glosses = read_glosses()
    assert len(glosses) == 21_844
    assert {int(gloss.synset[1:3]) for gloss in glosses} == set(range(GlossSubjects.num_classes))
    dog = next(gloss.text for gloss in glosses if gloss.synset == "n02084071")
    assert dog.startswith("a member of the genus Canis")


def test_a_batch_is_padded_and_says_what_is_read():
    data = GlossSubjects(vocab_size=500, length=16, batch_size=8)
    batch = next(iter(data.val_dataloader()))
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (len(batch["label"]), 16)
    assert torch.equal(batch["attention_mask"], batch["input_ids"] != 0)
    assert batch["special_tokens_mask"][:, 0].all()
    assert torch.equal(batch["special_tokens_mask"], batch["input_ids"] < 5)
    train, val = (len(data.samples(split)) for split in ("train", "val"))
    assert train + val == 21_844
    assert 0.08 < val / 21_844 < 0.12


def test_what_is_looked_at_is_spread_over_all_subjects():
    data = GlossSubjects(vocab_size=500, length=16, batch_size=100)
    for split, loader in zip(("train", "val"), data.probe_loaders(256), strict=True):
        samples, batches = data.samples(split), list(loader)
        looked = torch.cat([batch["label"] for batch in batches])
        assert len(looked) == 256
        whole = samples.batch(range(len(samples)))["label"].bincount(minlength=16) / len(samples)
        assert torch.allclose(looked.bincount(minlength=16) / 256, whole, atol=0.01)
        last = 255 * len(samples) // 256
        assert torch.equal(batches[-1]["input_ids"][-1], samples.batch([last])["input_ids"][0])
    assert len(data.probe_loaders(10**6)[1].dataset) == len(data.samples("val"))


def test_classification_from_scratch_learns_and_logs(run):
    logs = last(run, "scratch_glosses").parent.parent
    losses = list(scalars(logs, "train/loss").values())
    assert losses[-1] < losses[0]
    assert next(iter(scalars(logs, "val/accuracy").values())) > 0.1
    assert scalars(logs, "similarity/layer_02")


def test_the_encoder_of_a_classifier_is_opened_for_a_profile(run):
    checkpoint = last(run, "scratch_glosses")
    opened, weights = open_model(str(checkpoint)), load(checkpoint)["state_dict"]
    assert all(torch.equal(value, weights[f"model.{key}"]) for key, value in opened.model.state_dict().items())
    assert len(opened.tokenizer) == 500
    assert "drawn at random" in opened.notes[0]


def test_what_does_not_fit_is_said_in_one_line():
    wrong = {
        "set model.init_args.vocab_size to 500": ({"vocab_size": 64}, GlossSubjects(vocab_size=500)),
        "above the model's 8 positions": ({"max_positions": 8}, GlossSubjects(vocab_size=500)),
        "needs GlossSubjects, and the data are ShippedEnglish": ({}, ShippedEnglish()),
    }
    for message, (options, data) in wrong.items():
        module = TextClassification(**SMALL | options)
        module._trainer = SimpleNamespace(ckpt_path=None, datamodule=data)
        with pytest.raises(InputError, match=message):
            module.setup("fit")
    with pytest.raises(InputError, match="length must be at least 4"):
        GlossSubjects(length=2)
