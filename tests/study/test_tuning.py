"""Rates are chosen on training images, once for all seeds; what settings have in common is trained once."""

import json
import math

import numpy as np
import pytest

from bamboo.errors import InputError
from bamboo.files import read_json
from bamboo.study.changes import add_axes
from bamboo.study.folders import cell_folder, failures, store
from bamboo.study.report import notes, write_report
from bamboo.study.results import read_results
from bamboo.study.running import run_locked
from bamboo.study.stages import run_config
from bamboo.vision.data import Digits
from tests.runs import load

from .tiny import MAE, SHAPES, SUPERVISED, run_here, tiny

RATE = "model.init_args.recipe.base_lr"


def tuned(tmp_path, rates, objective, **changes):
    budget, tune = {"samples": 128, "then": 0.25}, {"keys": {"base_lr": rates}, "share": 0.5}
    return tiny(tmp_path, objectives=objective, shapes=SHAPES[:1], budget=budget, tune=tune, **changes)


@pytest.mark.slow
def test_the_rate_of_the_lowest_validation_loss_is_taken_by_all_seeds(tmp_path):
    study, out = tuned(tmp_path, [1e-3, 1e30], {"supervised": SUPERVISED}, seeds=2), tmp_path / "out"
    run_here(study, out)
    choice = read_json(out / "tuning/supervised-2x64.json")
    assert choice["chosen"] == {RATE: 1e-3}
    kept, diverged = choice["runs"]
    assert math.isfinite(kept["loss"])
    assert kept["seconds"] > 0
    assert diverged["loss"] is None
    assert "not finite" in diverged["reason"]
    for cell in study.cells():
        trained = load(cell_folder(out, cell) / "train/last.ckpt")
        assert trained["hyper_parameters"]["recipe"]["base_lr"] == 1e-3
        assert trained["global_step"] == 4
    tried = load(out / "tuning/supervised-2x64/0/last.ckpt")
    assert tried["global_step"] == 2
    lowest = "supervised-2x64 was trained with base_lr 0.001, the lowest that was tried"
    assert lowest in notes(read_results(study, out))
    page = write_report(read_results(study, out), out)[0].read_text()
    assert "Tuning" in page
    assert diverged["reason"] in page


def test_nothing_is_tried_again_and_nothing_trains_where_nothing_could_be_chosen(tmp_path):
    study, out = tuned(tmp_path, [1e30], {"supervised": SUPERVISED}), tmp_path / "out"
    run_here(study, out)
    (reason,) = failures(study, out).values()
    assert "none of the 1 combinations to tune could be trained: " in reason
    assert not (cell_folder(out, study.cell(0)) / "train").exists()
    assert read_results(study, out).outcomes[0].diverged


def test_what_chooses_is_taken_from_the_training_images():
    whole, tuning = Digits(seed=3), Digits(seed=3, validate_on_train=0.1)
    rows = [{image.numpy().tobytes() for image in source.images} for source in (*whole.sources, *tuning.sources)]
    train, test, kept, chooses = rows
    assert len(tuning.sources.val) == round(0.1 * len(whole.sources.train))
    assert len(tuning.sources.train) + len(tuning.sources.val) == len(whole.sources.train)
    assert kept | chooses == train
    assert not chooses & test - train
    again = Digits(seed=3, validate_on_train=0.1).sources.val
    assert np.array_equal(again.labels, tuning.sources.val.labels)
    with pytest.raises(InputError, match="validate_on_train must be at least 0 and below 1, got 1"):
        Digits(validate_on_train=1)


def test_cells_that_differ_in_fine_tuning_alone_share_their_pretraining(tmp_path):
    study = add_axes(tiny(tmp_path, objectives={"mae": MAE}, shapes=SHAPES[:1]), ["pool", "token", "avg"])
    out = run_here(study, tmp_path / "out")
    token, avg = (cell_folder(out, cell) for cell in study.cells())
    assert (token / "train").resolve() == (avg / "train").resolve() == out / "cells/mae-2x64-seed0/train"
    assert len(list(out.glob("cells/*/log.txt"))) == 2
    assert (token / "log.txt").read_text().count("/train.yaml") == 1
    assert "/train.yaml" not in (avg / "log.txt").read_text()
    pools = [load(folder / "then/last.ckpt")["hyper_parameters"]["pool"] for folder in (token, avg)]
    assert pools == ["token", "avg"]
    first, second = (outcome.numbers for outcome in read_results(study, out).outcomes)
    assert first["loss"] == second["loss"]
    assert first["linear_probe"] == second["linear_probe"]


def test_a_chosen_rate_is_read_from_the_folder_of_the_study(tmp_path):
    study, out = tuned(tmp_path, [1e-3, 2e-3], {"mae": MAE}), tmp_path / "out"
    store(study, out)
    (out / "tuning").mkdir()
    (out / "tuning/mae-2x64.json").write_text(json.dumps({"chosen": {RATE: 0.5}, "runs": []}))
    cell = study.cell(0)
    config = run_config(study, cell, cell_folder(out, cell), "train")
    assert config["model"]["init_args"]["recipe"]["base_lr"] == 0.5
    assert run_config(study, cell, cell_folder(out, cell), "then")["model"]["init_args"]["recipe"]["base_lr"] != 0.5
    run_locked(study, cell, out)
    assert load(cell_folder(out, cell) / "train/last.ckpt")["hyper_parameters"]["recipe"]["base_lr"] == 0.5
