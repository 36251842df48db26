"""Intervals and tests against statsmodels and published worked examples."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtri
from scipy.stats import chi2, false_discovery_control, norm, t, ttest_1samp
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from muscle.measure.statistics import (
    FloatArray,
    IntArray,
    Interval,
    benjamini_hochberg,
    clustered_difference_error,
    clustered_mcnemar_p,
    divide,
    few_clusters_factor,
    mcnemar_mid_p,
    mean_difference_p,
    multinomial_draws,
    paired_difference_error,
    percentile_interval,
    tango_interval,
    wilson_interval,
)

# both right, gained, lost, n
COUNTS = st.tuples(*[st.integers(0, 300)] * 4).map(lambda c: (c[0], c[1], c[2], sum(c))).filter(lambda c: c[3] > 0)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_published(successes: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, table I, method 3."""
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [1, 2, 7, 400, 10_042, 10**7])
def test_wilson_equals_statsmodels(n: int) -> None:
    for successes in {0, 1, n // 3, n - 1, n}:
        for confidence in (0.9, 0.95):
            theirs = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
            assert wilson_interval(successes, n, confidence) == pytest.approx(theirs, abs=1e-12)


def test_wilson_is_exact_at_the_ends_and_undefined_without_items() -> None:
    low, high = wilson_interval(0, 3) or (None, None)
    assert low == 0.0
    assert high is not None
    assert wilson_interval(3, 3) == pytest.approx((1 - high, 1.0))
    assert wilson_interval(0, 0) is None


@pytest.mark.parametrize(
    ("gained", "lost", "n", "confidence", "low", "high"),
    [
        (9, 3, 32, 0.95, -0.027, 0.390),  # Tango 1998
        (0, 1, 44, 0.90, -0.096, 0.037),  # Tango 1998, two ways to disinfect contact lenses
        (16, 8, 86, 0.95, -0.020, 0.207),  # Agresti & Min 2005
        (1, 7, 21, 0.95, -0.517, -0.026),  # Fagerland, Lydersen & Laake 2014, airway hyper-responsiveness
        (25, 2, 102, 0.95, 0.139, 0.321),  # Chang 2024
    ],
)
def test_tango_published(gained: int, lost: int, n: int, confidence: float, low: float, high: float) -> None:
    """The papers' values, as the R package ratesci lists them in tests/testthat/test3.R."""
    assert tango_interval(gained, lost, n, confidence) == pytest.approx((low, high), abs=5e-4)


@pytest.mark.parametrize(
    ("gained", "lost", "n", "low", "high"),
    [
        (
            6,
            16,
            161,
            -0.1240,
            -0.0054,
        ),  # complete response (Cavo 2012), R package contingencytables, tests of chapter 8
        (3, 1, 14, -0.1670, 0.4327),  # Tang 2010, R package ratesci
    ],
)
def test_tango_published_to_four_digits(gained: int, lost: int, n: int, low: float, high: float) -> None:
    assert tango_interval(gained, lost, n) == pytest.approx((low, high), abs=5e-5)


def tango_score(gained: int, lost: int, n: int, x: float) -> float:
    """Tango's statistic as printed in his paper: no care for rounding."""
    a, b = 2 * n, -gained - lost + (2 * n - gained + lost) * x
    q = (math.sqrt(max(0.0, b * b + 4 * a * lost * x * (1 - x))) - b) / (2 * a)
    return (gained - lost - n * x) / math.sqrt(n * (2 * q + x * (1 - x)))


@given(COUNTS, st.sampled_from([0.9, 0.95, 0.99]))
def test_tango_holds_the_differences_that_the_score_test_does_not_reject(
    counts: tuple[int, int, int, int], confidence: float
) -> None:
    _, gained, lost, n = counts
    z = float(ndtri((1 + confidence) / 2))
    low, high = tango_interval(gained, lost, n, confidence) or (math.nan, math.nan)
    assert -1 <= low <= (gained - lost) / n <= high <= 1
    for x in np.linspace(-0.999, 0.999, 41):
        if min(abs(x - low), abs(x - high)) > 1e-6 and abs(n * x - gained + lost) > 1e-6:
            assert (low < x < high) == (abs(tango_score(gained, lost, n, x)) < z)


@given(COUNTS)
def test_tango_turns_around_with_the_models_and_shrinks_with_n(counts: tuple[int, int, int, int]) -> None:
    _, gained, lost, n = counts
    low, high = tango_interval(gained, lost, n) or (math.nan, math.nan)
    assert tango_interval(lost, gained, n) == (-high, -low)
    closer = tango_interval(4 * gained, 4 * lost, 4 * n) or (math.nan, math.nan)
    assert closer[1] - closer[0] < high - low
    surer = tango_interval(gained, lost, n, 0.99) or (math.nan, math.nan)
    assert surer[0] <= low
    assert high <= surer[1]


def test_tango_at_the_ends() -> None:
    z = float(ndtri(0.975))
    for n in (1, 10, 10**7):
        none, all_gained = tango_interval(0, 0, n), tango_interval(n, 0, n)
        assert none == pytest.approx((-(z**2) / (n + z**2), z**2 / (n + z**2)), rel=1e-12)  # solved by hand: q = 0
        assert all_gained is not None
        assert all_gained[1] == 1.0
        assert all_gained[0] < 1
    assert tango_interval(0, 0, 0) is None


@pytest.mark.parametrize(("gained", "lost"), [(3, 2), (10**6, 10**6 + 3000), (8 * 10**6, 2 * 10**6), (0, 10**7 - 1)])
def test_tango_ends_solve_the_score_equation_of_ten_million_items(gained: int, lost: int) -> None:
    """Exact in fractions of 60 digits, where floating point would hide its own error."""
    from decimal import Decimal, localcontext

    n, z = 10**7, Decimal(float(ndtri(0.975)))
    with localcontext() as context:
        context.prec = 60

        def beyond(limit: float) -> bool:
            x = Decimal(limit)
            b = -gained - lost + (2 * n - gained + lost) * x
            q = ((b * b + 8 * n * lost * x * (1 - x)).sqrt() - b) / (4 * n)
            return (gained - lost - n * x) ** 2 > z * z * n * (2 * q + x * (1 - x))

        for limit in tango_interval(gained, lost, n) or ():
            away = 1e-12 if limit * n > gained - lost else -1e-12
            assert beyond(limit + away)
            assert not beyond(limit - away)


def newcombe_interval(both: int, gained: int, lost: int, neither: int) -> Interval:
    """Square-and-add interval of the paired difference with corrected correlation (Newcombe 1998, method 10)."""
    n = both + gained + lost + neither
    first, second = (both + gained) / n, (both + lost) / n
    (l1, u1), (l2, u2) = (proportion_confint(both + k, n, method="wilson") for k in (gained, lost))
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    covariance = both * neither - gained * lost
    corrected = max(covariance - n / 2, 0) if covariance > 0 else covariance
    phi = corrected / math.sqrt(margins) if margins else 0.0

    def side(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    return first - second - side(first - l1, u2 - second), first - second + side(u1 - first, second - l2)


def test_tango_agrees_with_newcombe() -> None:
    """First that the cross-check itself is right: Fagerland 2014 (twice) and Newcombe 1998."""
    assert newcombe_interval(1, 1, 7, 12) == pytest.approx((-0.507, -0.026), abs=5e-4)
    assert newcombe_interval(59, 6, 16, 80) == pytest.approx((-0.1186, -0.0046), abs=5e-5)
    assert newcombe_interval(20, 12, 2, 16) == pytest.approx((0.0562, 0.3292), abs=5e-5)
    for both, gained, lost, neither in [(600, 86, 150, 764), (700, 260, 88, 271), (5000, 900, 850, 3292)]:
        tango = tango_interval(gained, lost, both + gained + lost + neither)
        assert tango == pytest.approx(newcombe_interval(both, gained, lost, neither), abs=1e-3)


def test_mid_p_published() -> None:
    """Fagerland, Lydersen & Laake 2013 and 2014: airway hyper-responsiveness, complete response (contingencytables)."""
    assert mcnemar_mid_p(1, 7) == pytest.approx(0.0391, abs=5e-5)
    assert mcnemar_mid_p(6, 16) == pytest.approx(0.034690, abs=5e-7)
    assert mcnemar([[0, 1], [7, 0]], exact=True).pvalue == pytest.approx(0.0703, abs=5e-5)


@pytest.mark.parametrize(("a", "b"), [(0, 1), (0, 12), (1, 7), (30, 52), (499, 43), (88, 260), (4_000, 4_200)])
def test_mid_p_is_the_exact_p_less_one_point_probability(a: int, b: int) -> None:
    """Fagerland 2013: mid-p = exact two-sided p - C(n, a) 2^-n where a != b."""
    from scipy.stats import binom

    exact = mcnemar([[0, a], [b, 0]], exact=True).pvalue
    assert mcnemar_mid_p(a, b) == pytest.approx(exact - binom.pmf(a, a + b, 0.5), rel=1e-6)
    assert mcnemar_mid_p(a, b) == mcnemar_mid_p(b, a)


def test_mid_p_where_both_flip_equally_often() -> None:
    assert mcnemar_mid_p(0, 0) == 1
    assert mcnemar_mid_p(1, 1) == 1 - 2 / 4 / 2
    assert mcnemar_mid_p(5, 5) == pytest.approx(1 - 252 / 1024 / 2)


def test_mid_p_survives_large_and_extreme_counts() -> None:
    half = 5_000_000
    assert 2 * (1 - mcnemar_mid_p(half, half)) == pytest.approx(1 / np.sqrt(np.pi * half), rel=1e-6)  # Stirling
    assert 0 < mcnemar_mid_p(0, 900) < 1e-200


@pytest.mark.parametrize(
    ("gained", "lost", "n"), [(0, 0, 9), (3, 0, 3), (5, 5, 10), (86, 150, 1600), (260, 88, 1319), (1, 0, 10**6)]
)
def test_error_of_a_paired_difference_is_that_of_the_mean_of_differences(gained: int, lost: int, n: int) -> None:
    differences = np.repeat([1, -1, 0], [gained, lost, n - gained - lost])
    error = paired_difference_error(gained, lost, n)
    assert error == pytest.approx(differences.std() / np.sqrt(n), rel=1e-9)
    assert error == paired_difference_error(lost, gained, n)


def test_error_of_a_paired_difference_published() -> None:
    """Agresti 2002, table 10.1: approval of the prime minister, 150 against 86 of 1600, 0.0095."""
    assert paired_difference_error(86, 150, 1600) == pytest.approx(0.0095, abs=5e-5)
    assert math.isnan(paired_difference_error(0, 0, 0))


def clustered(seed: int, items: int = 300, groups: int = 40) -> tuple[FloatArray, IntArray]:
    """Differences -1, 0, 1 that lean one way in each cluster; names of clusters with gaps."""
    rng = np.random.default_rng(seed)
    names = rng.integers(groups, size=items) * 7 - 5
    lean = rng.normal(size=8 * groups)
    return np.clip(np.round(lean[names] + rng.normal(size=items)), -1, 1), names


def test_clustered_error_is_millers_double_sum() -> None:
    d, clusters = clustered(0)
    n, mean = len(d), d.mean()
    within = sum(
        (d[i] - mean) * (d[j] - mean) for i in range(n) for j in range(n) if i != j and clusters[i] == clusters[j]
    )
    gained, lost = int((d > 0).sum()), int((d < 0).sum())
    squared = paired_difference_error(gained, lost, n) ** 2 + within / n**2
    assert clustered_difference_error(d, clusters) == pytest.approx(math.sqrt(squared), rel=1e-12)
    assert clustered_difference_error(d, clusters) > paired_difference_error(gained, lost, n)


def test_clustered_error_is_the_cluster_robust_one_of_regression() -> None:
    d, clusters = clustered(1)
    groups = {"groups": clusters - clusters.min(), "use_correction": False}
    fit = OLS(d, np.ones_like(d)).fit(cov_type="cluster", cov_kwds=groups)
    assert clustered_difference_error(d, clusters) == pytest.approx(fit.bse[0], rel=1e-9)


def test_clusters_of_one_item_change_nothing() -> None:
    d = np.repeat([1.0, -1.0, 0.0], [86, 150, 1364])
    alone = np.arange(len(d))
    assert clustered_difference_error(d, alone) == pytest.approx(paired_difference_error(86, 150, 1600), rel=1e-12)
    statistic = (86 - 150) ** 2 / (86 + 150) * 1599 / 1600  # McNemar without correction, times (G - 1) / G
    assert clustered_mcnemar_p(d, alone) == pytest.approx(chi2.sf(statistic, 1), rel=1e-12)


# What each of 29 psychiatrists (n patients) and of 21 patients (n glands) adds: (n, yes-no, no-yes).
PSYCHIATRY = """7 0 4, 6 1 2, 7 1 3, 6 1 2, 4 0 1, 6 3 3, 5 3 0, 8 3 2, 4 1 2, 7 0 4, 3 0 2, 6 1 4, 7 0 3, 6 0 2, 5 0 1,
    4 0 3, 6 0 1, 5 0 2, 4 3 0, 3 1 0, 5 1 0, 4 2 2, 4 0 1, 2 0 2, 3 0 2, 2 0 0, 2 0 0, 3 0 1, 1 0 1"""
THYROIDS = """3 0 2, 3 0 1, 3 0 0, 1 0 0, 3 0 1, 4 0 0, 3 0 0, 2 0 0, 2 1 0, 1 0 0, 3 0 0, 2 0 0, 3 0 0, 2 0 0, 2 0 2,
    3 0 0, 3 0 0, 3 0 1, 2 0 0, 1 0 0, 2 0 0"""


@pytest.mark.parametrize(("table", "items", "statistic"), [(PSYCHIATRY, 135, 7.19), (THYROIDS, 51, 2.86)])
def test_clustered_test_published(table: str, items: int, statistic: float) -> None:
    """Obuchowski's chi-square as Durkalski 2003 reports it; data and values from the R package clust.bin.pair."""
    rows = [tuple(int(field) for field in row.split()) for row in table.split(",")]
    d = np.concatenate([np.repeat([1.0, -1.0, 0.0], [b, c, n - b - c]) for n, b, c in rows])
    clusters = np.repeat(np.arange(len(rows)), [n for n, _, _ in rows])
    assert len(d) == items
    assert chi2.isf(clustered_mcnemar_p(d, clusters), 1) == pytest.approx(statistic, abs=5e-3)


def test_clustered_test_is_obuchowskis_from_variances_and_covariance() -> None:
    """Obuchowski 1998, equations 1 to 4, each model about the common rate; no cancelling of terms."""
    rng = np.random.default_rng(2)
    clusters = rng.integers(30, size=200)
    first, second = rng.integers(2, size=(2, 200))
    common, groups = (first.mean() + second.mean()) / 2, np.unique(clusters)
    x, y = (np.array([(side[clusters == g] - common).sum() for g in groups]) for side in (first, second))
    scale = len(groups) / (len(groups) - 1) / 200**2
    variance = scale * (x @ x) + scale * (y @ y) - 2 * scale * (x @ y)
    statistic = (first.mean() - second.mean()) ** 2 / variance
    difference = (second - first).astype(float)
    assert clustered_mcnemar_p(difference, clusters) == pytest.approx(chi2.sf(statistic, 1), rel=1e-9)
    assert clustered_mcnemar_p(-difference, clusters) == clustered_mcnemar_p(difference, clusters)


def test_clustered_test_without_evidence() -> None:
    assert clustered_mcnemar_p(np.zeros(5), np.arange(5)) == 1
    assert clustered_mcnemar_p(np.ones(50), np.zeros(50, dtype=int)) == 1  # one cluster is one observation
    assert clustered_mcnemar_p(np.array([]), np.array([], dtype=int)) == 1
    assert math.isnan(clustered_difference_error(np.array([]), np.array([], dtype=int)))


@given(st.integers(0, 10**6), st.integers(2, 60), st.floats(-3, 3))
def test_p_of_a_mean_difference_is_scipys(seed: int, n: int, shift: float) -> None:
    d = np.random.default_rng(seed).normal(shift, size=n)
    assert mean_difference_p(d) == pytest.approx(ttest_1samp(d, 0).pvalue, rel=1e-9, abs=1e-300)
    assert mean_difference_p(-1e3 * d) == pytest.approx(mean_difference_p(d), rel=1e-9, abs=1e-300)
    assert mean_difference_p(d, np.arange(n)[::-1]) == pytest.approx(mean_difference_p(d), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("seed", range(4))
def test_p_of_a_mean_difference_by_cluster_is_that_of_regression(seed: int) -> None:
    d, clusters = clustered(seed, groups=5 + 10 * seed)
    fit = OLS(d, np.ones_like(d)).fit(cov_type="cluster", cov_kwds={"groups": clusters - clusters.min()}, use_t=True)
    assert mean_difference_p(d, clusters) == pytest.approx(fit.pvalues[0], rel=1e-9)


def test_p_of_a_mean_difference_published() -> None:
    """Student 1908, table of Cushny & Peebles: hyoscyamine against hyoscine, t = 4.06, p = 0.00283 (R's sleep data)."""
    d = np.array([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])
    assert mean_difference_p(d) == pytest.approx(0.002833, abs=5e-7)


def test_p_of_a_mean_difference_without_spread() -> None:
    assert mean_difference_p(np.zeros(5)) == 1
    assert mean_difference_p(np.array([0.1, 0.2, -0.3] * 2), np.repeat([0, 1], 3)) == 1  # sums to 5e-17, twice
    assert mean_difference_p(np.full(3, 0.1)) == 2 * 0.5**3  # all rose by the same: the sign-flip test
    assert mean_difference_p(np.full(12, -1.0), np.repeat([0, 1, 2, 3], 3)) == 2 * 0.5**4
    assert mean_difference_p(np.full(5000, 1.0)) == 0
    for values, clusters in [([], None), ([1.0], None), ([1.0, 2.0], [3, 3])]:
        named = None if clusters is None else np.array(clusters)
        assert math.isnan(mean_difference_p(np.array(values), named))


def test_p_of_a_mean_difference_is_uniform_with_few_clusters_of_no_difference() -> None:
    rng, clusters = np.random.default_rng(0), np.repeat(np.arange(6), 5)
    p = [mean_difference_p(rng.normal(size=6)[clusters] + rng.normal(size=30), clusters) for _ in range(4000)]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 4000))


@pytest.mark.parametrize("clusters", [2, 3, 4, 10, 40, 10**6])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_few_clusters_widen_an_interval(clusters: int, confidence: float) -> None:
    tail = (1 + confidence) / 2
    expected = math.sqrt(clusters / (clusters - 1)) * t.ppf(tail, clusters - 1) / norm.ppf(tail)
    assert few_clusters_factor(clusters, confidence) == pytest.approx(expected, rel=1e-9)
    assert few_clusters_factor(clusters, confidence) > 1


def test_few_clusters_widen_an_interval_to_that_of_the_t_test() -> None:
    d, clusters = clustered(3, groups=8)
    error, factor = clustered_difference_error(d, clusters), few_clusters_factor(len(np.unique(clusters)), 0.95)
    shift = float(d.mean() - norm.ppf(0.975) * error * factor)  # then the interval's end is 0
    assert mean_difference_p(d - shift, clusters) == pytest.approx(0.05, rel=1e-9)
    assert math.isnan(few_clusters_factor(1, 0.95))
    assert math.isnan(few_clusters_factor(0, 0.95))


def test_division_by_nothing_is_undefined() -> None:
    assert divide(np.array([1, 0, 3]), np.array([2, 0, 0])) == pytest.approx([0.5, math.nan, math.nan], nan_ok=True)
    assert divide(np.asarray(3), np.asarray(4)) == 0.75
    assert math.isnan(divide(np.asarray(0.5), np.asarray(0)))


P_VALUES = st.lists(st.floats(0, 1) | st.sampled_from([0.0, 0.01, 0.05, 1.0]), max_size=40).map(np.array)


@given(P_VALUES)
def test_benjamini_hochberg_equals_statsmodels_and_scipy(p: FloatArray) -> None:
    q = benjamini_hochberg(p)
    if len(p):
        assert q == pytest.approx(multipletests(p, method="fdr_bh")[1], rel=1e-12)
        assert q == pytest.approx(false_discovery_control(p), rel=1e-12)
    assert (q >= p).all()
    assert (np.diff(q[np.argsort(p, kind="stable")]) >= 0).all()


@given(P_VALUES, st.data())
def test_benjamini_hochberg_does_not_count_what_was_not_tested(p: FloatArray, data: st.DataObject) -> None:
    tested = np.array(data.draw(st.lists(st.booleans(), min_size=len(p), max_size=len(p))), dtype=bool)
    q = benjamini_hochberg(np.where(tested, p, np.nan))
    assert np.isnan(q[~tested]).all()
    assert (q[tested] == benjamini_hochberg(p[tested])).all()


def test_benjamini_hochberg_published() -> None:
    """Benjamini & Hochberg 1995, section 3: of 15 p-values their procedure rejects the four smallest at 5 %."""
    p = np.array(
        [
            0.0001,
            0.0004,
            0.0019,
            0.0095,
            0.0201,
            0.0278,
            0.0298,
            0.0344,
            0.0459,
            0.3240,
            0.4262,
            0.5719,
            0.6528,
            0.7590,
            1,
        ]
    )
    assert (benjamini_hochberg(p) <= 0.05).sum() == 4


def test_bootstrap_interval_of_a_proportion_is_the_normal_one() -> None:
    counts = np.array([300, 700])
    draws = multinomial_draws(counts, seed=0)
    assert (draws.sum(axis=0) == 1000).all()
    half_width = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert percentile_interval(draws[0] / 1000) == pytest.approx((0.3 - half_width, 0.3 + half_width), abs=2e-3)


def test_bootstrap_is_seeded() -> None:
    counts = np.array([3, 5, 9])
    assert (multinomial_draws(counts, seed=4) == multinomial_draws(counts, seed=4)).all()
    assert (multinomial_draws(counts, seed=4) != multinomial_draws(counts, seed=5)).any()


def test_an_interval_whose_tail_is_undefined_is_undefined() -> None:
    draws = np.arange(1000, dtype=float)
    draws[:25] = np.nan
    assert percentile_interval(draws) is not None
    draws[25] = np.nan
    assert percentile_interval(draws) is None
