"""One configuration, by the recipe of the sweep, trains and evaluates every task of GLUE."""

import csv
import math
import re

import pytest

from bamboo.cli import main
from bamboo.finetune.glue.recipes import CLIP, Setting
from bamboo.finetune.glue.tasks import TASKS
from bamboo.fit.compose import compose
from bamboo.recipes import Recipe
from tests.runs import CONFIGS, load, scalars

CONFIG = ["--config", str(CONFIGS / "finetune/glue.yaml")]


def run(verb, name, encoder, data, *words):
    small = [
        *("--model.init_args.encoder", str(encoder), "--data.init_args.root", str(data)),
        *("--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.log_every_n_steps", "1"),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    ]
    return main([verb, *CONFIG, "--model.init_args.task", name, *small, *words])


def test_the_configuration_says_the_recipe_of_the_sweep():
    config, default = compose(CONFIGS / "finetune/glue.yaml"), Setting()
    recipe = Recipe(**{**config.model.init_args.recipe, "betas": tuple(config.model.init_args.recipe.betas)})
    assert recipe == default.recipe
    assert recipe.base_lr * config.data.init_args.batch_size / 256 == pytest.approx(4e-5)
    assert (config.data.init_args.batch_size, config.trainer.max_epochs) == (default.batch_size, default.epochs)
    assert config.trainer.gradient_clip_val == CLIP


def test_without_a_task_it_is_one_line(capsys):
    assert main(["fit", *CONFIG]) == 2
    assert "leaves a value open: give --model.init_args.task VALUE" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["stsb", "mnli"])  # a number, and two sets to evaluate on
def test_a_configuration_trains_and_evaluates(name, encoder, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("fit", name, encoder, data, "--trainer.max_epochs", "1") == 0
    folder = tmp_path / "runs" / f"glue-{name}" / "version_0"
    last = folder / "checkpoints" / "last.ckpt"
    assert load(last)["global_step"] == 2  # 32 examples
    assert (folder / "config.yaml").is_file()
    assert min(scalars(folder, "train/padding").values()) < 0.5
    (score,) = scalars(folder, "val/score").values()
    capsys.readouterr()
    assert run("validate", name, encoder, data, "--ckpt_path", str(last)) == 0
    printed = capsys.readouterr().out
    for metric in TASKS[name].metrics:
        for split in TASKS[name].eval_splits:
            assert f"val/{metric}{split.removeprefix('dev')}" in printed
    assert float(re.search(r"val/score[│\s]+(\S+)", printed)[1]) == pytest.approx(score, abs=1e-6, nan_ok=True)

    assert run("predict", name, last, data) == 0
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    splits = {"mnli": ["test_matched", "test_mismatched", "ax"]}.get(name, ["test"])
    assert [(row["split"], row["id"]) for row in rows] == [(split, str(n)) for split in splits for n in range(10)]
    known = TASKS[name].labels
    assert all(row["predicted"] in known if known else math.isfinite(float(row["predicted"])) for row in rows)
