"""A resumed run equals the uninterrupted one bit for bit: weights, optimizer, and what is logged afterwards."""

import os
import random
import signal
import subprocess
import sys

import pytest
import torch

from tests.interruption import Interruption
from tests.runs import CONFIGS, ROOT, TINY, fit, last, load, same, scalars

RUN = [
    *("--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "1"),
    *("--data.init_args.batch_size", "200"),  # 7 steps in an epoch
    *("--checkpoint.every_n_train_steps", "1"),
]


def interrupt_before(step: int) -> list[str]:
    return ["--trainer.callbacks+=tests.interruption.InterruptBefore", f"--trainer.callbacks.step={step}"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert fit(*RUN) == 0
    return folder


def assert_equal_runs(ours, theirs, resumed_after):
    left, right = load(last(ours)), load(last(theirs))
    assert left["global_step"] == right["global_step"] == 14
    assert same(left["state_dict"], right["state_dict"])
    assert same(left["optimizer_states"], right["optimizer_states"])
    mine, all_losses = (scalars(last(folder).parent.parent, "train/loss") for folder in (ours, theirs))
    assert len(all_losses) == 14
    after = {step: loss for step, loss in all_losses.items() if step >= resumed_after}
    assert {step: loss for step, loss in mine.items() if step >= resumed_after} == after


# Within the first epoch, at its end, within the second.
@pytest.mark.parametrize(("step", "workers"), [(3, "0"), (3, "2"), (7, "0"), (10, "2")])
def test_a_run_resumed_after_any_step_equals_the_uninterrupted_one(uninterrupted, tmp_path, monkeypatch, step, workers):
    monkeypatch.chdir(tmp_path)
    run = [*RUN, "--data.init_args.num_workers", workers]
    with pytest.raises(Interruption):
        fit(*run, *interrupt_before(step))
    assert load(last(tmp_path))["global_step"] == step
    assert fit(*run, "--ckpt_path", "last") == 0
    assert_equal_runs(tmp_path, uninterrupted, step)


def test_a_run_that_is_killed_and_resumed_equals_the_uninterrupted_one(uninterrupted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    step = random.Random(0).randrange(2, 14)
    command = ["fit", "--config", str(CONFIGS / "pretrain/quickstart.yaml"), *TINY, *RUN, *interrupt_before(step)]
    killed = subprocess.run(
        [sys.executable, "-m", "bamboo", *command, "--trainer.callbacks.kill=true"],
        # As many threads as here, for sums over other pieces differ in their last bits.
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert killed.returncode == -signal.SIGKILL
    assert fit(*RUN, "--ckpt_path", "last") == 0
    assert_equal_runs(tmp_path, uninterrupted, step)
