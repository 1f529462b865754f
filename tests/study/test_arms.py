"""Objectives differ in what is listed alone, and all cells spend the same."""

import math
from dataclasses import replace

import pytest
from lightning.pytorch.accelerators import CUDAAccelerator

from bamboo.cli import main
from bamboo.errors import InputError
from bamboo.shapes import Patches, Shape, decoder_flops, encoder_flops
from bamboo.study.arms import check_arms, differences
from bamboo.study.budget import parse
from bamboo.study.changes import add_axes, set_keys
from bamboo.study.estimates import estimates
from bamboo.study.reading import read_study
from bamboo.study.stages import run_config
from tests.runs import CONFIGS

from .tiny import MAE, tiny, written


def test_the_shipped_studies_list_what_differs():
    study = read_study(CONFIGS / "study/digits.yaml")
    differing = differences(study)
    check_arms(study, differing)
    reasons = {difference.key: difference.reason for difference in differing}
    assert reasons["model.init_args.decoder_shape"] == reasons["model.init_args.pool"] == "by the objective"
    assert set(reasons.values()) == {"by the objective"}


def test_nothing_is_said_of_gpus_that_costs_are_counted_without(monkeypatch, tmp_path, recwarn):
    study = tiny(tmp_path, seeds=1)
    cell = study.cells()[0]
    monkeypatch.setattr(CUDAAccelerator, "is_available", lambda: True)
    parse(run_config(study, cell, tmp_path, "train"), "here")
    assert not [warning for warning in recwarn if "GPU" in str(warning.message)]


DIFFERENT = {
    "model.init_args.label_smoothing": 0.1,
    "model.init_args.init": "beit",
    "model.init_args.pool": "avg",
    "model.init_args.recipe.optimizer": "lars",
    "data.init_args.batch_size": 64,
    "data.init_args.crop_scale": 0.9,
    "trainer.precision": "bf16-mixed",
    "trainer.gradient_clip_val": 1.0,
}


def test_a_difference_that_is_not_listed_is_refused():
    study = read_study(CONFIGS / "study/digits.yaml")
    study = replace(study, axes={})
    arm = study.objectives["supervised"]
    arms = {"supervised": replace(arm, config=set_keys(arm.config, DIFFERENT))}
    study = replace(study, objectives={**study.objectives, **arms})
    assert {d.key for d in differences(study) if not d.reason} == set(DIFFERENT)
    first, *others = DIFFERENT
    with pytest.raises(InputError, match=rf"differ in {first} \(mae: 0.0; .*; supervised: 0.1\): make them the same"):
        check_arms(study, differences(replace(study, differs=[*study.differs, *others])))
    check_arms(study, differences(replace(study, differs=["model.init_args", "data", "trainer"])))


@pytest.mark.parametrize(("key", "values"), [("init", ["beit"]), ("model.init_args.layer_scale", [0.1])])
def test_an_axis_of_fresh_weights_is_no_difference_to_the_fine_tuning_that_follows(key, values):
    study = replace(read_study(CONFIGS / "study/digits.yaml"), axes={key: values})
    check_arms(study, differences(study))


def test_compressed_keys_are_no_difference_to_a_pretraining_that_cannot_have_them():
    study = add_axes(
        read_study(CONFIGS / "study/digits.yaml"), ["model.init_args.kv_compression", "null", "{ratio: 2}"]
    )
    check_arms(study, differences(study))


def test_an_axis_that_another_objective_leaves_at_its_default_is_a_difference_whatever_its_first_value():
    study = add_axes(read_study(CONFIGS / "study/digits.yaml"), ["data.init_args.crop_scale", "0.6", "0.9"])
    with pytest.raises(InputError, match=r"crop_scale \(mae: 0.6; mae, then: 0.9; supervised: 0.9\)"):
        check_arms(study, differences(study))


def test_a_dry_run_prints_the_differences_and_neither_it_nor_a_run_goes_on_with_one_that_is_not_listed(
    tmp_path, capsys
):
    path, out = str(written(tmp_path, differs=[])), tmp_path / "out"
    assert main(["study", "--config", path, "--out", str(out), "--dry-run"]) == 2
    printed = capsys.readouterr()
    assert "what differs" in printed.out
    assert "not listed" in printed.out
    assert "list the keys under differs" in printed.err
    assert main(["study", "--config", path, "--out", str(out)]) == 2
    assert not out.exists()


def test_one_objective_has_nothing_to_differ_from(tmp_path):
    assert differences(tiny(tmp_path, objectives={"mae": MAE}, differs=[])) == []


def steps(study, number, stage, tmp_path):
    trainer = run_config(study, study.cell(number), tmp_path / "cells" / "cell", stage)["trainer"]
    assert trainer["max_epochs"] == -1
    return trainer["max_steps"]


def test_a_budget_of_flops_is_spent_to_a_step_by_both_stages_and_all_shapes(tmp_path):
    study = tiny(tmp_path, budget={"flops": 1e11, "then": 0.25})
    patches = Patches.of(16, 4, 1)
    for number, shape in enumerate((Shape(2, 64, 2), Shape(8, 32, 1))):
        visible, hidden = 4, 12
        masked = 3 * (
            encoder_flops(shape, patches, visible) + decoder_flops(Shape(1, 32, 1), shape, patches, visible, hidden)
        )
        whole = 3 * encoder_flops(shape, patches)
        assert steps(study, number, "train", tmp_path) == round(0.75e11 / masked / 32)
        assert steps(study, number, "then", tmp_path) == round(0.25e11 / whole / 100)
        assert steps(study, 2 + number, "train", tmp_path) == round(1e11 / whole / 32)


def test_a_budget_of_samples_or_of_seconds(tmp_path):
    study = tiny(tmp_path, budget={"samples": 6400, "then": 0.25})
    assert [steps(study, number, "train", tmp_path) for number in (0, 2)] == [150, 200]
    assert steps(study, 0, "then", tmp_path) == 16
    study = tiny(tmp_path, budget={"seconds": 90_000, "then": 0.5})
    lengths = [run_config(study, study.cell(number), tmp_path, "train")["trainer"] for number in (0, 2)]
    assert [trainer["max_time"] for trainer in lengths] == ["00:12:30:00", "01:01:00:00"]
    assert {trainer["max_steps"] for trainer in lengths} == {-1}
    for cost in estimates(study, study.cells(), tmp_path).values():
        assert math.isnan(cost.flops)  # which nobody knows before
        assert cost.seconds == 90_000


def test_a_ladder_of_equal_flops(tmp_path):
    shapes = [{"depth": 2, "width": 64, "heads": 2}, {"depth": 8, "width": 32, "heads": 1}]
    tokens = Patches.of(16, 4, 1).count + 1
    off = Shape(8, 32, 1).flops(tokens) / Shape(2, 64, 2).flops(tokens) - 1
    assert not math.isclose(off, 0, abs_tol=0.02)
    with pytest.raises(InputError, match=rf"shape 8x32 has {off:+.1%} of the flops of 2x64".replace("+", r"\+")):
        tiny(tmp_path, equal="flops", shapes=shapes)
    even = [shapes[0], {"depth": 7, "width": 32, "heads": 1}, {"depth": 2, "width": 64, "heads": 1}]
    with pytest.raises(InputError, match="of the flops of 2x64"):
        tiny(tmp_path, equal="flops", shapes=even[:2])
    assert tiny(tmp_path, equal="flops", shapes=[even[0], {**even[2], "label": "one head"}]).equal == "flops"
