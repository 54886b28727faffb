"""Which differences between two methods are real: paired tests, their intervals, and Holm."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from eval.score import Z

LEVEL = 0.05  # a p below it is a difference


@dataclass(frozen=True)
class Difference:
    """First minus second, as a share of the problems."""

    mean: float
    low: float  # of the 95% interval
    high: float
    p: float  # of so large a difference where there is none


def sign_test(wins: int, losses: int) -> float:
    """The exact two-sided p of so many wins and losses where both are equally likely.

    With one answer to each problem this is McNemar's test (1947) in its exact form: `wins` are the
    problems that only the first has right, `losses` those that only the second has.
    """
    tail = sum(math.comb(wins + losses, n) for n in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2 ** (wins + losses))


def paired(first: np.ndarray, second: np.ndarray) -> Difference:
    """Two runs on the same problems; the problems are the only noise.

    first, second: [problems], the share of right answers to each. p: `sign_test` of the problems
    on which they differ. Interval: Bonett and Price (2012), Wald's with one more problem won and
    one more lost.
    """
    d = np.asarray(first, float) - np.asarray(second, float)
    count = len(d) + 2
    middle = d.sum() / count
    half = Z * math.sqrt(((d * d).sum() + 2) / count - middle**2) / math.sqrt(count)
    p = sign_test(int((d > 0).sum()), int((d < 0).sum()))
    return Difference(float(d.mean()), max(-1.0, middle - half), min(1.0, middle + half), p)


def between(first: np.ndarray, second: np.ndarray) -> Difference:
    """Two methods, trained with several seeds: problems and seeds are the noise.

    first, second: [seeds, problems], right or wrong; at least two seeds each, not paired. The
    variance of the difference is that of an analysis of variance with problems and seeds as random
    effects, either part at least what single answers alone would give. The distribution is
    Student's; its degrees of freedom are those of the seeds (Satterthwaite 1946) and of the
    problems, weighted by their parts of the variance.
    """
    first, second = np.asarray(first, float), np.asarray(second, float)
    problems = first.shape[1]
    mean = float(first.mean() - second.mean())
    seeds = [x.mean(axis=1).var(ddof=1) / len(x) for x in (first, second)]
    of_problems = (first.mean(axis=0) - second.mean(axis=0)).var(ddof=1) / problems
    answers = sum(residual(x) / x.size for x in (first, second))
    beyond = max(of_problems - answers, 0.0)
    seeds_part = max(sum(seeds), answers)
    variance = seeds_part + beyond
    if variance == 0:  # every answer of a method has the same verdict
        return paired(first.mean(axis=0), second.mean(axis=0))
    squares = sum(v * v / (len(x) - 1) for v, x in zip(seeds, (first, second), strict=True))
    freedom_of_seeds = seeds_part**2 / squares if squares else problems - 1
    freedom = variance / (seeds_part / freedom_of_seeds + beyond / (problems - 1))
    error = math.sqrt(variance)
    half = error * student_bound(freedom)
    low, high = max(-1.0, mean - half), min(1.0, mean + half)
    return Difference(mean, low, high, student_tail(abs(mean) / error, freedom))


def residual(right: np.ndarray) -> float:
    """The variance of an answer [seeds, problems] beyond its problem and its seed."""
    rest = right - right.mean(axis=0) - right.mean(axis=1, keepdims=True) + right.mean()
    return (rest**2).sum() / np.prod([side - 1 for side in right.shape])


def student_tail(t: float, freedom: float) -> float:
    """P(|T| > t) of Student's distribution.

    In the angle arctan(T / sqrt(freedom)) its density is cos^(freedom - 1), up to a constant.
    """
    nodes, weights = quadrature()
    freedom = min(freedom, 1e6)
    start = math.atan(t / math.sqrt(freedom))
    half = (math.pi / 2 - start) / 2
    area = half * (weights * np.cos(start + half * (nodes + 1)) ** (freedom - 1)).sum()
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2))
    return float(min(1.0, 2 * area * scale / math.sqrt(math.pi)))


@cache
def quadrature() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss and Legendre on [-1, 1]."""
    return np.polynomial.legendre.leggauss(200)


def student_bound(freedom: float) -> float:
    """The t that |T| exceeds with probability 5%, by bisection."""
    low, high = 0.0, 20.0  # 12.7 for one degree of freedom
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, freedom) > LEVEL else (low, middle)
    return high


def holm(values: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Holm 1979): a 5% chance that any of those below 5% is
    false."""
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = highest
    return adjusted
