"""Tar shards on two processes: a run that is killed and resumed equals an uninterrupted one bit for bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import CONFIGS, ROOT, TINY, last, load, same, scalars
from tests.vision.sources import as_tar

pytestmark = pytest.mark.slow


def train(folder: Path, root: Path, *args: str) -> int:
    """`bamboo fit` on two processes, of 3 epochs with 2 steps each; its exit code."""
    folder.mkdir(exist_ok=True)
    command = [
        *("fit", "--config", str(CONFIGS / "pretrain/image_folder.yaml"), *TINY, "--data.init_args.root", str(root)),
        *("--model.init_args.image_size", "16", "--trainer.max_epochs", "3", "--data.init_args.batch_size", "2"),
        *("--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"),
        *("--trainer.log_every_n_steps", "1", "--checkpoint.every_n_train_steps", "1"),
    ]
    # Cached indices are kept apart: the second run reads the tar files anew.
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.run(
        [sys.executable, "-m", "bamboo", *command, *args], cwd=folder, env=env, timeout=300
    ).returncode


def test_a_killed_run_on_shards_resumes_as_if_nothing_had_been(tmp_path: Path) -> None:
    as_tar(tmp_path / "shards")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train(whole, tmp_path / "shards") == 0
    interrupt = ("--trainer.callbacks+=tests.interruption.InterruptBefore", "--trainer.callbacks.step=3")
    assert train(killed, tmp_path / "shards", *interrupt, "--trainer.callbacks.kill=true") == -signal.SIGKILL
    assert load(last(killed, name="image-folder"))["global_step"] == 3  # in the middle of the second epoch
    assert train(killed, tmp_path / "shards", "--ckpt_path", "last") == 0
    left, right = (load(last(folder, name="image-folder")) for folder in (whole, killed))
    assert left["global_step"] == right["global_step"] == 6
    assert same(left["state_dict"], right["state_dict"])
    assert same(left["optimizer_states"], right["optimizer_states"])
    losses = [scalars(last(folder, name="image-folder").parent.parent, "train/loss") for folder in (whole, killed)]
    assert {step: losses[0][step] for step in (3, 4, 5)} == {step: losses[1][step] for step in (3, 4, 5)}
