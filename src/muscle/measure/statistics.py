"""Intervals and tests for counts of paired items; nothing here knows what a flip is."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, ndtri

CONFIDENCE = 0.95
RESAMPLES = 10_000

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Interval = tuple[float, float]


def wilson_interval(successes: int, n: int, confidence: float = CONFIDENCE) -> Interval | None:
    """Wilson score interval of a proportion (Wilson 1927; method 3 in Newcombe 1998).

    Args:
        successes: Number of successes, 0..n.
        n: Number of trials.
        confidence: Coverage in (0, 1), two-sided.

    Returns:
        (low, high) in [0, 1]; None where n is 0.
    """
    if n == 0:
        return None
    z = float(ndtri((1 + confidence) / 2))
    centre = successes + z * z / 2
    spread = z * np.sqrt(successes * (n - successes) / n + z * z / 4)
    low, high = (centre - spread) / (n + z * z), (centre + spread) / (n + z * z)
    # Exact at the ends, where rounding would leave 1e-17 instead of the 0 that the formula gives.
    return (0.0 if successes == 0 else float(low), 1.0 if successes == n else float(high))


def mcnemar_mid_p(only_first: int, only_second: int) -> float:
    """Two-sided McNemar mid-p value for paired yes/no outcomes (Fagerland, Lydersen & Laake 2013, section 2.4).

    Null hypothesis: an item on which the two disagree is as likely to favour the one as the other.

    Args:
        only_first: Items on which only the first is a success.
        only_second: Items on which only the second is a success.

    Returns:
        The p-value in (0, 1]; 1 where the two never disagree.
    """
    n = only_first + only_second
    if n == 0:
        return 1.0
    smaller = min(only_first, only_second)
    at_most, below = _fair_coin_cdf(smaller, n), _fair_coin_cdf(smaller - 1, n)
    if only_first == only_second:
        return 1.0 - (at_most - below) / 2
    # The exact two-sided p is 2 P(X <= smaller); mid-p takes P(X = smaller) off it. As a sum it keeps tiny p precise.
    return at_most + below


def paired_difference_error(gained: int, lost: int, n: int) -> float:
    """Standard error of the difference of two proportions on the same items.

    sqrt(((g + l)/n - ((g - l)/n)^2) / n): the standard deviation of the paired differences (+1, -1 or 0 per item) over
    sqrt(n), as in Agresti, Categorical Data Analysis (2002), section 10.1.1. Miller 2024 (arXiv:2411.00640), on paired
    differences, has the same with n - 1 for n in the variance.

    Args:
        gained: Items on which only the second is a success.
        lost: Items on which only the first is a success.
        n: All items, >= gained + lost.

    Returns:
        The standard error in [0, 1]; NaN where n is 0.
    """
    if n == 0:
        return math.nan
    return math.sqrt((n * (gained + lost) - (gained - lost) ** 2) / n**3)  # one division: the rest is exact


def _fair_coin_cdf(k: int, n: int) -> float:
    """P(X <= k) for X ~ Binomial(n, 1/2). By betainc, since bdtr is off in the third digit at n = 10^7."""
    return float(betainc(n - k, k + 1, 0.5)) if k >= 0 else 0.0


def multinomial_draws(counts: IntArray, seed: int, resamples: int = RESAMPLES) -> IntArray:
    """Bootstrap of items that matter only by the cell they fall in: no loop over items, however many there are.

    Args:
        counts: (K,) observed items per cell.
        seed: Seed of the draws, >= 0; the same seed gives the same draws.
        resamples: Number of draws R.

    Returns:
        (K, R) items per cell in each draw; all zero where there are no items.
    """
    n = int(counts.sum())
    if n == 0:
        return np.zeros((len(counts), resamples), dtype=np.int64)
    return np.random.default_rng(seed).multinomial(n, counts / n, size=resamples).T


def percentile_interval(draws: FloatArray, confidence: float = CONFIDENCE) -> Interval | None:
    """Percentile bootstrap interval of a statistic (Efron & Tibshirani 1993, chapter 13).

    Args:
        draws: (R,) the statistic in each draw; NaN where it is undefined in a draw.
        confidence: Coverage in (0, 1), two-sided.

    Returns:
        (low, high), or None where more draws are undefined than one tail holds: the tail is then unknown.
    """
    tail = (1 - confidence) / 2
    undefined = np.isnan(draws)
    if undefined.mean() > tail:
        return None
    low, high = np.quantile(draws[~undefined], [tail, 1 - tail])
    return float(low), float(high)
