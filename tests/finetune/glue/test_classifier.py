"""The module computes what transformers computes text by text, learns every task, and runs alike on two processes."""

import contextlib
import copy
import json
import math
import random
from dataclasses import replace

import pytest
import torch
from lightning import Trainer
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from bamboo.errors import InputError
from bamboo.finetune.glue.batches import Batches, EvalBatches, tokenise
from bamboo.finetune.glue.classifier import GlueClassifier
from bamboo.finetune.glue.data import GlueData
from bamboo.finetune.glue.encoders import open_encoder
from bamboo.finetune.glue.recipes import SEARCH, Setting
from bamboo.finetune.glue.tasks import TASKS
from bamboo.finetune.predictions import in_order
from bamboo.saving import Checkpoints
from bamboo.text.checkpoints import load_text, save_text
from bamboo.text.pretraining import MLMPretraining
from tests.finetune.glue.tiny import CONFIGS, Seen, make_tokenizer, text, write_data, write_encoder
from tests.interruption import InterruptBefore, Interruption
from tests.runs import same

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
PAIRED = [True, False]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    return {name: write_encoder(root / name, name) for name in CONFIGS}


def texts(count=40, pairs=False):
    stream = random.Random(1)
    first, second = ([text(stream) for _ in range(count)] for _ in range(2))
    return first, second if pairs else None


@pytest.mark.parametrize("pairs", PAIRED, ids=["pairs", "single texts"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_logits_of_batches_are_those_of_each_text_alone_without_padding(encoders, architecture, pairs):
    module = GlueClassifier(encoders[architecture], "rte" if pairs else "cola").eval()
    first, second = texts(pairs=pairs)
    apart = architecture == "bert"
    data = Batches(tokenise(module.tokenizer, first, second, 48, apart), None)
    found = torch.empty(len(first), 2)
    with torch.no_grad():
        for indices in EvalBatches(data, 256):
            found[indices] = module(data[indices])
        for number in range(len(first)):
            alone = module.tokenizer(
                *[part[number] for part in (first, second) if part],
                truncation=True,
                max_length=48,
                return_tensors="pt",
                return_token_type_ids=apart,
            )
            torch.testing.assert_close(found[number], module.model(**alone).logits[0], atol=2e-6, rtol=1e-5)


def test_predictions_come_in_the_order_of_the_split(encoder, data):
    module, cola = GlueClassifier(encoder, "cola"), GlueData(data, "cola", max_tokens=64)
    module.has_head = True
    Trainer(**QUIET).validate(module, datamodule=cola, verbose=False)
    module.eval()
    batches, _ = cola.split("dev")
    found = module.predictions["dev"]
    assert found["label"].tolist() == batches.labels.tolist()
    with torch.no_grad():
        expected = [int(module(batches[[number]]).argmax()) for number in range(len(batches))]
    assert found["predicted"].tolist() == expected


def test_a_run_has_diverged_where_it_ends_far_above_its_first_step_or_with_weights_that_are_no_numbers(encoder, data):
    module = GlueClassifier(encoder, "cola")
    Trainer(max_epochs=1, limit_val_batches=0, **QUIET).fit(module, GlueData(data, "cola"))
    first = float(module._first)
    assert first >= math.log(2) - 1e-6  # that of zero logits at least
    module._losses = torch.tensor([3 * 1.9 * first, 3])
    module.check_converged()
    for last in (2.1 * first, math.nan, math.inf):
        module._losses = torch.tensor([3 * last, 3])
        with pytest.raises(
            InputError, match=r"diverged: a loss of 0\.\d+ in the first step, and \S+ in the last epoch"
        ):
            module.check_converged()
    with torch.no_grad():
        module.model.classifier.bias[1] = math.inf
    with pytest.raises(InputError, match=r"diverged: classifier.bias is not finite"):
        module.check_converged()


@pytest.mark.parametrize("kind", ["gpt2", "xlnet"])
def test_an_encoder_that_reads_the_last_token_is_padded_so_that_it_finds_it(tmp_path, data, kind):
    sizes = {"n_layer": 1, "n_head": 2, "vocab_size": CONFIGS["bert"].vocab_size, "initializer_range": 0.5}
    width = {"n_embd": 16, "eos_token_id": 3} if kind == "gpt2" else {"d_model": 16, "d_inner": 16}
    AutoModel.from_config(AutoConfig.for_model(kind, **sizes, **width)).save_pretrained(tmp_path)
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None if kind == "gpt2" else "[PAD]"
    tokenizer.save_pretrained(tmp_path)
    module, cola = GlueClassifier(tmp_path, "cola", dropout=0.0).eval(), GlueData(data, "cola", max_tokens=200)
    module.has_head = True
    module.tokenizer.padding_side = "right" if kind == "gpt2" else "left"  # as that of XLNet's own class
    Trainer(**QUIET).validate(module, datamodule=cola, verbose=False)
    batches, _ = cola.split("dev")
    module.eval()
    with torch.no_grad():
        whole = torch.empty(24, 2)
        for indices in EvalBatches(batches, 200):
            whole[indices] = module(batches[indices])
        alone = torch.cat([module(batches[[number]]) for number in range(24)])
    torch.testing.assert_close(whole, alone, atol=1e-5, rtol=1e-4)
    assert len(alone.unique(dim=0)) > 20


def test_what_several_batches_say_is_put_into_one_order():
    parts = [
        {"number": torch.tensor([3, 0]), "label": torch.tensor([1, 0]), "predicted": torch.tensor([13, 10])},
        {"number": torch.tensor([1]), "label": torch.tensor([7]), "predicted": torch.tensor([7])},
    ]
    assert in_order(parts).to_dict("list") == {"number": [0, 1, 3], "label": [0, 7, 1], "predicted": [10, 7, 13]}


@pytest.mark.parametrize("name", ["cola", "stsb", "mnli"])
def test_the_loss_is_that_of_transformers(encoder, name):
    module, task = GlueClassifier(encoder, name).eval(), TASKS[name]
    batch = Batches(tokenise(module.tokenizer, *texts(8, len(task.texts) == 2)), [float(n % 3) for n in range(8)])[
        range(8)
    ]
    batch["label"] = batch["label"] if task.is_regression else batch["label"].long() % task.num_outputs
    inputs = {key: value for key, value in batch.items() if key not in ("index", "label")}
    expected = module.model(**inputs, labels=batch["label"]).loss
    loss, logs = module.compute(batch, 0, "train")
    torch.testing.assert_close(loss, expected)
    assert float(logs["padding"]) == pytest.approx(1 - float(batch["attention_mask"].double().mean()))


@pytest.mark.parametrize("name", ["stsb", "mnli"])  # a number, three classes of pairs
def test_a_tiny_encoder_overfits_32_examples(encoder, tmp_path, name):
    task = TASKS[name]
    data = write_data(tmp_path / "data", (32, 4, 1), [task.name], memorise=True)
    recipe = Setting(lr=2e-3).recipe
    module, examples = GlueClassifier(encoder, task.name, dropout=0.0, recipe=recipe), GlueData(data, task.name)
    trainer = Trainer(max_epochs=25, limit_val_batches=0, gradient_clip_val=1.0, **QUIET)
    trainer.fit(module, datamodule=examples)
    batches, _ = examples.split("train")
    module.eval()
    with torch.no_grad():
        logits = module(batches[range(32)])
    if task.is_regression:
        assert float((logits[:, 0] - batches.labels).abs().max()) < 0.5
    else:
        assert float((logits.argmax(dim=1) == batches.labels).double().mean()) == 1.0


def test_the_rate_is_4e_5_at_a_batch_of_16_with_a_warm_up_of_a_tenth(encoder, data):
    module = GlueClassifier(encoder, "rte")
    trainer = Trainer(max_epochs=5, limit_val_batches=0, **QUIET)
    rates = []
    trainer.callbacks.append(Rates(rates))
    trainer.fit(module, datamodule=GlueData(data, "rte", batch_size=16))
    assert len(rates) == 10  # 32 examples
    assert rates[0] == 0
    assert rates[1] == max(rates) == pytest.approx(4e-5)


def test_batches_are_accumulated_up_to_the_effective_batch(encoder, data):
    module = GlueClassifier(encoder, "rte", recipe=replace(Setting().recipe, effective_batch=16))
    trainer = Trainer(max_epochs=1, limit_val_batches=0, **QUIET)
    trainer.fit(module, datamodule=GlueData(data, "rte", batch_size=4))
    assert (trainer.accumulate_grad_batches, trainer.global_step) == (4, 2)  # 32 examples


class Rates(InterruptBefore):
    def __init__(self, rates):
        super().__init__(-1)
        self.rates = rates

    def on_train_batch_end(self, trainer, *_):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_every_setting_of_the_search_is_that_of_bert():
    assert len(SEARCH) == len(set(SEARCH)) == 18
    assert {(one.batch_size, one.epochs) for one in SEARCH} == {(b, e) for b in (16, 32) for e in (2, 3, 4)}
    assert {one.lr for one in SEARCH} == {2e-5, 3e-5, 5e-5}
    assert all(one.recipe.base_lr * one.batch_size / 256 == pytest.approx(one.lr) for one in SEARCH)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_dropout_is_what_is_asked_for_and_the_head_depends_on_the_seed(encoders, architecture):
    def drawn(**options):
        model = open_encoder(encoders[architecture], 2, **options).model
        return model, {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}

    state = torch.get_rng_state()
    (one, rates), (two, _), (other, own) = drawn(dropout=0.25), drawn(dropout=0.25), drawn(dropout=None, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert rates == {0.25}
    assert own != {0.25}
    assert same(one.state_dict(), two.state_dict())
    differs = [name for name, value in one.state_dict().items() if not torch.equal(value, other.state_dict()[name])]
    assert differs
    assert all(not name.startswith(f"{one.base_model_prefix}.") or "pooler" in name for name in differs)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_weights_are_those_of_the_folder_and_new_ones_are_named(encoders, architecture):
    model, _, notes, _ = open_encoder(encoders[architecture], 3)
    pretrained = AutoModelForMaskedLM.from_pretrained(encoders[architecture])
    shared = pretrained.base_model.state_dict()
    assert same({key: model.base_model.state_dict()[key] for key in shared}, shared)
    (note,) = notes
    assert "classifier" in note
    assert ("pooler" in note) == (architecture == "bert")


def test_a_checkpoint_of_this_project_is_fine_tuned_from_its_weights(tmp_path):
    words = make_tokenizer().backend_tokenizer
    arguments = {
        "shape": {"depth": 2, "width": 32, "heads": 2},
        "max_positions": 64,
        "vocab_size": words.get_vocab_size(),
    }
    mlm = MLMPretraining(**arguments, architecture="bert")
    state = {"state_dict": mlm.state_dict(), "tokenizer": words.to_str(), "hyper_parameters": dict(mlm.hparams)}
    torch.save(state, tmp_path / "mlm.ckpt")
    model, tokenizer, notes, has_head = open_encoder(tmp_path / "mlm.ckpt", 3, dropout=0.2)
    assert not has_head
    shared = load_text(tmp_path / "mlm.ckpt").model.base_model.state_dict()
    assert same({key: model.base_model.state_dict()[key] for key in shared}, shared)
    assert model.config.num_labels == 3
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.2}
    assert notes == ("new weights: bert.pooler.dense, classifier",)
    assert set(tokenizer("one text", "another", return_token_type_ids=True)["token_type_ids"]) == {0, 1}


def test_a_model_of_another_task_is_started_from_but_for_its_last_layer(encoder, tmp_path):
    mnli = GlueClassifier(encoder, "mnli")
    with torch.no_grad():
        for weight in mnli.parameters():
            weight.add_(0.5)
    save_text(mnli.model, mnli.tokenizer, tmp_path / "mnli")
    rte = GlueClassifier(tmp_path / "mnli", "rte")
    assert not rte.has_head
    for name, weight in rte.model.state_dict().items():
        assert torch.equal(weight, mnli.model.state_dict()[name]) != name.startswith("classifier"), name


def test_a_run_that_is_resumed_in_an_epoch_ends_with_the_same_weights(encoder, data, tmp_path):
    def run(*callbacks, **options):
        module = GlueClassifier(encoder, "sst2", seed=3)
        how = {**QUIET, "enable_checkpointing": bool(callbacks)}
        trainer = Trainer(max_epochs=2, limit_val_batches=0, callbacks=[*callbacks], **how)
        with contextlib.suppress(Interruption):
            trainer.fit(module, datamodule=GlueData(data, "sst2", batch_size=8, seed=3), **options)
        return copy.deepcopy(module.state_dict())

    whole = run()
    kept = Checkpoints(dirpath=tmp_path, every_n_train_steps=6, filename="{step}")  # an epoch has 4 steps
    assert not same(run(kept, InterruptBefore(7)), whole)
    assert same(run(ckpt_path=tmp_path / "step=6.ckpt", weights_only=True), whole)


def test_two_processes_see_every_text_once_and_score_as_one(encoder, data, tmp_path):
    def fit(place, batch, **options):
        place.mkdir()
        module = GlueClassifier(encoder, "mnli", dropout=0.0)
        trainer = Trainer(max_epochs=1, callbacks=[Seen(str(place))], **QUIET, **options)
        trainer.fit(module, GlueData(data, "mnli", batch_size=batch, max_tokens=100))
        return [json.loads(path.read_text()) for path in sorted(place.glob("rank*.json"))]

    (one,), two = fit(tmp_path / "one", 10), fit(tmp_path / "two", 5, devices=2, strategy="ddp_fork")
    assert len(two) == 2
    for stage, times in {"train": 1, "val": 2}.items():  # two splits of 24
        count = {"train": 32, "val": 24}[stage]
        seen = sorted(index for rank in two for step in rank[stage] for index in step)
        assert seen == sorted([*range(count)] * times)
        assert len({len(rank[stage]) for rank in two}) == 1
    together = [sorted(a + b) for a, b in zip(two[0]["train"], two[1]["train"], strict=True)]
    assert together == [sorted(step) for step in one["train"]]
    assert two[0]["score"] == two[1]["score"] == pytest.approx(one["score"])


BAD = {
    "encoder missing": ({"encoder": "gone.ckpt"}, "gone.ckpt is missing"),
    "encoder not given": ({"encoder": None}, "there is no encoder to fine-tune"),
    "empty folder": ({"encoder": "."}, "holds no config.json"),
    "name not on the disk": ({"encoder": "hf:nobody/nothing"}, "hf:nobody/nothing is no folder here, and the hub has"),
    "unknown task": ({"task": "cole"}, "unknown task 'cole': did you mean 'cola'"),
    "dropout": ({"dropout": 1.5}, "dropout must be a share of one, got 1.5"),
    "layer decay": ({"layer_decay": 0.0}, "layer_decay must lie between 0 and 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_in_one_line(encoder, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    options, message = BAD[case]
    with pytest.raises(InputError) as caught:
        GlueClassifier(**{"encoder": encoder, "task": "cola", **options})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_texts_longer_than_the_encoder_reads_are_cut_there_and_that_is_said(encoder, data, caplog):
    module = GlueData(data, "rte", max_length=200)
    Trainer(**QUIET, max_epochs=1, limit_train_batches=1).fit(GlueClassifier(encoder, "rte"), datamodule=module)
    assert module.max_length == 128
    assert "cut at 128 tokens, not 200" in caplog.text


def test_a_model_for_another_task_than_that_of_the_data_is_refused(encoder, data):
    with pytest.raises(InputError, match="the model is for rte and the data are cola"):
        Trainer(**QUIET).validate(GlueClassifier(encoder, "rte"), datamodule=GlueData(data, "cola"))


def test_a_fine_tuned_folder_with_another_head_gets_a_new_one(tmp_path):
    folder = tmp_path / "classifier"
    config = copy.deepcopy(CONFIGS["bert"])
    config.num_labels = 5
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    model, _, notes, _ = open_encoder(folder, 2)
    assert model.classifier.out_features == 2
    assert notes == ("new weights: classifier",)
