"""Labels and predictions go by the names of the classes, whatever numbers a data set gives them."""

import csv
import shutil

import numpy as np
import pytest
import torch
from lightning import Trainer

from bamboo.errors import InputError
from bamboo.finetune.classes import class_order
from bamboo.finetune.classifier import Classifier
from bamboo.vision.data import ImageFolder
from tests.finetune.folders import NAMES, write_classes
from tests.finetune.runs import last, run

FOLDER = [
    *("--data.class_path", "bamboo.vision.data.ImageFolder", "--data.init_args.root", "digits"),
    *("--data.init_args.batch_size", "20", "--trainer.max_epochs", "1"),
]

TINY = {"shape": {"depth": 2, "width": 32, "heads": 2}, "image_size": 16, "patch_size": 4, "in_chans": 1}


class Reversed(ImageFolder):
    """The same images and names, with the last class as number 0."""

    def read_sources(self):
        sources = super().read_sources()
        for source in sources:
            source.classes = source.classes[::-1]
            source.labels = np.int64(len(source.classes) - 1) - source.labels
        return sources


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with digits, the same digits in renamed folders, and a classifier of the former."""
    folder = tmp_path_factory.mktemp("classes")
    write_classes(folder / "digits/train", 0, 40)
    write_classes(folder / "digits/val", 100, 30)
    shutil.copytree(folder / "digits", folder / "renamed")
    for split in ("train", "val"):
        (folder / "renamed" / split / "digit_3").rename(folder / "renamed" / split / "a_three")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run("fit", *FOLDER, "--model.init_args.head_init_std", "0.5", "--trainer.limit_val_batches", "0") == 0
    return folder


def test_the_place_of_a_class_is_found_by_name():
    assert class_order(["b", "c", "a"], ["a", "b", "c"]) == [2, 0, 1]
    with pytest.raises(InputError, match=r"only in the model: 'b', 'c', 'd' and 1 more; only in the data: 'z'$"):
        class_order(["a", "b", "c", "d", "e"], ["a", "z"])


@pytest.mark.parametrize("verb", ["validate", "fit"])
def test_renamed_folders_are_refused_by_name(place, monkeypatch, capsys, verb):
    monkeypatch.chdir(place)
    renamed = [*FOLDER, "--data.init_args.root", "renamed", "--ckpt_path", str(last(place))]
    assert run(verb, *renamed) == 2
    assert "only in the model: 'digit_3'; only in the data: 'a_three'" in capsys.readouterr().err


def test_predictions_and_labels_each_have_the_names_of_their_own_side(place, monkeypatch):
    monkeypatch.chdir(place)
    rows = {}
    for root in ("digits", "renamed"):
        assert run("predict", *FOLDER, "--data.init_args.root", root, "--ckpt_path", str(last(place))) == 0
        with (place / "predictions.csv").open() as file:
            rows[root] = {row["file"].rpartition("/")[2]: row for row in csv.DictReader(file)}
    assert len(rows["digits"]) == 30
    for name, row in rows["digits"].items():
        other = rows["renamed"][name]
        assert other["predicted"] == row["predicted"]
        assert other["label"] == ("a_three" if row["label"] == "digit_3" else row["label"])


def test_classes_in_another_order_are_the_same_classes(place):
    accuracies = []
    for kind in (ImageFolder, Reversed):
        module = Classifier.load_from_checkpoint(last(place), weights_only=True)
        data = kind(str(place / "digits"), image_size=16, in_chans=1, batch_size=10)
        trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
        accuracies.append(trainer.validate(module, datamodule=data, verbose=False)[0])
        assert data.classes == (NAMES if kind is ImageFolder else NAMES[::-1])
        assert module.classes == list(NAMES)
    for key in ("val/top1", "val/top5", "val/loss"):
        assert accuracies[0][key] == accuracies[1][key]
    batch = {"image": torch.zeros(4, 1, 16, 16, dtype=torch.uint8), "label": torch.tensor([9, 8, 7, 6])}
    loss = module.eval().compute(batch, 0, "train")[0]
    smoothing = Classifier(10, **TINY, label_smoothing=0.1)
    smoothing.load_state_dict(module.state_dict())
    assert torch.equal(loss, smoothing.eval().compute({**batch, "label": torch.arange(4)}, 0, "train")[0])
