"""Several draws per item against scipy's tests, loops over all pairs of draws, and simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, fisher_exact
from statsmodels.stats.proportion import confint_proportions_2indep

from muscle.measure.repeats import (
    Draws,
    Repeats,
    expected_flips,
    fisher_exact_p,
    flip_floor,
    reliable_change_index,
    reliable_changes,
    smallest_detectable_change,
)


def tables(*sizes: tuple[int, int]) -> np.ndarray:
    """(4, M) every k1, n1, k2, n2 of the given n1, n2."""
    return np.array(
        [(k1, n1, k2, n2) for n1, n2 in sizes for k1, k2 in itertools.product(range(n1 + 1), range(n2 + 1))]
    ).T


def draws(right: list[int], total: list[int] | int) -> Draws:
    return Draws(np.array(right), np.broadcast_to(total, len(right)).copy())


def test_fisher_equals_scipy_on_every_small_table() -> None:
    """Sizes that differ and tables that tie included, shuffled, so that rows of all margins are asked for at once."""
    asked = np.random.default_rng(0).permutation(tables((5, 5), (8, 8), (3, 10), (7, 4), (0, 3)), axis=1)
    theirs = [fisher_exact([[k1, n1 - k1], [k2, n2 - k2]]).pvalue for k1, n1, k2, n2 in asked.T]
    assert fisher_exact_p(*asked) == pytest.approx(theirs, rel=1e-10)


def test_fisher_equals_scipy_on_large_tables() -> None:
    asked = np.array([[3, 1000, 40, 900], [500, 1000, 430, 1000], [0, 64, 64, 64], [1, 1, 0, 10_000]]).T
    theirs = [fisher_exact([[k1, n1 - k1], [k2, n2 - k2]]).pvalue for k1, n1, k2, n2 in asked.T]
    assert fisher_exact_p(*asked) == pytest.approx(theirs, rel=1e-8)


def test_fisher_published() -> None:
    """Fisher 1935, the lady tasting tea: 3 of 4 against 1 of 4, one-sided 17/70, two-sided 34/70."""
    assert fisher_exact_p(*np.array([[3], [4], [1], [4]])) == pytest.approx(34 / 70)
    assert fisher_exact_p(*np.zeros((4, 0), dtype=np.int64)).shape == (0,)


@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_fisher_does_not_care_which_side_is_which(n1: int, n2: int, data: st.DataObject) -> None:
    k1, k2 = data.draw(st.integers(0, n1)), data.draw(st.integers(0, n2))
    asked = [(k1, n1, k2, n2), (k2, n2, k1, n1), (n1 - k1, n1, n2 - k2, n2)]
    p = fisher_exact_p(*np.array(asked).T)
    assert p == pytest.approx(p[0], rel=1e-12)
    assert 0 < p[0] <= 1


def test_reliable_changes_of_a_worked_example() -> None:
    """Items: lost for good, gained for good, wobbling, the same, without draws of the new model."""
    old, new = draws([20, 0, 11, 20, 5], 20), draws([0, 18, 9, 20, 0], [20, 20, 20, 20, 0])
    found = reliable_changes(old, new)
    p = [fisher_exact([[a, 20 - a], [b, 20 - b]]).pvalue for a, b in [(20, 0), (0, 18), (11, 9), (20, 20)]]
    assert found.p_value == pytest.approx([*p, math.nan], nan_ok=True)
    assert found.q_value == pytest.approx([*false_discovery_control(p), math.nan], nan_ok=True)
    assert found.change == pytest.approx([-1, 0.9, -0.1, 0, math.nan], nan_ok=True)
    assert found.regression.tolist() == [True, False, False, False, False]
    assert found.gain.tolist() == [False, True, False, False, False]


def test_a_small_change_is_not_reliable_however_sure() -> None:
    old, new = draws([500, 500], 1000), draws([690, 700], 1000)
    found = reliable_changes(old, new)
    assert (found.q_value < 1e-6).all()
    assert found.gain.tolist() == [False, True]  # 0.20 itself counts, though 0.7 - 0.5 < 0.2 in floating point


def test_unchanged_items_are_rarely_found() -> None:
    rng = np.random.default_rng(0)
    p, n = rng.beta(2, 1, size=2000), np.full(2000, 20)
    found = reliable_changes(Draws(rng.binomial(n, p), n), Draws(rng.binomial(n, p), n))
    assert (found.gain | found.regression).sum() <= 1


def test_smallest_p_of_fisher_published() -> None:
    """Reference page: .0079 at K = 5 and .00016 at K = 8, so that no change is to be found among 10 and 1000 items."""
    assert fisher_exact_p(*np.array([[0, 0], [5, 8], [5, 8], [5, 8]])) == pytest.approx([0.0079, 0.00016], abs=5e-5)
    assert smallest_detectable_change(5, 5, items=10) is None
    assert smallest_detectable_change(8, 8, items=1000) is None
    assert smallest_detectable_change(10, 10, items=1000) == 1.0
    assert smallest_detectable_change(1000, 1000, items=10) == pytest.approx(0.2)
    assert smallest_detectable_change(0, 10, items=10) is None


@pytest.mark.parametrize(("n_old", "n_new", "items"), [(10, 10, 1), (10, 10, 40), (10, 16, 100), (20, 20, 1319)])
def test_smallest_detectable_change_is_found_and_nothing_smaller(n_old: int, n_new: int, items: int) -> None:
    """By trying every change of one item among others that do not change."""
    found = set()
    for k_old, k_new in itertools.product(range(n_old + 1), range(n_new + 1)):
        old = draws([k_old] + [n_old] * (items - 1), n_old)
        new = draws([k_new] + [n_new] * (items - 1), n_new)
        changes = reliable_changes(old, new)
        if changes.gain[0] or changes.regression[0]:
            found.add(abs(k_new / n_new - k_old / n_old))
    assert smallest_detectable_change(n_old, n_new, items) == pytest.approx(min(found))


@pytest.mark.parametrize("items", [1, 30])
def test_smallest_detectable_change_is_that_of_the_whole_grid(items: int) -> None:
    for n_old, n_new in itertools.product(range(1, 13), repeat=2):
        asked = tables((n_old, n_new))
        change = np.abs(asked[2] / n_new - asked[0] / n_old)
        found = change[(fisher_exact_p(*asked) <= 0.05 / items) & (change >= 0.2 - 1e-9)]
        expected = float(found.min()) if len(found) else None
        assert smallest_detectable_change(n_old, n_new, items) == pytest.approx(expected)


@pytest.mark.parametrize(("n_old", "n_new"), [(3000, 3000), (3000, 2999), (20_000, 19_001)])
def test_smallest_detectable_change_of_thousands_of_draws_is_cheap(n_old: int, n_new: int) -> None:
    """The grid of 3000 by 3000 took 870 MB; here no array is longer than the draws."""
    import tracemalloc

    tracemalloc.start()
    assert smallest_detectable_change(n_old, n_new, items=1000) == pytest.approx(0.2, abs=1e-4)
    assert tracemalloc.get_traced_memory()[1] < 8e6
    tracemalloc.stop()


@pytest.mark.parametrize(("k1", "n1", "k2", "n2"), [(7, 10, 2, 10), (0, 5, 5, 5), (3, 8, 12, 20), (10, 10, 10, 10)])
def test_reliable_change_index_is_agresti_and_caffos(k1: int, n1: int, k2: int, n2: int) -> None:
    """Their interval is the change, plus or minus 1.96 times its error: the index is what gives those two."""
    low, high = confint_proportions_2indep(k2, n2, k1, n1, compare="diff", method="agresti-caffo")
    index = reliable_change_index(draws([k1], n1), draws([k2], n2))
    assert index == pytest.approx(1.959964 * (low + high) / (high - low), rel=1e-6, abs=1e-12)


def test_reliable_change_index_is_defined_wherever_both_models_were_drawn() -> None:
    old, new = draws([0, 10, 10, 3], 10), draws([10, 10, 0, 0], [10, 10, 10, 0])
    index = reliable_change_index(old, new)
    assert index[0] == -index[2] > 4
    assert index[1] == 0
    assert math.isnan(index[3])


def test_expected_flips_and_floor_are_shares_of_pairs_of_draws() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 7, size=(30, 2))
    outcomes = [(rng.integers(2, size=a), rng.integers(2, size=b)) for a, b in sizes]
    old, new = (draws([int(pair[i].sum()) for pair in outcomes], sizes[:, i].tolist()) for i in (0, 1))
    lost = [np.mean([x > y for x in a for y in b]) for a, b in outcomes]
    gained = [np.mean([x < y for x in a for y in b]) for a, b in outcomes]
    itself = [np.mean([x > y for x, y in itertools.permutations(a, 2)]) for a, _ in outcomes]
    assert expected_flips(old, new) == pytest.approx((np.mean(lost), np.mean(gained)))
    assert expected_flips(new, old) == pytest.approx((np.mean(gained), np.mean(lost)))
    assert flip_floor(old) == pytest.approx(np.mean(itself))


def test_items_that_say_nothing_are_left_out() -> None:
    old, new = draws([4, 1, 0, 2], [8, 1, 0, 2]), draws([2, 0, 3, 0], [8, 1, 3, 0])
    assert expected_flips(old, new) == pytest.approx(((4 / 8 * 6 / 8 + 1) / 2, (4 / 8 * 2 / 8 + 0) / 2))
    assert flip_floor(old) == pytest.approx((4 * 4 / (8 * 7) + 0) / 2)  # of the items drawn 8 times and twice
    assert math.isnan(flip_floor(draws([1, 0], 1)))


def test_an_unchanged_model_flips_as_often_as_its_floor() -> None:
    rng = np.random.default_rng(1)
    p, n = rng.random(20_000), np.full(20_000, 5)
    old, new = (Draws(rng.binomial(n, p), n) for _ in range(2))
    nfr, pfr = expected_flips(old, new)
    assert [nfr, pfr, flip_floor(old), flip_floor(new)] == pytest.approx([1 / 6] * 4, abs=3e-3)  # integral of p (1 - p)


def test_summary() -> None:
    old, new = draws([20, 0, 11, 20, 5], [20, 20, 20, 20, 2]), draws([0, 18, 9, 20, 0], [20, 20, 20, 20, 0])
    summary = Repeats.summarise(old, new)
    tested = slice(0, 4)
    old, new = (Draws(side.right[tested], side.total[tested]) for side in (old, new))
    assert summary == Repeats(
        items=4,
        fewest_draws=20,
        nfr=expected_flips(old, new)[0],
        pfr=expected_flips(old, new)[1],
        floor_old=flip_floor(old),
        floor_new=flip_floor(new),
        reliable_gains=1,
        reliable_regressions=1,
        index_gains=1,
        index_regressions=1,
        smallest_detectable=smallest_detectable_change(20, 20, items=4),
    )


def test_summary_of_nothing() -> None:
    summary = Repeats.summarise(draws([1, 2], [2, 2]), draws([0, 0], 0))
    assert summary.items == summary.fewest_draws == summary.reliable_gains == summary.index_regressions == 0
    assert math.isnan(summary.nfr)
    assert math.isnan(summary.floor_old)
    assert summary.smallest_detectable is None
