"""Intervals and tests for counts of paired items; nothing here knows what a flip is.

scipy.special is imported where it is needed: it takes longer than all else that a comparison starts with.
"""

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 10_000
BISECTIONS = 60  # halves an interval of at most 2 below the spacing of floats

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Interval = tuple[float, float]

ROUNDING = 1e-12
"""A mean or an error this small, relative to the size of the values, is taken for what rounding left of 0."""


def divide(numerator: FloatArray | IntArray, denominator: FloatArray | IntArray) -> FloatArray:
    """Quotient of two arrays of one shape, () included; NaN where the denominator is 0, never an error or infinity."""
    quotient: FloatArray = np.full(np.shape(denominator), np.nan)
    np.divide(numerator, denominator, out=quotient, where=np.asarray(denominator) != 0)
    return quotient


def normal_quantile(p: float) -> float:
    """Quantile of the standard normal distribution, p in (0, 1)."""
    return NormalDist().inv_cdf(p)


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
    z = normal_quantile((1 + confidence) / 2)
    centre = successes + z * z / 2
    spread = z * np.sqrt(successes * (n - successes) / n + z * z / 4)
    low, high = (centre - spread) / (n + z * z), (centre + spread) / (n + z * z)
    # Exact at the ends, where rounding would leave 1e-17 instead of the 0 that the formula gives.
    return (0.0 if successes == 0 else float(low), 1.0 if successes == n else float(high))


def tango_interval(gained: int, lost: int, n: int, confidence: float = CONFIDENCE) -> Interval | None:
    """Score interval of the difference of two proportions on the same items (Tango 1998, Stat. Med. 17:891).

    The differences x that the score test does not reject: |(gained - lost - n x) / sqrt(n (2q + x (1 - x)))| <= z,
    where q is the share lost that is likeliest given x. Unlike the Wald interval it stays in [-1, 1] and keeps some
    width where nothing is gained or lost.

    Args:
        gained: Items on which only the second is a success.
        lost: Items on which only the first is a success.
        n: All items, >= gained + lost.
        confidence: Coverage in (0, 1), two-sided; each bound alone is one-sided at (1 + confidence) / 2.

    Returns:
        (low, high) in [-1, 1] around (gained - lost) / n, exact to 1e-12; None where n is 0.
    """
    if n == 0:
        return None
    z = normal_quantile((1 + confidence) / 2)
    return -_tango_upper(lost, gained, n, z), _tango_upper(gained, lost, n, z)


def _tango_upper(gained: int, lost: int, n: int, z: float) -> float:
    """By bisection, since the score only grows with x; scipy.optimize would cost 0.3 s of import."""
    low, high = float((gained - lost) / n), 1.0
    for _ in range(BISECTIONS):
        x = (low + high) / 2
        if n * x - (gained - lost) < z * math.sqrt(n * _tango_variance(gained, lost, n, x)):
            low = x
        else:
            high = x
    return high


def _tango_variance(gained: int, lost: int, n: int, x: float) -> float:
    """Variance of one item's difference at its likeliest, given that differences average x; in [0, 1]."""
    if x < 0:  # the same from the other side, where nothing under the root is subtracted and rounding does no harm
        gained, lost, x = lost, gained, -x
    b = (2 * n - gained + lost) * x - gained - lost
    q = (math.sqrt(b * b + 8 * n * lost * x * (1 - x)) - b) / (4 * n)
    return 2 * q + x * (1 - x)


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


def clustered_difference_error(differences: FloatArray, clusters: IntArray) -> float:
    """Standard error of a mean of paired differences where items come in clusters (Miller 2024, arXiv:2411.00640).

    SE^2 = SE_naive^2 + n^-2 sum over i != j in one cluster of (d_i - mean)(d_j - mean), which is n^-2 times the sum
    over clusters of (sum of d_i - mean)^2. SE_naive is `paired_difference_error`'s: n, not n - 1, in the variance.

    Args:
        differences: (N,) new minus old per item; finite.
        clusters: (N,) any integer that names the item's cluster.

    Returns:
        The standard error, >= 0, in the unit of the differences; NaN where there are no items.
    """
    if len(differences) == 0:
        return math.nan
    sums = _cluster_sums(differences - differences.mean(), clusters)
    return math.sqrt(float(sums @ sums)) / len(differences)


def clustered_mcnemar_p(differences: FloatArray, clusters: IntArray) -> float:
    """Two-sided p of no difference between paired outcomes in clusters (Obuchowski 1998, Stat. Med. 17:1495).

    Chi-square with one degree of freedom, in the form of Yang, Sun & Hardin (2010): (G - 1) / G (sum of s)^2 over the
    sum of s^2, s the sum of differences in each of G clusters. It weighs items equally, as NFR and accuracy do;
    Durkalski's test (2003) weighs clusters equally. With one item per cluster the statistic is McNemar's without
    correction, times (G - 1) / G. It never passes G - 1, so that a handful of clusters gives no small p.

    Args:
        differences: (N,) +1 where only the second is a success, -1 where only the first is, else 0.
        clusters: (N,) any integer that names the item's cluster.

    Returns:
        The p-value in (0, 1]; 1 where no cluster differs.
    """
    sums = _cluster_sums(differences, clusters)
    squares = float(sums @ sums)
    if squares == 0:
        return 1.0
    statistic = (1 - 1 / len(sums)) * float(sums.sum()) ** 2 / squares
    return math.erfc(math.sqrt(statistic / 2))


def mean_difference_p(values: FloatArray, clusters: IntArray | None = None) -> float:
    """Two-sided t test that per-item differences average 0 (Student 1908; by cluster Cameron & Miller 2015).

    t = mean / SE with SE^2 = G / (G - 1) n^-2 sum over clusters of (sum of d_i - mean)^2 and G - 1 degrees of freedom:
    with one item per cluster, or without clusters, the paired t test.

    Where SE is 0 and the mean is not, every cluster changed by the same amount per item and t is infinite. A p of 0
    would claim certainty even from two items, so p is then that of the exact sign-flip test, 2^(1 - G) (Fisher 1935,
    section 21): of the 2^G ways to give G equal changes a sign, two are as extreme.

    Args:
        values: (N,) new minus old per item; finite.
        clusters: (N,) any integer that names the item's cluster; None: each item stands for itself.

    Returns:
        The p-value in [0, 1]; 1 where the mean is 0; NaN with fewer than 2 items or clusters.
    """
    n = len(values)
    names = np.arange(n) if clusters is None else clusters
    groups = len(np.unique(names))
    if groups < 2:
        return math.nan
    mean, size = float(values.mean()), float(np.abs(values).mean())
    if abs(mean) <= ROUNDING * size:
        return 1.0
    error = math.sqrt(groups / (groups - 1)) * clustered_difference_error(values, names)
    if error <= ROUNDING * size:
        return math.ldexp(1.0, 1 - groups)
    from scipy.special import stdtr

    return float(2 * stdtr(groups - 1, -abs(mean) / error))


def few_clusters_factor(clusters: int, confidence: float = CONFIDENCE) -> float:
    """How much wider an interval by cluster must be than its large-sample form (Cameron & Miller 2015, section VI).

    sqrt(G / (G - 1)) times the quantile of t with G - 1 degrees of freedom over the normal one: clusters' residuals sum
    to 0, and the error is itself estimated, from G numbers. 1.87 for 4 clusters at 95 %, 1.05 for 40; it falls to 1.

    Args:
        clusters: Number of clusters G.
        confidence: Coverage in (0, 1), two-sided.

    Returns:
        The factor, > 1; NaN with fewer than 2 clusters, from which no error can be told.
    """
    if clusters < 2:
        return math.nan
    from scipy.special import stdtrit

    tail = (1 + confidence) / 2
    return math.sqrt(clusters / (clusters - 1)) * float(stdtrit(clusters - 1, tail)) / normal_quantile(tail)


def benjamini_hochberg(p: FloatArray) -> FloatArray:
    """Adjusted p-values that control the false discovery rate (Benjamini & Hochberg 1995).

    Args:
        p: (M,) p-values in [0, 1]; NaN is a test that could not be made: it stays NaN and is not counted.

    Returns:
        (M,) the smallest rate at which each would be a discovery, in [0, 1], >= p.
    """
    adjusted: FloatArray = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    falling = tested[np.argsort(p[tested])[::-1]]
    ranks = np.arange(len(falling), 0, -1)
    adjusted[falling] = np.minimum.accumulate(np.minimum(p[falling] * (len(falling) / ranks), 1.0))
    return adjusted


def _cluster_sums(values: FloatArray, clusters: IntArray) -> FloatArray:
    """(G,) sum of the values in each cluster that has an item."""
    _, codes = np.unique(clusters, return_inverse=True)
    return np.bincount(codes, weights=values).astype(np.float64)


def _fair_coin_cdf(k: int, n: int) -> float:
    """P(X <= k) for X ~ Binomial(n, 1/2). By betainc, since bdtr is off in the third digit at n = 10^7."""
    from scipy.special import betainc

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
