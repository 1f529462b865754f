"""Samples of a step: published batches on any number of devices, and the learning rate of what really runs."""

from types import SimpleNamespace

import pytest

from bamboo.errors import InputError
from bamboo.recipes import Recipe, accumulation
from bamboo.shapes import Shape
from bamboo.vision.pretraining import MAEPretraining
from tests.runs import QUARTER, fit, last, load, scalars

EFFECTIVE = "--model.init_args.recipe.effective_batch"


@pytest.mark.parametrize(
    ("published", "batch_size", "processes", "batches"),
    [
        (4096, 64, 64, 1),
        (4096, 64, 8, 8),
        (4096, 64, 1, 64),
        (16384, 2048, 8, 1),
        (16384, 2048, 1, 8),
        (1024, 128, 4, 2),
    ],
)
def test_batches_are_accumulated_to_the_published_one(published, batch_size, processes, batches):
    assert accumulation(published, batch_size, processes) == batches
    assert accumulation(published, batch_size, processes, configured=batches) == batches


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (4096, 64, 3),
            "cannot be shared equally among 3 processes: take a number of processes that divides it, or an",
        ),
        ((4096, 64, 3), "an effective batch of 4032 or 4224"),
        (
            (1024, 100, 8),
            "1024 is no multiple of 8 processes x data.init_args.batch_size 100: take a batch size of 64 or",
        ),
        ((1024, 100, 8), "64 or 128"),
        ((256, 256, 8), "take a batch size of 32"),
        ((4096, 64, 8, 4), "accumulate_grad_batches 4 makes 2048 samples a step and recipe.effective_batch says 4096"),
    ],
)
def test_what_does_not_fit_is_told_with_what_would(arguments, message):
    with pytest.raises(InputError) as error:
        accumulation(*arguments)
    assert message in str(error.value)


def test_the_processes_of_the_trainer_share_the_batch():
    recipe = Recipe(effective_batch=4096)
    module = MAEPretraining(recipe, shape=Shape(1, 32, 1), image_size=8, patch_size=4, decoder_shape=Shape(1, 32, 1))
    data = SimpleNamespace(batch_size=64)
    module._trainer = SimpleNamespace(world_size=8, accumulate_grad_batches=1, datamodule=data)
    module.on_fit_start()
    assert module.trainer.accumulate_grad_batches == 8
    assert module.effective_batch() == 4096


def test_a_run_takes_the_batch_of_its_recipe_and_says_and_keeps_what_it_used(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [*QUARTER, EFFECTIVE, "96", "--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "1"]
    assert fit(*words, "--model.init_args.recipe.base_lr", "1e-3") == 0
    said = capsys.readouterr().out
    assert "96 samples a step (32 x 1 processes x 3 accumulated), 8 steps, a warm-up over 50.0%" in said
    assert "learning rate up to 0.000375" in said
    checkpoint = load(last(tmp_path))
    assert checkpoint["global_step"] == 8  # 11 batches an epoch, three to a step
    parts = {"batch_size": 32, "processes": 1, "accumulate_grad_batches": 3, "effective_batch": 96}
    assert checkpoint["batch"] == parts
    assert max(scalars(last(tmp_path).parent.parent, "train/lr").values()) == pytest.approx(1e-3 * 96 / 256)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([EFFECTIVE, "300"], "take a batch size of 100 or 150"),
        ([EFFECTIVE, "256", "--trainer.accumulate_grad_batches", "4"], "leave the first out, or set the second to 0"),
        ([EFFECTIVE, "-1"], "recipe.effective_batch must be 0 or more: -1"),
    ],
)
def test_a_batch_that_cannot_be_is_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert fit(*words) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
