"""One comparison of two or three logs: the object that every report shows. Its fields are the JSON schema's names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from muscle.measure import logs, metrics
from muscle.measure.metrics import AlignmentCells, Quadrants, Ratio
from muscle.measure.pairing import Outcomes, TaskOutcomes, pair
from muscle.measure.predictions import Log
from muscle.measure.statistics import (
    RESAMPLES,
    FloatArray,
    Interval,
    mcnemar_mid_p,
    percentile_interval,
    wilson_interval,
)


@dataclass(frozen=True)
class Estimate:
    """A measure with its 95 % interval. None is undefined, which is not 0."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Update:
    """What users see when the old model is replaced: all counts and rates of one model update.

    Counts and rates are over the `n` paired and scored items. Intervals are Wilson's for shares of items, and bootstrap
    for `accuracy_change` and `relative_nfr`.
    """

    n: int
    unscored: int
    """Paired items that a log does not score; in no other number here."""
    only_old: int
    only_new: int
    missing_answers_old: int
    missing_answers_new: int
    both_right: int
    positive_flips: int
    negative_flips: int
    both_wrong: int
    both_wrong_different: int
    """Of both_wrong, those with a different wrong answer."""
    accuracy_old: Estimate
    accuracy_new: Estimate
    accuracy_change: Estimate
    nfr: Estimate
    pfr: Estimate
    nfr_mc: Estimate
    relative_nfr: Estimate
    btc: Estimate
    bec: Estimate
    nfi: Estimate
    churn: Estimate
    """Share of items whose answer changed, right or wrong."""
    mcnemar_mid_p: float


@dataclass(frozen=True)
class Alignment:
    """What the compatible model changes against the new one (paper, section 3), on the items of both updates."""

    n: int
    delta_nfr: Estimate
    nfr_change_percent: Estimate
    delta_accuracy: Estimate
    fixed: int
    """Negative flips of the new model that the compatible one does not make."""
    made: int
    """Negative flips that only the compatible model makes."""
    mid_p: float
    """McNemar mid-p of fixed against made."""


@dataclass(frozen=True)
class TaskComparison:
    """The measures of one task."""

    update: Update
    """Old to new."""
    compatible: Update | None
    """Old to compatible; its fields named `new` are the compatible model's. None with two logs."""
    alignment: Alignment | None
    """New to compatible; None with two logs."""


@dataclass(frozen=True)
class Input:
    """Where one model's predictions come from."""

    path: str
    format: str
    rows: int
    sha256: str
    metric: Mapping[str, str | None]
    """By task."""
    filter: Mapping[str, str | None]
    """By task."""


@dataclass(frozen=True)
class Comparison(TaskComparison):
    """The measures of all tasks pooled, each task's own, and everything needed to get them again."""

    tasks: Mapping[str, TaskComparison]
    """By name; also where there is only one."""
    inputs: Mapping[str, Input]
    """By role: old, new and, with three logs, compatible."""
    seed: int
    resamples: int
    notes: tuple[str, ...]
    """What a reader of the numbers should know: items left out, choices made, doubts."""


def compare(
    old: str | Path,
    new: str | Path,
    compatible: str | Path | None = None,
    *,
    metric: str | None = None,
    filter: str | None = None,  # noqa: A002  # the flag's and lm-eval's own name
    seed: int = 0,
) -> Comparison:
    """Compare the evaluation logs of an old and a new model, item by item.

    Args:
        old: File or folder of the old model's log.
        new: The new model's.
        compatible: The compatible model's, to see what its training gave; then all three share one set of items.
        metric: The lm-eval metric that says right or wrong; None takes each task's first.
        filter: The lm-eval filter whose rows to read; None takes each task's first.
        seed: Seed of the bootstrap, >= 0.

    Raises:
        LogError: A log cannot be read.
        PairingError: The logs hold nothing that can be compared.
    """
    paths = {"old": old, "new": new} | ({"compatible": compatible} if compatible is not None else {})
    read = {role: logs.read(path, metric=metric, filter_name=filter) for role, path in paths.items()}
    pairing = pair(read["old"], read["new"], read.get("compatible"))
    total = _measure(list(pairing.tasks.values()), seed)
    notes = [f"{role}: {note}" for role, log in read.items() for note in log.notes]
    return Comparison(
        update=total.update,
        compatible=total.compatible,
        alignment=total.alignment,
        tasks={name: _measure([task], seed) for name, task in pairing.tasks.items()},
        inputs={role: _input(log) for role, log in read.items()},
        seed=seed,
        resamples=RESAMPLES,
        notes=(*notes, *pairing.notes, *_answer_notes(total)),
    )


def _measure(tasks: Sequence[TaskOutcomes], seed: int) -> TaskComparison:
    """Measure tasks as one: their items are pooled, so that a task weighs as much as it has items."""
    update = [task.update for task in tasks]
    compatible = [task.compatible for task in tasks if task.compatible]
    return TaskComparison(
        update=_update(update, seed),
        compatible=_update(compatible, seed) if compatible else None,
        alignment=_alignment(update, compatible, seed) if compatible else None,
    )


def _update(tasks: Sequence[Outcomes], seed: int) -> Update:
    answers_differ = np.concatenate([task.answers_differ for task in tasks])
    q = Quadrants.count(
        np.concatenate([task.old_correct for task in tasks]),
        np.concatenate([task.new_correct for task in tasks]),
        answers_differ,
    )
    draws = q.resample(seed)
    changed = Ratio(np.asarray(np.count_nonzero(answers_differ)), q.n)
    return Update(
        n=int(q.n),
        unscored=sum(task.unscored for task in tasks),
        only_old=sum(task.only_old for task in tasks),
        only_new=sum(task.only_new for task in tasks),
        missing_answers_old=sum(task.missing_answers_old for task in tasks),
        missing_answers_new=sum(task.missing_answers_new for task in tasks),
        both_right=int(q.both_right),
        positive_flips=int(q.positive_flips),
        negative_flips=int(q.negative_flips),
        both_wrong=int(q.both_wrong),
        both_wrong_different=int(q.both_wrong_different),
        accuracy_old=_share(metrics.accuracy_old(q)),
        accuracy_new=_share(metrics.accuracy_new(q)),
        accuracy_change=_bootstrapped(metrics.accuracy_change(q), metrics.accuracy_change(draws)),
        nfr=_share(metrics.nfr(q)),
        pfr=_share(metrics.pfr(q)),
        nfr_mc=_share(metrics.nfr_mc(q)),
        relative_nfr=_bootstrapped(metrics.relative_nfr(q), metrics.relative_nfr(draws)),
        btc=_share(metrics.btc(q)),
        bec=_share(metrics.bec(q)),
        nfi=_share(metrics.nfi(q)),
        churn=_share(changed),
        mcnemar_mid_p=mcnemar_mid_p(int(q.negative_flips), int(q.positive_flips)),
    )


def _alignment(update: Sequence[Outcomes], compatible: Sequence[Outcomes], seed: int) -> Alignment:
    cells = AlignmentCells.count(
        np.concatenate([task.old_correct for task in update]),
        np.concatenate([task.new_correct for task in update]),
        np.concatenate([task.new_correct for task in compatible]),
    )
    draws = cells.resample(seed)
    return Alignment(
        n=int(cells.n),
        delta_nfr=_bootstrapped(metrics.delta_nfr(cells), metrics.delta_nfr(draws)),
        nfr_change_percent=_bootstrapped(metrics.nfr_change_percent(cells), metrics.nfr_change_percent(draws)),
        delta_accuracy=_bootstrapped(metrics.delta_accuracy(cells), metrics.delta_accuracy(draws)),
        fixed=int(cells.fixed),
        made=int(cells.made),
        mid_p=mcnemar_mid_p(int(cells.fixed), int(cells.made)),
    )


def _share(ratio: Ratio) -> Estimate:
    """A share of items, with Wilson's interval."""
    return _estimate(ratio.value, wilson_interval(int(ratio.numerator), int(ratio.denominator)))


def _bootstrapped(observed: Ratio, draws: Ratio) -> Estimate:
    return _estimate(observed.value, percentile_interval(draws.value))


def _estimate(value: FloatArray, interval: Interval | None) -> Estimate:
    if np.isnan(value):
        return Estimate(None, None, None)
    low, high = interval or (None, None)
    return Estimate(float(value), low, high)


def _input(log: Log) -> Input:
    return Input(
        path=log.path,
        format=log.format,
        rows=log.rows,
        sha256=log.sha256,
        metric={name: task.metric for name, task in log.tasks.items()},
        filter={name: task.filter for name, task in log.tasks.items()},
    )


def _answer_notes(total: TaskComparison) -> list[str]:
    """What missing answers do to the measures that look at answers (NFR_mc and churn)."""
    missing = {"old": total.update.missing_answers_old, "new": total.update.missing_answers_new}
    if total.compatible:
        missing["compatible"] = total.compatible.missing_answers_new
    if not any(missing.values()):
        return []
    if all(count == total.update.n for count in missing.values()):
        return ["the logs hold no answers, so wrong answers count as the same: NFR_mc equals NFR and churn is 0"]
    counts = ", ".join(f"{count} in {role}" for role, count in missing.items())
    return [f"missing answers: {counts}; missing counts as an answer of its own"]
