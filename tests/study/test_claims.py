"""Verdicts follow from numbers by the stated rule, on tables written by hand."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bamboo.study.changes import add_axes
from bamboo.study.claims import interval, judge, trends, verdict
from bamboo.study.plots import plot_numbers
from bamboo.study.results import Outcome, Results

from .tiny import SHAPES, tiny

LADDER = [*SHAPES, {"depth": 4, "width": 32, "heads": 1}]  # depths 2, 8, 4


def results(tmp_path, table, seeds=3, axes=()):
    """Results in which `table(objective, depth, seed)` gives similarity and accuracy, None for a failed cell."""
    study = tiny(tmp_path, shapes=LADDER, seeds=seeds, allow_unequal=True)
    study = add_axes(study, axes) if axes else study
    outcomes = []
    for cell in study.cells():
        values = table(cell.objective, cell.shape.depth, cell.seed)
        if values is None:
            outcomes.append(Outcome(cell, Path(), "failed", reason="NaN"))
        else:
            outcomes.append(Outcome(cell, Path(), "done", dict(zip(("similarity", "accuracy"), values, strict=True))))
    return Results(study, tuple(outcomes))


def as_the_paper_says(objective, depth, seed):
    noise = 0.001 * np.sin(7 * depth + 3 * seed)
    if objective == "mae":
        return 0.1 + 0.01 * np.log2(depth) + noise, 0.8 + 0.05 * np.log2(depth) + noise
    return 0.1 + 0.2 * np.log2(depth) + noise, 0.8 - 0.05 * np.log2(depth) + noise


def test_what_the_paper_says_holds_where_the_numbers_say_it(tmp_path):
    found = judge(results(tmp_path, as_the_paper_says))
    assert [one.verdict for one in found] == ["holds"] * 4
    assert [one.claim for one in found] == [
        "supervised similarity rises with depth",
        "mae's similarity rises less with depth",
        "deeper and narrower is better under mae",
        "deeper and narrower is not better under supervision",
    ]
    assert [round(one.trend, 2) for one in found] == [0.2, 0.19, 0.05, -0.05]


def test_the_opposite_does_not_hold(tmp_path):
    def opposite(objective, depth, seed):
        similarity, accuracy = as_the_paper_says("mae" if objective == "supervised" else "supervised", depth, seed)
        return (0.9 - similarity, accuracy) if objective == "supervised" else (similarity, accuracy)

    found = judge(results(tmp_path, opposite))
    assert [one.verdict for one in found] == ["does not hold"] * 4


def test_smoothing_is_judged_by_excess_where_every_cell_has_it(tmp_path):
    made = results(tmp_path, lambda objective, depth, seed: (0.9 - 0.1 * np.log2(depth), 0.5))
    for outcome in made.done:
        similarity, _ = as_the_paper_says(outcome.cell.objective, outcome.cell.shape.depth, outcome.cell.seed)
        outcome.numbers["excess"] = similarity
    rises, less, *_ = judge(made)
    assert (rises.claim, rises.verdict) == ("supervised excess similarity rises with depth", "holds")
    assert (less.claim, less.verdict) == ("mae's excess similarity rises less with depth", "holds")
    del made.done[0].numbers["excess"]  # of an earlier version
    assert judge(made)[0].claim == "supervised similarity rises with depth"


def test_noise_is_within_the_spread(tmp_path):
    random = np.random.default_rng(0)
    table = {key: random.normal(0.5, 0.1, 2) for key in np.ndindex(2, 9, 3)}
    found = judge(results(tmp_path, lambda o, d, s: table[int(o == "mae"), d, s]))
    assert [one.verdict for one in found] == ["within the spread"] * 4
    assert all(one.low < 0 < one.high for one in found)


def test_one_seed_is_not_enough(tmp_path):
    found = judge(results(tmp_path, as_the_paper_says, seeds=1))
    assert [one.verdict for one in found] == ["not enough seeds"] * 4
    assert all(one.trend is not None and one.low is None for one in found)


def test_a_failed_cell_takes_its_seed_out_and_is_never_averaged_away(tmp_path):
    def failing(objective, depth, seed):
        return None if (objective, depth, seed) == ("mae", 8, 1) else as_the_paper_says(objective, depth, seed)

    made = results(tmp_path, failing)
    rises, less, better, worse = judge(made)
    assert (len(rises.seeds), len(less.seeds), len(better.seeds), len(worse.seeds)) == (3, 2, 2, 3)
    assert set(less.seeds) == {0, 2}
    assert "8x32 0.949 (2 of 3 seeds)" in better.evidence
    assert "of 3 seeds" not in rises.evidence


def test_each_setting_of_an_axis_is_judged_by_itself(tmp_path):
    made = results(tmp_path, as_the_paper_says, axes=["pool", "token", "avg"])
    found = judge(made)
    assert [one.objective for one in found if one.claim.startswith("supervised")] == [
        "supervised, pool token",
        "supervised, pool avg",
    ]
    shared = judge(results(tmp_path, as_the_paper_says, axes=["batch_size", "16", "32"]))
    pairs = [one.objective for one in shared if "less" in one.claim]
    assert pairs == [f"mae, batch_size {n} against supervised, batch_size {n}" for n in (16, 32)]


def test_slopes_and_intervals_are_those_of_numpy_and_scipy(tmp_path):
    sample = np.random.default_rng(1).normal(size=5)
    mean, low, high = interval(sample)
    expected = stats.ttest_1samp(sample, 0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((sample.mean(), expected.low, expected.high))
    made = results(tmp_path, as_the_paper_says)
    (series, _) = made.series
    assert trends(made, series, "accuracy")[0] == pytest.approx(0.05, abs=1e-3)


def test_two_labels_of_one_shape_are_two_points_of_a_trend(tmp_path):
    twin = {"label": "twin", **SHAPES[0]}
    study = tiny(tmp_path, shapes=[*LADDER, twin], seeds=1, allow_unequal=True)
    values = {"2x64": 0.1, "8x32": 0.7, "4x32": 0.5, "twin": 0.3}
    cells = study.cells()
    done = [
        Outcome(c, Path(), "done", {"similarity": values[c.label]}, {"step_seconds": values[c.label]}) for c in cells
    ]
    made = Results(study, tuple(done))
    expected = np.polyfit(np.log2([2, 8, 4, 2]), [*values.values()], 1)[0]
    assert trends(made, made.series[0], "similarity")[0] == pytest.approx(expected)
    line = plot_numbers(made, ["step_seconds"]).axes[0].lines[0]
    assert line.get_xydata().tolist() == [[2, 100], [2, 300], [4, 500], [8, 700]]


@pytest.mark.parametrize(
    ("low", "high", "claimed", "expected"),
    [
        (0.1, 0.2, 1, "holds"),
        (-0.2, -0.1, 1, "does not hold"),
        (-0.1, 0.2, 1, "within the spread"),
        (0.1, 0.2, -1, "does not hold"),
        (-0.2, -0.1, -1, "holds"),
        (-0.1, 0.2, -1, "within the spread"),
        (np.nan, np.nan, 1, "not enough seeds"),
    ],
)
def test_a_verdict_is_where_the_interval_lies(low, high, claimed, expected):
    assert verdict(low, high, claimed) == expected
