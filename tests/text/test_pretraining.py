import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from bamboo.analysis.data_sources import open_data
from bamboo.analysis.model_sources import open_model
from bamboo.analysis.profiling import profile
from bamboo.errors import InputError
from bamboo.text.data import PackedCorpus, ShippedEnglish, shipped_documents
from bamboo.text.pretraining import MLMPretraining
from bamboo.text.tokenizer import special_ids
from tests.interruption import Interruption
from tests.runs import CONFIGS, ROOT, load, same, scalars
from tests.text.runs import TINY, corpus_options, fit, last

SHAPE = {"depth": 2, "width": 16, "heads": 2}


def interrupt_before(step):
    return ["--trainer.callbacks+=tests.interruption.InterruptBefore", f"--trainer.callbacks.step={step}"]


def test_the_shipped_text_has_the_words_that_it_should():
    words = sum(len(document.split()) for document in shipped_documents())
    assert 300_000 < words < 340_000
    data = ShippedEnglish(block_length=64, vocab_size=500)
    data.setup()
    assert data.tokenizer.get_vocab_size() == 500
    assert 0.02 < len(data.text.val) / len(data.text.train) < 0.10
    batch = next(iter(data.train_dataloader()))
    assert batch["input_ids"].shape == (32, 64)
    ids = special_ids(data.tokenizer)
    assert (batch["input_ids"][:, 0] == ids["cls"]).all()
    assert (batch["input_ids"][:, -1] == ids["sep"]).all()
    assert (batch["input_ids"] != ids["pad"]).all()
    assert batch["special_tokens_mask"][:, 0].all()


def test_a_run_logs_and_ends_by_saying_what_it_learned(run):
    folder, output = run
    assert "masked tokens guessed right" in output
    assert "the most frequent token always" in output
    logs = last(folder).parent.parent
    for tag in ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "similarity/layer_02"):
        assert scalars(logs, tag), tag
    assert 0 < next(iter(scalars(logs, "val/most_frequent_token").values())) < 0.2


@pytest.mark.parametrize("further", ["whole_words=true", "objective=causal"])
def test_a_resumed_run_equals_the_uninterrupted_one(corpus, tmp_path, monkeypatch, further):
    random = ["--model.init_args.dropout", "0.1", f"--model.init_args.{further}"]
    options = [*corpus_options(corpus), "--trainer.max_steps", "4", "--checkpoint.every_n_train_steps", "1", *random]
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert fit(*options) == 0
    monkeypatch.chdir(tmp_path / "parts")
    with pytest.raises(Interruption):
        fit(*options, *interrupt_before(2))
    assert fit(*options, "--ckpt_path", "last") == 0
    left, right = (load(last(tmp_path / name)) for name in ("whole", "parts"))
    assert left["global_step"] == right["global_step"] == 4
    assert same(left["state_dict"], right["state_dict"])
    assert same(left["optimizer_states"], right["optimizer_states"])


def module_of(data, world=1, rank=0):
    """A module that thinks that it is one of several processes."""
    torch.manual_seed(0)
    module = MLMPretraining(shape=SHAPE, vocab_size=200, max_positions=64, mask_ratio=0.3)
    root = SimpleNamespace(root_device=torch.device("cpu"))
    module._trainer = SimpleNamespace(
        ckpt_path=None, datamodule=data, world_size=world, global_rank=rank, strategy=root
    )
    module.setup("fit")
    return module


def test_two_processes_mask_their_shares_as_one_masks_the_whole_batch(corpus):
    data = PackedCorpus(str(corpus), block_length=32, batch_size=8)
    batch = next(iter(data.val_dataloader()))["input_ids"]
    whole = module_of(data).mask(batch, "train", 0, 5)
    for rank in (0, 1):
        shares = module_of(data, 2, rank).mask(batch[rank::2], "train", 0, 5)
        assert all(torch.equal(share, part[rank::2]) for share, part in zip(shares, whole, strict=True))
    other = module_of(data).mask(batch, "train", 0, 6)
    assert not torch.equal(other.positions, whole.positions)


def test_two_processes_train_as_one_with_the_whole_batch(corpus, tmp_path, monkeypatch):
    gradients = ["--trainer.callbacks+=tests.interruption.SaveGradients", "--trainer.callbacks.path=gradients.pt"]
    options = [*corpus_options(corpus), "--trainer.max_steps=2", "--trainer.limit_val_batches=1", *gradients]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "one")
    assert fit(*options, "--data.init_args.batch_size=16") == 0
    devices = ["--data.init_args.batch_size=8", "--trainer.devices=2", "--trainer.strategy=ddp"]
    config = ["--config", str(CONFIGS / "pretrain/text_quickstart.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "bamboo", "fit", *config, *TINY, *options, *devices]
    assert subprocess.run(command, cwd=tmp_path / "two", env=environment).returncode == 0
    one, two = (torch.load(tmp_path / name / "gradients.pt", weights_only=True) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-4, atol=1e-6)
    weights = [load(last(tmp_path / name))["state_dict"] for name in ("one", "two")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-4)


def test_a_packed_corpus_trains_and_its_checkpoint_is_profiled(corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--trainer.max_steps=1", "--model.init_args.within_documents=true"]
    assert fit(*corpus_options(corpus), *options) == 0
    opened = open_model(str(last(tmp_path)))
    for data, samples in ((corpus, 12), (corpus.parent / "00.txt", 3)):
        batches = list(open_data(str(data), opened, samples=12, batch_size=4, max_length=32))
        assert sum(len(batch["input_ids"]) for batch in batches) == samples
        assert len(profile(opened.model, batches, ["token_similarity"]).values)


def test_data_and_a_model_that_do_not_fit_are_refused_in_one_line(corpus):
    data = PackedCorpus(str(corpus), block_length=32)
    module = module_of(data)
    options = {"shape": SHAPE, "vocab_size": 200, "max_positions": 64}
    wrong = {
        "set model.init_args.vocab_size to 93": ({"vocab_size": 64}, data),
        "set model.init_args.max_positions": ({"max_positions": 16}, data),
        "set model.init_args.pad_token_id": ({"pad_token_id": 7}, data),
        "MLMPretraining needs TextData, and the data are NoneType": ({}, None),
    }
    for message, (other, source) in wrong.items():
        new = MLMPretraining(**options | other)
        new._trainer = SimpleNamespace(ckpt_path=None, datamodule=source)
        with pytest.raises(InputError, match=message):
            new.setup("fit")
    with pytest.raises(InputError, match="do not fill a block of 99999"):
        PackedCorpus(str(corpus), block_length=99999).setup()
    with pytest.raises(InputError, match="mask_ratio must lie between"):
        MLMPretraining(**options, mask_ratio=1.5)
    with pytest.raises(InputError, match="block_length must be at least 8"):
        PackedCorpus(str(corpus), block_length=4)
    checkpoint, module._trainer = {"state_dict": module.state_dict(), "tokenizer": "another"}, None
    with pytest.raises(InputError, match="another tokenizer than the one"):
        module.on_load_checkpoint(checkpoint)


def test_bad_input_of_a_run_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fit("--data=bamboo.vision.data.Digits") == 2
    error = capsys.readouterr().err.strip()
    assert "needs TextData, and the data are Digits" in error
    assert "\n" not in error
