"""Verdicts follow from numbers by the stated rule, on tables written by hand."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from bamboo.study.changes import add_axes
from bamboo.study.claims import DOUBLING, claims, slope
from bamboo.study.evidence import best_shapes, sample
from bamboo.study.judging import judge
from bamboo.study.plots import _colour, _mark, plot_numbers
from bamboo.study.report import notes
from bamboo.study.results import Outcome, Results

from .tiny import SHAPES, tiny

LADDER = [*SHAPES, {"depth": 4, "width": 32, "heads": 1}]  # depths 2, 8, 4
SMOOTHS, LESS, RISES_LESS, DEPTH_PAYS, BEATS, WORSE = (
    "supervision smooths more, the deeper the network",
    "mae smooths less than supervision at every depth",
    "mae's smoothing rises less with depth than supervision's",
    "depth does more for accuracy under mae than under supervision",
    "deep and narrow (8x32) beats the conventional shape (2x64) under mae",
    "deeper and narrower is worse under supervision",
)


def noise(*key, size=0.002):
    return np.random.default_rng([ord(key[0][0]), *key[1:]]).normal(0, size, 2)


def as_the_paper_says(objective, depth, seed, size=0.002):
    """Numbers of a cell: excess and accuracy."""
    doublings, (one, two) = np.log2(depth), noise(objective, depth, seed, size=size)
    masked = objective == "mae"
    excess, accuracy = (0.1, 0.7 + 0.05 * doublings) if masked else (0.1 + 0.2 * doublings, 0.9 - 0.03 * doublings)
    return {"excess": 0.3 + excess + one, "excess_untrained": 0.3, "excess_moved": 0.0, "accuracy": accuracy + two}


def made(tmp_path, numbers=as_the_paper_says, seeds=4, axes=(), shapes=LADDER, **settings):
    """Results in which `numbers(objective, depth, seed)` are those of a cell, or else how it failed."""
    study = tiny(tmp_path, shapes=shapes, seeds=seeds, allow_unequal=True, **settings)
    study = add_axes(study, axes) if axes else study
    outcomes = []
    for cell in study.cells():
        found = numbers(cell.objective, cell.shape.depth, cell.seed)
        if isinstance(found, dict):
            outcomes.append(Outcome(cell, Path(), "done", found))
        else:
            outcomes.append(Outcome(cell, Path(), "failed", reason=found, diverged=found == "diverged"))
    return Results(study, tuple(outcomes))


def judged(*args, **settings):
    """Judgements by their statements."""
    return {one.statement: one for one in judge(made(*args, **settings))}


def changed(at, **numbers):
    """As the paper says, with other numbers where `at(objective, depth, seed)`."""
    return lambda *cell: {**as_the_paper_says(*cell), **(numbers if at(*cell) else {})}


def test_what_the_paper_says_holds_where_the_numbers_say_it(tmp_path):
    found = judged(tmp_path)
    assert {name: one.verdict for name, one in found.items()} == dict.fromkeys(
        (SMOOTHS, LESS, RISES_LESS, DEPTH_PAYS, BEATS, WORSE), "holds"
    )
    effects = [round(one.effect, 2) for one in found.values()]
    assert effects == [0.2, 0.2, 0.2, 0.08, 0.1, -0.03]
    assert found[LESS].contrast == "at 2x64"  # where they are nearest
    assert found[BEATS].contrast == "8x32 minus 2x64"


def test_the_opposite_is_contradicted(tmp_path):
    def opposite(objective, depth, seed):
        numbers = as_the_paper_says(objective, depth, seed)
        return numbers | {"excess": 1 - numbers["excess"], "excess_untrained": 0.0, "accuracy": 1 - numbers["accuracy"]}

    assert {one.verdict for one in judge(made(tmp_path, opposite))} == {"contradicted"}


def test_an_interval_within_the_margin_says_that_there_is_no_difference(tmp_path):
    numbers = changed(lambda *cell: True, excess=0.5)

    def alike(objective, depth, seed):
        return numbers(objective, depth, seed) | {"accuracy": 0.6 + noise(objective, depth, seed, size=0.002)[0]}

    none = "no difference within the margin"
    found = judged(tmp_path, alike)
    assert (found[DEPTH_PAYS].verdict, found[WORSE].verdict) == (none, none)
    assert max(map(abs, (found[DEPTH_PAYS].low, found[DEPTH_PAYS].high))) < 0.005
    strict = judged(tmp_path, alike, margins={"accuracy": 0.0001})
    assert strict[DEPTH_PAYS].verdict == strict[WORSE].verdict == "undecided"
    assert strict[SMOOTHS].margin == 0.02  # the others stay
    wide = judged(tmp_path, margins={"accuracy": 0.5})
    assert wide[BEATS].verdict == none  # though it is no chance


def test_a_wide_interval_leaves_it_undecided_and_says_how_many_seeds_it_would_take(tmp_path):
    results = made(tmp_path, lambda *cell: as_the_paper_says(*cell, size=0.1))
    (found,) = (one for one in judge(results) if one.statement == DEPTH_PAYS)
    assert found.verdict == "undecided"
    assert found.low < 0 < found.high
    assert f"it would take {found.seeds_needed} seeds" in str(found)
    mae, supervised = results.series
    weights = slope(results)
    gaps = {}
    for seed, value in sample(results, "accuracy", mae, weights).items():
        gaps[seed] = value - sample(results, "accuracy", supervised, weights)[seed]
    gaps = np.array([*gaps.values()])
    assert found.p == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue)
    tested = sum(one.p is not None for one in judge(results))
    fewest = next(
        n
        for n in range(2, 10_000)
        if abs(gaps.mean()) > stats.t.ppf(1 - 0.025 / tested, n - 1) * gaps.std(ddof=1) / np.sqrt(n)
    )
    assert found.seeds_needed == str(fewest)
    by_seed = (-0.1, 0.1, 0.1, -0.1001)  # of the deepest masked shape: as good as no effect, and a wide spread
    flat = judged(
        tmp_path,
        lambda objective, depth, seed: (
            as_the_paper_says(objective, depth, seed)
            | {"accuracy": 0.5 + (by_seed[seed] if (objective, depth) == ("mae", 8) else 0.0)}
        ),
    )
    assert flat[BEATS].seeds_needed == "more than 1,000"


def test_a_claim_about_every_depth_needs_them_all(tmp_path):
    def at_depth_4(more):
        return changed(lambda objective, depth, seed: (objective, depth) == ("mae", 4), excess_untrained=0.3 - more)

    assert judged(tmp_path, at_depth_4(0.3))[LESS].verdict == "holds"
    found = judged(tmp_path, at_depth_4(0.4))[LESS]
    assert (found.verdict, found.contrast) == ("undecided", "at 4x32")
    assert found.p > 0.05
    found = judged(tmp_path, at_depth_4(0.6))[LESS]
    assert (found.verdict, found.contrast) == ("contradicted", "at 4x32")
    results = made(tmp_path, at_depth_4(0.6))
    mae, supervised = (sample(results, "excess", series, {"4x32": 1.0}) for series in results.series)
    assert found.p == pytest.approx(3 * stats.ttest_rel([*supervised.values()], [*mae.values()]).pvalue)


def test_values_of_p_are_corrected_over_all_claims(tmp_path):
    found = sorted(judge(made(tmp_path, lambda *cell: as_the_paper_says(*cell, size=0.06))), key=lambda one: one.p)
    by_hand, highest = [], 0
    for place, one in enumerate(found):
        highest = max(highest, (len(found) - place) * one.p)
        by_hand.append(min(1, highest))
    assert [one.p_holm for one in found] == pytest.approx(by_hand)
    assert any(one.p < 0.05 < one.p_holm and one.verdict == "undecided" for one in found)


def test_arms_of_different_seeds_are_two_samples(tmp_path):
    def failing(objective, depth, seed):
        return "no memory" if (objective, depth, seed) == ("mae", 8, 1) else as_the_paper_says(objective, depth, seed)

    results = made(tmp_path, failing)
    found = {one.statement: one for one in judge(results)}
    mae, supervised = (sample(results, "accuracy", series, slope(results)) for series in results.series)
    assert ([*mae], [*supervised]) == ([0, 2, 3], [0, 1, 2, 3])
    test = stats.ttest_ind([*mae.values()], [*supervised.values()], equal_var=False)
    one = found[DEPTH_PAYS]
    assert (one.effect, one.p) == pytest.approx(
        (np.mean([*mae.values()]) - np.mean([*supervised.values()]), test.pvalue)
    )
    assert (one.low, one.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert one.seeds == {"mae": [0, 2, 3], "supervised": [0, 1, 2, 3]}
    assert "8x32 0.850 (3 of 4 seeds)" in found[BEATS].evidence
    assert "of 4 seeds" not in found[WORSE].evidence


def test_a_cell_that_diverged_counts_against_its_shape_and_leaves_smoothing_undecided(tmp_path):
    def diverging(objective, depth, seed):
        return "diverged" if (objective, depth) == ("mae", 8) and seed else as_the_paper_says(objective, depth, seed)

    results = made(tmp_path, diverging)
    found = {one.statement: one for one in judge(results)}
    lowest = min(outcome.numbers["accuracy"] for outcome in results.done)
    deep = [results.values(results.series[0], "8x32", "accuracy")[0], lowest, lowest, lowest]
    shallow = [*results.values(results.series[0], "2x64", "accuracy").values()]
    assert found[BEATS].effect == pytest.approx(np.mean(deep) - np.mean(shallow))
    assert found[BEATS].seeds == {"mae": [0, 1, 2, 3]}
    for name in (LESS, RISES_LESS):
        assert (found[name].verdict, found[name].effect, found[name].p) == ("undecided", None, None)
        assert "diverged: mae-8x32-seed1, mae-8x32-seed2, mae-8x32-seed3" in found[name].evidence
    assert found[SMOOTHS].verdict == "holds"
    assert sum("diverged and is in no mean, but in the claims" in line for line in notes(results)) == 3


def test_nothing_is_decided_on_similarity_that_still_moves(tmp_path):
    def moving(*by_seed):
        def numbers(objective, depth, seed):
            far = {("supervised", 8): by_seed[seed], ("mae", 4): 0.1}
            return as_the_paper_says(objective, depth, seed) | {"excess_moved": far.get((objective, depth), 0.01)}

        return judged(tmp_path, numbers)

    for by_seed, verdict in (((1, 0, 0, 0), "not settled"), ((0.4, 0, 0, 0), "holds")):  # the mean over seeds counts
        assert [moving(*by_seed)[name].verdict for name in (SMOOTHS, RISES_LESS)] == [verdict] * 2
    found = moving(0.25, 0.25, 0.25, 0.25)
    assert [found[name].verdict for name in (SMOOTHS, RISES_LESS)] == ["not settled"] * 2  # 0.25 is more than 0.2
    assert found[LESS].verdict == "holds"  # at depth 8 the effect is 0.6
    assert "moved by up to 0.250 over the last third of training" in found[SMOOTHS].evidence
    assert "not known" not in found[SMOOTHS].evidence
    assert [found[name].verdict for name in (DEPTH_PAYS, BEATS, WORSE)] == ["holds"] * 3  # which are not about it


def test_nothing_is_decided_on_similarity_of_which_it_is_not_known_whether_it_moves(tmp_path):
    def unknown(objective, depth, seed):
        numbers = as_the_paper_says(objective, depth, seed)
        if (objective, depth, seed) == ("mae", 4, 2):
            del numbers["excess_moved"]
        return numbers

    found = judged(tmp_path, unknown)
    assert {name: found[name].verdict for name in found} == {SMOOTHS: "holds", LESS: "not settled"} | {
        RISES_LESS: "not settled",
        DEPTH_PAYS: "holds",
        BEATS: "holds",
        WORSE: "holds",
    }
    assert "not known of 1 of 24 cells" in found[LESS].evidence


def test_that_there_is_no_difference_asks_for_similarity_settled_to_the_margin(tmp_path):
    def alike(moved):
        def numbers(*cell):
            return {"excess": 0.5 + noise(*cell, size=0.004)[0], "excess_untrained": 0.3, "excess_moved": moved}

        return judged(tmp_path, numbers)[SMOOTHS].verdict

    assert [alike(0.015), alike(0.03)] == ["no difference within the margin", "not settled"]


def test_one_seed_is_judged_by_a_published_spread_alone(tmp_path):
    found = judged(tmp_path, seeds=1)
    assert {one.verdict for one in found.values()} == {"undecided"}
    assert all(one.effect is not None and one.low is None and one.p is None for one in found.values())
    assert all("one seed, which gives no interval" in one.evidence for one in found.values())
    known = judged(tmp_path, seeds=1, known_sd={"accuracy": 0.004})
    one = known[BEATS]
    reach = stats.norm.ppf(0.975) * 0.004 * np.sqrt(2)  # of two cells
    assert (one.low, one.high) == pytest.approx((one.effect - reach, one.effect + reach))
    assert [known[name].verdict for name in (DEPTH_PAYS, BEATS, WORSE)] == ["holds"] * 3
    assert known[SMOOTHS].verdict == "undecided"  # whose spread nobody has published
    slopes = 0.004 * np.sqrt(2 * 0.5)  # the slope over depths 2, 4, 8 is half the difference of its ends
    assert known[DEPTH_PAYS].high - known[DEPTH_PAYS].effect == pytest.approx(stats.norm.ppf(0.975) * slopes)


def test_smoothing_is_what_training_adds(tmp_path):
    def untrained_smooths(objective, depth, seed):
        numbers, before = as_the_paper_says(objective, depth, seed), 0.3 * np.log2(depth)
        return {**numbers, "excess": numbers["excess"] - 0.3 + before, "excess_untrained": before}

    found, plain = judged(tmp_path, untrained_smooths), judged(tmp_path)
    assert [found[name].effect for name in found] == pytest.approx([plain[name].effect for name in found])


def test_raw_similarity_alone_is_not_judged(tmp_path):
    results = made(tmp_path, lambda *cell: {"similarity": 0.5, "accuracy": as_the_paper_says(*cell)["accuracy"]})
    assert [one.statement for one in judge(results)] == [DEPTH_PAYS, BEATS, WORSE]
    assert any("nothing is said of smoothing" in line for line in notes(results))
    assert not any("nothing is said" in line for line in notes(made(tmp_path)))


def test_nothing_is_said_of_depth_where_all_shapes_have_one(tmp_path):
    results = made(tmp_path, shapes=LADDER[:1])
    assert [one.statement for one in judge(results)] == [LESS]
    assert any("nothing is said of depth" in line for line in notes(results))


def test_masked_objectives_without_fine_tuning_are_judged_by_hidden_tokens(tmp_path):
    def text(objective, depth, seed):
        numbers = as_the_paper_says(objective, depth, seed)
        return {**numbers, "masked_accuracy": numbers.pop("accuracy")} if objective == "mae" else numbers

    results = made(tmp_path, text)
    mae = replace(results.study.objectives["mae"], then=None)
    results = replace(results, study=replace(results.study, objectives={**results.study.objectives, "mae": mae}))
    found = {one.statement: one for one in judge(results)}
    assert DEPTH_PAYS not in found  # of which one side has no accuracy
    assert (found[BEATS].quantity, found[BEATS].verdict) == ("hidden tokens guessed right", "holds")


def test_each_setting_of_an_axis_is_judged_by_itself(tmp_path):
    results = made(tmp_path, axes=["pool", "token", "avg"])
    assert [one.series for one in judge(results) if one.statement == SMOOTHS] == [
        "supervised, pool token",
        "supervised, pool avg",
    ]
    shared = judge(made(tmp_path, axes=["batch_size", "16", "32"]))
    pairs = [one.series for one in shared if one.statement == DEPTH_PAYS]
    assert pairs == [f"mae, batch_size {n} against supervised, batch_size {n}" for n in (16, 32)]


def test_slopes_are_those_of_scipy_also_with_two_labels_of_one_shape(tmp_path):
    twin = {"label": "twin", **SHAPES[0]}
    values = {"2x64": 0.1, "8x32": 0.7, "4x32": 0.5, "twin": 0.3}
    study = tiny(tmp_path, shapes=[*LADDER, twin], seeds=1, allow_unequal=True)
    done = [
        Outcome(c, Path(), "done", {"accuracy": values[c.label]}, {"step_seconds": values[c.label]})
        for c in study.cells()
    ]
    results = Results(study, tuple(done))
    expected = stats.linregress(np.log2([2, 8, 4, 2]), [*values.values()]).slope
    assert sample(results, "accuracy", results.series[0], slope(results)) == {0: pytest.approx(expected)}
    line = plot_numbers(results, ["step_seconds"]).axes[0].lines[0]
    assert line.get_xydata().tolist() == [[2, 100], [2, 300], [4, 500], [8, 700]]


def test_the_best_shape_is_drawn_from_resamples_of_the_seeds(tmp_path):
    accuracy = {2: [0.6, 0.6, 0.6], 4: [0.5, 0.5, 0.5], 8: [0.9, 0.5, 0.55]}
    results = made(tmp_path, lambda objective, depth, seed: {"accuracy": accuracy[depth][seed]}, seeds=3)
    # Depth 8 is best where seed 0 is drawn at all, for (0.9 + 2 x 0.5) / 3 is above 0.6: 1 - (2/3)^3 of the time.
    shares = best_shapes(results, "accuracy", results.series[0])
    assert shares == {"8x32": pytest.approx(19 / 27, abs=0.015), "2x64": pytest.approx(8 / 27, abs=0.015)}
    assert best_shapes(results, "accuracy", results.series[0]) == shares
    (found,) = (one for one in judge(results) if one.statement == DEPTH_PAYS)
    assert re.search(
        r"best shape under mae, of 10,000 resamples of the seeds: 8x32 in 7\d%, 2x64 in \d\d%", found.evidence
    )
    assert best_shapes(made(tmp_path, seeds=1), "accuracy", results.series[0]) == {}


def test_where_nothing_differs_a_twentieth_of_the_studies_claims_something_at_most(tmp_path):
    random = np.random.default_rng(0)
    results = made(tmp_path, seeds=3)
    false = 0
    for _ in range(200):
        for outcome in results.done:
            outcome.numbers.update(excess=random.normal(0.5, 0.1), accuracy=random.normal(0.5, 0.1))
        false += any(one.verdict in ("holds", "contradicted") for one in judge(results))
    assert false <= 16  # 10 are expected at most; 16 is the 97.5th percentile


def test_without_a_seed_that_is_complete_nothing_is_said(tmp_path):
    found = judged(
        tmp_path,
        lambda objective, depth, seed: "no memory" if depth == 8 else as_the_paper_says(objective, depth, seed),
    )
    assert {one.verdict for one in found.values()} == {"undecided"}
    assert "no seed has all cells" in found[BEATS].evidence
    assert str(found[BEATS]).endswith("[mae]: undecided")


def test_every_claim_weighs_cells_by_contrasts_that_sum_to_zero(tmp_path):
    for claim in claims(made(tmp_path)):
        for contrast in claim.contrasts.values():
            assert sum(weight for weights in contrast.values() for weight in weights.values()) == pytest.approx(0)
    assert slope(made(tmp_path))["8x32"] == pytest.approx(0.5)
    assert DOUBLING in claims(made(tmp_path))[0].contrasts


def test_more_settings_than_colours_have_a_mark_each():
    results = SimpleNamespace(series=[*range(16)])
    assert len({(_colour(results, series), _mark(results, series)) for series in results.series}) == 16
