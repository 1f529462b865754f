"""Masked language modelling that starts from weights: each architecture, deeper by stacking, resumed, and refused."""

from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    ModernBertConfig,
    RobertaConfig,
    RobertaPreLayerNormConfig,
)

from bamboo.cli import main
from bamboo.errors import InputError
from bamboo.text.checkpoints import load_text
from bamboo.text.classification import TextClassification
from bamboo.text.data import PackedCorpus
from bamboo.text.encoder import blocks_of
from bamboo.text.pretraining import MLMPretraining
from bamboo.text.tokenizer import save_tokenizer, special_ids
from tests.interruption import Interruption
from tests.runs import load, same
from tests.text.runs import corpus_options, fit, last

SHAPE = {"depth": 2, "width": 32, "heads": 2}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 50}
CONFIGS = {
    "bert": BertConfig(**SIZES, intermediate_size=128, layer_norm_eps=1e-3, type_vocab_size=3),
    "roberta": RobertaConfig(**SIZES, intermediate_size=128, layer_norm_eps=1e-5, type_vocab_size=1),
    "roberta-prelayernorm": RobertaPreLayerNormConfig(**SIZES, intermediate_size=128, layer_norm_eps=1e-4),
    "modernbert": ModernBertConfig(
        **SIZES, intermediate_size=85, local_attention=8, layer_types=["full_attention", "sliding_attention"]
    ),
}


@torch.no_grad()
def randomised(model):
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture
def data(corpus):
    return PackedCorpus(str(corpus), block_length=32, batch_size=8)


@pytest.fixture
def folder(data, tmp_path):
    """Makes the Hugging Face folder of a random model with the tokenizer of the corpus, of 93 tokens."""

    def make(architecture, **options):
        ids = special_ids(data.tokenizer)
        more = {"pad_token_id": ids["pad"], "bos_token_id": ids["cls"], "eos_token_id": ids["sep"]}
        config = CONFIGS[architecture].to_dict() | {"vocab_size": data.tokenizer.get_vocab_size(), **more, **options}
        model = randomised(AutoModelForMaskedLM.from_config(AutoConfig.for_model(**config)))
        model.save_pretrained(tmp_path / architecture)
        save_tokenizer(data.tokenizer, tmp_path / architecture, 48)
        return tmp_path / architecture, model

    return make


def started(source, data, architecture="bert", **options):
    """A module at the beginning of a run that starts from weights."""
    arguments = {"shape": SHAPE, "max_positions": 40, "vocab_size": 200, "mask_ratio": 0.3, **options}
    module = MLMPretraining(architecture=architecture, init_from=str(source), **arguments)
    root = SimpleNamespace(root_device=torch.device("cpu"))
    module._trainer = SimpleNamespace(
        ckpt_path=None, is_global_zero=True, datamodule=data, world_size=1, global_rank=0, strategy=root
    )
    module.setup("fit")
    return module


def losses(module, model, data):
    """The loss of a first step, and that of a model of transformers under the same masks."""
    batch = next(iter(data.val_dataloader()))
    masked = module.mask(batch["input_ids"], "train", 0, 0)
    labels = torch.full_like(masked.input_ids, -100).scatter(1, masked.positions, masked.labels)
    return module.guess(batch, "train", 0, 0)[0].loss, model(masked.input_ids, labels=labels).loss


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_hugging_face_model_goes_on_with_the_loss_that_it_had(folder, data, capsys, architecture):
    path, model = folder(architecture)
    module = started(f"hf:{path}", data, architecture)
    torch.testing.assert_close(*losses(module, model, data), rtol=1e-6, atol=0)
    assert same(module.model.state_dict(), model.state_dict())
    assert all(p.requires_grad for p in module.model.parameters())
    assert module.model.config.vocab_size == module.hparams["vocab_size"] == data.tokenizer.get_vocab_size()
    report = capsys.readouterr().out
    assert f"({architecture}): {len(model.state_dict())} tensors loaded, 0 not used" in report
    assert "start fresh" not in report


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_checkpoint_of_ours_goes_on_with_the_loss_that_it_had(data, tmp_path, architecture):
    before = randomised(MLMPretraining(architecture=architecture, shape=SHAPE, max_positions=40, vocab_size=200))
    content = {"state_dict": before.state_dict(), "hyper_parameters": dict(before.hparams)}
    torch.save(content | {"tokenizer": data.tokenizer.to_str()}, tmp_path / "last.ckpt")
    module = started(tmp_path / "last.ckpt", data, architecture)
    torch.testing.assert_close(*losses(module, before.model, data), rtol=1e-6, atol=0)


def test_dropout_is_that_of_the_run_and_not_of_the_source(folder, data):
    path, _ = folder("bert", hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    for options, expected in (({}, 0.0), ({"dropout": 0.2}, 0.2)):
        module = started(path, data, **options)
        found = {part.p for part in module.model.modules() if isinstance(part, torch.nn.Dropout)}
        assert found == {expected}


def test_an_encoder_without_a_head_gets_a_fresh_one_that_is_said(folder, data, tmp_path, capsys):
    path, model = folder("bert")
    model.base_model.save_pretrained(path)
    started(path, data)
    assert "start fresh: cls.predictions" in capsys.readouterr().out
    classifier = randomised(TextClassification(architecture="bert", shape=SHAPE, max_positions=40, vocab_size=200))
    content = {"state_dict": classifier.state_dict(), "hyper_parameters": dict(classifier.hparams)}
    torch.save(content | {"tokenizer": data.tokenizer.to_str()}, tmp_path / "last.ckpt")
    module = started(tmp_path / "last.ckpt", data)
    assert same(module.model.base_model.state_dict(), classifier.model.state_dict())
    report = capsys.readouterr().out
    assert f"{len(classifier.model.state_dict())} tensors loaded" in report
    assert "start fresh: cls.predictions" in report


@pytest.mark.parametrize("architecture", ["roberta-prelayernorm", "modernbert"])
@pytest.mark.parametrize("depth", [4, 6])
def test_identity_keeps_the_function_and_its_new_blocks_learn(folder, data, architecture, depth):
    path, model = folder(architecture)
    module = started(path, data, architecture, shape=SHAPE | {"depth": depth}, stack="identity")
    assert len(blocks_of(module.model)) == module.model.config.num_hidden_layers == depth
    ours, theirs = losses(module, model, data)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    copy = blocks_of(module.model)[1]
    zero = {name for name, parameter in copy.named_parameters() if not parameter.any()}
    ends = {"Wo."} if architecture == "modernbert" else {"output.dense."}
    assert zero == {name for name, _ in copy.named_parameters() if any(end in name for end in ends)}
    optimizer, learning = torch.optim.SGD(module.parameters(), lr=0.1), []
    for _ in range(2):
        optimizer.zero_grad()
        losses(module, model, data)[0].backward()
        learning.append({name for name, parameter in copy.named_parameters() if parameter.grad.any()})
        optimizer.step()
    assert learning[0] == zero
    assert learning[1] == {name for name, _ in copy.named_parameters()}


@pytest.mark.parametrize("architecture", ["bert", "roberta", "roberta-prelayernorm"])
def test_repeat_is_the_sequence_of_blocks_again(folder, data, architecture):
    path, model = folder(architecture)
    module = started(path, data, architecture, shape=SHAPE | {"depth": 4}, stack="repeat")
    ours, theirs = ([block.state_dict() for block in blocks_of(each)] for each in (module.model, model))
    assert same(ours, theirs * 2)
    assert module.guess(next(iter(data.val_dataloader())), "x")[0].loss.isfinite()


def test_weights_that_do_not_fit_are_refused_in_one_line(folder, data, tmp_path, checkpoint):
    def refused(source, architecture="bert", **options):
        with pytest.raises(InputError) as caught:
            started(source, data, architecture, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    (bert, _), (modern, _) = folder("bert"), folder("modernbert")
    deep, wide = SHAPE | {"depth": 4}, SHAPE | {"width": 64}
    assert "is 2x32 with 2 heads, and model.init_args.shape says 4x32 with 2 heads: give" in refused(bert, shape=deep)
    assert "or --model.init_args.stack identity" in refused(bert, shape=deep)
    assert "says 2x64 with 2 heads: give --model.init_args.shape" in refused(bert, shape=wide)
    assert "stack" not in refused(bert, shape=wide)
    assert "bert normalises behind each branch" in refused(bert, shape=deep, stack="identity")
    assert "the first block of modernbert" in refused(modern, "modernbert", shape=deep, stack="repeat")
    assert "asks for 3" in refused(bert, shape=SHAPE | {"depth": 3}, stack="repeat")
    assert "is of architecture bert: give --model.init_args.architecture bert" in refused(bert, "roberta")
    assert "slide a window" in refused(modern, "modernbert", within_documents=True)
    other = refused(checkpoint, "roberta-prelayernorm")
    assert "has a vocabulary of 500 tokens, and the data were made with another one, of 93" in other
    assert f"bamboo export {checkpoint} --format hf --out FOLDER writes" in other
    tokenizer = AutoTokenizer.from_pretrained(bert)
    tokenizer.add_tokens(["besides"])
    tokenizer.save_pretrained(bert)
    assert f"bamboo tokenize TEXT --out CORPUS --tokenizer {bert}" in refused(f"hf:{bert}")
    assert "is missing" in refused(tmp_path / "nothing.ckpt")
    with pytest.raises(InputError, match="stack repeats the blocks of an encoder: give that as"):
        MLMPretraining(shape=SHAPE, stack="repeat")


@pytest.mark.parametrize("architecture", ["roberta", "modernbert"])
def test_a_resumed_run_equals_the_uninterrupted_one_without_the_weights_that_it_started_from(
    folder, corpus, tmp_path, monkeypatch, architecture
):
    source, model = folder(architecture)
    options = [*corpus_options(corpus), "--trainer.max_steps=4", "--checkpoint.every_n_train_steps=1"]
    options += ["--model.init_args.architecture", architecture, "--model.init_args.init_from", f"hf:{source}"]
    options += ["--model.init_args.dropout", "0.1"]
    options += ["--model.init_args.vocab_size=64"]  # too small for the data, which that of the source is not
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert fit(*options) == 0
    monkeypatch.chdir(tmp_path / "parts")
    stop = ["--trainer.callbacks+=tests.interruption.InterruptBefore", "--trainer.callbacks.step=2"]
    with pytest.raises(Interruption):
        fit(*options, *stop)
    source.rename(tmp_path / "gone")
    assert fit(*options, "--ckpt_path", "last") == 0
    left, right = (load(last(tmp_path / name)) for name in ("whole", "parts"))
    assert left["global_step"] == right["global_step"] == 4
    assert same(left["state_dict"], right["state_dict"])
    assert same(left["optimizer_states"], right["optimizer_states"])
    assert left["hyper_parameters"] == right["hyper_parameters"]

    path = last(tmp_path / "whole")
    loaded = load_text(path)
    assert loaded.model.config.layer_types == model.config.layer_types if architecture == "modernbert" else True
    assert main(["export", str(path), "--format", "hf", "--out", str(tmp_path / "exported")]) == 0
    exported = AutoModelForMaskedLM.from_pretrained(tmp_path / "exported").eval()
    ids = torch.randint(5, 90, (2, 32), generator=torch.Generator().manual_seed(0))
    again = MLMPretraining.load_from_checkpoint(path).eval()
    assert torch.equal(exported(ids).logits, loaded.model(ids).logits)
    assert torch.equal(again.model(ids).logits, loaded.model(ids).logits)
    assert main(["fill", "the [MASK] sat", "--model", str(path)]) == 0
    again = [*options, "--ckpt_path", str(path)]
    config = ["--config", "pretrain/text_quickstart", "--trainer.enable_progress_bar=false"]
    shape = ["--model.init_args.shape", '{"depth": 2, "width": 32, "heads": 2}']
    assert main(["validate", *config, *shape, *again]) == 0


def test_what_is_typed_wrong_is_one_line(corpus, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for source, part in (("nowhere.ckpt", "is missing"), (str(checkpoint), "has a vocabulary of 500 tokens")):
        assert fit(*corpus_options(corpus), "--trainer.max_steps=1", "--model.init_args.init_from", source) == 2
        assert part in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list(tmp_path.rglob("*.ckpt"))
