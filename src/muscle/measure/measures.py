"""From paired items to Measures: which function, which interval, which test. The formulas are elsewhere."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from muscle.measure import metrics
from muscle.measure.metrics import AlignmentCells, BoolArray, Quadrants, Ratio
from muscle.measure.pairing import PairedTask
from muscle.measure.predictions import MISSING, RIGHT, UNSCORED, WRONG
from muscle.measure.resampling import ScoreTotals, score_draws
from muscle.measure.results import Alignment, Estimate, Measures, Smooth, Update
from muscle.measure.statistics import (
    FloatArray,
    IntArray,
    Interval,
    clustered_difference_error,
    clustered_mcnemar_p,
    mcnemar_mid_p,
    percentile_interval,
    tango_interval,
    wilson_interval,
)

_UNDEFINED = Estimate(None, None, None)


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
        same = task.answers["old"] == task.answers["compatible"]
        rows["fixed"] = flipped & right["compatible"]
        rows["made"] = scored & right["old"] & right["new"] & ~right["compatible"]
        rows["inherited"] = scored & ~right["old"] & right["new"] & ~right["compatible"] & same
    return {kind: np.flatnonzero(mask) for kind, mask in rows.items()}


@dataclass(frozen=True)
class _Measured:
    pool: Pool
    scored: BoolArray
    graded: BoolArray
    settings: Settings

    def update(self, old: str, new: str) -> Update:
        """All counts and rates of one model replacing another."""
        pool, scored = self.pool, self.scored
        old_correct, new_correct = pool.correct[old][scored] == RIGHT, pool.correct[new][scored] == RIGHT
        old_answers, new_answers = pool.answers[old][scored], pool.answers[new][scored]
        differ = old_answers != new_answers
        codes = Quadrants.codes(old_correct, new_correct, differ)
        q = Quadrants.count(codes)
        clusters = self._clusters(scored)
        draws = Quadrants.draws(codes, clusters, self.settings.seed)
        only = (None, None) if pool.only is None or old != "old" else pool.only[new]
        gained, lost = int(q.positive_flips), int(q.negative_flips)

        def share(function: Callable[[Quadrants], Ratio]) -> Estimate:
            return self._share(function(q), function(draws))

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
            accuracy_change=self._difference(metrics.accuracy_change(q), gained, lost, codes, _CHANGE),
            nfr=share(metrics.nfr),
            nfr_bounds=self._nfr_bounds(old, new, lost),
            nfr_given_old_right=share(metrics.nfr_given_old_right),
            pfr=share(metrics.pfr),
            nfr_mc=share(metrics.nfr_mc),
            inconsistency=share(metrics.inconsistency),
            relative_nfr=self._relative_nfr(q, draws, share(metrics.nfr)),
            btc=share(metrics.btc),
            bec=share(metrics.bec),
            nfi=share(metrics.nfi),
            pfi=share(metrics.pfi),
            churn=self._churn(differ, clusters),
            mcnemar_mid_p=mcnemar_mid_p(lost, gained) if clusters is None else None,
            clustered_p=None if clusters is None else clustered_mcnemar_p(_CHANGE[codes], clusters),
            smooth=self._smooth(old, new) if self.graded.any() else None,
        )

    def alignment(self, update: Update, compatible: Update) -> Alignment:
        """What the compatible model changes against the new one."""
        right = {role: self.pool.correct[role][self.scored] == RIGHT for role in ("old", "new", "compatible")}
        differ = self.pool.answers["old"][self.scored] != self.pool.answers["compatible"][self.scored]
        codes = AlignmentCells.codes(right["old"], right["new"], right["compatible"], differ)
        cells = AlignmentCells.count(codes)
        clusters = self._clusters(self.scored)
        draws = AlignmentCells.draws(codes, clusters, self.settings.seed)
        fixed, made = int(cells.fixed), int(cells.made)
        learnt, forgotten = int(cells.learnt), int(cells.forgotten)
        percent = metrics.nfr_change_percent
        return Alignment(
            n=int(cells.n),
            delta_nfr=self._difference(metrics.delta_nfr(cells), made, fixed, codes, _NEW_FLIPS),
            nfr_change_percent=self._bootstrapped(percent(cells), percent(draws)),
            delta_accuracy=self._difference(
                metrics.delta_accuracy(cells), fixed + learnt, made + forgotten, codes, _NEW_RIGHT
            ),
            fixed=fixed,
            made=made,
            learnt=learnt,
            forgotten=forgotten,
            inherited=int(cells.inherited),
            mid_p=mcnemar_mid_p(fixed, made) if clusters is None else None,
            clustered_p=None if clusters is None else clustered_mcnemar_p(_NEW_FLIPS[codes], clusters),
            delta_mean_gain=_smooth_difference(update, compatible, "mean_gain"),
            delta_mean_regression=_smooth_difference(update, compatible, "mean_regression"),
            update=self.update("new", "compatible"),
        )

    def _clusters(self, rows: BoolArray) -> IntArray | None:
        return None if self.pool.clusters is None else self.pool.clusters[rows]

    def _share(self, observed: Ratio, draws: Ratio) -> Estimate:
        """A share of items: Wilson's interval, which ignores clusters; where there are any, the bootstrap over them.

        Where none or all of the items have it, every draw says the same; then a cluster counts as one item to Wilson.
        """
        count, n = int(observed.numerator), int(observed.denominator)
        if self.pool.clusters is not None:
            if 0 < count < n:
                return self._bootstrapped(observed, draws)
            n = min(n, len(np.unique(self.pool.clusters)))
            count = n if count else 0
        return _estimate(observed.value, wilson_interval(count, n, self.settings.confidence))

    def _bootstrapped(self, observed: Ratio, draws: Ratio) -> Estimate:
        return _estimate(observed.value, percentile_interval(draws.value, self.settings.confidence))

    def _difference(self, observed: Ratio, gained: int, lost: int, codes: IntArray, sign: FloatArray) -> Estimate:
        """A difference of two shares of the same items: Tango's interval, with clusters a normal one (Miller 2024)."""
        n = int(observed.denominator)
        clusters = self._clusters(self.scored)
        if clusters is None:
            return _estimate(observed.value, tango_interval(gained, lost, n, self.settings.confidence))
        return self._normal(sign[codes], clusters)

    def _normal(self, values: FloatArray, clusters: IntArray | None) -> Estimate:
        """A mean with a normal interval; the standard error by cluster, each item being one where there is none."""
        if not len(values):
            return _UNDEFINED
        mean = float(values.mean())
        error = clustered_difference_error(values, np.arange(len(values)) if clusters is None else clusters)
        reach = float(ndtri((1 + self.settings.confidence) / 2)) * error
        return Estimate(mean, mean - reach, mean + reach)

    def _relative_nfr(self, q: Quadrants, draws: Quadrants, nfr: Estimate) -> Estimate:
        """Bootstrapped; without a flip every draw is 0, and the bound is NFR's over that of independent errors."""
        observed = metrics.relative_nfr(q)
        if int(q.negative_flips) or not int(observed.denominator) or nfr.high is None:
            return self._bootstrapped(observed, metrics.relative_nfr(draws))
        independent = float(observed.denominator) / float(q.n) ** 2
        return Estimate(0.0, 0.0, nfr.high / independent)

    def _churn(self, differ: BoolArray, clusters: IntArray | None) -> Estimate:
        if clusters is not None:
            return self._normal(differ.astype(np.float64), clusters)
        changed = Ratio(np.asarray(np.count_nonzero(differ)), np.asarray(len(differ)))
        return self._share(changed, changed)

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
        clusters = self._clusters(self.graded)
        change = after - before
        tolerance = self.settings.tolerance
        observed = ScoreTotals.count(change, tolerance)
        draws = score_draws(change, self.settings.seed, clusters, tolerance)

        def mean(numerator: str, denominator: str) -> Estimate:
            value, drawn = (_divide(getattr(t, numerator), getattr(t, denominator)) for t in (observed, draws))
            return _estimate(value, percentile_interval(drawn, self.settings.confidence))

        def rate(count: str) -> Estimate:
            return self._share(Ratio(getattr(observed, count), observed.n), Ratio(getattr(draws, count), draws.n))

        return Smooth(
            n=len(change),
            ungraded=int(np.count_nonzero(~self.graded)),
            tolerance=tolerance,
            mean_old=self._normal(before, clusters),
            mean_new=self._normal(after, clusters),
            mean_change=mean("change_sum", "n"),
            gains=int(observed.gains),
            regressions=int(observed.regressions),
            pfr=rate("gains"),
            nfr=rate("regressions"),
            mean_gain=mean("gain_sum", "gains"),
            mean_regression=mean("regression_sum", "regressions"),
        )


# What an item of each kind adds to a difference, by its code.
_CHANGE = np.array([0.0, 0.0, 1.0, -1.0, 0.0, 0.0])  # Quadrants: accuracy
_NEW_FLIPS = np.array([-1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0])  # AlignmentCells: negative flips
_NEW_RIGHT = np.array([1.0, 0.0, -1.0, 1.0, -1.0, -1.0, 0.0])  # AlignmentCells: accuracy


def _smooth_difference(update: Update, compatible: Update, name: str) -> Estimate | None:
    """Difference of a smooth measure between two updates; its interval is not known from those of the two."""
    if update.smooth is None or compatible.smooth is None:
        return None
    before, after = getattr(update.smooth, name).value, getattr(compatible.smooth, name).value
    return _UNDEFINED if before is None or after is None else Estimate(after - before, None, None)


def _divide(numerator: FloatArray, denominator: IntArray) -> FloatArray:
    quotient: FloatArray = np.full(np.shape(denominator), np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator != 0)
    return quotient


def _estimate(value: FloatArray, interval: Interval | None) -> Estimate:
    if math.isnan(value):
        return _UNDEFINED
    low, high = interval or (None, None)
    return Estimate(float(value), low, high)
