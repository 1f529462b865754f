"""Two gloo processes do what one process does with twice the batch."""

import os
import re
import subprocess
import sys

import torch

from tests.runs import CONFIGS, ROOT, TINY, load, scalars

DDP = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]


def run(folder, verb, *args, config="pretrain/quickstart.yaml"):
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "bamboo", verb, "--config", str(CONFIGS / config), *TINY, *args]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_train_as_one_with_the_whole_batch(tmp_path):
    steps = ["--trainer.max_steps", "4", "--trainer.log_every_n_steps", "1"]
    for name, batch, devices in (("one", "64", []), ("two", "32", DDP)):
        gradients = ["--trainer.callbacks+=tests.interruption.SaveGradients", "--trainer.callbacks.path=gradients.pt"]
        run(tmp_path / name, "fit", *steps, "--data.init_args.batch_size", batch, *devices, *gradients)
    one, two = (torch.load(tmp_path / name / "gradients.pt", weights_only=True) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-4, atol=1e-6)
    folders = [tmp_path / name / "runs/quickstart/version_0" for name in ("one", "two")]
    rates = [scalars(folder, "train/lr") for folder in folders]
    assert rates[0] == rates[1]
    assert max(rates[0].values()) > 0
    weights = [load(folder / "checkpoints/last.ckpt")["state_dict"] for folder in folders]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-4)


def test_evaluation_on_two_processes_counts_every_sample_once(tmp_path, image_root):
    folder = [
        *("--data.init_args.root", str(image_root), "--data.init_args.batch_size", "4"),
        *("--data.init_args.num_workers", "0", "--trainer.accelerator", "cpu"),
    ]
    losses = []
    for devices in ([], DDP):
        out = run(tmp_path, "validate", *folder, *devices, config="pretrain/image_folder.yaml")
        results = dict(re.findall(r"(val/\w+)\W+([\d.]+)", out))
        assert float(results["val/samples"]) == 13
        losses.append(float(results["val/loss"]))
    assert abs(losses[0] - losses[1]) < 0.05  # the masks differ where batches end elsewhere
