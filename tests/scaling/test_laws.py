"""Scaling laws, recovered from runs whose laws are known."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from bamboo.errors import InputError
from bamboo.scaling import best_batch, check_runs, fit_loss, fit_power_law, holdout_error, learning_rate_law, tuned

CHINCHILLA = (1.69, 406.4, 410.7, 0.34, 0.28)  # Hoffmann et al. 2022, equation 10
LARGER = (7e10, 1.4e12)


def law(constants, n, d):
    e, a, b, alpha, beta = constants
    return e + a / n**alpha + b / d**beta


def table(rows, *columns):
    return check_runs(pd.DataFrame(rows, columns=["parameters", "data", "loss", *columns]))


def language(noise=0.0, seed=0, count=4):
    random = np.random.default_rng(seed)
    grid = [(n, d) for n in np.geomspace(5e7, 1e10, count) for d in np.geomspace(1e9, 3e11, count)]
    return table([(n, d, law(CHINCHILLA, n, d) * math.exp(noise * random.normal())) for n, d in grid])


@pytest.fixture(scope="module")
def exact():
    return fit_loss(language(), resamples=2)


def test_chinchillas_own_constants_come_back_from_runs_without_noise(exact):
    assert exact.constants[0] == pytest.approx(CHINCHILLA, rel=1e-3)
    # The exponents that Hoffmann et al. give for approach 3, 0.46 and 0.54, follow from their unrounded constants.
    assert [e.value for e in exact.exponents] == pytest.approx([0.28 / 0.62, 0.34 / 0.62], abs=1e-3)
    assert exact.residuals == pytest.approx(0, abs=1e-6)
    assert exact.predict(*LARGER).value == pytest.approx(law(CHINCHILLA, *LARGER), rel=1e-4)
    assert exact.notes() == []


def test_the_units_of_the_runs_do_not_matter(exact):
    runs = language()
    fit = fit_loss(runs.assign(parameters=runs["parameters"] * 1e-6, data=runs["data"] * 1e-6), resamples=2)
    assert fit.constants[0, [0, 3, 4]] == pytest.approx(exact.constants[0, [0, 3, 4]], rel=2e-3)


def test_intervals_cover_the_truth_most_of_the_time():
    truth, hits = [*CHINCHILLA, 0.28 / 0.62, law(CHINCHILLA, *LARGER)], []
    for seed in range(5):
        fit = fit_loss(language(0.01, seed), resamples=15, seed=seed)
        estimates = [*fit.estimates.values(), fit.exponents[0], fit.predict(*LARGER)]
        hits.append([e.low <= true <= e.high for e, true in zip(estimates, truth, strict=True)])
        assert all(e.low <= e.value <= e.high for e in estimates[3:5])
    assert np.mean(hits) >= 0.8, hits


def test_outliers_move_least_squares_but_hardly_the_robust_fit():
    bad = language(0.002, count=5)
    bad["loss"] *= np.where(bad.index.isin((3, 16)), 1.3, 1)
    robust, squares = fit_loss(bad, resamples=2), fit_loss(bad, resamples=2, delta=10.0)
    off, far_off = (abs(fit.predict(*LARGER).value / law(CHINCHILLA, *LARGER) - 1) for fit in (robust, squares))
    assert off < 0.01
    assert far_off > 3 * off
    assert np.flatnonzero(robust.residuals > 0.2).tolist() == [3, 16]


def test_the_wide_quadratic_zone_is_least_squares():
    runs = language(0.01, seed=3)
    fit = fit_loss(runs, resamples=2, delta=10.0)
    n, d, losses = runs[["parameters", "data", "loss"]].to_numpy().T
    found = optimize.least_squares(
        lambda theta: np.log(law(np.exp(theta), n, d) / losses), np.log(CHINCHILLA), x_scale="jac", xtol=1e-14
    )
    assert fit.constants[0, [0, 3, 4]] == pytest.approx(np.exp(found.x)[[0, 3, 4]], rel=1e-3)


def test_the_best_split_of_compute_is_the_lowest_of_all_splits(exact):
    compute, sizes = 5.76e23, np.geomspace(1e9, 1e12, 20001)
    n, d = exact.optimum(compute)
    assert n.value == pytest.approx(sizes[np.argmin(law(CHINCHILLA, sizes, compute / 6 / sizes))], rel=5e-3)
    assert 6 * n.value * d.value == pytest.approx(compute)
    assert exact.optimum(100 * compute)[0].value / n.value == pytest.approx(100 ** exact.exponents[0].value)


def test_given_compute_takes_the_place_of_six_n_d():
    runs = language()
    runs["compute"] = 2 * runs["parameters"] * runs["data"]
    n, d = fit_loss(runs, resamples=2).optimum(1e21)
    assert 2 * n.value * d.value == pytest.approx(1e21)


def test_fits_are_the_same_every_time_and_others_for_another_seed():
    first, again, other = (fit_loss(language(0.01), resamples=3, seed=seed).constants for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert np.array_equal(first[0], other[0])
    assert not np.array_equal(first[1:], other[1:])


def test_the_largest_pairs_are_predicted_from_the_others_with_all_their_seeds():
    runs = language(0.003)
    twice = pd.concat([runs, runs.assign(loss=1.001 * runs["loss"])], ignore_index=True)
    found = holdout_error(twice, resamples=10)
    assert found.held["compute"].tolist() == [runs["compute"].max()] * 2
    assert len(found.fit.runs) == 30
    assert found.error < 2
    errors = 100 * (found.held["predicted"] / found.held["loss"] - 1)
    assert found.held["error_percent"].tolist() == pytest.approx(errors.tolist())
    assert found.reach == pytest.approx(runs["compute"].max() / runs["compute"].nlargest(2).iloc[-1])


def test_a_law_that_does_not_hold_shows_in_the_held_out_error():
    runs = language()
    runs.loc[runs["compute"].idxmax(), "loss"] *= 1.1
    error = holdout_error(runs, resamples=2).held["error_percent"].item()
    assert error == pytest.approx(100 * (1 / 1.1 - 1), abs=0.1)


def test_a_power_law_is_close_to_least_squares_and_covers_the_truth():
    random, x, hits = np.random.default_rng(2), np.geomspace(1, 1000, 15), []
    for _ in range(12):
        y = 3 * x**0.3 * np.exp(0.1 * random.normal(size=15))
        found, line = fit_power_law(x, y, resamples=40), stats.linregress(np.log(x), np.log(y))
        assert abs(found.exponent.value - line.slope) < 2 * line.stderr
        assert found.predict(30.0).value == pytest.approx(np.exp(line.intercept + line.slope * np.log(30)), rel=0.1)
        assert found.prefactor.value == pytest.approx(3, rel=0.3)
        hits.append(found.exponent.low <= 0.3 <= found.exponent.high)
    assert np.mean(hits) >= 0.8


def test_outliers_hardly_move_a_power_law():
    x = np.geomspace(1, 100, 12)
    y = 2 * x**0.5 * np.exp(0.01 * np.random.default_rng(1).normal(size=12))
    y[-1] *= 20
    assert fit_power_law(x, y, resamples=20).exponent.value == pytest.approx(0.5, abs=0.02)
    assert np.polyfit(np.log(x), np.log(y), 1)[0] > 0.7


def valley(best, batch, floor=2.0):
    return floor + 0.05 * math.log(batch / best) ** 2


def at_fixed_data(budgets, exponent=0.264, batches=(16, 64, 256, 1024, 4096)):
    rows = [(1e6, d, valley(2.0 * d**exponent, batch), batch) for d in budgets for batch in batches]
    return table(rows, "batch_size")


def test_the_best_batch_at_fixed_data_is_the_vertex_of_the_parabola():
    budgets = (1e5, 1e6, 1e7, 1e8)
    found = best_batch(at_fixed_data(budgets), "data", resamples=50)
    assert found.table["best"].tolist() == pytest.approx([2 * d**0.264 for d in budgets])
    assert found.table["loss"].tolist() == pytest.approx([2.0] * 4)
    assert found.law.exponent == pytest.approx((0.264,) * 3)
    assert found.law.prefactor.value == pytest.approx(2.0)
    assert found.note == ""


def test_the_best_batch_at_fixed_compute_takes_the_best_size_at_each_batch():
    rows = []
    for compute in (6e12, 6e14, 6e16):
        best = 3 * (compute / 6) ** 0.102
        for size, worse in ((1e4, 1.3), (1e5, 1.0), (1e6, 1.2)):
            rows += [(size, compute / 6 / size, worse * valley(best, b), b) for b in (8, 32, 128, 512)]
    found = best_batch(table(rows, "batch_size"), "compute", resamples=50)
    assert found.table["at"].tolist() == pytest.approx([6e12, 6e14, 6e16])
    assert found.law.exponent.value == pytest.approx(0.102)


def test_a_best_batch_at_the_edge_is_flagged_and_left_out_of_the_law():
    edge = table([(1e6, 1e9, valley(1e6, b), b) for b in (16, 64, 256)], "batch_size")
    runs = pd.concat([at_fixed_data((1e5, 1e6, 1e7, 1e8)), edge], ignore_index=True)
    found = best_batch(runs, "data", resamples=20)
    assert found.table["edge"].tolist() == [False] * 4 + [True]
    assert found.table["best"].iloc[-1] == 256
    assert found.law.exponent.value == pytest.approx(0.264)
    assert "1 of 5 budgets left out" in found.note
    few = best_batch(at_fixed_data((1e5, 1e6)), "data")
    assert few.law is None
    assert "3 different x" in few.note


def test_learning_rates_count_at_their_best_and_seeds_at_their_mean():
    rows = []
    for data in (1e5, 1e6, 1e7):
        for batch in (16, 64, 256, 1024, 4096):
            loss = valley(2 * data**0.3, batch)
            rows += [(1e6, data, loss * 1.01, batch, 1e-3), (1e6, data, loss / 1.01, batch, 1e-3)]
            rows += [(1e6, data, loss * 1.005, batch, 1e-2)]
    runs = table(rows, "batch_size", "learning_rate")
    assert best_batch(runs, "data", resamples=20).law.exponent.value == pytest.approx(0.3)


def test_budgets_that_differ_by_a_rounded_step_are_the_same():
    batches = (8, 16, 32, 64, 128, 256, 512)
    rows = [(1e6, round(d / b) * b, valley(3 * d**0.25, b), b) for d in (1e4, 1e5, 1e6) for b in batches]
    found = best_batch(table(rows, "batch_size"), "data", resamples=20)
    assert len(found.table) == 3
    assert found.law.exponent.value == pytest.approx(0.25, abs=0.01)


def test_the_learning_rate_law_has_one_exponent_for_all_sizes():
    rows = []
    for size, data, batches in ((1e5, 1e6, (16, 64, 256)), (1e7, 1e7, (256, 1024, 4096))):
        for batch in batches:
            best, steps = 1e-4 * batch**0.8 / size**0.3, round(data / batch)
            rows += [(size, steps * batch, valley(best, best * f), batch, best * f) for f in (0.2, 0.7, 2, 5)]
    found = learning_rate_law(table(rows, "batch_size", "learning_rate"), resamples=20)
    assert found.law.exponent.value == pytest.approx(0.8)


def test_tuning_keeps_all_seeds_of_the_best_setting():
    settings = ((32, 1e-3, (2.0, 2.2)), (64, 1e-3, (1.9, 2.4)), (64, 3e-3, (2.05, 2.1)))
    rows = [(1e6, 1e6, loss, batch, rate) for batch, rate, losses in settings for loss in losses]
    assert tuned(table(rows, "batch_size", "learning_rate"))["loss"].tolist() == [2.05, 2.1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "3 different numbers of parameters, got 0 among 0 runs"),
        ([(10.0**i, 10.0**i, 3.0 / i) for i in range(3, 8)], "at least 6 runs for its 5 constants, got 5"),
        ([(1e6, 10.0**d, 3.0 / d) for d in range(3, 12)], "3 different numbers of parameters, got 1 among 9 runs"),
        ([(10.0**n, 1e6, 3.0 / n) for n in range(3, 12)], "3 different amounts of data, got 1"),
    ],
)
def test_runs_that_do_not_determine_the_law_are_refused(rows, message):
    with pytest.raises(InputError, match=message):
        fit_loss(table(rows))


def test_power_laws_refuse_too_few_points_and_numbers_without_logarithm():
    with pytest.raises(InputError, match="at least 3 different x, got 2"):
        fit_power_law([1.0, 1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(InputError, match="positive, finite"):
        fit_power_law([1.0, 2.0, 3.0], [1.0, -2.0, 3.0])


def test_exponents_that_the_runs_do_not_determine_are_named():
    fit = fit_loss(table([(n, d, 30 / d**0.5) for n in (1e5, 1e6, 1e7) for d in (1e3, 1e4, 1e5)]), resamples=2)
    assert fit.estimates["beta"].value == pytest.approx(0.5, rel=0.05)
    assert any(note.startswith("E is next to nothing") for note in fit.notes())
