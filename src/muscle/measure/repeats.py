"""Several draws per item (temperature > 0): which items changed for good, and how much flips by chance alone."""

from collections import Counter
from dataclasses import dataclass
from typing import Self

import numpy as np

from muscle.measure.metrics import BoolArray
from muscle.measure.statistics import FloatArray, IntArray, benjamini_hochberg, divide

FALSE_DISCOVERY_RATE = 0.05
MINIMUM_CHANGE = 0.20
"""A reliable change is also at least this large, in share of draws that are right (arXiv:2608.17719)."""

INDEX_CUT = 1.96
"""Reliable change indices beyond this count as changes (Jacobson & Truax 1991)."""

ADVISED_DRAWS = 10
"""Below this many draws per item and model Fisher's test finds next to nothing once many items are tested."""


@dataclass(frozen=True)
class Draws:
    """How often one model got each item right."""

    right: IntArray
    """(N,) draws that are right, 0..total."""
    total: IntArray
    """(N,) scored draws; may differ between items; 0 where none was scored."""

    @property
    def rate(self) -> FloatArray:
        """(N,) share of draws that are right; NaN where there is no draw."""
        return divide(self.right, self.total)


@dataclass(frozen=True)
class ReliableChanges:
    """The test of each item, (N,) each; NaN and False where a model has no draw of it."""

    change: FloatArray
    """dp: share of right draws, new minus old; in [-1, 1]."""
    p_value: FloatArray
    """Fisher's exact test, two-sided."""
    q_value: FloatArray
    """p_value adjusted over the items that have draws of both models (Benjamini & Hochberg)."""
    gain: BoolArray
    """q_value <= 0.05 and dp >= 0.20."""
    regression: BoolArray
    """q_value <= 0.05 and dp <= -0.20."""


@dataclass(frozen=True)
class Repeats:
    """What several draws per item say about a model update. Rates are shares in [0, 1]; NaN is undefined."""

    items: int
    """Items with draws of both models; the others are in nothing else here."""
    fewest_draws: int
    """Smallest number of draws that a model has of one of them; advise ADVISED_DRAWS. 0 without items."""
    nfr: float
    """Expected NFR of one draw of each model."""
    pfr: float
    """Expected PFR of one draw of each model."""
    floor_old: float
    """NFR, and PFR, of the old model against itself: the A/A floor. NaN where no item was drawn twice."""
    floor_new: float
    """The same of the new model."""
    reliable_gains: int
    reliable_regressions: int
    index_gains: int
    """Items beyond the cut of the reliable change index, without correction for testing many."""
    index_regressions: int
    smallest_detectable: float | None
    """Smallest |dp| that could be found at all, with the commonest numbers of draws; None: no change could be."""

    @classmethod
    def summarise(cls, old: Draws, new: Draws) -> Self:
        """Compare two models' draws of the same items."""
        tested = (old.total > 0) & (new.total > 0)
        items = int(np.count_nonzero(tested))
        old, new = (Draws(draws.right[tested], draws.total[tested]) for draws in (old, new))
        changes, index = reliable_changes(old, new), reliable_change_index(old, new)
        nfr, pfr = expected_flips(old, new)
        pairs = Counter(zip(old.total.tolist(), new.total.tolist(), strict=True)).most_common(1)
        return cls(
            items=items,
            fewest_draws=int(min(old.total.min(), new.total.min())) if items else 0,
            nfr=nfr,
            pfr=pfr,
            floor_old=flip_floor(old),
            floor_new=flip_floor(new),
            reliable_gains=int(np.count_nonzero(changes.gain)),
            reliable_regressions=int(np.count_nonzero(changes.regression)),
            index_gains=int(np.count_nonzero(index > INDEX_CUT)),
            index_regressions=int(np.count_nonzero(index < -INDEX_CUT)),
            smallest_detectable=smallest_detectable_change(*pairs[0][0], items) if pairs else None,
        )


def fisher_exact_p(k1: IntArray, n1: IntArray, k2: IntArray, n2: IntArray) -> FloatArray:
    """Two-sided Fisher's exact test of k1 of n1 against k2 of n2, for many tables at once.

    The sum over tables with the same margins that are no likelier than the one seen (Fisher 1935); likelier by less
    than a relative 1e-7 is a tie, as in R's fisher.test. Tables with the same margins share their work.

    Args:
        k1: (M,) successes among the first, 0..n1.
        n1: (M,) trials of the first, >= 0.
        k2: (M,) successes among the second, 0..n2.
        n2: (M,) trials of the second, >= 0.

    Returns:
        (M,) p-values in (0, 1]; 1 where a margin is 0.
    """
    if len(k1) == 0:
        return np.empty(0)
    margins = (n1, n2, k1 + k2)
    keys = np.ravel_multi_index(margins, [int(margin.max()) + 1 for margin in margins])
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    # One row of p-values per set of margins, end to end; `starts` says where k1 = 0 is or would be.
    rows = [_fisher_p_values(*(int(margin[i]) for margin in margins)) for i in first]
    ends = np.cumsum([len(row) for row in rows])
    lows = np.maximum(0, margins[2] - n2)[first]
    starts = ends - [len(row) for row in rows] - lows
    p: FloatArray = np.concatenate(rows)[starts[which] + k1]
    return p


def reliable_changes(old: Draws, new: Draws) -> ReliableChanges:
    """Items whose share of right draws changed beyond chance: Fisher's exact test, Benjamini-Hochberg, |dp| >= 0.20.

    As arXiv:2608.17719. Both models' draws are of the same N items in the same order.
    """
    tested = (old.total > 0) & (new.total > 0)
    p = np.where(tested, fisher_exact_p(old.right, old.total, new.right, new.total), np.nan)
    q = benjamini_hochberg(p)
    change = new.rate - old.rate
    found = (q <= FALSE_DISCOVERY_RATE) & _large(change)
    return ReliableChanges(change, p, q, gain=found & (change > 0), regression=found & (change < 0))


def reliable_change_index(old: Draws, new: Draws) -> FloatArray:
    """Reliable change index dp / sqrt(SEM_old^2 + SEM_new^2) of each item (Jacobson & Truax 1991).

    SEM^2 = p (1 - p) / K is 0 for an item that came out always right or always wrong, which K draws do not prove: so
    each model gets one right and one wrong draw more, in dp and in SEM, as in Agresti & Caffo's interval (2000).

    Returns:
        (N,) the index, roughly standard normal without a change, above 0 for a gain; NaN where a model has no draw.
    """
    rates, squares = [], []
    for draws in (old, new):
        rate = np.where(draws.total > 0, (draws.right + 1) / (draws.total + 2), np.nan)
        rates.append(rate)
        squares.append(rate * (1 - rate) / (draws.total + 2))
    index: FloatArray = (rates[1] - rates[0]) / np.sqrt(squares[0] + squares[1])
    return index


def smallest_detectable_change(n_old: int, n_new: int, items: int) -> float | None:
    """Smallest |dp| that `reliable_changes` could find in one item, were it the only one that changed.

    Then Benjamini-Hochberg asks for p <= 0.05 / items. It is the best case: mostly an item that one model always gets
    right or always wrong; from the middle it takes more.

    Every pair of counts is tried, one set of margins at a time, so that memory grows with the draws and not with their
    square; margins that hold no smaller change than the one in hand are not tested, which is most from 200 draws on.

    Args:
        n_old: Draws of the item by the old model, >= 0.
        n_new: Draws of the item by the new model, >= 0.
        items: Number of items tested, >= 1.

    Returns:
        |dp| in [0.20, 1], exact, or within 1e-4 where it is that close to 0.20; None where even 0 of n_old against
        n_new of n_new would not be found.
    """
    if not n_old or not n_new:
        return None
    smallest = np.inf
    # Margins with more right than wrong draws mirror those with as many more wrong: same |dp|, same p.
    for right in range((n_old + n_new) // 2 + 1):
        k_old = np.arange(max(0, right - n_new), min(n_old, right) + 1)
        change = np.abs((right - k_old) / n_new - k_old / n_old)
        smaller = _large(change) & (change < smallest - 1e-9)
        if not smaller.any():
            continue
        found = smaller & (_fisher_p_values(n_old, n_new, right) <= FALSE_DISCOVERY_RATE / items)
        smallest = change[found].min(initial=smallest)
        if smallest < MINIMUM_CHANGE + 1e-4:
            break
    return float(smallest) if np.isfinite(smallest) else None


def expected_flips(old: Draws, new: Draws) -> tuple[float, float]:
    """Expected (NFR, PFR) of one draw of each model: means over items of p_old (1 - p_new) and (1 - p_old) p_new.

    Unbiased, since the models' draws are independent. Items without draws of both are left out; NaN without items.
    """
    p_old, p_new = old.rate, new.rate
    return _mean(p_old * (1 - p_new)), _mean((1 - p_old) * p_new)


def flip_floor(draws: Draws) -> float:
    """NFR between two draws of one model: mean over items of k (K - k) / (K (K - 1)); its PFR is the same.

    The share of ordered pairs of an item's own K draws of which the first is right and the second wrong. Items drawn
    fewer than twice are left out; NaN without items.
    """
    return _mean(divide(draws.right * (draws.total - draws.right), draws.total * (draws.total - 1)))


def _fisher_p_values(n1: int, n2: int, successes: int) -> FloatArray:
    """The p-value of each table with these margins, by rising k1 from max(0, successes - n2)."""
    k1 = np.arange(max(0, successes - n2), min(n1, successes) + 1)
    chance = np.exp(_log_choose(n1, k1) + _log_choose(n2, successes - k1) - _log_choose(n1 + n2, np.array(successes)))
    rising = np.sort(chance)
    no_likelier = np.searchsorted(rising, chance * (1 + 1e-7), side="right")
    p: FloatArray = np.minimum(np.cumsum(rising)[no_likelier - 1], 1.0)
    return p


def _log_choose(n: int, k: IntArray) -> FloatArray:
    from scipy.special import gammaln

    logarithm: FloatArray = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return logarithm


def _large(change: FloatArray) -> BoolArray:
    large: BoolArray = np.abs(change) >= MINIMUM_CHANGE - 1e-9  # 3/10 - 1/10 is 0.19999999999999998
    return large


def _mean(values: FloatArray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else np.nan
