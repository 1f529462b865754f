"""Scaling laws, recovered from runs whose laws are known, and the verb on tables and folders of runs."""

import csv
import json
import math
import shutil

import numpy as np
import pytest

from bamboo.cli import main
from bamboo.errors import InputError
from bamboo.scaling import (
    Run,
    best_batch,
    fit_loss,
    fit_power_law,
    holdout_error,
    learning_rate_law,
    read_runs,
    tuned,
)
from bamboo.scaling.loss import _objective
from bamboo.shapes import Shape
from tests.runs import fit as bamboo_fit
from tests.runs import scalars

CHINCHILLA = (1.69, 406.4, 410.7, 0.34, 0.28)  # Hoffmann et al. 2022, equation 10
SMALL = (0.3, 15.0, 40.0, 0.3, 0.4)


def law(constants, n, d):
    e, a, b, alpha, beta = constants
    return e + a / n**alpha + b / d**beta


def grid(constants, sizes, data, noise=0.0, seed=0):
    random = np.random.default_rng(seed)
    return [Run(n, d, law(constants, n, d) * math.exp(noise * random.normal())) for n in sizes for d in data]


def language(noise=0.0, seed=0):
    return grid(CHINCHILLA, np.geomspace(5e7, 1e10, 5), np.geomspace(1e9, 3e11, 5), noise, seed)


def write(path, rows, columns=("parameters", "data", "loss", "batch_size", "learning_rate", "seed", "name")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def refused(*args, capsys):
    assert main(list(map(str, args))) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in error if line.startswith("bamboo: error")]) == 1
    return error[-1]


def test_chinchillas_own_constants_come_back_from_runs_without_noise():
    fit = fit_loss(language(), resamples=2)
    assert fit.constants == pytest.approx(CHINCHILLA, rel=1e-3)
    # The exponents that Hoffmann et al. give for approach 3, 0.46 and 0.54, follow from their unrounded constants.
    assert [e.value for e in fit.exponents] == pytest.approx([0.28 / 0.62, 0.34 / 0.62], abs=1e-3)
    assert fit.residuals == pytest.approx(0, abs=1e-6)
    assert fit.notes == ()


@pytest.mark.parametrize("unit", [1.0, 1e-6])
def test_the_scale_and_the_units_of_the_runs_do_not_matter(unit):
    sizes, data = np.geomspace(1e4, 1e6, 4), np.geomspace(1e4, 3e6, 4)
    runs = [Run(n * unit, d * unit, law(SMALL, n, d)) for n in sizes for d in data]
    fit = fit_loss(runs, resamples=2)
    assert fit.constants[[0, 3, 4]] == pytest.approx([0.3, 0.3, 0.4], rel=2e-3)
    assert fit.predict(1e7 * unit, 1e8 * unit).value == pytest.approx(law(SMALL, 1e7, 1e8), rel=1e-4)


def test_intervals_cover_the_truth_most_of_the_time():
    truth, hits = [*CHINCHILLA, 0.28 / 0.62, law(CHINCHILLA, 7e10, 1.4e12)], []
    for seed in range(20):
        fit = fit_loss(language(0.01, seed), resamples=30, seed=seed)
        estimates = [*fit.estimates.values(), fit.exponents[0], fit.predict(7e10, 1.4e12)]
        hits.append([e.low <= true <= e.high for e, true in zip(estimates, truth, strict=True)])
        assert all(e.low <= e.high for e in estimates)
    covered = np.mean(hits, 0)
    assert (covered >= 0.75).all(), covered
    assert covered.mean() >= 0.85


def test_outliers_move_least_squares_but_hardly_the_robust_fit():
    runs = language(0.002)
    bad = [Run(r.parameters, r.data, r.loss * (1.3 if i in (3, 16) else 1)) for i, r in enumerate(runs)]
    robust, squares = fit_loss(bad, resamples=2), fit_loss(bad, resamples=2, delta=10.0)
    truth = law(CHINCHILLA, 7e10, 1.4e12)
    off, far_off = (abs(fit.predict(7e10, 1.4e12).value / truth - 1) for fit in (robust, squares))
    assert off < 0.01
    assert far_off > 3 * off
    assert np.flatnonzero(robust.residuals > 0.2).tolist() == [3, 16]


def test_the_wide_quadratic_zone_is_least_squares():
    optimize = pytest.importorskip("scipy.optimize")
    runs = language(0.01, seed=3)
    fit = fit_loss(runs, resamples=2, delta=10.0)
    n, d, losses = np.array([(r.parameters, r.data, r.loss) for r in runs]).T

    def residuals(theta):
        return np.log(law(np.exp(theta), n, d)) - np.log(losses)

    found = optimize.least_squares(residuals, np.log(CHINCHILLA), x_scale="jac", ftol=1e-14, xtol=1e-14, gtol=1e-14)
    assert fit.constants[[0, 3, 4]] == pytest.approx(np.exp(found.x)[[0, 3, 4]], rel=1e-3)


def test_the_gradient_of_the_objective_is_that_of_finite_differences():
    optimize = pytest.importorskip("scipy.optimize")
    points = np.random.default_rng(0).normal(size=(9, 3))
    theta = np.array([-0.5, 0.2, -0.3, 0.4, 0.7])
    for delta in (1e-2, 10.0):
        _, gradient = _objective(theta, points, delta)
        numeric = optimize.approx_fprime(theta, lambda t, delta=delta: _objective(t, points, delta)[0], 1e-7)
        assert gradient == pytest.approx(numeric, rel=1e-3, abs=1e-5)


def test_the_best_split_of_compute_is_the_lowest_of_all_splits():
    fit = fit_loss(language(), resamples=2)
    compute = 5.76e23
    sizes = np.geomspace(1e9, 1e12, 20001)
    best = sizes[np.argmin(law(CHINCHILLA, sizes, compute / 6 / sizes))]
    n, d = fit.optimum(compute)
    assert n.value == pytest.approx(best, rel=5e-3)
    assert 6 * n.value * d.value == pytest.approx(compute)
    assert fit.optimum(100 * compute)[0].value / n.value == pytest.approx(100 ** fit.exponents[0].value)


def test_given_compute_takes_the_place_of_six_n_d():
    runs = [Run(r.parameters, r.data, r.loss, compute=2 * r.parameters * r.data) for r in language()]
    n, d = fit_loss(runs, resamples=2).optimum(1e21)
    assert 2 * n.value * d.value == pytest.approx(1e21)


def test_fits_are_the_same_every_time_and_others_for_another_seed():
    runs = language(0.01)
    first, again, other = (fit_loss(runs, resamples=5, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first.draws, again.draws)
    assert np.array_equal(first.constants, other.constants)
    assert not np.array_equal(first.draws, other.draws)


def test_the_largest_run_is_predicted_from_the_others():
    runs = language(0.003)
    held = holdout_error(runs, resamples=20)
    assert [run.compute for run in held.held] == [max(run.compute for run in runs)]
    assert held.error < 2
    assert held.errors[0] == pytest.approx(100 * (held.predicted[0].value / held.held[0].loss - 1))
    assert len(holdout_error(runs, fraction=0.2, resamples=2).held) == 5
    # All seeds of the largest pair are held out together.
    twice = [*runs, *(Run(r.parameters, r.data, r.loss, seed=1) for r in runs)]
    assert len(holdout_error(twice, resamples=2).held) == 2


def test_a_law_that_does_not_hold_shows_in_the_held_out_error():
    runs = language()
    largest = max(runs, key=lambda run: run.compute)
    spoilt = [run if run is not largest else Run(run.parameters, run.data, 1.1 * run.loss) for run in runs]
    assert holdout_error(spoilt, resamples=2).errors[0] == pytest.approx(100 * (1 / 1.1 - 1), abs=0.1)


def test_a_power_law_without_outliers_is_numpys_polyfit():
    random = np.random.default_rng(0)
    x = np.geomspace(10, 1e4, 40)
    y = 3 * x**0.4 * np.exp(0.1 * random.uniform(-1, 1, 40))
    found = fit_power_law(x, y, resamples=200)
    slope, level = np.polyfit(np.log(x), np.log(y), 1)
    assert found.exponent.value == pytest.approx(slope, abs=1e-9)
    assert found.prefactor.value == pytest.approx(np.exp(level), rel=1e-9)
    assert found.exponent.low < 0.4 < found.exponent.high
    assert found.predict(1e6).value == pytest.approx(np.exp(np.polyval((slope, level), np.log(1e6))))


def test_outliers_hardly_move_a_power_law():
    x = np.geomspace(1, 100, 12)
    y = 2 * x**0.5 * np.exp(0.01 * np.random.default_rng(1).normal(size=12))
    y[-1] *= 20
    assert fit_power_law(x, y, resamples=20).exponent.value == pytest.approx(0.5, abs=0.02)
    assert np.polyfit(np.log(x), np.log(y), 1)[0] > 0.7
    exact = np.array([1.0, 2, 4, 8, 16])
    assert fit_power_law(exact, [1.0, 2, 4, 8, 99], resamples=20).exponent.value == pytest.approx(1)


def test_intervals_of_a_power_law_cover_the_truth_most_of_the_time():
    random, x = np.random.default_rng(2), np.geomspace(1, 1000, 15)
    fits = [fit_power_law(x, x**0.3 * np.exp(0.1 * random.normal(size=15)), resamples=60) for _ in range(30)]
    assert np.mean([f.exponent.low <= 0.3 <= f.exponent.high for f in fits]) >= 0.8


def valley(best, batch, floor=2.0, bend=0.05):
    return floor + bend * math.log(batch / best) ** 2


def at_fixed_data(budgets, exponent=0.264, batches=(16, 64, 256, 1024, 4096)):
    return [Run(1e6, d, valley(2.0 * d**exponent, batch), batch) for d in budgets for batch in batches]


def test_the_best_batch_at_fixed_data_is_the_vertex_of_the_parabola():
    found = best_batch(at_fixed_data((1e5, 1e6, 1e7, 1e8)), "data", resamples=50)
    assert [o.best for o in found.optima] == pytest.approx([2 * d**0.264 for d in (1e5, 1e6, 1e7, 1e8)])
    assert all(o.loss == pytest.approx(2.0) for o in found.optima)
    assert found.law.exponent == pytest.approx((0.264,) * 3)
    assert found.law.prefactor.value == pytest.approx(2.0)
    assert found.note == ""


def test_the_best_batch_at_fixed_compute_takes_the_best_size_at_each_batch():
    runs = []
    for compute in (6e12, 6e14, 6e16):
        best = 3 * (compute / 6) ** 0.102
        for size, worse in ((1e4, 1.3), (1e5, 1.0), (1e6, 1.2)):
            data = compute / 6 / size
            runs += [Run(size, data, worse * valley(best, batch), batch) for batch in (8, 32, 128, 512)]
    found = best_batch(runs, "compute", resamples=50)
    assert [o.at for o in found.optima] == pytest.approx([6e12, 6e14, 6e16])
    assert found.law.exponent.value == pytest.approx(0.102)


def test_a_best_batch_at_the_edge_is_flagged_and_left_out_of_the_law():
    runs = at_fixed_data((1e5, 1e6, 1e7, 1e8)) + [Run(1e6, 1e9, valley(1e6, b), b) for b in (16, 64, 256)]
    found = best_batch(runs, "data", resamples=20)
    assert [o.edge for o in found.optima] == [False] * 4 + [True]
    assert found.optima[-1].best == 256
    assert found.law.exponent.value == pytest.approx(0.264)
    assert "1 of 5 budgets left out" in found.note
    few = best_batch(at_fixed_data((1e5, 1e6)), "data")
    assert few.law is None
    assert "3 different x" in few.note


def test_learning_rates_count_at_their_best_and_seeds_at_their_mean():
    runs = []
    for data in (1e5, 1e6, 1e7):
        for batch in (16, 64, 256, 1024, 4096):
            loss = valley(2 * data**0.3, batch)
            runs += [Run(1e6, data, loss * 1.01, batch, 1e-3, seed=0), Run(1e6, data, loss / 1.01, batch, 1e-3, seed=1)]
            runs += [Run(1e6, data, loss * 1.005, batch, 1e-2, seed=0)]
    assert best_batch(runs, "data", resamples=20).law.exponent.value == pytest.approx(0.3)


def test_budgets_that_differ_by_a_rounded_step_are_one():
    budgets = (1e4, 1e5, 1e6)
    runs = [
        Run(1e6, round(d / b) * b, valley(3 * d**0.25, b), b) for d in budgets for b in (8, 16, 32, 64, 128, 256, 512)
    ]
    found = best_batch(runs, "data", resamples=20)
    assert len(found.optima) == 3
    assert found.law.exponent.value == pytest.approx(0.25, abs=0.01)


def test_the_learning_rate_law_has_one_exponent_for_all_sizes():
    runs = []
    for size, data, batches in ((1e5, 1e6, (16, 64, 256)), (1e7, 1e7, (256, 1024, 4096))):
        for batch in batches:
            best = 1e-4 * batch**0.8 / size**0.3
            runs += [Run(size, data, valley(best, lr), batch, lr) for lr in best * np.array([0.2, 0.7, 2, 5])]
    assert learning_rate_law(runs, resamples=20).law.exponent.value == pytest.approx(0.8)


def test_tuning_keeps_all_seeds_of_the_best_setting():
    runs = [
        Run(1e6, 1e6, loss, batch, lr, seed=seed)
        for batch, lr, losses in ((32, 1e-3, (2.0, 2.2)), (64, 1e-3, (1.9, 2.4)), (64, 3e-3, (2.05, 2.1)))
        for seed, loss in enumerate(losses)
    ]
    assert [run.loss for run in tuned(runs)] == [2.05, 2.1]


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "3 different numbers of parameters, got 0 among 0 runs"),
        (language()[::6], "at least 6 runs for its 5 constants, got 5"),
        ([Run(1e6, 10.0**d, 3.0 / d) for d in range(3, 12)], "3 different numbers of parameters, got 1 among 9 runs"),
        ([Run(10.0**n, 1e6, 3.0 / n) for n in range(3, 12)], "3 different amounts of data, got 1"),
    ],
)
def test_runs_that_do_not_determine_the_law_are_refused(runs, message):
    with pytest.raises(InputError, match=message):
        fit_loss(runs)


@pytest.mark.parametrize("loss", [0.0, -1.0, math.nan, math.inf])
def test_losses_must_be_positive_and_finite(loss):
    with pytest.raises(InputError, match="loss must be positive and finite"):
        Run(1e6, 1e6, loss)


def test_power_laws_refuse_too_few_points_and_numbers_without_logarithm():
    with pytest.raises(InputError, match="at least 3 different x, got 2"):
        fit_power_law([1.0, 1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(InputError, match="positive, finite"):
        fit_power_law([1.0, 2.0, 3.0], [1.0, -2.0, 3.0])
    with pytest.raises(InputError, match="as many"):
        fit_power_law([1.0, 2.0, 3.0], [1.0, 2.0])


def test_exponents_that_the_runs_do_not_determine_are_told():
    runs = [Run(n, d, 2.0 + 30 / d**0.5) for n in (1e5, 1e6, 1e7) for d in (1e3, 1e4, 1e5)]
    fit = fit_loss(runs, resamples=2)
    assert fit.predict(1e6, 1e6).value == pytest.approx(2.03, rel=1e-2)
    assert fit.estimates["beta"].value == pytest.approx(0.5, rel=0.05)


def test_tables_are_read_whatever_their_data_are_called(tmp_path):
    rows = [("1e6", "2000", "3.5", "", "", "", "a"), ("2e6", "4000", "2.5", "64", "1e-3", "7", "b")]
    for name in ("data", "samples", "tokens"):
        columns = ("parameters", name, "loss", "batch_size", "learning_rate", "seed", "name")
        runs, skipped = read_runs([write(tmp_path / f"{name}.csv", rows, columns)])
        assert skipped == ()
        assert runs == (Run(1e6, 2000, 3.5, name="a"), Run(2e6, 4000, 2.5, 64, 1e-3, seed=7, name="b"))
        assert runs[0].compute == 6 * 1e6 * 2000
    columns, rows = ("parameters", "samples", "tokens_per_sample", "loss"), [("1e6", "2000", "17", "3.5")]
    assert read_runs([write(tmp_path / "tokens.csv", rows, columns)])[0][0].compute == 6 * 1e6 * 2000 * 17


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks the columns parameters, data, loss: it has none"),
        ("parameters,loss\n1,2\n", "lacks the columns data"),
        ("parameters,data,loss\n", "holds no runs"),
        ("parameters,data,loss\n1,2,3\n1,2,x\n", "line 3: loss must be a number, got 'x'"),
        ("parameters,data,loss\n1,2,-3\n", "line 2: loss must be positive and finite, got -3.0"),
        ("parameters,data,loss\n1,2,nan\n", "line 2: loss must be positive and finite, got nan"),
        ("parameters,data,loss\n1,2\n", "line 2: loss is missing"),
        ("parameters,data,loss,compute\n1,2,3,0\n", "line 2: compute must be positive"),
    ],
)
def test_a_bad_table_is_refused_in_one_line_that_names_the_place(text, message, tmp_path, capsys):
    (tmp_path / "runs.csv").write_text(text)
    error = refused("scaling", tmp_path / "runs.csv", "--out", tmp_path / "out", capsys=capsys)
    assert message in error
    assert "runs.csv" in error
    assert not (tmp_path / "out").exists()


def test_missing_and_binary_files_and_empty_folders_are_refused(tmp_path, capsys):
    (tmp_path / "image.csv").write_bytes(bytes(range(256)))
    (tmp_path / "empty").mkdir()
    for name, message in (("none.csv", "is missing"), ("image.csv", "no CSV"), ("empty", "holds neither")):
        assert message in refused("scaling", tmp_path / name, "--out", tmp_path / "out", capsys=capsys)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one epoch: 11 batches of 128 digits in steps of two."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        short = ("--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1", "--trainer.callbacks", "[]")
        assert bamboo_fit(*short, "--trainer.accumulate_grad_batches", "2") == 0
    return folder / "runs" / "quickstart" / "version_0"


def test_runs_of_bamboo_fit_are_read_as_they_were_trained(trained, tmp_path):
    (run,), skipped = read_runs([trained.parent.parent])
    assert skipped == ()
    assert run.batch_size == 256
    assert run.learning_rate == pytest.approx(4e-3)
    assert run.data == 6 * 256
    assert run.parameters == Shape(2, 32, 2).parameters
    assert run.compute == 6 * run.parameters * run.data * (16 + 1)  # of 64 patches 16 are visible, and a class token
    assert run.loss == pytest.approx(scalars(trained, "val/loss")[5])
    assert run.seed == 0
    with pytest.raises(InputError, match=r"logged no val/nothing: name one of .*val/loss"):
        read_runs([trained], loss="val/nothing")
    shutil.copytree(trained, tmp_path / "part")
    config = (trained / "config.yaml").read_text()
    (tmp_path / "part" / "config.yaml").write_text(config.replace("max_epochs: 1", "max_epochs: 2"))
    with pytest.raises(InputError, match=r"no finished run was found: .*part: it is not finished"):
        read_runs([tmp_path])
    (tmp_path / "part" / "config.yaml").unlink()
    with pytest.raises(InputError, match=r"config\.yaml is missing"):
        read_runs([tmp_path])


def study_cell(trained, folder, objective, numbers):
    """A cell as `bamboo study` leaves it."""
    (folder / "train").mkdir(parents=True)
    shutil.copytree(trained, folder / "train" / "logs", ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copy(trained / "checkpoints" / "last.ckpt", folder / "train")
    told = {"objective": objective, "seed": 3, "numbers": numbers}
    (folder / "result.json").write_text(json.dumps(told))


def test_cells_of_studies_are_read_and_failed_ones_told(trained, tmp_path):
    cells = tmp_path / "study" / "cells"
    study_cell(trained, cells / "mae-a", "mae", {"loss": 0.5, "accuracy": 0.9})
    study_cell(trained, cells / "supervised-a", "supervised", {"accuracy": 0.9})
    (cells / "mae-b").mkdir()
    (cells / "mae-b" / "failed.json").write_text(json.dumps({"reason": "the loss is not finite at step 3"}))
    runs, skipped = read_runs([tmp_path])
    assert [(r.parameters, r.data, r.batch_size, r.learning_rate, r.loss, r.seed) for r in runs] == [
        (Shape(2, 32, 2).parameters, 6 * 256, 256, pytest.approx(4e-3), 0.5, 3)
    ]
    assert len(skipped) == 2
    assert "not finite at step 3" in skipped[0]
    assert "supervised, has no masked loss" in skipped[1]
    study_cell(trained, cells / "other-a", "other", {"loss": 0.6})
    with pytest.raises(InputError, match="several objectives, mae, other"):
        read_runs([tmp_path])
    assert [run.loss for run in read_runs([cells / "mae-a"])[0]] == [0.5]
    (cells / "mae-a" / "result.json").write_text("{")
    with pytest.raises(InputError, match=r"result\.json is cut short"):
        read_runs([cells / "mae-a"])


def synthetic(path):
    rows = []
    for size in (1e5, 3e5, 1e6, 3e6):
        for data in (1e5, 1e6, 1e7):
            best = 2 * data**0.264
            for batch in (16, 64, 256, 1024, 4096):
                for shift in (0.3, 0.8, 2.0):
                    loss = law(SMALL, size, data) * (1 + 0.01 * math.log(batch / best) ** 2)
                    rate = 1e-4 * batch**0.8
                    rows.append((size, data, loss * (1 + 0.01 * math.log(shift) ** 2), batch, rate * shift, 0, ""))
    return write(path, rows)


def test_the_verb_writes_all_laws_and_prints_them_beside_published_ones(tmp_path, capsys):
    table = synthetic(tmp_path / "runs.csv")
    assert main(["scaling", str(table), "--out", str(tmp_path / "out"), "--resamples", "20"]) == 0
    out = capsys.readouterr().out
    for text in (
        "alpha",
        "0.264 [",
        "0.75 to 1 [",
        "Shuai et al. 2024",
        "known from",
        "12 of 180 runs fitted",
        "held out",
    ):
        assert text in out
    content = json.loads((tmp_path / "out" / "scaling.json").read_text())
    numbers = {name: entry["value"] for name, entry in content["numbers"].items()}
    assert numbers["best batch at fixed data: exponent in D"] == pytest.approx(0.264, abs=0.01)
    assert numbers["best learning rate: exponent in batch size"] == pytest.approx(0.8, abs=0.01)
    assert numbers["alpha"] == pytest.approx(0.3, abs=0.02)
    assert abs(content["held_out"][0]["error_percent"]) < 1
    names = ["best_batch_at_compute", "best_batch_at_data", "frontier", "held_out", "learning_rate", "loss"]
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.png")) == names
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.svg")) == names
    # What it wrote is a table of runs again.
    assert [r.loss for r in read_runs([tmp_path / "out" / "scaling.csv"])[0]] == [r.loss for r in read_runs([table])[0]]


def test_the_verb_fits_what_it_can_and_says_what_the_rest_needs(tmp_path, capsys):
    rows = [(r.parameters, r.data, r.loss, r.batch_size, "", "", "") for r in at_fixed_data((1e5, 1e6, 1e7, 1e8))]
    table = write(tmp_path / "runs.csv", rows)
    assert main(["scaling", str(table), "--out", str(tmp_path / "out"), "--resamples", "20"]) == 0
    out = capsys.readouterr().out
    assert "no loss law: " in out
    assert "3 different numbers of parameters, got 1" in out
    assert "no learning rate law: " in out
    assert "best batch at fixed data: exponent in D" in out
    alone = write(tmp_path / "alone.csv", [row for row in rows if row[3] == 64])
    error = refused("scaling", alone, "--out", tmp_path / "none", capsys=capsys)
    assert "needs at least" in error
    assert not (tmp_path / "none").exists()
    assert "resamples must be at least 10" in refused(
        "scaling", table, "--out", tmp_path, "--resamples", 2, capsys=capsys
    )
