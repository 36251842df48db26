"""Bootstrap of items that carry a score, or come in clusters; `statistics.multinomial_draws` is that of plain counts.

Every statistic here is a function of sums over items, so a draw needs only how often each kind of unit (an item or a
whole cluster) was drawn: no row of N items is ever built per draw.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from muscle.measure.statistics import RESAMPLES, FloatArray, IntArray

BINS = 512
"""Kinds of scored items that a bootstrap tells apart; more distinct differences are pooled to these."""

SPLITS = 9
"""Clusters of more kinds than can be told apart are halved this often, into up to 2^SPLITS bins of similar ones."""

CHUNK = 2**21
"""Counts held at once: 16 MB of them."""

MULTINOMIAL_COST = 5
"""Drawing how often a kind was drawn takes this many times as long as drawing one unit (measured, numpy 2.4)."""


@dataclass(frozen=True)
class ScoreTotals:
    """Sums over items of how a score changed: () for the observed items, (R,) for R bootstrap draws."""

    gains: IntArray
    """Number of items that gained more than the tolerance."""
    regressions: IntArray
    """Number of items that lost more than the tolerance."""
    n: IntArray
    """Number of items; it varies between draws of clusters, so rates divide by it."""
    gain_sum: FloatArray
    """Sum of the gains' differences, >= 0, in the unit of the score."""
    regression_sum: FloatArray
    """Sum of the regressions' differences without their sign, >= 0."""
    change_sum: FloatArray
    """Sum of all differences; gain_sum - regression_sum where the tolerance is 0."""

    @classmethod
    def count(cls, differences: FloatArray, tolerance: float = 0.0) -> Self:
        """Sum over the observed items; the arguments are those of `score_draws`."""
        return cls._of(_score_features(differences, tolerance).sum(axis=0))

    @classmethod
    def _of(cls, sums: FloatArray) -> Self:  # (6,) or (6, R); the three that count are whole numbers
        return cls(*sums[:3].astype(np.int64), *sums[3:])


def score_draws(
    differences: FloatArray,
    seed: int,
    clusters: IntArray | None = None,
    tolerance: float = 0.0,
    resamples: int = RESAMPLES,
) -> ScoreTotals:
    """Bootstrap of per-item differences of a score (Efron & Tibshirani 1993, chapter 6), or of clusters of them.

    Items: a multinomial draw over the distinct differences. Where there are more than `BINS`, close ones share a bin
    and stand in with their mean, gains never with regressions. Counts and the centre of the sums stay exact; of their
    spread only that within bins is lost, and no bin is wider than 1/1000 of the range.
    Clusters: exact up to 2,560 of them, or 512 kinds; beyond that see `_draw_clusters`.

    Args:
        differences: (N,) new score minus old score per item; finite.
        seed: Seed of the draws, >= 0; the same seed gives the same draws.
        clusters: (N,) any integer that names the item's cluster; None draws items.
        tolerance: Differences up to this size, >= 0, are neither gain nor regression.
        resamples: Number of draws R.

    Returns:
        The totals in each draw, (R,) each.
    """
    if clusters is None:
        values, counts = np.unique(differences, return_counts=True)
        rows, counts = _pool(_score_features(values, tolerance), counts)
        return ScoreTotals._of(_draw_sums(rows, counts, seed, resamples))
    _, codes = np.unique(clusters, return_inverse=True)
    features = _score_features(differences, tolerance)
    rows = np.stack([np.bincount(codes, weights=column) for column in features.T], axis=1)
    sums = _draw_clusters(rows, seed, resamples)
    sums[:3] = np.rint(sums[:3])  # counts; what stands in for the spread within bins falls between them
    return ScoreTotals._of(sums)


def cluster_cell_draws(
    cells: IntArray, n_cells: int, clusters: IntArray, seed: int, resamples: int = RESAMPLES
) -> IntArray:
    """Bootstrap of whole clusters of items that matter only by the cell they fall in (Davison & Hinkley 1997, 3.8).

    Clusters with the same number of items in each cell are one kind, so a draw is multinomial over kinds. The order of
    the items and the names of the clusters do not matter. Exact up to 2,560 clusters, or 512 kinds of them;
    beyond that see `_draw_clusters`.

    Args:
        cells: (N,) cell of each item, 0..n_cells - 1.
        n_cells: Number of cells K.
        clusters: (N,) any integer that names the item's cluster.
        seed: Seed of the draws, >= 0; the same seed gives the same draws.
        resamples: Number of draws R.

    Returns:
        (K, R) items per cell in each draw. A draw has as many clusters as the data, not as many items: rates divide by
        the draw's own number.
    """
    names, codes = np.unique(clusters, return_inverse=True)
    table = np.bincount(codes * n_cells + cells, minlength=len(names) * n_cells).reshape(-1, n_cells)  # (G, K)
    return np.rint(_draw_clusters(table.astype(np.float64), seed, resamples)).astype(np.int64)


def _score_features(differences: FloatArray, tolerance: float) -> FloatArray:
    """(N, 6) what each item adds to the fields of ScoreTotals, in their order."""
    gains, regressions = differences > tolerance, differences < -tolerance
    features: FloatArray = np.empty((len(differences), 6))
    features[:, 0], features[:, 1], features[:, 2] = gains, regressions, 1
    features[:, 3], features[:, 4], features[:, 5] = differences * gains, -differences * regressions, differences
    return features


def _pool(rows: FloatArray, counts: IntArray) -> tuple[FloatArray, IntArray]:
    """Average the rows of close differences until about BINS are left; rows rise in the last field, the difference."""
    if len(rows) <= BINS:
        return rows, counts
    change = rows[:, -1]
    # Half of it by rank, half by size: by rank alone a few huge differences would melt into a bin of many small ones.
    position = (np.cumsum(counts) - counts) / counts.sum() + (change - change[0]) / (change[-1] - change[0])
    bins = (position * (BINS / 2)).astype(np.int64)
    # A bin also ends where regressions end or gains begin.
    changed = (np.diff(bins) != 0) | (np.diff(rows[:, :2], axis=0) != 0).any(axis=1)
    starts = np.concatenate([[0], np.flatnonzero(changed) + 1])
    pooled = np.add.reduceat(counts, starts)
    return np.add.reduceat(rows * counts[:, None], starts, axis=0) / pooled[:, None], pooled


def _draw_clusters(rows: FloatArray, seed: int, resamples: int) -> FloatArray:
    """(F, R) sums over clusters drawn with replacement, of what each of G clusters adds: rows (G, F).

    Exact where that takes no longer than 2^SPLITS kinds would. Else similar clusters share a bin and stand in with its
    mean, and a normal draw with the covariance that the rows have about their bins' means stands in for the rest. So
    the mean and the covariance of all sums are exactly those of the bootstrap, and their shape is that between bins;
    lost is only the skewness within bins, which a sum over thousands of clusters hardly has.
    """
    kinds, counts = _distinct_rows(rows)
    if min(len(rows), MULTINOMIAL_COST * len(kinds)) <= MULTINOMIAL_COST * 2**SPLITS:
        return _draw_sums(kinds, counts, seed, resamples)
    bins = _similar(kinds, counts)
    pooled = np.bincount(bins, weights=counts).astype(np.int64)
    means = np.stack([np.bincount(bins, weights=column * counts) for column in kinds.T], axis=1) / pooled[:, None]
    # A triangular root of the covariance, straight from the rows: a column that does not vary stays exactly 0.
    root = np.linalg.qr((kinds - means[bins]) * np.sqrt(counts)[:, None], mode="r")
    within = np.random.default_rng([seed, 1]).standard_normal((resamples, len(root))) @ root
    sums: FloatArray = np.maximum(_draw_sums(means, pooled, seed, resamples) + within.T, _floor(rows))
    return sums


def _floor(rows: FloatArray) -> FloatArray:
    """(F, 1) 0 for what is never below 0 in any cluster, and so in no sum of them; no bound for the others."""
    return np.where(rows.min(axis=0) >= 0, 0.0, -np.inf)[:, None]


def _similar(rows: FloatArray, counts: IntArray) -> IntArray:
    """(P,) bin of each kind of cluster: SPLITS times every bin is cut at its mean, along the field that varies most."""
    deviation = np.sqrt(np.cov(rows.T, fweights=counts).diagonal())
    scaled = rows / np.where(deviation > 0, deviation, 1)
    bins = np.zeros(len(rows), dtype=np.int64)
    for _ in range(SPLITS):
        sizes = np.bincount(bins, weights=counts)
        means = np.stack([np.bincount(bins, weights=column * counts) for column in scaled.T], axis=1) / sizes[:, None]
        away = scaled - means[bins]
        spread = np.stack([np.bincount(bins, weights=column * counts) for column in (away**2).T], axis=1)
        above = away[np.arange(len(rows)), spread.argmax(axis=1)[bins]] > 0
        _, bins = np.unique(2 * bins + above, return_inverse=True)  # renumbered: no bin is empty
    return bins


def _distinct_rows(rows: FloatArray) -> tuple[FloatArray, IntArray]:
    """The distinct rows and how often each occurs, sorted; np.unique(axis=0) takes 10 times as long."""
    rows = rows[np.lexsort(rows.T)]
    starts = np.flatnonzero(np.append(True, (np.diff(rows, axis=0) != 0).any(axis=1))[: len(rows)])
    return rows[starts], np.diff(np.append(starts, len(rows)))


def _draw_sums(rows: FloatArray, counts: IntArray, seed: int, resamples: int) -> FloatArray:
    """(F, R) sums over units drawn with replacement, of what a unit of each kind adds: rows (P, F), counts (P,)."""
    units = int(counts.sum())
    sums: FloatArray = np.zeros((resamples, rows.shape[1]))
    if units == 0:
        return sums.T
    rng = np.random.default_rng(seed)
    by_kind = MULTINOMIAL_COST * len(rows) < units
    if not by_kind:
        rows = np.repeat(rows, counts, axis=0)
    step = max(1, CHUNK // len(rows))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        times = rng.multinomial(units, counts / units, size) if by_kind else _draw_units(rng, units, size)
        sums[start : start + size] = times @ rows
    return sums.T


def _draw_units(rng: np.random.Generator, units: int, size: int) -> IntArray:
    """(size, units) how often each unit comes up in each of `size` draws of as many units."""
    drawn = rng.integers(units, size=(size, units)) + units * np.arange(size)[:, None]
    return np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units)
