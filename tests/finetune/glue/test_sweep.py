"""A sweep that was interrupted, spread over processes or partly failed gives the table that it should."""

import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from lightning import Trainer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bamboo.errors import InputError
from bamboo.finetune.glue import sweep as sweeping
from bamboo.finetune.glue.classifier import GlueClassifier
from bamboo.finetune.glue.data import GlueData
from bamboo.finetune.glue.metrics import compute
from bamboo.finetune.glue.reading import read_split
from bamboo.finetune.glue.recipes import SEARCH, Setting
from bamboo.finetune.glue.runs import Plan, Run, fine_tune, predict_tests
from bamboo.finetune.glue.sweep import sweep
from bamboo.finetune.glue.tasks import DIAGNOSTIC, TASKS, find_tasks
from bamboo.workers import reason_of
from tests.runs import ROOT, same

SETTING = Setting(lr=1e-3, epochs=2)
SIZES = dict.fromkeys(TASKS, 32)


@pytest.fixture
def plan(encoder, data):
    return Plan(str(encoder), str(data), max_length=64)


def scores(out):
    """What the cells of a folder say, without how long they took."""
    read = {path.name: json.loads(path.read_text()) for path in sorted((out / "cells").glob("*.json"))}
    return {name: {key: value for key, value in cell.items() if key != "seconds"} for name, cell in read.items()}


def command(plan, out, *options):
    words = ["--data", plan.data, "--max-length", "64", "--lr", "1e-3", "--epochs", "2", "--out", str(out)]
    return [sys.executable, "-m", "bamboo", "glue", plan.encoder, *words, "--tasks", "cola", "mnli", "stsb", *options]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_and_ends_with_the_table_of_one_that_was_not(plan, tmp_path):
    options = {
        "cwd": tmp_path,
        "env": environment(),
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    killed = subprocess.Popen(command(plan, tmp_path / "killed", "--seeds", "2"), **options)
    cells, end = tmp_path / "killed" / "cells", time.monotonic() + 300
    while len(list(cells.glob("*.json"))) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    finished = {path.name: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    assert 2 <= len(finished) < 6
    assert not (tmp_path / "killed" / "scores.json").exists()
    for name in ("killed", "whole"):
        done = subprocess.run(command(plan, tmp_path / name, "--seeds", "2"), **options)
        assert done.returncode == 0, done.stderr
    for name, moment in finished.items():
        assert (cells / name).stat().st_mtime_ns == moment  # kept, not run again
    assert len(scores(tmp_path / "whole")) == 6
    assert scores(tmp_path / "killed") == scores(tmp_path / "whole")
    tables = [json.loads((tmp_path / name / "scores.json").read_text()) for name in ("killed", "whole")]
    for table in tables:
        assert len(table["values"]) >= 6
        for row in table["values"]:
            del row["seconds"]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_processes_side_by_side_give_what_one_gives(plan, tmp_path):
    for workers in (1, 2):
        runs, failures = sweep(
            plan, find_tasks(["cola", "rte"]), [0, 1], tmp_path / str(workers), SIZES, SETTING, workers
        )
        assert (len(runs), failures) == (4, {})
    assert scores(tmp_path / "1") == scores(tmp_path / "2")


def in_turn(function, tasks, environments, ended, bar):
    """As `run_tasks`, with what it sends to its processes, but in this one."""
    function, tasks = pickle.loads(pickle.dumps((function, tasks)))
    assert environments == [{"OMP_NUM_THREADS": "1"}] * 2
    for task in tasks:
        try:
            function(task, bar.update)
        except Exception as error:
            ended(task, reason_of(error))
        else:
            ended(task, None)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_fails_is_said_and_leaves_the_others(plan, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(sweeping, "run_tasks", in_turn)
    (tmp_path / "cells" / "cola-seed1.json").mkdir(parents=True)  # its scores cannot be written
    runs, failures = sweep(plan, find_tasks(["cola"]), [0, 1], tmp_path, SIZES, SETTING, workers)
    assert [run.name for run in runs] == ["cola-seed0"]
    assert list(failures) == ["cola-seed1"]
    assert "Is a directory" in failures["cola-seed1"]
    (tmp_path / "cells" / "cola-seed1.json").rmdir()
    runs, failures = sweep(plan, find_tasks(["cola"]), [0, 1], tmp_path, SIZES, SETTING, workers)
    assert ([run.seed for run in runs], failures) == ([0, 1], {})


def test_workers_share_the_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert sweeping._environments(None) == [{"OMP_NUM_THREADS": "6"}]
    assert sweeping._environments(4) == [{"OMP_NUM_THREADS": "1"}] * 4
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    shared = {"OMP_NUM_THREADS": "3"}
    assert sweeping._environments(None) == [shared | {"CUDA_VISIBLE_DEVICES": gpu} for gpu in "57"]


def test_seeds_differ_and_a_cell_alone_is_a_cell_of_a_sweep(plan, tmp_path):
    sweep(plan, find_tasks(["mnli"]), [0, 1], tmp_path, SIZES, SETTING)
    assert set(scores(tmp_path)["mnli-seed0.json"]["metrics"]) == {"dev_matched", "dev_mismatched"}
    alone = fine_tune(plan, Run("mnli", 1, SETTING), tmp_path / "alone")
    assert alone["metrics"] == scores(tmp_path)["mnli-seed1.json"]["metrics"]
    pretrained = Run("stsb", 0, SETTING), Run("stsb", 1, SETTING)
    one, two = (fine_tune(plan, cell, tmp_path / "alone")["score"] for cell in pretrained)
    assert one != two


@pytest.mark.parametrize("task", ["mrpc", "cola", "stsb"])
def test_a_cell_that_diverged_is_a_failure_with_its_reason_and_never_a_score(plan, tmp_path, task):
    cells, failures = sweep(plan, find_tasks([task]), [0], tmp_path, SIZES, Setting(lr=1e20, epochs=2))
    assert cells == []
    assert list(failures) == [f"{task}-seed0"]
    assert re.search(
        r"diverged: .* not finite|diverged: a loss of .* in the last epoch|loss is not finite",
        failures[f"{task}-seed0"],
    )
    assert scores(tmp_path) == {}


def test_naming_one_class_alone_is_a_score(plan, tmp_path):
    cell = Run("mrpc", 0, Setting(lr=1e-12, epochs=1))
    assert fine_tune(plan, cell, tmp_path)["score"] > 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            GlueClassifier, "forward", lambda self, batch: self.model.classifier.bias.expand(len(batch["index"]), -1)
        )
        found = fine_tune(plan, Run("cola", 0, SETTING), tmp_path)
    assert found["metrics"] == {"dev": {"matthews": 0.0}}


def test_outputs_that_are_not_finite_are_no_predictions(encoder, data):
    module = GlueClassifier(encoder, "cola")
    module.has_head = True
    with torch.no_grad():
        module.model.classifier.bias[0] = math.nan
    with pytest.raises(InputError, match="the model's outputs are not finite"):
        Trainer(logger=False, enable_progress_bar=False, accelerator="cpu").validate(module, GlueData(data, "cola"))


CHANGED = {
    "lr": (lambda plan, setting: (plan, replace(setting, lr=2e-3)), "lr 0.001, and now lr is 0.002"),
    "length": (
        lambda plan, setting: (replace(plan, max_length=32), setting),
        "max_length 64, and now max_length is 32",
    ),
    "search": (lambda plan, setting: (plan, None), "search False, and now search is True"),
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_folder_takes_the_scores_of_one_plan_alone(plan, tmp_path, what):
    sweep(plan, [], [0], tmp_path, SIZES, SETTING)
    change, message = CHANGED[what]
    plan, setting = change(plan, SETTING)
    with pytest.raises(InputError, match=message):
        sweep(plan, find_tasks(["cola"]), [0], tmp_path, SIZES, setting)


def test_an_encoder_that_was_trained_on_is_another_encoder(plan, tmp_path):
    import shutil

    folder = tmp_path / "encoder"
    shutil.copytree(plan.encoder, folder)
    plan = replace(plan, encoder=str(folder))
    sweep(plan, [], [0], tmp_path / "out", SIZES, SETTING)
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match="encoder_digest"):
        sweep(plan, [], [0], tmp_path / "out", SIZES, SETTING)


def test_the_search_takes_the_best_setting_of_the_first_seed_for_all_seeds(plan, tmp_path, monkeypatch):
    ran = []

    def scored(plan, cell, out, *_):
        ran.append(cell)
        best = cell.setting == SEARCH[7]
        sweeping.write_json(cell.path(out), {"score": 0.9 if best else None if cell.setting == SEARCH[0] else 0.5})

    monkeypatch.setattr(sweeping, "fine_tune", scored)
    cells, failures = sweep(plan, find_tasks(["cola", "rte"]), [0, 1, 2], tmp_path, SIZES)
    assert failures == {}
    assert {cell.setting for cell in cells} == {SEARCH[7]}
    assert [(cell.task, cell.seed) for cell in cells] == [(task, seed) for task in ("cola", "rte") for seed in (1, 2)]
    assert len(ran) == 2 * (len(SEARCH) + 2)
    ran.clear()
    sweep(plan, find_tasks(["cola", "rte"]), [0, 1, 2], tmp_path, SIZES)
    assert ran == []


def test_the_model_of_the_grid_is_not_kept_and_that_of_the_other_seeds_is(plan, tmp_path, monkeypatch):
    kept = {}

    def scored(plan, cell, out, *_):
        kept[cell.seed] = plan.keep_models
        sweeping.write_json(cell.path(out), {"score": 0.5})

    monkeypatch.setattr(sweeping, "fine_tune", scored)
    sweep(replace(plan, keep_models=True), find_tasks(["rte"]), [0, 1], tmp_path, SIZES)
    assert kept == {0: False, 1: True}


def test_a_kept_model_predicts_what_the_cell_scored(plan, tmp_path, data):
    cell = Run("mnli", 1, SETTING)
    score = fine_tune(replace(plan, keep_models=True), cell, tmp_path)["metrics"]
    task = TASKS["mnli"]
    model = AutoModelForSequenceClassification.from_pretrained(cell.model(tmp_path)).eval()
    tokenizer = AutoTokenizer.from_pretrained(cell.model(tmp_path))
    assert model.config.id2label == dict(enumerate(task.labels))

    def guesses(split):
        found = read_split(DIAGNOSTIC if split == "ax" else task, data, "test" if split == "ax" else split)
        pairs = zip(found.first, found.second, strict=True)
        inputs = [tokenizer(*pair, truncation=True, max_length=64, return_tensors="pt") for pair in pairs]
        with torch.no_grad():
            return [int(model(**each).logits.argmax()) for each in inputs], found.labels

    predicted, labels = guesses("dev_matched")
    assert compute(task, predicted, labels) == score["dev_matched"]
    tests = predict_tests(plan, cell, tmp_path)
    assert list(tests) == ["test_matched", "test_mismatched", "ax"]
    for split, content in tests.items():
        assert content == {"ids": list(range(10)), "predictions": guesses(split)[0]}
    with pytest.raises(InputError, match=r"mnli-seed2 was run without --keep-models .* remove .*mnli-seed2.json"):
        predict_tests(plan, Run("mnli", 2, SETTING), tmp_path)


def test_three_tasks_start_from_the_model_of_mnli(plan, tmp_path):
    plan = replace(plan, from_mnli=True)
    cells, failures = sweep(plan, find_tasks(["rte", "cola", "mnli"]), [0], tmp_path / "from", SIZES, SETTING)
    assert failures == {}
    assert [cell.task for cell in cells] == ["rte", "cola", "mnli"]
    weights = Run("mnli", 0).model(tmp_path / "from") / "model.safetensors"
    assert weights.is_file()
    alone = sweep(replace(plan, from_mnli=False), find_tasks(["cola"]), [0], tmp_path / "alone", SIZES, SETTING)
    assert alone[1] == {}
    assert same(scores(tmp_path / "from")["cola-seed0.json"], scores(tmp_path / "alone")["cola-seed0.json"])
    weights.unlink()
    Run("rte", 0).path(tmp_path / "from").unlink()
    _, failures = sweep(plan, find_tasks(["rte", "cola", "mnli"]), [0], tmp_path / "from", SIZES, SETTING)
    assert "mnli-seed0 cannot be loaded (Error no file named model.safetensors" in failures["rte-seed0"]
