"""Tests of the statistics: values of scipy and by hand, and false alarms by simulation."""

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from experiments.statistics import between, holm, paired, sign_test, student_bound, student_tail


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (3, 0), (10, 2), (7, 7), (8, 7), (500, 430)])
def test_the_sign_test_is_scipys_binomial(wins, losses):
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-9)
    assert sign_test(losses, wins) == sign_test(wins, losses)


@pytest.mark.parametrize("freedom", [1, 2, 2.5, 4, 30, 1e3, 1e6])
def test_students_distribution_is_scipys(freedom):
    for t in (0.0, 0.3, 1.0, 2.0, 5.0, 12.0):
        expected = 2 * stats.t.sf(t, freedom)
        assert student_tail(t, freedom) == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert student_bound(freedom) == pytest.approx(stats.t.isf(0.025, freedom), rel=1e-6)


def test_holm_by_hand_and_as_scipy_would_have_it():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
    values = [0.001, 0.2, 0.013, 0.04]
    order = sorted(values)
    expected = np.maximum.accumulate([(4 - n) * p for n, p in enumerate(order)])
    by_value = dict(zip(order, expected, strict=True))
    assert holm(values) == pytest.approx([by_value[p] for p in values])


def test_a_paired_difference_by_hand():
    """100 problems: 10 only the first has right, 3 only the second, 60 both."""
    first = np.array([1] * 10 + [0] * 3 + [1] * 60 + [0] * 27)
    second = np.array([0] * 10 + [1] * 3 + [1] * 60 + [0] * 27)
    found = paired(first, second)
    assert found.mean == pytest.approx(0.07)
    assert found.p == pytest.approx(stats.binomtest(3, 13).pvalue)
    one, other = 11 / 102, 4 / 102  # Bonett and Price (2012)
    middle, error = one - other, math.sqrt((one + other - (one - other) ** 2) / 102)
    assert (found.low, found.high) == pytest.approx(
        (middle - 1.959964 * error, middle + 1.959964 * error)
    )
    reverse = paired(second, first)
    assert (reverse.mean, reverse.low, reverse.p) == pytest.approx(
        (-found.mean, -found.high, found.p)
    )


def draw(rng, seeds: int, problems: int, of_seeds: float, of_methods: float, methods=2) -> list:
    """Right and wrong answers of methods that are the same, but for chance."""
    hardness = rng.normal(1, 2, problems)
    found = []
    for _ in range(methods):
        logits = hardness + rng.normal(0, of_methods, problems)
        logits = logits + rng.normal(0, of_seeds, (seeds, 1))
        found.append((rng.random((seeds, problems)) < 1 / (1 + np.exp(-logits))).astype(float))
    return found


def test_between_is_exact_where_only_seeds_differ():
    """All problems of a seed alike: what is left is Welch's test of the seeds' means."""
    levels = [0, 1, 0, 1, 1], [1, 1, 1, 0, 1]
    first, second = (np.tile(np.array(one)[:, None], (1, 40)) for one in levels)
    expected = stats.ttest_ind(*levels, equal_var=False)
    found = between(first, second)
    assert found.mean == pytest.approx(-0.2)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
    interval = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-6)


def test_between_without_any_noise_and_with_a_clear_difference():
    rng = np.random.default_rng(0)
    same = np.tile(rng.integers(0, 2, 50), (3, 1))
    assert between(same, same).p == 1.0
    first, second = draw(rng, 3, 300, 0.1, 0.3)
    found = between(first, second * (rng.random(300) < 0.7))
    assert found.p < 1e-4
    assert 0 < found.low < found.mean < found.high


def test_paired_false_alarms_are_rare_and_intervals_hold_the_truth():
    rng, alarms, inside = np.random.default_rng(1), 0, 0
    for _ in range(600):
        first, second = (one[0] for one in draw(rng, 1, 120, 0.0, 0.0))
        found = paired(first, second)
        alarms += found.p < 0.05
        inside += found.low <= 0 <= found.high
    assert alarms <= 30
    assert inside >= 0.94 * 600


@pytest.mark.parametrize(("of_seeds", "of_methods"), [(0.0, 0.0), (0.3, 0.5), (1.0, 0.5)])
def test_between_false_alarms_are_rare_where_methods_are_the_same(of_seeds, of_methods):
    rng, alarms = np.random.default_rng(2), 0
    for _ in range(400):
        alarms += between(*draw(rng, 3, 200, of_seeds, of_methods)).p < 0.05
    assert alarms <= 26  # 5% of 400, and what chance adds with a probability of 9%


@pytest.mark.slow
@pytest.mark.parametrize(("of_seeds", "of_methods"), [(0.0, 0.0), (0.3, 0.5), (1.0, 0.5)])
def test_false_alarms_of_six_methods_by_holm(of_seeds, of_methods):
    """Any alarm among 15 pairs of six equal methods, in 1,000 trials."""
    rng, alarms = np.random.default_rng(3), 0
    for _ in range(1000):
        methods = draw(rng, 3, 400, of_seeds, of_methods, methods=6)
        alarms += min(holm([between(a, b).p for a, b in combinations(methods, 2)])) < 0.05
    assert alarms <= 62  # 5%, and what chance adds with a probability of 5%
