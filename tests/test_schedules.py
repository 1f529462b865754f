"""Learning rates beside hand-written tables and transformers' schedules, and runs that a clock ends."""

from dataclasses import replace

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup, get_wsd_schedule

from bamboo.came import CAME
from bamboo.cli import main
from bamboo.errors import InputError
from bamboo.optimizers import build_optimizer
from bamboo.recipes import Recipe, scaled_lr, scheduled_lr
from tests.interruption import Interruption
from tests.runs import CONFIGS, QUARTER, SHORT_WARMUP, TINY, fit, last, load, same, scalars

RECIPE = "--model.init_args.recipe"
LINE = [f"{RECIPE}.schedule", "linear", f"{RECIPE}.base_lr", "1e-3"]
PLAIN = [word for word in TINY if word not in SHORT_WARMUP]  # the warm-up is that of the file, 5 epochs of 11 steps
QUICKSTART = ["fit", "--config", str(CONFIGS / "pretrain/quickstart.yaml")]
EVERY_STEP = ["--trainer.log_every_n_steps", "1"]
PEAK = scaled_lr(1e-3, 32)


# A run of 100 with a warm-up of 10, peak 2 and floor 1; the trapezoid comes down over the last 40.
TABLE = {
    "cosine": {0: 0.0, 5: 1.0, 10: 2.0, 55: 1.5, 40: 1.75, 70: 1.25, 100: 1.0, 120: 1.0},
    "linear": {0: 0.0, 5: 1.0, 10: 2.0, 55: 1.5, 28: 1.8, 91: 1.1, 100: 1.0, 120: 1.0},
    "trapezoid": {0: 0.0, 5: 1.0, 10: 2.0, 35: 2.0, 60: 2.0, 70: 1.75, 80: 1.5, 100: 1.0, 120: 1.0},
}


@pytest.mark.parametrize("schedule", TABLE)
def test_schedules_are_those_of_a_table_in_any_unit(schedule):
    for step, expected in TABLE[schedule].items():
        options = {"peak": 2.0, "floor": 1.0, "schedule": schedule, "decay_share": 0.4}
        assert scheduled_lr(step, 10, 100, **options) == pytest.approx(expected, abs=1e-12), step
        assert scheduled_lr(step / 100, 0.1, 1.0, **options) == pytest.approx(expected, abs=1e-12), step


def test_schedules_are_those_of_transformers():
    theirs = {
        "cosine": lambda optimizer: get_cosine_schedule_with_warmup(optimizer, 30, 200),
        "linear": lambda optimizer: get_linear_schedule_with_warmup(optimizer, 30, 200),
        "trapezoid": lambda optimizer: get_wsd_schedule(optimizer, 30, 50, 200, decay_type="linear"),
    }
    for name, build in theirs.items():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
        scheduler = build(optimizer)
        for step in range(200):
            ours = scheduled_lr(step, 30, 200, 0.3, schedule=name, decay_share=0.25)
            assert ours == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12), (name, step)
            optimizer.step()
            scheduler.step()


def test_schedules_without_a_warm_up_or_without_a_way_down_are_finite():
    for schedule in TABLE:
        assert scheduled_lr(0, 0, 100, 1.0, schedule=schedule) == 1.0
        assert scheduled_lr(100, 100, 100, 1.0, 0.5, schedule=schedule) == 0.5
        assert scheduled_lr(99, 100, 100, 1.0, schedule=schedule) == pytest.approx(0.99)
    assert scheduled_lr(99, 0, 100, 1.0, schedule="trapezoid", decay_share=0.0) == 1.0
    assert scheduled_lr(75, 75, 100, 1.0, schedule="trapezoid", decay_share=0.5) == 1.0  # the warm-up comes first


def test_a_recipe_builds_its_optimizer():
    params = torch.nn.Linear(2, 2).parameters
    came = build_optimizer([{"params": params(), "weight_decay": 0.1}], Recipe(optimizer="came", betas=(0.8, 0.99)))
    assert isinstance(came, CAME)
    assert came.param_groups[0]["betas"] == (0.8, 0.99, 0.9999)
    assert came.param_groups[0]["weight_decay"] == 0.1
    three = Recipe(optimizer="came", betas=(0.8, 0.99, 0.999))
    assert build_optimizer([{"params": params()}], three).param_groups[0]["betas"] == (0.8, 0.99, 0.999)
    adamw = build_optimizer([{"params": params()}], Recipe(eps=1e-12, betas=(0.9, 0.98)))
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[0]["eps"] == 1e-12
    assert adamw.param_groups[0]["betas"] == (0.9, 0.98)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"betas": (0.9,)}, "recipe.betas: adamw takes 2 numbers from 0 to below 1: [0.9]"),
        ({"betas": (0.9, 0.99, 0.999)}, "recipe.betas: adamw takes 2 numbers from 0 to below 1: [0.9, 0.99, 0.999]"),
        ({"betas": (0.9, 1.0)}, "recipe.betas: adamw takes 2 numbers from 0 to below 1: [0.9, 1.0]"),
        ({"optimizer": "came", "betas": (0.9,)}, "recipe.betas: came takes 2 or 3 numbers from 0 to below 1: [0.9]"),
        ({"warmup_share": 1.5}, "recipe.warmup_share must lie between 0 and 1: 1.5"),
        ({"decay_share": -0.1}, "recipe.decay_share must lie between 0 and 1: -0.1"),
        ({"eps": -1.0}, "recipe.eps must be 0 or more: -1.0"),
    ],
)
def test_a_recipe_that_cannot_be_is_one_line(options, message):
    with pytest.raises(InputError) as error:
        replace(Recipe(), **options)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([f"{RECIPE}.schedule", "triangle"], "recipe.schedule: expected one of ['cosine', 'linear', 'trapezoid']"),
        (["--trainer.max_epochs", "-1"], "set trainer.max_epochs, trainer.max_steps or trainer.max_time"),
        (["--trainer.max_epochs", "-1", "--trainer.max_time", "00:00:00:09"], "set recipe.warmup_share"),
        (["--trainer.max_epochs", "5"], "recipe.warmup_epochs 5 is 55 steps and the whole run 55: lower"),
    ],
)
def test_a_run_that_cannot_be_is_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main([*QUICKSTART, *PLAIN, *words]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("bamboo: error: ")
    assert message in said[-1]


def test_steps_decide_where_their_end_is_nearer_than_that_of_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # 5 epochs of warm-up (55 steps) are a quarter of the 20 epochs that are asked for.
    budget = ["--trainer.max_epochs", "20", "--trainer.max_time", "10:00:00:00", *EVERY_STEP, *QUARTER]
    interrupt = ["--trainer.callbacks+=tests.interruption.InterruptBefore", "--trainer.callbacks.step=12"]
    with pytest.raises(Interruption):
        main([*QUICKSTART, *PLAIN, *LINE, *budget, *interrupt])
    rates = scalars(tmp_path / "runs/quickstart/version_0", "train/lr")
    assert rates == pytest.approx({step: PEAK * step / 55 for step in range(12)}, abs=1e-8)


def test_time_drives_the_schedule_to_its_floor_and_a_resumed_run_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    budget = ["--trainer.max_epochs", "-1", "--trainer.max_time", "00:00:00:04", f"{RECIPE}.warmup_share", "0"]
    run = [*LINE, *budget, *EVERY_STEP, *QUARTER, "--checkpoint.every_n_train_steps", "1", "--trainer.callbacks", "[]"]
    optimizer = [f"{RECIPE}.optimizer", "came", f"{RECIPE}.betas", "[0.9, 0.99, 0.999]"]
    with pytest.raises(Interruption):
        fit(
            *run,
            *optimizer,
            *("--trainer.callbacks+=tests.interruption.InterruptBefore", "--trainer.callbacks.step=5"),
        )
    saved = load(last(tmp_path))
    elapsed = saved["callbacks"]["Timer"]["time_elapsed"]["train"]
    assert saved["global_step"] == 5
    assert elapsed > 0
    assert saved["optimizer_states"][0]["param_groups"][0]["betas"] == (0.9, 0.99, 0.999)

    assert fit(*run, *optimizer, "--ckpt_path", "last") == 0
    rates = scalars(last(tmp_path).parent.parent, "train/lr")
    times = [4 * (1 - rate / PEAK) for _, rate in sorted(rates.items())]
    assert times == sorted(times)
    assert times[0] < 2
    assert elapsed - 1e-3 <= times[5] < elapsed + 2
    assert 2 < times[-1] <= 4 + 1e-3
    assert load(last(tmp_path))["callbacks"]["Timer"]["time_elapsed"]["train"] >= 4


def test_a_resumed_run_with_came_equals_the_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        *("--trainer.max_steps", "8", "--checkpoint.every_n_train_steps", "4", "--checkpoint.save_top_k", "-1"),
        *(f"{RECIPE}.optimizer", "came", f"{RECIPE}.schedule", "trapezoid", f"{RECIPE}.warmup_share", "0.25"),
        *(f"{RECIPE}.decay_share", "0.5", *QUARTER, "--trainer.callbacks", "[]"),
    ]
    assert fit(*words) == 0
    assert fit(*words, "--ckpt_path", str(last(tmp_path).with_name("step=4.ckpt"))) == 0
    whole, resumed = load(last(tmp_path)), load(last(tmp_path, version=1))
    assert whole["global_step"] == resumed["global_step"] == 8
    for part in ("state_dict", "optimizer_states"):
        assert same(whole[part], resumed[part])
