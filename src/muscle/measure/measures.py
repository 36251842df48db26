"""From paired items to Measures: which formula on which items. Formulas, intervals and tests are elsewhere."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from muscle.measure import metrics
from muscle.measure.intervals import UNDEFINED, Intervals, at_least
from muscle.measure.metrics import AlignmentCells, BoolArray, Quadrants, Ratio
from muscle.measure.pairing import PairedTask
from muscle.measure.predictions import MISSING, RIGHT, UNSCORED, WRONG
from muscle.measure.resampling import ScoreTotals, cluster_cell_draws, score_draws
from muscle.measure.results import Alignment, Estimate, Measures, Smooth, Update
from muscle.measure.statistics import (
    FloatArray,
    IntArray,
    clustered_mcnemar_p,
    mcnemar_mid_p,
    mean_difference_p,
)


@dataclass(frozen=True)
class Settings:
    """How to measure."""

    confidence: float
    seed: int
    tolerance: float


@dataclass(frozen=True)
class Pool:
    """The paired items of one or several tasks, in columns: row i is the same item (and draw) for every role."""

    correct: Mapping[str, NDArray[np.int8]]
    answers: Mapping[str, NDArray[np.int64]]
    scores: Mapping[str, NDArray[np.float64]]
    clusters: IntArray | None
    """(N,) which cluster an item is of; None where every item stands for itself."""
    only: Mapping[str, tuple[int, int]] | None
    """By role other than old: items that only the old log has, and that only this one has; None in a part of a task."""

    @classmethod
    def of(cls, tasks: Sequence[PairedTask], clusters: Sequence[IntArray] | None) -> "Pool":
        """Pool tasks: a task weighs as much as it has items."""
        roles = list(tasks[0].correct)
        return cls(
            correct={role: np.concatenate([task.correct[role] for task in tasks]) for role in roles},
            answers={role: np.concatenate([task.answers[role] for task in tasks]) for role in roles},
            scores={role: np.concatenate([task.scores[role] for task in tasks]) for role in roles},
            clusters=None if clusters is None else np.concatenate(clusters),
            only={
                role: (sum(task.only[role][0] for task in tasks), sum(task.only[role][1] for task in tasks))
                for role in roles[1:]
            },
        )

    def part(self, rows: NDArray[np.intp]) -> "Pool":
        """Some of the items."""
        return Pool(
            {role: column[rows] for role, column in self.correct.items()},
            {role: column[rows] for role, column in self.answers.items()},
            {role: column[rows] for role, column in self.scores.items()},
            None if self.clusters is None else self.clusters[rows],
            None,
        )


def measure(pool: Pool, controls: Iterable[str], settings: Settings) -> Measures:
    """Measure every model of a pool on the items that all logs score; smooth measures on those that all grade."""
    scored = np.logical_and.reduce([column != UNSCORED for column in pool.correct.values()])
    graded = np.logical_and.reduce([~np.isnan(column) for column in pool.scores.values()])
    measured = _Measured(pool, scored, graded, settings)
    update = measured.update("old", "new")
    compatible = measured.update("old", "compatible") if "compatible" in pool.correct else None
    return Measures(
        update=update,
        compatible=compatible,
        alignment=measured.alignment(update, compatible) if compatible else None,
        floor=measured.update("old", "repeat") if "repeat" in pool.correct else None,
        controls={name: measured.update("old", name) for name in controls},
    )


def notable(task: PairedTask) -> dict[str, NDArray[np.intp]]:
    """Rows that people want to see by name: negative flips, and what a compatible model fixed, made and inherited."""
    right = {role: column == RIGHT for role, column in task.correct.items()}
    scored = np.logical_and.reduce([column != UNSCORED for column in task.correct.values()])
    flipped = scored & right["old"] & ~right["new"]
    rows = {"negative_flips": flipped}
    if "compatible" in right:
        rows["fixed"] = flipped & right["compatible"]
        rows["made"] = scored & right["old"] & right["new"] & ~right["compatible"]
        rows["inherited"] = scored & ~right["old"] & right["new"] & ~right["compatible"]
        rows["inherited"] &= task.same_answer("old", "compatible")
    return {kind: np.flatnonzero(mask) for kind, mask in rows.items()}


@dataclass(frozen=True)
class _Sample:
    """The quadrants of one update: observed, in bootstrap draws, and in each cluster."""

    codes: IntArray
    q: Quadrants
    draws: Quadrants
    by_cluster: Quadrants | None
    """(G,) counts; None where every item stands for itself."""

    @classmethod
    def of(cls, codes: IntArray, clusters: IntArray | None, seed: int) -> "_Sample":
        by_cluster = None
        if clusters is not None:
            _, groups = np.unique(clusters, return_inverse=True)
            kinds = len(fields(Quadrants))
            count = int(groups.max(initial=-1)) + 1
            table = np.bincount(groups * kinds + codes, minlength=kinds * count).reshape(count, kinds)
            by_cluster = Quadrants(*table.T)
        return cls(codes, Quadrants.count(codes), Quadrants.draws(codes, clusters, seed), by_cluster)


@dataclass(frozen=True)
class _Measured:
    pool: Pool
    scored: BoolArray
    graded: BoolArray
    settings: Settings

    def update(self, old: str, new: str) -> Update:
        """All counts and rates of one model replacing another."""
        pool, scored, intervals = self.pool, self.scored, self._intervals(self.scored)
        old_correct, new_correct = pool.correct[old][scored] == RIGHT, pool.correct[new][scored] == RIGHT
        old_answers, new_answers = pool.answers[old][scored], pool.answers[new][scored]
        differ = old_answers != new_answers
        codes = Quadrants.codes(old_correct, new_correct, differ)
        sample = _Sample.of(codes, intervals.clusters, self.settings.seed)
        q, draws = sample.q, sample.draws
        only = (None, None) if pool.only is None or old != "old" else pool.only[new]
        gained, lost = int(q.positive_flips), int(q.negative_flips)

        def share(function: Callable[[Quadrants], Ratio]) -> Estimate:
            held = None
            if sample.by_cluster is not None:
                held = int(np.count_nonzero(function(sample.by_cluster).denominator))
            return intervals.share(function(q), function(draws), held)

        return Update(
            n=int(q.n),
            unscored=int(np.count_nonzero(~scored)),
            only_old=only[0],
            only_new=only[1],
            missing_answers_old=int(np.count_nonzero(old_answers == MISSING)),
            missing_answers_new=int(np.count_nonzero(new_answers == MISSING)),
            both_right=int(q.both_right),
            positive_flips=gained,
            negative_flips=lost,
            both_wrong=int(q.both_wrong),
            both_right_different=int(q.both_right_different),
            both_wrong_different=int(q.both_wrong_different),
            accuracy_old=share(metrics.accuracy_old),
            accuracy_new=share(metrics.accuracy_new),
            accuracy_change=intervals.difference(metrics.accuracy_change(q), gained, lost, _CHANGE[codes]),
            nfr=share(metrics.nfr),
            nfr_bounds=self._nfr_bounds(old, new, lost),
            nfr_given_old_right=share(metrics.nfr_given_old_right),
            pfr=share(metrics.pfr),
            nfr_mc=share(metrics.nfr_mc),
            inconsistency=share(metrics.inconsistency),
            relative_nfr=_relative_nfr(sample, intervals, share(metrics.nfr)),
            btc=share(metrics.btc),
            bec=share(metrics.bec),
            nfi=share(metrics.nfi),
            pfi=share(metrics.pfi),
            churn=self._churn(differ, intervals),
            mcnemar_mid_p=mcnemar_mid_p(lost, gained) if intervals.clusters is None and q.n else None,
            clustered_p=_clustered_p(_CHANGE[codes], intervals.clusters),
            smooth=self._smooth(old, new) if self.graded.any() else None,
        )

    def alignment(self, update: Update, compatible: Update) -> Alignment:
        """What the compatible model changes against the new one."""
        intervals = self._intervals(self.scored)
        right = {role: self.pool.correct[role][self.scored] == RIGHT for role in ("old", "new", "compatible")}
        answers = {role: self.pool.answers[role][self.scored] for role in ("old", "compatible")}
        differ = (answers["old"] != answers["compatible"]) | (answers["old"] == MISSING)
        codes = AlignmentCells.codes(right["old"], right["new"], right["compatible"], differ)
        cells = AlignmentCells.count(codes)
        draws = AlignmentCells.draws(codes, intervals.clusters, self.settings.seed)
        fixed, made = int(cells.fixed), int(cells.made)
        learnt, forgotten = int(cells.learnt), int(cells.forgotten)
        gained, lost = fixed + learnt, made + forgotten
        percent = metrics.nfr_change_percent
        return Alignment(
            n=int(cells.n),
            delta_nfr=intervals.difference(metrics.delta_nfr(cells), made, fixed, _NEW_FLIPS[codes]),
            nfr_change_percent=intervals.bootstrapped(percent(cells), percent(draws)),
            delta_accuracy=intervals.difference(metrics.delta_accuracy(cells), gained, lost, _NEW_RIGHT[codes]),
            fixed=fixed,
            made=made,
            learnt=learnt,
            forgotten=forgotten,
            inherited=int(cells.inherited) if (answers["old"] != MISSING).any() else None,
            mid_p=mcnemar_mid_p(fixed, made) if intervals.clusters is None and cells.n else None,
            clustered_p=_clustered_p(_NEW_FLIPS[codes], intervals.clusters),
            delta_mean_gain=_smooth_difference(update, compatible, "mean_gain"),
            delta_mean_regression=_smooth_difference(update, compatible, "mean_regression"),
            update=self.update("new", "compatible"),
        )

    def _intervals(self, rows: BoolArray) -> Intervals:
        clusters = None if self.pool.clusters is None else self.pool.clusters[rows]
        return Intervals(self.settings.confidence, clusters)

    def _churn(self, differ: BoolArray, intervals: Intervals) -> Estimate:
        changed = Ratio(np.asarray(np.count_nonzero(differ)), np.asarray(len(differ)))
        if intervals.clusters is None:
            return intervals.share(changed, changed)
        drawn = cluster_cell_draws(differ.astype(np.int64), 2, intervals.clusters, self.settings.seed)
        return intervals.share(changed, Ratio(drawn[1], drawn.sum(axis=0)))

    def _nfr_bounds(self, old: str, new: str, flips: int) -> tuple[float, float] | None:
        """NFR with the unscored items in it, if as few, and as many, of them as can be were negative flips."""
        n = len(self.scored)
        if not n:
            return None
        before, after = self.pool.correct[old][~self.scored], self.pool.correct[new][~self.scored]
        certain = np.count_nonzero((before == RIGHT) & (after == WRONG))
        possible = np.count_nonzero((before != WRONG) & (after != RIGHT))
        return float((flips + certain) / n), float((flips + possible) / n)

    def _smooth(self, old: str, new: str) -> Smooth:
        before, after = self.pool.scores[old][self.graded], self.pool.scores[new][self.graded]
        intervals, tolerance = self._intervals(self.graded), self.settings.tolerance
        change = after - before
        observed = ScoreTotals.count(change, tolerance)
        draws = score_draws(change, self.settings.seed, intervals.clusters, tolerance)

        def ratios(numerator: str, denominator: str) -> tuple[Ratio, Ratio]:
            both = (Ratio(getattr(totals, numerator), getattr(totals, denominator)) for totals in (observed, draws))
            return next(both), next(both)

        p = mean_difference_p(change, intervals.clusters)
        return Smooth(
            n=len(change),
            ungraded=int(np.count_nonzero(~self.graded)),
            tolerance=tolerance,
            mean_old=intervals.mean(before),
            mean_new=intervals.mean(after),
            mean_change=intervals.bootstrapped(*ratios("change_sum", "n")),
            gains=int(observed.gains),
            regressions=int(observed.regressions),
            pfr=intervals.share(*ratios("gains", "n")),
            nfr=intervals.share(*ratios("regressions", "n")),
            mean_gain=intervals.bootstrapped(*ratios("gain_sum", "gains")),
            mean_regression=intervals.bootstrapped(*ratios("regression_sum", "regressions")),
            p_value=None if math.isnan(p) else p,
        )


# What an item of each kind adds to a difference, by its code.
_CHANGE = np.array([0.0, 0.0, 1.0, -1.0, 0.0, 0.0])  # Quadrants: accuracy
_NEW_FLIPS = np.array([-1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0])  # AlignmentCells: negative flips
_NEW_RIGHT = np.array([1.0, 0.0, -1.0, 1.0, -1.0, -1.0, 0.0])  # AlignmentCells: accuracy


def _relative_nfr(sample: _Sample, intervals: Intervals, nfr: Estimate) -> Estimate:
    """Bootstrapped; at least as wide as NFR's interval over the NFR of independent errors.

    The percentile bootstrap of a few flips is too narrow, and without a flip it has no width at all.
    """
    observed = metrics.relative_nfr(sample.q)
    estimate = intervals.bootstrapped(observed, metrics.relative_nfr(sample.draws))
    if estimate.value is None or nfr.low is None or nfr.high is None:
        return estimate
    independent = float(observed.denominator) / float(sample.q.n) ** 2
    return at_least(estimate, nfr.low / independent, nfr.high / independent)


def _clustered_p(values: FloatArray, clusters: IntArray | None) -> float | None:
    return None if clusters is None or not len(values) else clustered_mcnemar_p(values, clusters)


def _smooth_difference(update: Update, compatible: Update, name: str) -> Estimate | None:
    """Difference of a smooth measure between two updates; its interval is not known from those of the two."""
    if update.smooth is None or compatible.smooth is None:
        return None
    before, after = getattr(update.smooth, name).value, getattr(compatible.smooth, name).value
    return UNDEFINED if before is None or after is None else Estimate(after - before, None, None)
