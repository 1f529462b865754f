"""A resumed run equals the uninterrupted one bit for bit: weights, optimizer, and what is logged afterwards."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from bamboo.cli import main
from bamboo.files import link
from bamboo.saving import AtomicCheckpointIO
from tests.interruption import Interruption
from tests.runs import CONFIGS, ROOT, TINY, fit, last, load, same, scalars

RUN = [
    *("--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "1"),
    *("--data.init_args.fraction", "0.2", "--data.init_args.batch_size", "40"),  # 7 steps in an epoch
    *("--checkpoint.every_n_train_steps", "1", "--checkpoint.keep_every_n_epochs", "1"),
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


# At the end of the first epoch, and within the second; a run that is killed ends within the first.
@pytest.mark.parametrize(("step", "workers"), [(7, "0"), (10, "2")])
def test_a_run_resumed_after_any_step_equals_the_uninterrupted_one(uninterrupted, tmp_path, monkeypatch, step, workers):
    monkeypatch.chdir(tmp_path)
    run = [*RUN, "--data.init_args.num_workers", workers]
    with pytest.raises(Interruption):
        fit(*run, *interrupt_before(step))
    assert load(last(tmp_path))["global_step"] == step
    assert fit(*run, "--ckpt_path", "last") == 0
    assert_equal_runs(tmp_path, uninterrupted, step)


def test_a_run_resumed_from_a_kept_checkpoint_equals_the_uninterrupted_one(uninterrupted, tmp_path, monkeypatch):
    folder = last(uninterrupted).parent
    assert {path.name for path in folder.iterdir()} == {"epoch=1.ckpt", "epoch=2.ckpt", "last.ckpt"}
    assert last(uninterrupted).samefile(folder / "epoch=2.ckpt")  # the end of the run, on the disk once
    monkeypatch.chdir(tmp_path)
    assert fit(*RUN, "--ckpt_path", str(folder / "epoch=1.ckpt")) == 0
    assert_equal_runs(tmp_path, uninterrupted, 7)


def test_a_step_is_written_once_whatever_its_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = []
    save = AtomicCheckpointIO.save_checkpoint
    monkeypatch.setattr(
        AtomicCheckpointIO,
        "save_checkpoint",
        lambda self, *args, **kw: written.append(args[1]) or save(self, *args, **kw),
    )
    every = ["--checkpoint.every_n_train_steps", "4", "--checkpoint.save_top_k", "-1"]
    assert fit("--trainer.max_steps", "9", *every, "--trainer.callbacks", "[]") == 0
    steps = {path.name: load(path)["global_step"] for path in last(tmp_path).parent.iterdir()}
    assert steps == {"step=4.ckpt": 4, "step=8.ckpt": 8, "last.ckpt": 9}
    assert len(written) == 3


def test_a_second_name_outlives_the_first_and_needs_no_links(tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    for linked in (True, False):
        first.write_text("new")
        second.write_text("old")
        if not linked:
            monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
        link(first, second)
        assert first.samefile(second) == linked
        first.unlink()
        assert second.read_text() == "new"
        assert [path.name for path in tmp_path.iterdir()] == ["second"]


def test_a_run_does_not_go_on_with_another_optimizer(uninterrupted, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, now, part in (
        ("optimizer", "came", "was trained with optimizer adamw, and the configuration says came"),
        ("weight_decay", "0.3", "weight_decay 0.05, and the configuration says 0.3"),
    ):
        other = [f"--model.init_args.recipe.{name}", now]
        assert fit(*RUN, *other, "--ckpt_path", str(last(uninterrupted))) == 2
        assert part in capsys.readouterr().err.splitlines()[-1]
    arguments = ["--config", str(CONFIGS / "pretrain/quickstart.yaml"), *TINY, *other]
    assert main(["validate", *arguments, "--ckpt_path", str(last(uninterrupted))]) == 0  # which needs no optimizer


def test_a_run_that_is_killed_and_resumed_equals_the_uninterrupted_one(uninterrupted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    step = 3
    command = ["fit", "--config", str(CONFIGS / "pretrain/quickstart.yaml"), *TINY, *RUN, *interrupt_before(step)]
    killed = subprocess.run(
        [sys.executable, "-m", "bamboo", *command, "--trainer.callbacks.kill=true"],
        # As many threads as here, for sums over other pieces differ in their last bits.
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert killed.returncode == -signal.SIGKILL
    assert fit(*RUN, "--ckpt_path", "last") == 0
    assert_equal_runs(tmp_path, uninterrupted, step)
