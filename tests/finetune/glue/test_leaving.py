"""A fine-tuned classifier leaves as a folder of transformers, as a checkpoint, and as predictions of own texts."""

import csv
import json
import random
import shutil

import pytest
import torch
from lightning import Trainer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bamboo.cli import main
from bamboo.errors import InputError
from bamboo.finetune.glue.classifier import GlueClassifier
from bamboo.finetune.glue.data import GlueData, TextFiles
from bamboo.finetune.glue.encoders import head_classes, open_encoder
from bamboo.finetune.glue.reading import read_texts
from bamboo.finetune.glue.recipes import Setting
from bamboo.finetune.glue.tasks import own_task
from bamboo.recipes import Recipe
from tests.finetune.glue.test_classifier import QUIET
from tests.finetune.glue.tiny import BAD, GOOD, text, write_encoder
from tests.runs import CONFIGS, ROOT

TEXTS = CONFIGS / "finetune/texts.yaml"


def reviews(count, seed=0):
    stream = random.Random(seed)
    rows = []
    for _ in range(count):
        label = stream.choice(["praise", "blame"])
        rows.append((f"{text(stream, 5)} {stream.choice(GOOD if label == 'praise' else BAD)}", label))
    return rows


def write_tsv(path, rows):
    path.write_text("label\ttext\n" + "".join(f"{label}\t{words}\n" for words, label in rows))
    return path


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


def write_json_lines(path, rows):
    path.write_text("".join(json.dumps({"text": words, "label": label}) + "\n" for words, label in rows))
    return path


def words(encoder, *options):
    small = ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.enable_progress_bar", "false"]
    return ["--config", str(TEXTS), "--model.init_args.encoder", str(encoder), *small, *options]


@pytest.fixture(scope="module")
def fitted(encoder, tmp_path_factory):
    """The folder of a run over one's own texts, and its checkpoint."""
    folder = tmp_path_factory.mktemp("own")
    train, val = write_csv(folder / "train.csv", reviews(96)), write_tsv(folder / "val.tsv", reviews(24, 1))
    rate = [
        "--model.init_args.recipe.base_lr",
        "0.05",
        "--trainer.max_epochs",
        "6",
        "--trainer.logger.save_dir",
        str(folder),
    ]
    files = ["--data.init_args.train", str(train), "--data.init_args.val", str(val)]
    assert main(["fit", *words(encoder, "--model.init_args.classes", "[praise, blame]", *rate, *files)]) == 0
    return folder, folder / "texts" / "version_0" / "checkpoints" / "last.ckpt"


def test_validate_reads_the_checkpoint_and_scores_what_it_learned(fitted, capsys):
    folder, checkpoint = fitted
    val = write_json_lines(folder / "other.jsonl", reviews(40, 2))
    assert main(["validate", *words(checkpoint, "--data.init_args.val", str(val))]) == 0
    printed = capsys.readouterr().out
    assert "val/accuracy" in printed
    assert float(printed.split("val/accuracy")[1].split("│")[1]) > 0.9


def test_a_file_of_ones_own_is_read_in_each_of_its_formats(tmp_path):
    task, rows = own_task(["praise", "blame"]), [*reviews(5), ('"quoted", with a comma', "blame")]
    expected = ([text for text, _ in rows], None, [task.labels.index(label) for _, label in rows], [*range(6)])
    for name, write in {"a.tsv": write_tsv, "b.csv": write_csv, "c.jsonl": write_json_lines}.items():
        assert read_texts(task, write(tmp_path / name, rows), "text", None, "label") == expected


def test_predict_writes_a_row_for_each_text(fitted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = reviews(20, 3)
    path = write_csv(tmp_path / "some.csv", rows)
    assert main(["predict", *words(fitted[1], "--data.init_args.predict", str(path))]) == 0
    with (tmp_path / "predictions.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [row["id"] for row in found] == [str(number) for number in range(20)]
    assert sum(row["predicted"] == label for row, (_, label) in zip(found, rows, strict=True)) >= 18
    assert all(0.5 <= float(row["probability"]) <= 1 for row in found)


def test_export_gives_a_folder_with_equal_logits_and_the_names_of_the_classes(fitted, tmp_path, capsys):
    _, checkpoint = fitted
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "hf")]) == 0
    assert "transformers.AutoModelForSequenceClassification.from_pretrained" in capsys.readouterr().out
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert model.config.id2label == {0: "praise", 1: "blame"}
    module = GlueClassifier.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    rows = reviews(8, 4)
    for words_, _ in rows:
        inputs, own = (each(words_, "and a word1", return_tensors="pt") for each in (tokenizer, module.tokenizer))
        assert torch.equal(inputs["input_ids"], own["input_ids"])
        with torch.no_grad():
            torch.testing.assert_close(model(**inputs).logits, module(own), rtol=0, atol=0)
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "no"), "--format", "timm"]) == 2
    assert not (tmp_path / "no").exists()


def test_a_checkpoint_is_loaded_without_its_encoder_and_with_the_recipe_of_the_run(data, tmp_path):
    folder = write_encoder(tmp_path / "encoder")
    recipe = Recipe(base_lr=0.01, schedule="linear", warmup_share=0.3, betas=(0.8, 0.9), weight_decay=0.1)
    module = GlueClassifier(folder, "rte", dropout=0.2, layer_decay=0.7, layer_decay_depth=6, recipe=recipe, seed=5)
    trainer = Trainer(**{**QUIET, "max_epochs": 1, "limit_val_batches": 0})
    trainer.fit(module, GlueData(data, "rte"))
    trainer.save_checkpoint(tmp_path / "rte.ckpt")
    shutil.rmtree(folder)
    again = GlueClassifier.load_from_checkpoint(tmp_path / "rte.ckpt", weights_only=True)
    assert (again.recipe, again.layer_decay, again.layer_decay_depth, again.seed) == (recipe, 0.7, 6, 5)
    assert {m.p for m in again.modules() if isinstance(m, torch.nn.Dropout)} == {0.2}
    assert again.task == module.task
    for name, weight in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name
    assert again.tokenizer("word1 fine", "word2") == module.tokenizer("word1 fine", "word2")
    (first, *_), (last, *_) = (each.parameter_groups() for each in (module, again))
    assert (first["lr_scale"], first["weight_decay"]) == (last["lr_scale"], last["weight_decay"])


def test_classes_are_matched_by_name_in_whatever_order_they_are_asked_for(fitted):
    _, checkpoint = fitted
    assert head_classes(checkpoint) == ("praise", "blame")
    one, two = (open_encoder(checkpoint, 2, classes=names) for names in (("praise", "blame"), ("blame", "praise")))
    assert one.has_head
    assert two.has_head
    inputs = one.tokenizer("word1 awful", return_tensors="pt")
    with torch.no_grad():
        logits = [each.model.eval()(**inputs).logits[0].tolist() for each in (one, two)]
    assert logits[0] == pytest.approx(logits[1][::-1], abs=1e-5)
    other = open_encoder(checkpoint, 2, classes=("good", "bad"))
    assert not other.has_head
    assert other.notes == ("new weights: classifier",)


WRONG = {
    "other classes": (["good", "bad"], {"val": "good.csv"}, "has no head for good, bad: its classes are praise, blame"),
    "no file": (None, {}, "no texts: give --data.init_args.val FILE"),
    "unknown label": (None, {"val": "odd.csv"}, "odd.csv:2: the label is 'scorn': expected praise or blame"),
    "no such column": (None, {"val": "odd.csv", "text": "words"}, "no column 'words'"),
    "another kind": (None, {"val": "odd.xlsx"}, "odd.xlsx is of another kind: give a .tsv, .csv or .jsonl"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_ones_own_texts_is_one_line(fitted, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    classes, options, message = WRONG[name]
    write_csv(tmp_path / "odd.csv", [("fine", "scorn")])
    write_csv(tmp_path / "good.csv", [("fine", "good")])
    (tmp_path / "odd.xlsx").touch()
    module = GlueClassifier(fitted[1], "texts", classes=classes)
    with pytest.raises(InputError) as caught:
        Trainer(**QUIET).validate(module, TextFiles(**options))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_training_texts_lack_no_class_and_a_pretrained_encoder_needs_their_names(encoder, tmp_path):
    with pytest.raises(InputError, match=r"names no classes: give --model.init_args.classes"):
        GlueClassifier(encoder, "texts")
    with pytest.raises(InputError, match="the classes of rte are known"):
        GlueClassifier(encoder, "rte", classes=["a", "b"])
    module = GlueClassifier(encoder, "texts", classes=["praise", "blame", "neither"])
    path = write_tsv(tmp_path / "train.tsv", reviews(8))
    with pytest.raises(InputError, match=r"train.tsv: no text of class neither, which the model has"):
        Trainer(**QUIET, max_epochs=1).fit(module, TextFiles(train=path, val=path))


def test_a_checkpoint_of_other_classes_is_refused_by_name(fitted, encoder):
    checkpoint = torch.load(fitted[1], weights_only=True)
    module = GlueClassifier(encoder, "texts", classes=["blame", "praise"])
    with pytest.raises(InputError, match="the checkpoint's classes are praise, blame and the model's blame, praise"):
        module.on_load_checkpoint(checkpoint)


def test_the_prediction_of_a_pair_uses_both_columns(encoder, tmp_path):
    path = write_csv(tmp_path / "pairs.csv", [("fine", "a"), ("awful, word1", "b")])
    module = GlueClassifier(encoder, "texts", classes=["a", "b"])
    data = TextFiles(train=path, val=path, text="text", pair="label", label="label")
    Trainer(**QUIET, max_epochs=1, limit_val_batches=0).fit(module, data)
    tokens = data.split("train")[0].tokens
    assert tokens.lengths.tolist() == [5, 7]  # [CLS] text [SEP] pair [SEP]; the comma is one too
    assert set(torch.cat(tokens.types).tolist()) == {0, 1}


def test_a_repository_file_says_the_recipe_of_the_sweep():
    from bamboo.fit.compose import compose

    config = compose(ROOT / "configs/finetune/texts.yaml")
    recipe = config.model.init_args.recipe
    assert recipe.base_lr == pytest.approx(Setting().recipe.base_lr)
    assert config.data.class_path.endswith("TextFiles")
