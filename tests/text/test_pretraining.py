import os
import subprocess
import sys

import pytest
import torch

from bamboo.cli import main
from bamboo.text.data import Blocks, ShippedEnglish, shipped_documents
from bamboo.text.tokenizer import special_ids
from tests.interruption import Interruption
from tests.runs import CONFIGS, ROOT, load, same, scalars
from tests.text.runs import TINY, fit, last

SHORT = ["--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "1", "--checkpoint.every_n_train_steps", "1"]
FEW = ["--data.init_args.batch_size", "400"]  # a batch is a fifth of the text


def interrupt_before(step):
    return ["--trainer.callbacks+=tests.interruption.InterruptBefore", f"--trainer.callbacks.step={step}"]


def test_the_shipped_text_has_the_words_that_it_should():
    words = sum(len(document.split()) for document in shipped_documents())
    assert 300_000 < words < 340_000
    data = ShippedEnglish(block_length=64, vocab_size=1000)
    data.setup()
    assert data.vocab_size == 1000
    assert 0.02 < len(data.text.val) / len(data.text.train) < 0.10
    again = ShippedEnglish(block_length=64, vocab_size=1000)
    assert (again.text.train == data.text.train).all()
    batch = next(iter(data.train_dataloader()))
    assert batch["input_ids"].shape == (32, 64)
    ids = special_ids(data.tokenizer)
    assert (batch["input_ids"][:, 0] == ids["cls"]).all()
    assert (batch["input_ids"][:, -1] == ids["sep"]).all()
    assert (batch["input_ids"] != ids["pad"]).all()
    assert batch["special_tokens_mask"][:, 0].all()


def test_blocks_hold_every_token_of_the_stream_once(corpus):
    from bamboo.text.corpus import Corpus

    opened = Corpus.open(corpus)
    blocks = Blocks(opened.train.tokens, 16, opened.tokenizer)
    together = torch.cat([torch.from_numpy(blocks[index][1:-1]) for index in range(len(blocks))])
    assert together.tolist() == opened.train.tokens[: len(together)].tolist()
    assert len(opened.train.tokens) - len(together) < 14


def test_a_run_logs_and_ends_by_saying_what_it_learned(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert fit("--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1") == 0
    out = capsys.readouterr().out
    assert "masked tokens guessed right" in out
    assert "the most frequent token always" in out
    folder = last(tmp_path).parent.parent
    for tag in ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/most_frequent_token"):
        assert scalars(folder, tag), tag
    assert scalars(folder, "similarity/layer_02")
    assert 0 < next(iter(scalars(folder, "val/accuracy").values())) < 1


@pytest.mark.parametrize("more", [[], ["--model.init_args.dropout", "0.1", "--model.init_args.whole_words", "true"]])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, monkeypatch, more):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert fit(*SHORT, *FEW, *more) == 0
    monkeypatch.chdir(tmp_path / "parts")
    with pytest.raises(Interruption):
        fit(*SHORT, *FEW, *more, *interrupt_before(2))
    assert fit(*SHORT, *FEW, *more, "--ckpt_path", "last") == 0
    left, right = (load(last(tmp_path / name)) for name in ("whole", "parts"))
    assert left["global_step"] == right["global_step"] > 3
    assert same(left["state_dict"], right["state_dict"])
    assert same(left["optimizer_states"], right["optimizer_states"])


def test_two_processes_train_as_one_with_the_whole_batch(tmp_path):
    steps = ["--trainer.max_steps", "3", "--trainer.log_every_n_steps", "1", "--data.init_args.vocab_size", "600"]
    for name, batch, devices in (
        ("one", "64", []),
        ("two", "32", ["--trainer.devices", "2", "--trainer.strategy", "ddp"]),
    ):
        folder = tmp_path / name
        folder.mkdir()
        gradients = ["--trainer.callbacks+=tests.interruption.SaveGradients", "--trainer.callbacks.path=gradients.pt"]
        config = ["--config", str(CONFIGS / "pretrain/text_quickstart.yaml")]
        command = ["fit", *config, *TINY, *steps, "--data.init_args.batch_size", batch, *devices, *gradients]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-m", "bamboo", *command], cwd=folder, env=environment)
        assert done.returncode == 0
    one, two = (torch.load(tmp_path / name / "gradients.pt", weights_only=True) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-4, atol=1e-6)
    weights = [load(last(tmp_path / name))["state_dict"] for name in ("one", "two")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-4)


CORPUS = ["--data=bamboo.text.data.PackedCorpus", "--trainer.max_steps=1"]


def test_a_packed_corpus_trains(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--model.init_args.vocab_size=200", "--data.init_args.batch_size=8", "--data.init_args.block_length=32"]
    assert fit(*CORPUS, f"--data.init_args.root={corpus}", *options, "--model.init_args.within_documents=true") == 0


def test_what_does_not_fit_is_said_in_one_line(corpus, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = f"--data.init_args.root={corpus}"
    wrong = {
        "set model.init_args.vocab_size to 93": [*CORPUS, path, "--model.init_args.vocab_size=64"],
        "set model.init_args.positions": [*CORPUS, path, "--data.init_args.block_length=65"],
        "do not fill a block": ["--model.init_args.positions=9999999", "--data.init_args.block_length=9999999"],
        "another tokenizer than the one": [
            *(*CORPUS, path, f"--ckpt_path={checkpoint}", "--data.init_args.block_length=32"),
            "--data.init_args.batch_size=8",
        ],
        "needs text, and the data are Digits": ["--data=bamboo.vision.data.Digits"],
        "mask_ratio must lie between": ["--model.init_args.mask_ratio=1.5"],
        "block_length must be at least 8": ["--data.init_args.block_length=4"],
    }
    for message, arguments in wrong.items():
        assert fit(*arguments) == 2, message
        error = capsys.readouterr().err.strip()
        assert message in error, error
        assert "\n" not in error, error


def test_profile_reads_checkpoints_and_corpora(corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--model.init_args.vocab_size=200", "--data.init_args.batch_size=8", "--data.init_args.block_length=32"]
    assert fit(*CORPUS, f"--data.init_args.root={corpus}", *options) == 0
    arguments = [str(last(tmp_path)), "--out", "out", "--baseline", "--samples", "12", "--max-length", "32"]
    assert main(["profile", *arguments, "--data", str(corpus)]) == 0
    assert "token similarity" in capsys.readouterr().out
    assert main(["profile", *arguments, "--data", str(corpus.parent / "00.txt")]) == 0
