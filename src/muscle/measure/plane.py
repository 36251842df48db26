"""The plane of NFR and accuracy: every model that can take the old one's place as one point, with what it trades."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from muscle.measure import metrics
from muscle.measure.comparison import clusters_of
from muscle.measure.intervals import UNDEFINED, Intervals
from muscle.measure.metrics import AlignmentCells, BoolArray
from muscle.measure.predictions import RIGHT, UNSCORED
from muscle.measure.results import Comparison, Estimate, Measures, Update
from muscle.measure.statistics import FloatArray, IntArray

Kind = Literal["new", "method", "control", "mixture", "both"]
"""The new model, a compatible one, a control, a point of the frontier, or both models at inference."""

BOTH_MODELS = frozenset({"ensemble", "gated", "reranked"})
"""Names of controls that run the old and the new model together: no single model, so on no Pareto front."""

_MIXTURE = re.compile(r"mixture-(0(?:\.\d+)?|1(?:\.0+)?)")
_FEWEST = 5
"""Of each outcome for a normal approximation of a share (n p >= 5 and n (1 - p) >= 5)."""
_FEWEST_CLUSTERS = 10


def mixture_name(share: float) -> str:
    """Name of the frontier's point with the old model's share a in [0, 1]: "mixture-0.25"."""
    return f"mixture-{share:g}"


@dataclass(frozen=True)
class Spread:
    """Covariance matrix of a model's measured NFR and accuracy, which come from the same items."""

    nfr: float
    """Variance of the NFR."""
    accuracy: float
    """Variance of the accuracy."""
    both: float
    """Their covariance, as a rule below 0: a negative flip is a wrong answer."""
    groups: int
    """Number of items, or of clusters, that vary by themselves."""

    @classmethod
    def of(cls, flips: FloatArray, quality: FloatArray, clusters: IntArray | None = None) -> Spread | None:
        """Covariance of two means over the same items, by cluster where there are clusters.

        G / (G - 1) n^-2 sum over clusters of s s', s the sum of the cluster's residuals, (flip - mean, quality -
        mean): the cluster-robust covariance (Liang & Zeger 1986; Cameron & Miller 2015, section II). With an item a
        cluster it is the unbiased sample covariance over n.

        Args:
            flips: (N,) whether the item is a negative flip, 1 or 0.
            quality: (N,) whether its answer is right, 1 or 0, or its grade.
            clusters: (N,) which cluster an item is of; None where every item stands for itself.

        Returns:
            None where a normal approximation is not to be trusted: fewer than 5 items of each outcome, fewer than 10
            clusters, or a correlation of 1.
        """
        n = len(flips)
        counted = [flips, quality] if set(np.unique(quality)) <= {0.0, 1.0} else [flips]
        if any(min(np.count_nonzero(column), n - np.count_nonzero(column)) < _FEWEST for column in counted):
            return None
        residuals = np.stack([flips - flips.mean(), quality - quality.mean()])
        if clusters is not None:
            _, codes = np.unique(clusters, return_inverse=True)
            residuals = np.stack([np.bincount(codes, weights=row) for row in residuals])
        groups = residuals.shape[1]
        if clusters is not None and groups < _FEWEST_CLUSTERS:
            return None
        matrix = groups / (groups - 1) / n**2 * (residuals @ residuals.T)
        if np.linalg.det(matrix) <= 1e-6 * matrix[0, 0] * matrix[1, 1]:
            return None
        return cls(float(matrix[0, 0]), float(matrix[1, 1]), float(matrix[0, 1]), groups)

    def reach(self, confidence: float) -> float:
        """How many standard errors the joint ellipse goes out along each of its axes.

        The square is Hotelling's T^2 quantile, 2 (G - 1) / (G - 2) F(2, G - 2), whose F is known in closed form:
        (G - 1) ((1 - confidence)^(-2 / (G - 2)) - 1). For many items it is the chi^2 quantile of 2 degrees of freedom,
        -2 ln(1 - confidence): 2.45 at 95 %, more than the 1.96 of either measure alone (Hotelling 1931; Johnson &
        Wichern, Applied Multivariate Statistical Analysis, 5.4).
        """
        return math.sqrt((self.groups - 1) * math.expm1(-2 / (self.groups - 2) * math.log(1 - confidence)))

    def ellipse(self, confidence: float, per_nfr: float = 1.0, per_accuracy: float = 1.0) -> tuple[float, float, float]:
        """The joint ellipse, in units of a picture.

        Args:
            confidence: In (0, 1).
            per_nfr: Units of the picture, to the right, that an NFR of 1 takes.
            per_accuracy: Those, upwards, of an accuracy of 1.

        Returns:
            Half its axes, the longer one first, and the angle of that in degrees, from right to up.
        """
        scale = np.array([per_nfr, per_accuracy])
        matrix = np.array([[self.nfr, self.both], [self.both, self.accuracy]]) * np.outer(scale, scale)
        variances, directions = np.linalg.eigh(matrix)
        short, long = self.reach(confidence) * np.sqrt(np.maximum(variances, 0.0))
        x, y = directions[:, 1]
        return float(long), float(short), math.degrees(math.atan2(y, x))


@dataclass(frozen=True)
class Model:
    """What users of the old model meet with one model in its place; shares in [0, 1]."""

    name: str
    kind: Kind
    share: float | None
    """a of a mixture: how much of its teacher is the old model."""
    accuracy: Estimate
    """Of a graded task the mean grade."""
    nfr: Estimate
    """Of a graded task the share of items whose grade fell: the smooth NFR."""
    relative_nfr: Estimate
    """Undefined where answers are graded."""
    change: Estimate
    """Of the NFR against the new model's, in percent of that; paired by item."""
    fixed: int
    """Negative flips of the new model that this one does not make."""
    made: int
    """Negative flips that only this one makes."""
    spread: Spread | None
    best: bool = False
    """No other single model has a lower NFR at no lower accuracy, or a higher accuracy at no higher NFR."""


@dataclass(frozen=True)
class Plane:
    """The models of one set of items."""

    items: int
    graded: bool
    old: Estimate
    """Accuracy, or mean grade, of the old model; it has no NFR."""
    models: Sequence[Model]
    floor: float | None
    """NFR of the old model against itself; None where it was not drawn again."""
    confidence: float


def plane_of(comparison: Comparison, *, graded: bool = False, methods: Collection[str] = ("compatible",)) -> Plane:
    """Every model of a comparison, all tasks pooled, on the items that all logs score.

    Args:
        comparison: Its controls are further models: a name such as mixture-0.25 is a point of the frontier, those of
            `BOTH_MODELS` run two models.
        graded: Take grades in place of right and wrong: the flips are the smooth ones of the paper's section 3.
        methods: Names of compatible models.
    """
    total = comparison.total
    updates = {"new": total.update, **({"compatible": total.compatible} if total.compatible else {}), **total.controls}
    flips, quality, clusters = _columns(comparison, list(updates), graded=graded)
    intervals = Intervals(comparison.confidence, clusters)
    models = []
    for name, update in updates.items():
        found = _MIXTURE.fullmatch(name)
        accuracy, nfr, relative = _rates(update, graded=graded)
        worse = flips[name]
        _, change = flip_rate_change(flips["new"], worse, intervals, comparison.seed)
        models.append(
            Model(
                name=name,
                kind="mixture" if found else _kind(name, methods),
                share=float(found[1]) if found else None,
                accuracy=accuracy,
                nfr=nfr,
                relative_nfr=relative,
                change=UNDEFINED if name == "new" else change,
                fixed=int(np.count_nonzero(flips["new"] & ~worse)),
                made=int(np.count_nonzero(worse & ~flips["new"])),
                spread=Spread.of(worse.astype(np.float64), quality[name], clusters),
            )
        )
    smooth = total.update.smooth
    old = (smooth.mean_old if smooth else UNDEFINED) if graded else total.update.accuracy_old
    return Plane(len(quality["new"]), graded, old, pareto(models), _floor(total, graded=graded), comparison.confidence)


def _kind(name: str, methods: Collection[str]) -> Kind:
    if name == "new":
        return "new"
    return "both" if name in BOTH_MODELS else "method" if name in methods else "control"


def pareto(models: Sequence[Model]) -> list[Model]:
    """The models with `best` told, by what was measured, whatever the intervals."""
    single = [
        (model.name, model.accuracy.value, model.nfr.value)
        for model in models
        if model.kind != "both" and model.accuracy.value is not None and model.nfr.value is not None
    ]
    best = {
        name
        for name, accuracy, nfr in single
        if not any(a >= accuracy and f <= nfr and (a, f) != (accuracy, nfr) for _, a, f in single)
    }
    return [replace(model, best=model.name in best) for model in models]


def _rates(update: Update, *, graded: bool) -> tuple[Estimate, Estimate, Estimate]:
    if not graded:
        return update.accuracy_new, update.nfr, update.relative_nfr
    smooth = update.smooth
    return (smooth.mean_new, smooth.nfr, UNDEFINED) if smooth else (UNDEFINED, UNDEFINED, UNDEFINED)


def _floor(total: Measures, *, graded: bool) -> float | None:
    return _rates(total.floor, graded=graded)[1].value if total.floor else None


def _columns(
    comparison: Comparison, names: Sequence[str], *, graded: bool
) -> tuple[dict[str, BoolArray], dict[str, FloatArray], IntArray | None]:
    """By model: (N,) negative flips and (N,) quality, of the items that every log scores; and their clusters."""
    tasks = comparison.items
    tolerance = comparison.total.update.smooth.tolerance if graded and comparison.total.update.smooth else 0.0
    scored, columns = [], {}
    for role in tasks[0].correct:  # as the rates, which leave out what any log leaves unscored
        correct = np.concatenate([task.correct[role] for task in tasks])
        scores = np.concatenate([task.scores[role] for task in tasks])
        scored.append(~np.isnan(scores) if graded else correct != UNSCORED)
        columns[role] = scores if graded else (correct == RIGHT).astype(np.float64)
    rows = np.logical_and.reduce(scored)
    old = columns["old"][rows]
    quality = {name: columns[name][rows] for name in names}
    flips = {name: column - old < -tolerance for name, column in quality.items()}
    clusters = None
    if comparison.cluster is not None:
        named = comparison.cluster if all(comparison.cluster in task.labels for task in tasks) else None
        clusters = np.concatenate(clusters_of(tasks, named))[rows]
    return flips, quality, clusters


def flip_rate_change(before: BoolArray, after: BoolArray, intervals: Intervals, seed: int) -> tuple[Estimate, Estimate]:
    """How a rate of flips changes from one model to another on the same items; paired by item.

    Args:
        before: (N,) whether the item is a flip of the one model, negative or positive.
        after: (N,) the same of the other model.
        intervals: Of these items.
        seed: Of the bootstrap draws.

    Returns:
        `metrics.delta_nfr`, in [-1, 1], and `metrics.nfr_change_percent`, bootstrapped, which is undefined where there
        is no flip before.
    """
    fixed, made = before & ~after, after & ~before
    codes = np.select([fixed, before, made], [0, 1, 2], 6).astype(np.int64)  # AlignmentCells: fixed, kept, made, others
    cells, draws = AlignmentCells.count(codes), AlignmentCells.draws(codes, intervals.clusters, seed)
    values = made.astype(np.float64) - fixed
    points = intervals.difference(metrics.delta_nfr(cells), int(cells.made), int(cells.fixed), values)
    return points, intervals.bootstrapped(metrics.nfr_change_percent(cells), metrics.nfr_change_percent(draws))
