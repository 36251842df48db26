"""Intervals and tests against statsmodels and published worked examples."""

import math

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from muscle.measure.statistics import (
    mcnemar_mid_p,
    multinomial_draws,
    paired_difference_error,
    percentile_interval,
    wilson_interval,
)


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


def test_mid_p_published() -> None:
    """Fagerland, Lydersen & Laake 2013: airway hyper-responsiveness before and after transplantation, 1 against 7."""
    assert mcnemar_mid_p(1, 7) == pytest.approx(0.0391, abs=5e-5)
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
