"""Which items of several logs are the same: the only place that aligns ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from muscle.errors import PairingError, quoted
from muscle.measure.predictions import MISSING, RIGHT, UNSCORED, WRONG, Log, Predictions
from muscle.measure.repeats import Draws

Item = tuple[str, int]
"""The id of an item and the number of the draw, 0 where it was asked once."""
Missing = Literal["error", "drop", "wrong"]
"""What becomes of an item that some log lacks: refuse to compare, leave it out, or count it as answered wrong there."""

_EXAMPLES = 3
_Cell = TypeVar("_Cell", bound=np.generic)


@dataclass(frozen=True)
class PairedTask:
    """The items of one task that every log has, in columns: row i is the same item (and draw) for every role."""

    task: str
    ids: list[str]
    draws: NDArray[np.int32]
    """(N,)"""
    correct: Mapping[str, NDArray[np.int8]]
    """By role: (N,) RIGHT, WRONG or UNSCORED."""
    answers: Mapping[str, NDArray[np.int64]]
    """By role: (N,) keys of the answers; equal keys are equal answers, MISSING is none."""
    scores: Mapping[str, NDArray[np.float64]]
    """By role: (N,) graded quality; NaN where there is none."""
    labels: Mapping[str, list[str | None]]
    """By column: what to slice or cluster by."""
    only: Mapping[str, tuple[int, int]]
    """By role other than old: rows that only the old log has, and rows that only this one has."""
    changed: Mapping[str, int]
    """By role other than old: paired rows whose content (doc_hash, without hashes the target) differs from old's."""
    asked_ids: list[str]
    """(M,) items that all logs have, where some log has several draws; otherwise empty."""
    asked: Mapping[str, Draws]
    """By role: how often each of these was right in all of its draws; empty where all were asked once."""

    def same_answer(self, role: str, other: str) -> NDArray[np.bool_]:
        """(N,) whether two models gave one answer; not where an answer is missing."""
        ours, theirs = self.answers[role], self.answers[other]
        same: NDArray[np.bool_] = (ours == theirs) & (ours != MISSING)
        return same

    def items(self, rows: NDArray[np.intp]) -> list[Item]:
        """The items in these rows."""
        return [(self.ids[row], int(self.draws[row])) for row in rows.tolist()]


@dataclass(frozen=True)
class Pairing:
    """All tasks that the logs have in common."""

    tasks: Sequence[PairedTask]
    notes: tuple[str, ...]
    """What did not pair, and hints that paired items may not be the same."""


def pair(logs: Mapping[str, Log], missing: Missing = "drop", *, numeric: bool = False) -> Pairing:
    """Align logs by (task, id, draw), never by the order of rows.

    Only items that all logs have are kept, so that every model is measured on the same ones.

    Args:
        logs: By role, the old model's first.
        missing: What to do with items that some log lacks.
        numeric: Whether answers that are the same number in other letters ("18", "18.0") are the same answer.

    Raises:
        PairingError: The logs have no task or id in common, say right and wrong by different metrics, or lack items
            where that is an error.
    """
    named = {role: f"{role} ({log.path})" for role, log in logs.items()}
    tasks_of = _by_task(logs)
    names = [name for name in tasks_of["old"] if all(name in tasks for tasks in tasks_of.values())]
    if names and missing == "wrong":
        names = list(dict.fromkeys(name for tasks in tasks_of.values() for name in tasks))
        tasks_of = {role: _with_empty(tasks, tasks_of, names) for role, tasks in tasks_of.items()}
    if not names:
        held = "; ".join(f"{named[role]} has {_examples(list(tasks))}" for role, tasks in tasks_of.items())
        remedy = "name logs of the same tasks"
        if all(len(log.tasks) == 1 and Path(log.path).is_dir() for log in logs.values()):
            remedy += ", or name the files themselves"  # the names of the files in the folders made the tasks
        raise PairingError(f"the logs have no task in common: {held}; {remedy}")
    notes = [note for role, tasks in tasks_of.items() for note in _left_out(role, tasks, names)]
    if missing == "error" and notes:
        raise PairingError(f"{notes[0]}; evaluate them, or choose --missing drop")
    paired = []
    for name in names:
        by_role = {role: tasks[name] for role, tasks in tasks_of.items()}
        _check_same_measure(name, {named[role]: predictions for role, predictions in by_role.items()})
        task, hints = _pair_task(name, by_role, missing, numeric=numeric)
        paired.append(task)
        notes += [f"task {name}: {hint}" if name else hint for hint in hints]
    if not any(task.ids for task in paired):
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


def _with_empty(
    tasks: Mapping[str, Predictions], tasks_of: Mapping[str, Mapping[str, Predictions]], names: Sequence[str]
) -> dict[str, Predictions]:
    """The tasks of one log, those that only others have without any row."""
    held = {name: task for others in tasks_of.values() for name, task in others.items()}
    return {name: tasks[name] if name in tasks else held[name].emptied() for name in names}


def _pair_task(
    name: str, by_role: Mapping[str, Predictions], missing: Missing, *, numeric: bool
) -> tuple[PairedTask, list[str]]:
    old, others = by_role["old"], list(by_role)[1:]
    hints, only = [], {}
    for role in others:
        unpaired, only[role] = _unpaired(role, old.ids, by_role[role].ids)
        hints += unpaired
    if missing == "error" and hints:
        about = f"task {name}: " if name else ""
        raise PairingError(f"{about}{hints[0]}; evaluate the missing items, or choose --missing drop or wrong")
    drawn = any(predictions.draws.any() for predictions in by_role.values())
    rows, left_out = _align(by_role, missing, drawn=drawn)
    if missing == "error" and left_out:
        about = f"task {name}: " if name else ""
        raise PairingError(f"{about}{left_out[0]}; draw every item equally often, or choose --missing drop")
    hints += left_out
    ids, draws = _named(list(by_role.values()), list(rows.values()))
    changed = {}
    for role in others:
        changed[role], doubt = _changed(role, old, by_role[role], rows["old"], rows[role])
        hints += doubt
        if not numeric:
            hints += _same_numbers(role, old, by_role[role], rows["old"], rows[role])
    labels, label_hints = _labels(by_role, rows)
    answers = {role: predictions.numbers if numeric else predictions.answers for role, predictions in by_role.items()}
    asked_ids, asked = _asked(by_role) if drawn else ([], {})
    task = PairedTask(
        task=name,
        ids=ids,
        draws=draws,
        correct={role: _take(predictions.correct, rows[role], WRONG) for role, predictions in by_role.items()},
        answers={role: _take(answers[role], rows[role], MISSING) for role in by_role},
        scores={role: _take(predictions.scores, rows[role], np.nan) for role, predictions in by_role.items()},
        labels=labels,
        only=only,
        changed=changed,
        asked_ids=asked_ids,
        asked=asked,
    )
    return task, hints + label_hints


def _align(
    by_role: Mapping[str, Predictions], missing: Missing, *, drawn: bool
) -> tuple[dict[str, NDArray[np.intp]], list[str]]:
    """Rows of the same item (and draw) in every log, (N,) by role, -1 where a log lacks it; and what was left out."""
    keys: dict[str, Sequence[str | Item]] = {
        role: list(zip(p.ids, p.draws.tolist(), strict=True)) if drawn else p.ids for role, p in by_role.items()
    }
    wanted = keys["old"]
    if missing == "wrong":
        wanted = list(dict.fromkeys(key for side in keys.values() for key in side))
    rows = {role: _rows_of(wanted, side) for role, side in keys.items()}
    kept = np.logical_and.reduce([row >= 0 for row in rows.values()])
    hints = []
    if missing == "wrong" and not kept.all():
        everywhere = set.intersection(*(set(predictions.ids) for predictions in by_role.values()))
        kept |= [(key if isinstance(key, str) else key[0]) not in everywhere for key in wanted]
        lacking = int(np.count_nonzero(np.logical_or.reduce([row[kept] < 0 for row in rows.values()])))
        if lacking:
            hints.append(f"items that a log lacks, and that count as wrong there (--missing wrong): {lacking}")
    elif dropped := int(np.count_nonzero((rows["new"] >= 0) & ~kept)):
        hints.append(f"items of old and new left out because another log lacks them: {dropped}")
    if drawn and (
        extra := sum(len(side) - int(np.count_nonzero(rows[role][kept] >= 0)) for role, side in keys.items())
    ):
        hints.append(f"draws without a partner in every log: {extra}; only the test for reliable changes uses them")
    return {role: row[kept] for role, row in rows.items()}, hints


def _asked(by_role: Mapping[str, Predictions]) -> tuple[list[str], dict[str, Draws]]:
    """The items that all logs have, and how often each came out right, whichever draws they are."""
    shared = set.intersection(*(set(predictions.ids) for predictions in by_role.values()))
    place = {item: i for i, item in enumerate(dict.fromkeys(id_ for id_ in by_role["old"].ids if id_ in shared))}
    asked = {}
    for role, predictions in by_role.items():
        items = np.array([place.get(item, -1) for item in predictions.ids])
        scored = (items >= 0) & (predictions.correct != UNSCORED)
        right = scored & (predictions.correct == RIGHT)
        asked[role] = Draws(
            right=np.bincount(items[right], minlength=len(place)),
            total=np.bincount(items[scored], minlength=len(place)),
        )
    return list(place), asked


def _named(sides: Sequence[Predictions], rows: Sequence[NDArray[np.intp]]) -> tuple[list[str], NDArray[np.int32]]:
    """The id and draw of every paired row, from the first log that has it."""
    first, row = sides[0], rows[0]
    if len(row) == len(first.ids) and (row == np.arange(len(row))).all():
        return first.ids, first.draws
    places = [next((side, at) for side, at in enumerate(ats) if at >= 0) for ats in np.stack(rows, axis=1).tolist()]
    ids = [sides[side].ids[at] for side, at in places]
    return ids, np.array([sides[side].draws[at] for side, at in places], dtype=np.int32)


def _take(column: NDArray[_Cell], rows: NDArray[np.intp], absent: float) -> NDArray[_Cell]:
    taken = np.full(len(rows), absent, dtype=column.dtype)
    there = rows >= 0
    taken[there] = column[rows[there]]
    return taken


def _labels(
    by_role: Mapping[str, Predictions], rows: Mapping[str, NDArray[np.intp]]
) -> tuple[dict[str, list[str | None]], list[str]]:
    """Each column as the first log that knows an item labels it, and a hint where two logs label it differently."""
    labels: dict[str, list[str | None]] = {}
    hints = []
    for column in by_role["old"].labels:
        merged: list[str | None] = [None] * len(rows["old"])
        differing = 0
        for role, predictions in by_role.items():
            values = predictions.labels[column]
            for i, row in enumerate(rows[role].tolist()):
                value = values[row] if row >= 0 else None
                if merged[i] is None:
                    merged[i] = value
                elif value is not None and value != merged[i]:
                    differing += 1
        labels[column] = merged
        if differing:
            hints.append(f"{column} differs between the logs for {differing} paired rows; the first log's is used")
    return labels, hints


def _check_same_measure(task: str, by_name: Mapping[str, Predictions]) -> None:
    """Right by one metric or filter and wrong by another is no flip. Logs that name none are taken at their word."""
    for kind in ("metric", "filter", "score"):
        chosen = {log: name for log, predictions in by_name.items() if (name := getattr(predictions, kind))}
        if len(set(chosen.values())) > 1:
            read = ", ".join(f"{log} by {name}" for log, name in chosen.items())
            about = f"task {task}: " if task else ""
            raise PairingError(f"{about}the logs are judged by different {kind}s ({read}); choose one with --{kind}")


def _rows_of(wanted: Sequence[str | Item], keys: Sequence[str | Item]) -> NDArray[np.intp]:
    """Row of each wanted key among the keys; -1 where it is absent."""
    if wanted == keys:
        return np.arange(len(keys), dtype=np.intp)
    row_of = dict(zip(keys, range(len(keys)), strict=True))
    return np.fromiter((row_of.get(key, -1) for key in wanted), dtype=np.intp, count=len(wanted))


def _left_out(role: str, tasks: Mapping[str, Predictions], common: Sequence[str]) -> list[str]:
    extra = [name for name in tasks if name not in common]
    return [f"tasks of {role} left out because not every log has them: {_examples(extra)}"] if extra else []


def _unpaired(role: str, old: Sequence[str], other: Sequence[str]) -> tuple[list[str], tuple[int, int]]:
    """A hint for each side that has items without a partner, and their numbers."""
    if old == other:
        return [], (0, 0)
    hints, counts = [], []
    for side, ids, against, partners in (("old", old, role, other), (role, other, "old", old)):
        known = set(partners)
        items = dict.fromkeys(ids)  # once each, however often drawn
        alone = [item for item in items if item not in known]
        counts.append(len(alone))
        if alone:
            hints.append(f"ids of {side} that {against} lacks: {len(alone)} of {len(items)} ({_examples(alone)})")
    return hints, (counts[0], counts[1])


def _changed(
    role: str, old: Predictions, other: Predictions, old_rows: NDArray[np.intp], other_rows: NDArray[np.intp]
) -> tuple[int, list[str]]:
    """Number of paired rows whose id names different items in the two logs, by the strongest sign; and a hint."""
    both = (old_rows >= 0) & (other_rows >= 0)
    old_rows, other_rows = old_rows[both], other_rows[both]
    for sign, ours, theirs in (
        ("doc_hash", old.doc_hashes, other.doc_hashes),
        ("target", old.targets, other.targets),
    ):
        a, b = ours[old_rows], theirs[other_rows]
        changed = np.flatnonzero((a != b) & (a != 0) & (b != 0))
        if len(changed):
            items = [old.ids[row] for row in old_rows[changed[:_EXAMPLES]].tolist()]
            hint = (
                f"WARNING: {sign} differs between old and {role} for {len(changed)} of {len(old_rows)} paired ids "
                f"({_examples(items, len(changed))}): they may be different items; check that both logs are of the "
                "same data"
            )
            return len(changed), [hint]
    return 0, []


def _same_numbers(
    role: str, old: Predictions, other: Predictions, old_rows: NDArray[np.intp], other_rows: NDArray[np.intp]
) -> list[str]:
    """A hint where answers are the same number in other letters: they are compared as text."""
    both = (old_rows >= 0) & (other_rows >= 0)
    a, b = old_rows[both], other_rows[both]
    alike = np.flatnonzero((old.answers[a] != other.answers[b]) & (old.numbers[a] == other.numbers[b]))
    if not len(alike):
        return []
    items = [old.ids[row] for row in a[alike[:_EXAMPLES]].tolist()]
    return [
        f"answer pairs of old and {role} that differ only in number format, and count as different unless "
        f"--numeric-answers is given: {len(alike)} ({_examples(items, len(alike))})"
    ]


def _examples(items: Sequence[object], total: int | None = None) -> str:
    """Up to three of the items, quoted."""
    shown = ", ".join(quoted(item) for item in items[:_EXAMPLES])
    return f"{shown}, ..." if (total or len(items)) > _EXAMPLES else shown
