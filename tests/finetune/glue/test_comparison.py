"""What is said of two encoders is what their seeds allow."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

from bamboo.finetune.glue.comparison import average, compare, comparison_table, differences
from bamboo.finetune.glue.scores import COLUMNS, Scores
from bamboo.finetune.glue.tasks import EIGHT
from bamboo.intervals import holm

RISING = np.array([0.60, 0.62, 0.64, 0.66, 0.68])


def run(**tasks):
    """An encoder's scores by task, a list of seeds each."""
    rows = [
        (task, "score", seed, float(value), 0.5, 10, 5, 1.0, "")
        for task, values in tasks.items()
        for seed, value in enumerate(values)
    ]
    return Scores("x", pd.DataFrame(rows, columns=list(COLUMNS)))


def test_the_interval_and_p_are_those_of_welchs_formulas():
    one, two = np.array([0.50, 0.55, 0.51, 0.58]), np.array([0.57, 0.60, 0.59])
    found = compare(one, two)
    errors = [side.var(ddof=1) / len(side) for side in (one, two)]
    freedom = sum(errors) ** 2 / sum(error**2 / (len(side) - 1) for error, side in zip(errors, (one, two), strict=True))
    difference, error = two.mean() - one.mean(), math.sqrt(sum(errors))
    assert found["difference"] == pytest.approx(difference)
    assert found["p"] == pytest.approx(2 * t.sf(difference / error, freedom))
    assert found["high"] - difference == difference - found["low"] == pytest.approx(t.ppf(0.975, freedom) * error)
    assert found["seeds"] == 3


VERDICTS = {
    "two seeds far apart": ([0.1, 0.11], [0.9, 0.91], "too few seeds to say"),
    "two against five": ([0.1, 0.11], RISING, "too few seeds to say"),
    "far apart": (RISING, RISING + 0.2, "differs"),
    "far apart the other way": (RISING + 0.2, RISING, "differs"),
    "ranges apart, seeds few": ([0.60, 0.62, 0.66], [0.67, 0.69, 0.75], "no difference seen"),
    "alike": (RISING, RISING + 0.01, "no difference seen"),
    "constant and alike": ([0.5] * 3, [0.5] * 3, "no difference seen"),
    "constant and apart": ([0.5] * 3, [0.6] * 3, "no spread to judge by"),
    "one constant": (RISING, [0.64] * 3, "no difference seen"),
    "undefined": ([0.5, math.nan, 0.6], [0.6, 0.7, 0.8], "undefined"),
}


@pytest.mark.filterwarnings("error")  # a person reads the table, not what scipy thinks of equal numbers
@pytest.mark.parametrize("name", VERDICTS)
def test_the_verdict_is_what_the_seeds_allow(name):
    one, two, verdict = VERDICTS[name]
    runs = [run(cola=one), run(cola=two)]
    assert differences(*runs).loc["cola", "verdict"] == verdict
    assert f"| {verdict} " in comparison_table(runs, ["a", "b"])


def test_what_one_task_alone_would_show_is_not_said_of_one_among_eight():
    one, two = RISING, RISING + 0.05
    assert differences(run(cola=one), run(cola=two)).loc["cola", "verdict"] == "differs"
    others = {name: RISING for name in EIGHT if name != "cola"}
    table = differences(run(cola=one, **others), run(cola=two, **others))
    assert table.loc["cola", "verdict"] == "no difference seen"


def test_without_a_difference_one_is_claimed_in_a_twentieth_of_the_comparisons_at_most():
    generator = np.random.default_rng(3)
    claims = 0
    for scores in generator.normal(0.6, 0.02, (100, 2, len(EIGHT), 3)):
        claims += holm(np.array([compare(*pair)["p"] for pair in scores.swapaxes(0, 1)])).min() < 0.05
    assert claims <= 10  # 5 are expected at most, 10 is beyond the 98th percentile


def test_the_average_is_compared_seed_by_seed():
    one = {name: RISING + number / 100 for number, name in enumerate(EIGHT)}
    runs = [run(**one), run(**{name: values + 0.1 for name, values in one.items()})]
    expected = compare(RISING, RISING + 0.1)
    assert average(*runs) == pytest.approx(
        {**expected, "first": RISING.mean() + 0.035, "second": RISING.mean() + 0.135}
    )
    assert average(runs[0], run(cola=RISING)) is None
