"""The bootstrap without rows against the bootstrap with rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, norm

from muscle.measure import resampling
from muscle.measure.resampling import BINS, SPLITS, ScoreTotals, cluster_cell_draws, score_draws
from muscle.measure.statistics import FloatArray, IntArray, clustered_difference_error, divide, multinomial_draws

FIELDS = ["gains", "regressions", "n", "gain_sum", "regression_sum", "change_sum"]


def fields(totals: ScoreTotals) -> FloatArray:
    return np.stack([getattr(totals, name) for name in FIELDS])


def naive_totals(d: FloatArray, tolerance: float) -> list[float]:
    gains, regressions = [x for x in d if x > tolerance], [x for x in d if x < -tolerance]
    return [len(gains), len(regressions), len(d), sum(gains), -sum(regressions), sum(d)]


def naive_cluster_draws(values: FloatArray, clusters: IntArray, resamples: int) -> list[FloatArray]:
    """Whole clusters, row by row."""
    members = [np.flatnonzero(clusters == name) for name in np.unique(clusters)]
    rng = np.random.default_rng(99)
    return [
        values[np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])]
        for _ in range(resamples)
    ]


def scores(seed: int, items: int) -> FloatArray:
    """Differences as of ROUGE: many zeros, skewed, all others distinct."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(items) < 0.3, 0.0, rng.beta(2, 5, size=items) - rng.beta(2, 4, size=items))


def cells_in_clusters(seed: int, items: int, groups: int) -> tuple[IntArray, IntArray]:
    """Cells 0..2 that lean one way in each cluster; clusters of different sizes."""
    rng = np.random.default_rng(seed)
    clusters = np.sort(rng.integers(groups, size=items) * rng.integers(1, 3, size=items))
    lean = rng.normal(size=2 * groups)
    return np.clip(np.round(lean[clusters] + rng.normal(size=items)), -1, 1).astype(int) + 1, clusters


def noise(resamples: int) -> float:
    """Four standard errors of a 2.5 % quantile of that many normal draws, in standard deviations."""
    return 4 * float(np.sqrt(0.025 * 0.975 / resamples) / norm.pdf(norm.ppf(0.025)))


# Few items to a cluster: few kinds, drawn by kind. Many: every cluster is its own kind, drawn one by one.
@pytest.mark.parametrize(("items", "groups"), [(2000, 900), (2000, 60)])
def test_cluster_draws_have_the_moments_of_row_draws(items: int, groups: int) -> None:
    cells, clusters = cells_in_clusters(3, items, groups)
    draws = cluster_cell_draws(cells, 3, clusters, seed=0)
    naive = np.array([np.bincount(rows, minlength=3) for rows in naive_cluster_draws(cells, clusters, 3000)]).T
    assert draws.shape == (3, 10_000)
    assert draws.mean(axis=1) == pytest.approx(np.bincount(cells, minlength=3), rel=0.01)
    assert np.cov(draws) == pytest.approx(np.cov(naive), rel=0.1, abs=0.05 * np.cov(naive).max())
    change = (draws[2] - draws[0]) / draws.sum(axis=0)
    assert change.std() == pytest.approx(clustered_difference_error(cells - 1.0, clusters), rel=0.03)


def test_cluster_draws_are_sums_of_whole_clusters() -> None:
    cells, clusters = np.array([0, 0, 1, 1, 1, 1]), np.array([5, 5, 5, -2, -2, -2])
    draws = cluster_cell_draws(cells, 2, clusters, seed=1, resamples=500)
    assert set(zip(*draws.tolist(), strict=True)) == {(4, 2), (2, 4), (0, 6)}


def test_clusters_of_one_item_are_items() -> None:
    cells = np.repeat([0, 1, 2], [50, 900, 50])
    draws = cluster_cell_draws(cells, 4, np.arange(1000), seed=3)
    plain = multinomial_draws(np.array([50, 900, 50, 0]), seed=4)
    assert (draws.sum(axis=0) == 1000).all()
    assert (draws[3] == 0).all()
    assert np.cov(draws) == pytest.approx(np.cov(plain), abs=4)


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_cluster_draws_ignore_the_order_of_items_and_the_names_of_clusters(seed: int) -> None:
    cells, clusters = cells_in_clusters(seed, 80, 20)
    order = np.random.default_rng(seed).permutation(80)
    first = cluster_cell_draws(cells, 3, clusters, seed, resamples=50)
    assert (first == cluster_cell_draws(cells[order], 3, 1000 - clusters[order], seed, resamples=50)).all()


def test_same_seed_same_draws() -> None:
    cells, clusters = cells_in_clusters(0, 500, 50)
    first, again, other = (cluster_cell_draws(cells, 3, clusters, seed) for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes()
    assert (first != other).any()
    for named in (None, clusters):
        a, b, c = (fields(score_draws(scores(0, 500), seed, named, resamples=100)) for seed in (1, 1, 2))
        assert a.tobytes() == b.tobytes()
        assert (a != c).any()


@given(st.lists(st.floats(-1, 1) | st.sampled_from([-0.25, 0.0, 0.25]), max_size=30), st.sampled_from([0.0, 0.25]))
def test_totals_of_the_observed_items(differences: list[float], tolerance: float) -> None:
    d = np.array(differences)
    totals = ScoreTotals.count(d, tolerance)
    assert fields(totals) == pytest.approx(naive_totals(d, tolerance), abs=1e-12)
    assert totals.gains.dtype == totals.n.dtype == np.int64


# 500 distinct differences are drawn one by one; 500 rounded ones by value; 20,000 from bins.
@pytest.mark.parametrize(("items", "digits", "resamples"), [(500, 15, 4000), (500, 1, 4000), (20_000, 15, 700)])
def test_score_draws_have_the_intervals_of_row_draws(items: int, digits: int, resamples: int) -> None:
    d = np.round(scores(7, items), digits)
    rng = np.random.default_rng(1)
    tolerances = (0.0, 0.1)
    naive = np.empty((len(tolerances), resamples, 6))
    for i in range(naive.shape[1]):
        x = d[rng.integers(items, size=items)]
        for j, tolerance in enumerate(tolerances):
            gains, regressions = x[x > tolerance], x[x < -tolerance]
            naive[j, i] = len(gains), len(regressions), len(x), gains.sum(), -regressions.sum(), x.sum()
    for j, tolerance in enumerate(tolerances):
        draws = fields(score_draws(d, seed=0, tolerance=tolerance, resamples=6000))
        for mine, rows in zip(draws, naive[j].T, strict=True):
            for tail in (0.025, 0.5, 0.975):
                near = noise(resamples) * rows.std() + 1e-9
                assert np.quantile(mine, tail) == pytest.approx(np.quantile(rows, tail), abs=near)
            assert mine.std() == pytest.approx(rows.std(), rel=3.5 / np.sqrt(2 * resamples))


@pytest.mark.parametrize(("items", "resamples"), [(500, 10_000), (20_000, 1000)])
def test_interval_of_the_mean_is_scipys(items: int, resamples: int) -> None:
    d, rng = scores(5, items), np.random.default_rng(0)
    theirs = bootstrap((d,), np.mean, n_resamples=resamples, batch=100, method="percentile", rng=rng)
    mine = np.quantile(score_draws(d, seed=0).change_sum / items, [0.025, 0.975])
    assert mine == pytest.approx(tuple(theirs.confidence_interval), abs=noise(resamples) * d.std() / np.sqrt(items))


def heavy(seed: int, items: int) -> FloatArray:
    """A few differences carry most of the variance."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(items) < 0.001, rng.normal(0, 50, size=items), rng.normal(0, 0.1, size=items))


@pytest.mark.parametrize("make", [scores, heavy])
def test_pooled_draws_keep_the_spread(make: type) -> None:
    """The spread of a bootstrapped sum is known: sqrt(N) times the standard deviation of the items."""
    d: FloatArray = make(2, 50_000)
    assert len(np.unique(d)) > BINS
    draws = score_draws(d, seed=0, resamples=5000)
    for mine, item in [
        (draws.change_sum, d),
        (draws.gain_sum, np.maximum(d, 0)),
        (draws.regression_sum, np.maximum(-d, 0)),
        (draws.gains, d > 0),
    ]:
        assert mine.std() == pytest.approx(item.std() * np.sqrt(len(d)), rel=0.035)  # 3.5 errors of 5000 draws
    assert draws.change_sum == pytest.approx(draws.gain_sum - draws.regression_sum, abs=1e-6)
    assert (draws.n == len(d)).all()


def test_pooling_mixes_no_gain_with_a_regression() -> None:
    draws = score_draws(np.random.default_rng(0).normal(size=5000), seed=0, resamples=500)
    assert (draws.gains + draws.regressions == 5000).all()  # a mixed bin would add fractions to both


@pytest.mark.parametrize("tolerance", [0.0, 0.05])
def test_score_draws_of_clusters(tolerance: float) -> None:
    d = scores(9, 600)
    clusters = np.repeat(np.arange(60), np.random.default_rng(0).multinomial(540, np.full(60, 1 / 60)) + 1)
    d += 0.2 * np.sin(clusters)  # items of a cluster are alike
    naive = np.transpose([naive_totals(rows, tolerance) for rows in naive_cluster_draws(d, clusters, 1500)])
    draws = fields(score_draws(d, seed=0, clusters=clusters, tolerance=tolerance))
    assert draws.mean(axis=1) == pytest.approx(naive_totals(d, tolerance), rel=0.01, abs=0.5)
    assert draws.std(axis=1) == pytest.approx(naive.std(axis=1), rel=0.08)
    assert np.corrcoef(draws) == pytest.approx(np.corrcoef(naive), abs=0.08)


def exact_cluster_sums(features: FloatArray, clusters: IntArray) -> FloatArray:
    """(F, 5000) sums in draws of whole clusters, each its own kind."""
    rows = np.stack([np.bincount(clusters, weights=column) for column in features.T], axis=1).astype(np.float64)
    return resampling._draw_sums(rows, np.ones(len(rows), dtype=np.int64), seed=5, resamples=5000)


def alike(mine: FloatArray, exact: FloatArray) -> bool:
    """Whether draws have the mean, spread, tails and correlations of 5000 exact ones, to four errors of those."""
    scale, enough = exact.std(axis=1) + 1e-9, 4 * np.sqrt(1 / 5000 + 1 / mine.shape[1])
    assert (np.abs(mine.mean(axis=1) - exact.mean(axis=1)) / scale < enough).all()
    assert mine.std(axis=1) + 1e-9 == pytest.approx(scale, rel=enough)
    for tail in (0.025, 0.975):
        off = np.quantile(mine, tail, axis=1) - np.quantile(exact, tail, axis=1)
        assert (np.abs(off) < 1.4 * noise(5000) * scale + 1).all()  # + 1: between whole counts
    varies = scale > 1e-6
    assert np.corrcoef(mine[varies]) == pytest.approx(np.corrcoef(exact[varies]), abs=enough)
    return True


def uneven(seed: int, heavy: bool) -> tuple[FloatArray, IntArray]:
    """Scores in 3,000 clusters of 1 to 8 items that lean one way; or most of them 0 and a few huge."""
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(3000), rng.integers(1, 9, size=3000))
    d = rng.normal(size=3000)[clusters] + rng.normal(size=len(clusters))
    if heavy:
        d *= rng.choice([0.0, 0.1, 30.0], p=[0.6, 0.399, 0.001], size=len(d))
    return d, clusters


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("splits", [SPLITS, 4])
def test_pooled_clusters_agree_with_the_exact_bootstrap(
    heavy: bool, splits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where only 16 bins are left, so that the normal draw carries much of the spread."""
    monkeypatch.setattr(resampling, "SPLITS", splits)
    d, clusters = uneven(4, heavy)
    exact = exact_cluster_sums(resampling._score_features(d, 0.5), clusters)
    totals = score_draws(d, seed=0, clusters=clusters, tolerance=0.5)
    assert alike(fields(totals), exact)
    assert totals.n.dtype == np.int64
    if not heavy or splits == SPLITS:  # a few huge gains need more than 16 bins to stay whole numbers of gains
        ratio, mine = divide(exact[3], exact[0]), divide(totals.gain_sum, totals.gains)
        assert np.nanstd(mine) == pytest.approx(np.nanstd(ratio), rel=0.06)


def test_pooled_clusters_of_cells_agree_with_the_exact_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "SPLITS", 4)
    d, clusters = uneven(6, heavy=False)
    cells = np.clip(np.round(d), -1, 3).astype(np.int64) + 1
    draws = cluster_cell_draws(cells, 6, clusters, seed=0)
    assert alike(draws.astype(float), exact_cluster_sums(np.eye(6)[cells], clusters))
    assert (draws[5] == 0).all()  # a cell without items has none in any draw
    assert (draws >= 0).all()


def test_pooled_clusters_keep_what_is_so_in_every_cluster() -> None:
    """Gains less regressions is the change; clusters of one size stay of one size; few gains are never below 0."""
    d = -np.random.default_rng(0).random(12_000)
    d[[100, 7000]] = 1.0
    totals = score_draws(d, seed=0, clusters=np.repeat(np.arange(4000), 3))
    assert totals.change_sum == pytest.approx(totals.gain_sum - totals.regression_sum, abs=1e-6)
    assert (totals.n == 12_000).all()
    assert (totals.gain_sum == totals.gains).all()
    assert (totals.gains + totals.regressions == 12_000).all()
    assert set(totals.gains[:500].tolist()) >= {0, 1, 2}


def test_many_clusters_of_few_kinds_are_exact() -> None:
    d, clusters = np.tile([1.0, 0.0, 0.0, -1.0, 1.0], 2000), np.repeat(np.arange(5000), 2)
    totals = score_draws(d, seed=0, clusters=clusters, resamples=2000)
    rows = resampling._score_features(d, 0).reshape(5000, 2, 6).sum(axis=1)
    kinds, counts = np.unique(rows, axis=0, return_counts=True)
    assert len(kinds) < 6
    assert fields(totals).std(axis=1) == pytest.approx(
        np.sqrt(5000) * np.repeat(kinds, counts, axis=0).std(axis=0), rel=0.08
    )


def test_a_hundred_thousand_clusters_take_seconds() -> None:
    from time import process_time

    rng = np.random.default_rng(0)
    start = process_time()
    score_draws(rng.normal(size=200_000), seed=0, clusters=np.repeat(np.arange(100_000), 2))
    assert process_time() - start < 10  # 1 s; one by one it took 20


def test_nothing_to_draw() -> None:
    empty = np.array([], dtype=np.int64)
    assert (cluster_cell_draws(empty, 3, empty, seed=0, resamples=7) == np.zeros((3, 7))).all()
    for clusters in (None, empty):
        draws = score_draws(np.array([]), seed=0, clusters=clusters, resamples=7)
        assert (fields(draws) == np.zeros((6, 7))).all()
