"""Which items of two or three logs are the same: the only place that aligns ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muscle.errors import PairingError, quoted
from muscle.measure.metrics import BoolArray
from muscle.measure.predictions import RIGHT, UNSCORED, Log, Predictions

_EXAMPLES = 3


@dataclass(frozen=True)
class Outcomes:
    """An old and a new model on the same scored items of one task, in columns."""

    old_correct: BoolArray
    """(N,)"""
    new_correct: BoolArray
    """(N,)"""
    answers_differ: BoolArray
    """(N,) missing against present differs, missing against missing does not."""
    missing_answers_old: int
    missing_answers_new: int
    unscored: int
    """Paired items left out because a log does not score them."""
    only_old: int
    """Items of the old log that the new one does not have."""
    only_new: int


@dataclass(frozen=True)
class TaskOutcomes:
    """One task of a comparison; both updates are on the same items."""

    update: Outcomes
    compatible: Outcomes | None
    """Old to compatible; None where only two logs are compared."""


@dataclass(frozen=True)
class Pairing:
    """All tasks that the logs have in common."""

    tasks: Mapping[str, TaskOutcomes]
    notes: tuple[str, ...]
    """What did not pair, and hints that paired items may not be the same."""


def pair(old: Log, new: Log, compatible: Log | None = None) -> Pairing:
    """Align logs by (task, id), never by the order of rows.

    With three logs only items that all three have and score are kept, so that the two updates can be compared.

    Raises:
        PairingError: The logs have no task or id in common, or say right and wrong by different metrics.
    """
    logs = {"old": old, "new": new} | ({"compatible": compatible} if compatible else {})
    named = {role: f"{role} ({log.path})" for role, log in logs.items()}
    tasks_of = _by_task(logs)
    names = [name for name in tasks_of["old"] if all(name in tasks for tasks in tasks_of.values())]
    if not names:
        held = "; ".join(f"{named[role]} has {_examples(list(tasks))}" for role, tasks in tasks_of.items())
        remedy = "name logs of the same tasks"
        if all(len(log.tasks) == 1 and Path(log.path).is_dir() for log in logs.values()):
            remedy += ", or name the files themselves"  # the names of the files in the folders made the tasks
        raise PairingError(f"the logs have no task in common: {held}; {remedy}")
    notes = [note for role, tasks in tasks_of.items() for note in _left_out(role, tasks, names)]
    paired = {}
    for name in names:
        by_role = {role: tasks[name] for role, tasks in tasks_of.items()}
        _check_same_measure(name, {named[role]: predictions for role, predictions in by_role.items()})
        paired[name], hints = _pair_task(by_role)
        notes += [f"task {name}: {hint}" if name else hint for hint in hints]
    if not any(len(task.update.old_correct) + task.update.unscored for task in paired.values()):
        ids = "; ".join(f"{named[role]} has {_examples(tasks[names[0]].ids)}" for role, tasks in tasks_of.items())
        raise PairingError(f"the logs have no id in common: {ids}; name logs of the same items, with the same ids")
    return Pairing(paired, tuple(notes))


def _by_task(logs: Mapping[str, Log]) -> dict[str, Mapping[str, Predictions]]:
    """The tasks of each log by name; where each holds one and only some name it, the others take the name."""
    tasks_of = {role: log.tasks for role, log in logs.items()}
    named = {name for tasks in tasks_of.values() for name in tasks if name}
    if len(named) == 1 and all(len(tasks) == 1 for tasks in tasks_of.values()):
        (name,) = named
        return {role: {name: predictions} for role, tasks in tasks_of.items() for predictions in tasks.values()}
    return tasks_of


def _pair_task(by_role: Mapping[str, Predictions]) -> tuple[TaskOutcomes, list[str]]:
    old = by_role["old"]
    rows = {role: _rows_of(old.ids, predictions.ids) for role, predictions in by_role.items()}  # (N_old,), -1 = absent
    shared = np.logical_and.reduce([row >= 0 for row in rows.values()])
    rows_shared = {role: row[shared] for role, row in rows.items()}
    scored = np.logical_and.reduce([by_role[role].correct[row] != UNSCORED for role, row in rows_shared.items()])
    rows_scored = {role: row[scored] for role, row in rows_shared.items()}

    def outcomes(role: str) -> Outcomes:
        other = by_role[role]
        old_answers = _take(old.answers, rows_scored["old"])
        new_answers = _take(other.answers, rows_scored[role])
        matched = int(np.count_nonzero(rows[role] >= 0))
        return Outcomes(
            old_correct=old.correct[rows_scored["old"]] == RIGHT,
            new_correct=other.correct[rows_scored[role]] == RIGHT,
            answers_differ=np.array([a != b for a, b in zip(old_answers, new_answers, strict=True)], dtype=np.bool_),
            missing_answers_old=old_answers.count(None),
            missing_answers_new=new_answers.count(None),
            unscored=int(np.count_nonzero(~scored)),
            only_old=len(old.ids) - matched,
            only_new=len(other.ids) - matched,
        )

    hints = []
    for role in list(by_role)[1:]:
        hints += _unpaired(role, old, by_role[role])
        hints += _suspicious(role, old, rows_shared["old"], by_role[role], rows_shared[role])
        answers = (_take(by_role[side].answers, rows_scored[side]) for side in ("old", role))
        hints += _same_numbers(role, *answers)
    if dropped := int(np.count_nonzero((rows["new"] >= 0) & ~shared)):
        hints.append(f"items of old and new left out because compatible lacks them: {dropped}")
    return TaskOutcomes(outcomes("new"), outcomes("compatible") if "compatible" in by_role else None), hints


def _check_same_measure(task: str, by_name: Mapping[str, Predictions]) -> None:
    """Right by one metric or filter and wrong by another is no flip. Logs that name none are taken at their word."""
    for kind in ("metric", "filter"):
        chosen = {log: name for log, predictions in by_name.items() if (name := getattr(predictions, kind))}
        if len(set(chosen.values())) > 1:
            read = ", ".join(f"{log} by {name}" for log, name in chosen.items())
            about = f"task {task}: " if task else ""
            raise PairingError(f"{about}right and wrong come from different {kind}s ({read}); choose one with --{kind}")


def _rows_of(wanted: Sequence[str], ids: Sequence[str]) -> NDArray[np.intp]:
    """Row of each wanted id among the ids; -1 where it is absent."""
    if wanted == ids:
        return np.arange(len(ids), dtype=np.intp)
    row_of = dict(zip(ids, range(len(ids)), strict=True))
    return np.fromiter((row_of.get(item, -1) for item in wanted), dtype=np.intp, count=len(wanted))


def _take(texts: Sequence[str | None], rows: NDArray[np.intp]) -> list[str | None]:
    return [texts[row] for row in rows.tolist()]


def _left_out(role: str, tasks: Mapping[str, Predictions], common: Sequence[str]) -> list[str]:
    extra = [name for name in tasks if name not in common]
    return [f"tasks of {role} left out because not every log has them: {_examples(extra)}"] if extra else []


def _unpaired(role: str, old: Predictions, other: Predictions) -> list[str]:
    """A hint for each side that has items without a partner."""
    if old.ids == other.ids:
        return []
    hints = []
    for side, ids, against, partners in (("old", old.ids, role, other.ids), (role, other.ids, "old", old.ids)):
        known = set(partners)
        if alone := [item for item in ids if item not in known]:
            hints.append(f"ids of {side} that {against} lacks: {len(alone)} of {len(ids)} ({_examples(alone)})")
    return hints


def _suspicious(
    role: str, old: Predictions, old_rows: NDArray[np.intp], other: Predictions, other_rows: NDArray[np.intp]
) -> list[str]:
    """Hints that one id names different items in the two logs; at most one, of the strongest sign."""
    old_hashes, other_hashes = old.doc_hashes[old_rows], other.doc_hashes[other_rows]
    changed = np.flatnonzero((old_hashes != other_hashes) & (old_hashes != 0) & (other_hashes != 0))
    sign = "doc_hash"
    if not len(changed):
        targets = zip(_take(old.targets, old_rows), _take(other.targets, other_rows), strict=True)
        changed = np.flatnonzero([a != b and None not in (a, b) for a, b in targets])
        sign = "target"
    if not len(changed):
        return []
    items = [old.ids[row] for row in old_rows[changed[:_EXAMPLES]].tolist()]
    return [
        f"WARNING: {sign} differs between old and {role} for {len(changed)} of {len(old_rows)} paired ids "
        f"({_examples(items, len(changed))}): they may be different items; check that both logs are of the same data"
    ]


def _same_numbers(role: str, old: Sequence[str | None], other: Sequence[str | None]) -> list[str]:
    """A hint where answers are the same number in other letters: they are compared as text."""
    alike = [(a, b) for a, b in zip(old, other, strict=True) if a and b and a != b and _same_number(a, b)]
    if not alike:
        return []
    return [
        f"answer pairs of old and {role} that differ only in number format, and count as different: "
        f"{len(alike)} ({_examples(alike[0])})"
    ]


def _same_number(a: str, b: str) -> bool:
    try:
        return Decimal(a) == Decimal(b)
    except InvalidOperation:  # one is no number
        return False


def _examples(items: Sequence[str], total: int | None = None) -> str:
    """Up to three of the items, quoted."""
    shown = ", ".join(quoted(item) for item in items[:_EXAMPLES])
    return f"{shown}, ..." if (total or len(items)) > _EXAMPLES else shown
