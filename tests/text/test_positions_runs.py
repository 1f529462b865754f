"""Runs with other positions than learned ones: resumed, loaded, continued, filled in, profiled, counted, fine-tuned."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bamboo.analysis.model_sources import fresh_copy, open_model
from bamboo.cli import main
from bamboo.errors import InputError
from bamboo.finetune.glue.classifier import GlueClassifier
from bamboo.finetune.glue.encoders import longest_text, open_encoder
from bamboo.shapes import Shape
from bamboo.text.checkpoints import export_text, load_text
from bamboo.text.classification import TextClassification
from bamboo.text.data import PackedCorpus
from bamboo.text.encoder import hidden_states, longest_sequence
from bamboo.text.filling import fill
from bamboo.text.masking import Masked, masked_count
from bamboo.text.mlm import guess
from bamboo.text.pretraining import MLMPretraining
from tests.finetune.glue.tiny import write_data
from tests.interruption import Interruption
from tests.runs import load, same
from tests.text.runs import corpus_options, fit, last, saved

SHAPE = {"depth": 2, "width": 32, "heads": 2}
RUN = [
    *("--model.init_args.positions=kerple", "--model.init_args.adaptive=dape_v2", "--model.init_args.dropout=0.1"),
    *("--model.init_args.within_documents=true", "--trainer.max_steps=4", "--trainer.limit_val_batches=1"),
    "--checkpoint.every_n_train_steps=1",
]


@pytest.fixture(scope="module")
def adapted(corpus, tmp_path_factory):
    """The last checkpoint of a short run, in blocks in which documents are kept apart."""
    folder = tmp_path_factory.mktemp("adapted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert fit(*corpus_options(corpus), *RUN) == 0
    return last(folder)


@pytest.fixture
def ids():
    return torch.randint(5, 90, (2, 100), generator=torch.Generator().manual_seed(0))


def started(source, corpus, **options):
    """A module at the beginning of a run that starts from weights."""
    data = PackedCorpus(str(corpus), block_length=32, batch_size=8)
    module = MLMPretraining(**{"shape": SHAPE, "vocab_size": 200, "init_from": str(source)} | options)
    root = SimpleNamespace(root_device=torch.device("cpu"))
    module._trainer = SimpleNamespace(
        ckpt_path=None, is_global_zero=True, datamodule=data, world_size=1, global_rank=0, strategy=root
    )
    module.setup("fit")
    return module


def test_a_resumed_run_equals_one_without_a_break(adapted, corpus, tmp_path, monkeypatch):
    options = [*corpus_options(corpus), *RUN]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Interruption):
        fit(*options, "--trainer.callbacks+=tests.interruption.InterruptBefore", "--trainer.callbacks.step=2")
    assert fit(*options, "--ckpt_path", "last") == 0
    whole, parts = load(adapted), load(last(tmp_path))
    assert same(whole["state_dict"], parts["state_dict"])
    assert same(whole["optimizer_states"], parts["optimizer_states"])
    assert whole["hyper_parameters"]["positions"] == "kerple"


@pytest.mark.parametrize("positions", ["none", "rotary", "alibi", "kerple", "fire"])
@pytest.mark.parametrize("adaptive", ["none", "dape"])
def test_a_checkpoint_is_loaded_with_its_positions(positions, adaptive, adapted, ids, tmp_path):
    options = {"positions": positions, "adaptive": adaptive, "architecture": "roberta-prelayernorm"}
    module = MLMPretraining(shape=SHAPE, vocab_size=93, **options)
    path = saved(module, tmp_path / "last.ckpt", load(adapted)["tokenizer"])
    loaded = load_text(path)
    with torch.no_grad():
        assert torch.equal(hidden_states(loaded.model, ids), hidden_states(module.eval().model, ids))
    assert loaded.tokenizer.model_max_length > 10**9


def test_a_checkpoint_from_before_positions_had_a_kind_is_loaded(adapted, ids, tmp_path):
    module = MLMPretraining(shape=SHAPE, vocab_size=93, max_positions=100)
    path = saved(module, tmp_path / "last.ckpt", load(adapted)["tokenizer"])
    content = load(path)
    content["hyper_parameters"]["positions"] = content["hyper_parameters"].pop("max_positions")
    torch.save(content | {"pytorch-lightning_version": "2.5.0"}, path)
    for model in (load_text(path).model, MLMPretraining.load_from_checkpoint(path).model):
        assert longest_sequence(model.config) == 100
        with torch.no_grad():
            assert torch.equal(hidden_states(model.eval(), ids), hidden_states(module.eval().model, ids))


def test_sentences_longer_than_training_are_filled_in(adapted):
    model, tokenizer, _ = load_text(adapted)
    assert len(fill(model, tokenizer, "the cat sat " * 400 + "[MASK]")) == 1


def test_what_transformers_has_no_model_for_is_not_exported(adapted, tmp_path, capsys):
    assert main(["export", str(adapted), "--format", "hf", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "transformers has no roberta-prelayernorm with positions kerple" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    words = load(adapted)["tokenizer"]
    path = saved(TextClassification(shape=SHAPE, vocab_size=93, positions="none"), tmp_path / "last.ckpt", words)
    with pytest.raises(InputError, match="no bert with positions none"):
        export_text(path, tmp_path / "out")


def test_a_run_starts_from_weights_of_the_same_positions(adapted, corpus, ids):
    kinds = {"architecture": "roberta-prelayernorm", "positions": "kerple", "adaptive": "dape_v2"}
    source = load_text(adapted).model
    module = started(adapted, corpus, **kinds)
    assert same(module.model.state_dict(), source.state_dict())
    deeper = started(adapted, corpus, **kinds | {"shape": SHAPE | {"depth": 4}}, stack="identity")
    for part in (module, deeper):
        with torch.no_grad():
            torch.testing.assert_close(hidden_states(part.eval().model, ids), hidden_states(source, ids))


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({}, "says learned and none: give --model.init_args.positions kerple --model.init_args.adaptive dape_v2"),
        (
            {"positions": "kerple"},
            "has positions kerple and adaptive dape_v2, and model.init_args says kerple and none",
        ),
        ({"positions": "fire", "adaptive": "dape_v2"}, "says fire and dape_v2"),
    ],
)
def test_weights_of_other_positions_are_refused_in_one_line(adapted, corpus, kinds, message):
    with pytest.raises(InputError, match=message) as error:
        started(adapted, corpus, architecture="roberta-prelayernorm", **kinds)
    assert "\n" not in str(error.value)


def test_a_checkpoint_is_profiled_attention_too_up_to_a_length(adapted, corpus, tmp_path, capsys):
    text = tmp_path / "long.txt"
    text.write_text(" ".join((corpus.parent / f"{number:02}.txt").read_text() for number in range(30)))
    command = ["profile", str(adapted), "--data", str(text), "--samples", "2", "--out", str(tmp_path / "profile")]
    measures = ["--measures", "stream", "attention"]
    assert main([*command, *measures, "--max-length", "64", "--baseline"]) == 0
    capsys.readouterr()
    assert main([*command, *measures, "--max-length", "1500"]) == 2
    error = capsys.readouterr().err
    assert "its attention cannot be measured" in error
    assert error.splitlines()[-1].startswith("bamboo: error: ")  # behind the progress bar
    assert main([*command, "--measures", "stream", "--max-length", "1500"]) == 0


def test_a_fresh_copy_has_the_positions_of_its_model(adapted, ids):
    opened = open_model(str(adapted))
    fresh = fresh_copy(opened).model
    assert fresh.state_dict().keys() >= opened.model.state_dict().keys()
    assert fresh.config._attn_implementation == opened.model.config._attn_implementation == "bamboo"
    assert hidden_states(fresh, ids).shape == (2, 100, 32)


def test_a_classifier_is_fine_tuned_from_it_and_loaded_again(adapted, ids):
    opened = open_encoder(adapted, 2)
    assert longest_text(opened.model.config) is None
    with torch.no_grad():
        expected = hidden_states(load_text(adapted).model, ids)
        assert torch.equal(hidden_states(opened.model.eval(), ids), expected)
    module = GlueClassifier(adapted)
    again = GlueClassifier(**dict(module.hparams))
    again.load_state_dict(module.state_dict())
    with torch.no_grad():
        assert torch.equal(hidden_states(again.model.eval(), ids), expected)


def test_models_that_cannot_be_kept_are_refused_before_training(adapted, tmp_path, capsys):
    write_data(tmp_path / "glue", names=("cola",))
    command = [
        "glue",
        str(adapted),
        "--data",
        str(tmp_path / "glue"),
        "--out",
        str(tmp_path / "out"),
        "--tasks",
        "cola",
    ]
    assert main([*command, "--keep-models"]) == 2
    assert "with positions kerple" in capsys.readouterr().err


@pytest.mark.parametrize("positions", ["rotary", "alibi", "fire"])
@pytest.mark.parametrize("adaptive", ["none", "dape", "dape_v2"])
def test_flops_are_three_times_those_that_torch_counts(positions, adaptive):
    with torch.device("meta"):
        module = MLMPretraining(shape=Shape(3, 48, 4), vocab_size=120, positions=positions, adaptive=adaptive)
        module._trainer = SimpleNamespace(datamodule=SimpleNamespace(length=20))
        rows = 64  # of a batch, which shares the biases
        places = torch.zeros(rows, masked_count(20, module.mask_ratio), dtype=torch.int64)
        with FlopCounterMode(display=False) as forward:
            guess(module.model, Masked(torch.zeros(rows, 20, dtype=torch.int64), places, places))
    assert module.flops_per_sample() == pytest.approx(3 * forward.get_total_flops() / rows, rel=0.005)
