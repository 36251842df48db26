"""The figures of the paper's tables from the logs of one task: for each compatible model, and each control like one.

What has no log yet is undefined here, never 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from muscle.errors import MuscleError
from muscle.measure import Comparison, Estimate, Update, compare
from muscle.measure.intervals import UNDEFINED, Intervals
from muscle.measure.logs import EXPECTED, OpenLog
from muscle.measure.logs.lm_eval_answers import log_likelihoods
from muscle.measure.logs.rows import Selection
from muscle.measure.logs.source import find
from muscle.measure.metrics import BoolArray
from muscle.measure.plane import flip_rate_change
from muscle.measure.predictions import RIGHT, UNSCORED
from muscle.measure.statistics import IntArray

Kind = Literal["choices", "exact", "graded"]
"""What a log's answers are: choices by their likelihood (the paper's table 4), texts that are right or wrong (5), texts
with a grade (6)."""


@dataclass(frozen=True)
class Figures:
    """What an update from old to new does, and what a compatible model, or a control in its place, changes in it.

    Shares and scores are in percent, changes in points. Of a graded task the score is the mean grade, and flips are the
    smooth ones of the paper's section 3: an item whose grade fell, or rose.
    """

    items: int | None = None
    score_old: Estimate = UNDEFINED
    """Accuracy, exact match or mean grade."""
    score_new: Estimate = UNDEFINED
    score_gap: Estimate = UNDEFINED
    """New minus old."""
    nfr: Estimate = UNDEFINED
    """Old to new, as pfr and nfr_mc."""
    pfr: Estimate = UNDEFINED
    nfr_mc: Estimate = UNDEFINED
    """Undefined where answers are graded."""
    score_compatible: Estimate = UNDEFINED
    score_change: Estimate = UNDEFINED
    """Compatible minus new; so are all changes."""
    nfr_compatible: Estimate = UNDEFINED
    """Old to compatible, as pfr_compatible and nfr_mc_compatible."""
    pfr_compatible: Estimate = UNDEFINED
    nfr_mc_compatible: Estimate = UNDEFINED
    nfr_change: Estimate = UNDEFINED
    nfr_change_percent: Estimate = UNDEFINED
    """Of the NFR of old to new; undefined where that has no negative flip."""
    pfr_change: Estimate = UNDEFINED
    mean_gain_change: Estimate = UNDEFINED
    """d m_g; only where answers are graded, without an interval."""
    mean_regression_change: Estimate = UNDEFINED
    """d m_r; as d m_g."""


ESTIMATES = tuple(field.name for field in fields(Figures) if field.name != "items")


@dataclass(frozen=True)
class TaskFigures:
    """What the logs of one task tell."""

    task: str
    kind: Kind | None
    """None where no log is there yet."""
    metric: str | None
    """What scores an answer."""
    new: Figures
    """Of old to new alone."""
    models: Mapping[str, Figures]
    """By name, in order: compatible models and controls, those without a log as well."""
    missing: tuple[str, ...]
    """Models without a log, old and new included."""


def measure_task(task: str, logs: Mapping[str, Path], *, several_draws: bool = False) -> TaskFigures:
    """Measure one task.

    Args:
        task: Its name.
        logs: Folders of samples logs by model, which may not be there yet: old, new, compatible models and controls.
        several_draws: Whether each item was sampled several times.

    Raises:
        MuscleError: A log is damaged, or logs hold nothing that can be compared.
    """
    there = {name: folder for name, folder in logs.items() if any(folder.rglob("samples_*.jsonl"))}
    reading = Reading.of(list(there.values()), several_draws) if there else None
    return TaskFigures(
        task=task,
        kind=reading.kind if reading else None,
        metric=reading.metric if reading else None,
        new=_measure(there, "new", reading),
        models={name: _measure(there, name, reading) for name in logs if name not in ("old", "new")},
        missing=tuple(name for name in logs if name not in there),
    )


@dataclass(frozen=True)
class Reading:
    """How the logs of a task are read, which follows from what is in them."""

    kind: Kind
    metric: str
    unit: float
    """What makes a score percent."""
    options: Mapping[str, Any]
    """For `compare`."""

    @classmethod
    def of(cls, logs: Sequence[Path], several_draws: bool) -> Reading:
        options: dict[str, Any] = {"duplicates": "draws"} if several_draws else {}
        file = find(logs[0], EXPECTED)[0]
        row = file.first_row
        named = [name for name in row.get("metrics", ()) if not isinstance(row.get(name), list | dict)]
        if not named:
            raise MuscleError(f"{file.path}: no metric with one value per item; log one such as acc")
        responses = log_likelihoods(row.get("filtered_resps", ()))
        if responses is not None and len(responses) > 1:
            return cls("choices", named[0], 100.0, options)
        graded = any(set(np.unique(column)) - {0.0, 1.0} for column in _scores(logs, named[0], options))
        if not graded:
            return cls("exact", named[0], 100.0, options)
        metric = "rouge1" if "rouge1" in named else named[0]
        highest = max(column.max(initial=0) for column in _scores(logs, metric, options))
        return cls("graded", metric, 100.0 if highest <= 1 else 1.0, {**options, "score": metric})


def _scores(logs: Sequence[Path], metric: str, options: Mapping[str, Any]) -> Iterator[Any]:
    """The values of a metric, one array per log, without the items that have none."""
    for path in logs:
        for task in OpenLog(path, Selection(score=metric, **options)).read().tasks.values():
            yield task.scores[~np.isnan(task.scores)]


def _measure(logs: Mapping[str, Path], model: str, reading: Reading | None) -> Figures:
    """The figures of one model, as far as the logs that are there tell them."""
    if reading is None or "old" not in logs:
        return Figures()
    old, new, compatible = logs["old"], logs.get("new"), logs.get(model)
    if new is None:
        if compatible is None:
            return Figures()
        update = compare(old, compatible, **reading.options).update
        return Figures(**_of_new(update, reading, as_compatible=True))
    if model == "new" or compatible is None:
        return Figures(**_of_new(compare(old, new, **reading.options).update, reading))
    comparison = compare(old, new, compatible, **reading.options)
    assert comparison.compatible is not None
    return replace(
        Figures(**_of_new(comparison.update, reading)),
        **_of_new(comparison.compatible, reading, as_compatible=True),
        **_changes(comparison, reading),  # type: ignore[arg-type]
    )


def _of_new(update: Update, reading: Reading, *, as_compatible: bool = False) -> dict[str, Any]:
    """Figures of an update from old to new, or from old to what is to be called compatible."""
    smooth, unit = update.smooth, reading.unit
    if reading.kind != "graded":
        score_old, score_new, gap = update.accuracy_old, update.accuracy_new, update.accuracy_change
        items, nfr, pfr, nfr_mc = update.n, update.nfr, update.pfr, update.nfr_mc
    elif smooth is not None:
        score_old, score_new, gap = smooth.mean_old, smooth.mean_new, smooth.mean_change
        items, nfr, pfr, nfr_mc = smooth.n, smooth.nfr, smooth.pfr, UNDEFINED
    else:
        return {}
    shared = {"items": items, "score_old": _times(score_old, unit)}
    rates = {"nfr": _times(nfr, 100), "pfr": _times(pfr, 100), "nfr_mc": _times(nfr_mc, 100)}
    if as_compatible:
        renamed = {f"{name}_compatible": rate for name, rate in rates.items()}
        return {**shared, "score_compatible": _times(score_new, unit), **renamed}
    return {**shared, "score_new": _times(score_new, unit), "score_gap": _times(gap, unit), **rates}


def _changes(comparison: Comparison, reading: Reading) -> dict[str, Estimate]:
    """What the compatible model changes against the new one."""
    alignment = comparison.alignment
    assert alignment is not None
    worse, better, clusters = _flips(comparison, graded=reading.kind == "graded")
    intervals = Intervals(comparison.confidence, clusters)
    nfr_change, nfr_change_percent = flip_rate_change(*worse, intervals, comparison.seed)
    pfr_change, _ = flip_rate_change(*better, intervals, comparison.seed)
    changes = {
        "nfr_change": _times(nfr_change, 100),
        "nfr_change_percent": nfr_change_percent,
        "pfr_change": _times(pfr_change, 100),
    }
    if reading.kind != "graded":
        return {**changes, "score_change": _times(alignment.delta_accuracy, 100)}
    score_change = alignment.update.smooth.mean_change if alignment.update.smooth else UNDEFINED
    return {
        **changes,
        "score_change": _times(score_change, reading.unit),
        "mean_gain_change": _times(alignment.delta_mean_gain or UNDEFINED, reading.unit),
        "mean_regression_change": _times(alignment.delta_mean_regression or UNDEFINED, reading.unit),
    }


Pair = tuple[BoolArray, BoolArray]
"""Of the new and of the compatible model."""


def _flips(comparison: Comparison, *, graded: bool) -> tuple[Pair, Pair, IntArray | None]:
    """Which of the items that every log scores became worse and better than with old, and their clusters."""
    columns: dict[str, list[Any]] = {role: [] for role in ("old", "new", "compatible")}
    ids: list[tuple[str, str]] = []
    for task in comparison.items:
        for role, column in columns.items():
            known = (
                task.scores[role]
                if graded
                else np.where(task.correct[role] == UNSCORED, np.nan, task.correct[role] == RIGHT)
            )
            column.append(known)
        ids += [(task.task, item) for item in task.ids]
    old, new, compatible = (np.concatenate(column) for column in columns.values())
    scored = ~np.isnan(old + new + compatible)
    clusters = None
    if comparison.cluster is not None:
        numbers: dict[tuple[str, str], int] = {}
        clusters = np.array([numbers.setdefault(item, len(numbers)) for item in ids], dtype=np.int64)[scored]
    old, new, compatible = old[scored], new[scored], compatible[scored]
    return (new < old, compatible < old), (new > old, compatible > old), clusters


def _times(estimate: Estimate, factor: float) -> Estimate:
    scaled = (None if x is None else factor * x for x in (estimate.value, estimate.low, estimate.high))
    return Estimate(*scaled)
