"""Intervals and tests over seeds are scipy's, where it has them."""

import math

import numpy as np
import pytest
from scipy import stats

from bamboo.intervals import MOST_SEEDS, estimate, holm, interval

RANDOM = np.random.default_rng(1)


def test_one_sample_is_students_t():
    sample = RANDOM.normal(0.3, 1, 5)
    test = stats.ttest_1samp(sample, 0)
    assert interval(sample) == pytest.approx((sample.mean(), *test.confidence_interval(0.95)))
    assert estimate([sample]).p == pytest.approx(test.pvalue)


def test_two_samples_are_welchs_t():
    one, two = RANDOM.normal(0.5, 1, 7), RANDOM.normal(0, 3, 4)
    found, test = estimate([one, -two]), stats.ttest_ind(one, two, equal_var=False)
    assert found.effect == pytest.approx(one.mean() - two.mean())
    assert found.interval == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert (found.p, found.freedom) == pytest.approx((test.pvalue, test.df))


def test_one_value_has_an_interval_where_its_deviation_is_known():
    assert np.isnan([*interval([0.1])[1:], estimate([[0.1]]).p]).all()
    found, normal = estimate([[0.1], [0.2, 0.3]], [0.06, 0.08]), stats.norm(0, math.sqrt(0.06**2 + 0.08**2 / 2))
    assert found.effect == pytest.approx(0.35)
    assert found.interval == pytest.approx((0.35 - normal.ppf(0.975), 0.35 + normal.ppf(0.975)))
    assert found.p == pytest.approx(2 * normal.sf(0.35))
    assert estimate([[0.1, 0.2]], [9.0]) != estimate([[0.1]], [9.0])
    assert not estimate([[0.1, 0.2]], [9.0]).known  # two values speak for themselves


def test_nothing_is_said_without_values_or_without_spread():
    assert np.isnan([*interval([]), estimate([[], [1, 2]]).p, estimate([[], [1, 2]], [0.1, 0.1]).p]).all()
    assert interval([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5)
    assert math.isnan(estimate([[0.5] * 3]).p)
    assert math.isnan(estimate([[0.1 + 0.2, 0.3, 0.3]]).p)  # which differ by rounding alone


def sample_of(count, mean, sd):
    """Values of just this mean and standard deviation."""
    values = stats.zscore(RANDOM.normal(size=count), ddof=1)
    return mean + sd * values


@pytest.mark.parametrize(("mean", "sds", "level"), [(0.5, [1], 0.05), (0.4, [0.2, 0.6], 0.01), (-3, [1, 1], 0.05)])
def test_the_seeds_needed_are_those_of_a_search_by_scipy(mean, sds, level):
    def excludes_zero(count):
        if len(sds) == 1:
            return stats.ttest_1samp(sample_of(count, mean, *sds), 0).pvalue < level
        pair = sample_of(count, mean, sds[0]), sample_of(count, 0, sds[1])
        return stats.ttest_ind(*pair, equal_var=False).pvalue < level

    fewest = next(count for count in range(2, 200) if excludes_zero(count))
    measured = [sample_of(3, mean if place == 0 else 0, sd) for place, sd in enumerate(sds)]
    assert estimate(measured).seeds_needed(level) == fewest
    assert estimate([[-1, 1.001]]).seeds_needed() is None
    assert estimate([sample_of(3, 0.0625, 1)]).seeds_needed() <= MOST_SEEDS


def test_the_correction_is_that_of_holm():
    # The example of R's p.adjust(c(.01, .04, .03, .005), "holm").
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([math.nan, 0.02]) == pytest.approx([math.nan, 0.02], nan_ok=True)
    assert holm([0.9, 0.8]) == pytest.approx([1, 1])
