"""Two gloo processes evaluate and predict what one does, every sample once."""

import csv

import pytest
import torch
from lightning import Trainer

from bamboo.finetune.classifier import Classifier
from bamboo.finetune.predictions import PredictionWriter
from bamboo.vision.data import ImageFolder
from tests.finetune.folders import write_classes


def test_every_sample_counts_once_on_two_processes(tmp_path):
    count = 23  # 8 to a batch: the last batches of the two processes are not full
    write_classes(tmp_path / "digits/train", 0, 40)
    write_classes(tmp_path / "digits/val", 100, count)

    def module():
        torch.manual_seed(0)
        sizes = {"shape": {"depth": 2, "width": 32, "heads": 2}, "image_size": 16, "patch_size": 4, "in_chans": 1}
        classifier = Classifier(10, "scratch", **sizes)
        torch.nn.init.normal_(classifier.model.head.weight, std=0.5)  # for one that was never trained is refused
        return classifier

    def trainer(devices, **options):
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        strategy = "ddp_fork" if devices > 1 else "auto"
        return Trainer(accelerator="cpu", devices=devices, strategy=strategy, **quiet, **options)

    def data():
        return ImageFolder(str(tmp_path / "digits"), image_size=16, in_chans=1, batch_size=8)

    one, two = (trainer(devices).validate(module(), datamodule=data(), verbose=False)[0] for devices in (1, 2))
    assert one["val/samples"] == two["val/samples"] == count
    for name in ("val/top1", "val/top5", "val/loss"):
        assert two[name] == pytest.approx(one[name], abs=1e-5)
    path = tmp_path / "predictions.csv"
    trainer(2, callbacks=[PredictionWriter(str(path))]).predict(module(), datamodule=data(), return_predictions=False)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["file"] for row in rows}) == len(rows) == count
    right = sum(row["label"].endswith(row["predicted"]) for row in rows) / count
    assert right == pytest.approx(two["val/top1"], abs=1e-6)
