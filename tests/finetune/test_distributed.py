"""Two gloo processes evaluate and predict what one does, every sample once."""

import csv
import os
import re
import subprocess
import sys

import pytest
import torch

from bamboo.finetune.classifier import Classifier
from tests.finetune.folders import NAMES, write_classes
from tests.finetune.runs import SIZES, run
from tests.runs import CONFIGS, ROOT

DDP = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]


def bamboo(folder, verb, *args):
    command = [sys.executable, "-m", "bamboo", verb, "--config", str(CONFIGS / "finetune/scratch_digits.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *SIZES, *args], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_sample_counts_once_on_two_processes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    count = 23  # 8 to a batch: the last batches of the two processes are not full
    write_classes(tmp_path / "digits/train", 0, 40)
    write_classes(tmp_path / "digits/val", 100, count)
    torch.manual_seed(0)
    sizes = {"shape": {"depth": 2, "width": 32, "heads": 2}, "image_size": 16, "patch_size": 4, "in_chans": 1}
    module = Classifier(10, "scratch", **sizes, head_init_std=0.5)
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), "classes": list(NAMES)}
    torch.save({**content, "pytorch-lightning_version": "2.6.0"}, tmp_path / "model.ckpt")
    data = [
        *("--data.class_path", "bamboo.vision.data.ImageFolder", "--data.init_args.root", "digits"),
        *("--data.init_args.batch_size", "8", "--ckpt_path", "model.ckpt"),
    ]
    assert run("validate", *data) == 0
    printed = (capsys.readouterr().out, bamboo(tmp_path, "validate", *data, *DDP))
    one, two = ({key: float(value) for key, value in re.findall(r"(val/\w+)\W+([\d.]+)", out)} for out in printed)
    assert one["val/samples"] == two["val/samples"] == count
    for name in ("val/top1", "val/top5", "val/loss"):
        assert two[name] == pytest.approx(one[name], abs=1e-5)
    bamboo(tmp_path, "predict", *data, *DDP)
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["file"] for row in rows}) == len(rows) == count
    right = sum(row["label"] == row["predicted"] for row in rows) / count
    assert right == pytest.approx(two["val/top1"], abs=1e-6)
