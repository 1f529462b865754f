"""A checkpoint on data of other classes: ImageNet-V2 calls them by number, -R and -A have a part of them."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from sklearn.metrics import accuracy_score, confusion_matrix, top_k_accuracy_score

from bamboo.cli import main
from bamboo.errors import InputError
from bamboo.finetune.classes import mapped_classes
from bamboo.finetune.classifier import Classifier
from bamboo.finetune.scoring import read_predictions, real_accuracy, sorted_names, worst
from bamboo.vision.data import ImageFolder
from bamboo.vision.folders import scan_source
from bamboo.vision.images import Arrays
from bamboo.vision.sources import number_labels
from bamboo.vision.views import evaluation_view
from tests.finetune.folders import NAMES, write_classes
from tests.finetune.runs import run
from tests.runs import last, scalars

FOLDER = ["--data.class_path", "bamboo.vision.data.ImageFolder", "--data.init_args.batch_size", "20"]
PART = ("digit_1", "digit_4", "digit_7", "digit_8")
CHECKPOINT = "classifier.ckpt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier of digits; and other digits: all of them by number, and four of them by name and by other names."""
    place = tmp_path_factory.mktemp("maps")
    write_classes(place / "digits/train", 0, 200)
    write_classes(place / "digits/val", 200, 30)
    write_classes(place / "by_name", 300, 120)
    shutil.copytree(place / "by_name", place / "by_number")
    for number, name in enumerate(NAMES):
        (place / "by_number" / name).rename(place / "by_number" / str(number))
    for part in ("part", "renamed"):
        for name in PART:
            shutil.copytree(place / "by_name" / name, place / part / (name if part == "part" else f"n_{name}"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        long = ("--trainer.max_epochs", "4", "--model.init_args.head_init_std", "0.1")
        long += ("--model.init_args.recipe.base_lr", "4e-3", "--trainer.limit_val_batches", "0")
        assert run("fit", *FOLDER, "--data.init_args.root", "digits", *long) == 0
        last(place, name="scratch-digits").rename(CHECKPOINT)
    (place / "names.csv").write_text("theirs,ours\n" + "".join(f"n_{name},{name}\n" for name in NAMES))
    return place


@pytest.fixture(autouse=True)
def at_the_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


def call(verb, root, *args):
    return run(verb, *FOLDER, "--data.init_args.root", root, "--ckpt_path", CHECKPOINT, *args)


def logits_and_labels(root):
    """Of all images of a folder by a plain loop, and the names of its classes."""
    module = Classifier.load_from_checkpoint(CHECKPOINT, weights_only=True).eval()
    source = ImageFolder(root, image_size=16, in_chans=1, class_map="name").sources.val
    images = torch.stack([evaluation_view(source.read(i), (16, 16)) for i in range(len(source))])
    with torch.no_grad():
        return module(images).double().numpy(), source.labels, source.classes


@pytest.mark.parametrize(
    ("root", "class_map", "own"),
    [
        ("by_name", "name", range(10)),
        ("by_number", "number", range(10)),
        ("part", "name", (1, 4, 7, 8)),
        ("renamed", "names.csv", (1, 4, 7, 8)),
    ],
)
def test_all_images_are_validated_on_and_the_classes_of_the_data_alone_compete(root, class_map, own):
    versions = set(Path("runs/scratch-digits").iterdir())
    assert call("validate", root, "--data.init_args.class_map", class_map) == 0
    (version,) = set(Path("runs/scratch-digits").iterdir()) - versions
    logits, labels, _ = logits_and_labels(root)
    logits = logits[:, list(own)]
    expected = {"top1": accuracy_score(labels, logits.argmax(1)), "samples": len(labels)}
    expected["top5"] = top_k_accuracy_score(labels, logits, k=5) if len(own) > 5 else 1.0
    expected["loss"] = (np.log(np.exp(logits).sum(1)) - logits[range(len(labels)), labels]).mean()
    for name, value in expected.items():
        assert list(scalars(version, f"val/{name}").values()) == pytest.approx([value], abs=1e-5), name


def test_fewer_classes_are_easier():
    logits, labels, _ = logits_and_labels("part")
    assert (logits.argmax(1) == np.array([1, 4, 7, 8])[labels]).mean() < (
        logits[:, [1, 4, 7, 8]].argmax(1) == labels
    ).mean()


@pytest.mark.parametrize(
    ("class_map", "message"),
    [
        ("number", "class_map number: 4 of 4 classes of the data have no place among the 10 of the model: 'digit_1'"),
        ("none.csv", "class_map none.csv is neither name nor number nor a file that can be read"),
        ("names.csv", "class_map names.csv: 4 of 4 classes of the data have no place"),
    ],
)
def test_a_map_that_does_not_fit_is_one_line(class_map, message, capsys):
    assert call("validate", "part", "--data.init_args.class_map", class_map) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_without_a_map_other_classes_are_refused_and_with_one_nothing_is_trained(capsys):
    assert call("validate", "part") == 2
    assert "the data have 4 classes and the model 10" in capsys.readouterr().err
    assert call("fit", "part", "--data.init_args.class_map", "name") == 2
    assert "class_map is for data to validate or predict on" in capsys.readouterr().err


def test_names_without_images_do_not_compete(tmp_path, capsys):
    source = scan_source(Path("part"), 1)
    images = [{"bytes": Path(source.name(number)).read_bytes()} for number in range(len(source))]
    labels = [NAMES.index(source.classes[label]) for label in source.labels]
    kinds = Features({"image": Image(), "label": ClassLabel(names=list(NAMES))})
    Dataset.from_dict({"image": images, "label": labels}, kinds).save_to_disk(tmp_path / "saved")
    results = []
    for root in ("part", str(tmp_path / "saved")):
        assert call("validate", root, "--data.init_args.class_map", "name") == 0
        output = capsys.readouterr().out
        assert "4 classes of the data are 4 of the model's 10; no other competes\n" in output
        results.append(re.findall(r"val/(loss|top1) .*?([\d.]+)", output))
    assert results[0] == results[1]
    assert len(results[0]) == 2


def test_images_without_labels_cannot_be_validated_on(tmp_path, capsys):
    source = scan_source(Path("part"), 1)
    images = [{"bytes": Path(source.name(number)).read_bytes()} for number in range(len(source))]
    labels = [-1, *source.labels.tolist()[1:]]
    Dataset.from_dict(
        {"image": images, "label": labels}, Features({"image": Image(), "label": Value("int64")})
    ).save_to_disk(tmp_path / "saved")
    assert call("validate", str(tmp_path / "saved"), "--data.init_args.class_map", "number") == 2
    assert f"1 of {len(source)} images to validate on have no label" in capsys.readouterr().err


def test_a_head_that_was_never_trained_is_not_scored(capsys):
    for verb in ("validate", "predict"):
        words = [*FOLDER, "--data.init_args.root", "digits", "--model.init_args.encoder", CHECKPOINT]
        assert run(verb, *words) == 2
        assert "the head of this classifier is untrained: give its checkpoint as --ckpt_path" in capsys.readouterr().err


def test_a_classifier_that_has_diverged_has_no_score(tmp_path, capsys):
    content = torch.load(CHECKPOINT, weights_only=True)
    content["state_dict"]["model.head.weight"][3] = torch.nan
    torch.save(content, tmp_path / "nan.ckpt")
    for verb in ("validate", "predict"):
        words = [*FOLDER, "--data.init_args.root", "part", "--data.init_args.class_map", "name"]
        assert run(verb, *words, "--ckpt_path", str(tmp_path / "nan.ckpt")) == 2
        assert "answers of the classifier are not finite: its weights have diverged" in capsys.readouterr().err


def test_an_exported_model_is_no_checkpoint_of_a_run(tmp_path, capsys):
    assert main(["export", CHECKPOINT, "--out", str(tmp_path)]) == 0
    words = [*FOLDER, "--data.init_args.root", "digits", "--ckpt_path", str(tmp_path / "model.safetensors")]
    assert run("validate", *words) == 2
    assert "is no checkpoint of a run: it holds a model alone" in capsys.readouterr().err


def test_a_map_and_another_folder_to_predict_are_refused(capsys):
    assert call("predict", "digits", "--data.init_args.class_map", "name", "--data.init_args.predict_root", "part") == 2
    assert "class_map says what the classes of root are" in capsys.readouterr().err


def test_labels_of_a_predicted_source_that_are_numbers_go_by_value():
    classes = ["0", "1", "10", "2"]  # as folders are sorted
    source = Arrays(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), np.array([2, 10, 1, 3]))
    assert number_labels(source, classes).tolist() == [3, 2, 1, -1]
    assert number_labels(source, ["a", "b"]).tolist() == [2, 10, 1, 3]
    source.classes = tuple(f"c{number}" for number in range(11))
    assert number_labels(source, ["c10", "c2"]).tolist() == [1, 0, -1, -1]


def test_the_lines_of_a_map_may_be_separated_by_commas_tabs_or_blanks(tmp_path):
    lines = ["\ufeffa,one,first", "b\ttwo", "c three", "", "d, four", '"e, e",two', "great e\tone", "a,one"]
    (tmp_path / "map.txt").write_text("\r\n".join(lines), encoding="utf-8", newline="")
    model = ["two", "one", "four", "three"]
    found = mapped_classes(model, ["a", "b", "c", "d", "e, e", "great e"], str(tmp_path / "map.txt"))
    assert found == [1, 0, 3, 2, 0, 1]
    with pytest.raises(InputError, match="1 of 2 classes of the data have no place among the 4 of the model: 'e'"):
        mapped_classes(model, ["a", "e"], str(tmp_path / "map.txt"))
    (tmp_path / "twice.txt").write_text("a,one\nb,two\na,two\n")
    with pytest.raises(InputError, match="class 'a' stands there twice, as 'one' and 'two'"):
        mapped_classes(model, ["a"], str(tmp_path / "twice.txt"))
    assert mapped_classes(["c0", "c1", "c2"], ["2", "0", "001"], "number") == [2, 0, 1]
    with pytest.raises(InputError, match="'3'"):
        mapped_classes(["c0", "c1", "c2"], ["0", "3"], "number")


def test_predictions_have_five_answers_and_labels_by_the_names_of_the_model():
    assert call("predict", "renamed", "--data.init_args.class_map", "names.csv") == 0
    rows = pd.read_csv("predictions.csv")
    logits, labels, classes = logits_and_labels("renamed")
    assert rows["label"].tolist() == [classes[label].removeprefix("n_") for label in labels]
    shares = np.exp(logits[:, [1, 4, 7, 8]])
    shares /= shares.sum(1, keepdims=True)
    best = np.argsort(-shares, axis=1)
    for place, suffix in enumerate(("", "_2", "_3", "_4")):
        assert rows[f"predicted{suffix}"].tolist() == [PART[row[place]] for row in best]
        expected = [share[row[place]] for share, row in zip(shares, best, strict=True)]
        np.testing.assert_allclose(rows[f"probability{suffix}"], expected, atol=1e-5)
    assert rows["probability_5"].max() == 0


def test_predictions_are_scored_as_by_scikit_learn(capsys, tmp_path):
    assert call("predict", "by_number", "--data.init_args.class_map", "number") == 0
    assert main(["score", "predictions.csv", "--out", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    logits, labels, _ = logits_and_labels("by_name")
    expected = 100 * accuracy_score(labels, logits.argmax(1)), 100 * top_k_accuracy_score(labels, logits, k=5)
    assert "120 images of 10 classes: top-1 {:.2f}%, top-5 {:.2f}%".format(*expected) in output
    matrix = pd.read_csv(tmp_path / "confusion.csv", index_col="label")
    assert list(matrix.columns) == list(matrix.index) == list(NAMES)
    own = confusion_matrix(labels, logits.argmax(1))
    np.testing.assert_array_equal(matrix, own)
    np.fill_diagonal(own, 0)
    label, predicted = np.unravel_index(own.argmax(), own.shape)
    top = worst(matrix, 3)
    assert top[0][:3] == (NAMES[label], NAMES[predicted], str(own.max()))
    assert " ".join(top[0]) in " ".join(output.split())
    for name in ("confusion.png", "confusion.svg"):
        assert (tmp_path / name).stat().st_size > 5000


def write_predictions(path, rows):
    with path.open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "predicted"])
        writer.writerows(rows)
    return path


def test_reassessed_labels_are_those_of_the_number_in_the_name_and_none_does_not_count(tmp_path):
    a, b, c = "n01440764", "n01443537", "n01484850"
    rows = [
        ("val/a/IMG_val_00000002.JPEG", a, b),
        ("val/b/IMG_val_00000001.JPEG", b, b),
        ("val/c/IMG_val_00000004.JPEG", c, a),
        ("val/c/IMG_val_00000003.JPEG", c, c),
    ]
    predictions = read_predictions(write_predictions(tmp_path / "predictions.csv", rows))
    (tmp_path / "real.json").write_text(json.dumps([[0, 2], [0, 1], [], [2, 0]]))
    assert real_accuracy(predictions, tmp_path / "real.json") == (2 / 3, 3)
    for labels, message in (
        ([[0]], "its name does not end in the number of one of 1 images"),
        ([[3], [0], [0], [0]], "is no list of classes below 3"),
        ([[-1], [0], [0], [0]], "is no list of classes"),
        ([[0.0], [0], [0], [0]], "is no list of classes"),
        ([0, 1, 2, 0], "is no list of classes"),
        ({"a": 1}, "is no list of classes"),
        ([[], [], [], []], "has no label for any of these images"),
    ):
        (tmp_path / "real.json").write_text(json.dumps(labels))
        with pytest.raises(InputError, match=message):
            real_accuracy(predictions, tmp_path / "real.json")
    words = predictions.replace({a: "tench", b: "goldfish", c: "shark"})  # whose order is another one
    with pytest.raises(InputError, match="numbers ImageNet's classes, and 'goldfish' is neither"):
        real_accuracy(words, tmp_path / "real.json")


def test_classes_that_are_numbers_are_in_their_order():
    assert sorted_names(["10", "9", "b", "2", "a", "9"]) == ["2", "9", "10", "a", "b"]


def test_labels_that_no_answer_has_are_named(capsys, tmp_path):
    path = write_predictions(tmp_path / "predictions.csv", [("1.png", "cat", "feline"), ("2.png", "dog", "dog")])
    assert main(["score", str(path), "--out", str(tmp_path)]) == 0
    assert "top-1 50.00%, 1 of 2 classes are never predicted: cat" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("", "cannot be read"),
        ("a,b\n1,2\n", "has no column 'file'"),
        ("file,label,predicted\nx,,y\n", "has no labels to score by"),
        ("file,label,predicted\nx,a\n", "the row of 'x' has no prediction"),
    ],
)
def test_what_is_no_file_of_predictions_is_one_line(content, message, capsys, tmp_path):
    if content is not None:
        (tmp_path / "p.csv").write_text(content)
    assert main(["score", str(tmp_path / "p.csv"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
