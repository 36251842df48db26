"""The instances a page holds: which of them, what became of each, and the columns that its script filters and sorts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from muscle.measure.pairing import Item, PairedTask
from muscle.measure.predictions import RIGHT, UNSCORED, Texts
from muscle.measure.report.page.packing import (
    BLOCK,
    Packed,
    coded,
    pack,
    pack_texts,
    shortened_columns,
    well_formed,
    without_shared_head,
)
from muscle.measure.results import Comparison

ROLES = ("old", "new", "compatible")
"""Whose answers a page shows."""


class Kind(NamedTuple):
    """What can become of an instance; never told by colour alone."""

    name: str
    symbol: str
    label: str


QUADRANTS = (
    Kind("negative_flip", "▼", "negative flip"),
    Kind("positive_flip", "▲", "positive flip"),
    Kind("both_wrong_different", "◇", "both wrong, differently"),
    Kind("both_wrong", "○", "both wrong, alike"),
    Kind("both_right_different", "◆", "both right, differently"),
    Kind("both_right", "●", "both right"),
    Kind("unscored", "?", "unscored"),
)
"""What became of an instance from old to new; in the page by its place here."""

ALIGNMENTS = (
    Kind("", "", ""),
    Kind("fixed", "✓", "flip fixed"),
    Kind("made", "▼", "flip made"),
    Kind("kept", "▽", "flip not fixed"),
    Kind("learnt", "▲", "error mended"),
    Kind("inherited", "↩", "old error inherited"),
    Kind("forgotten", "✗", "other error made"),
)
"""What the compatible model makes of an instance against new."""

_LIST_SHARE = 0.2  # of the room for instances, what the texts in their list may take

Codes = NDArray[np.int8]
Rows = NDArray[np.intp]


@dataclass(frozen=True)
class Instances:
    """Everything that the explorer shows, and what a reader must know of it."""

    total: int
    """Paired instances there are."""
    shown: int
    flips: int
    """Instances that are kept before others; see `choose`."""
    flips_shown: int
    quadrants: Mapping[Kind, int]
    """Instances in the page, where there are any."""
    alignments: Mapping[Kind, int]
    """The same; empty without a compatible model."""
    graded: Mapping[str, int]
    """worse and better by score, beyond the tolerance; empty where nothing is graded."""
    tasks: Sequence[str]
    slices: Mapping[str, Sequence[tuple[int, str | None]]]
    """By column: its values in order, each with its place in the page's column."""
    columns: str
    """Packed: all but the texts."""
    texts: Packed
    config: Mapping[str, Any]
    """What the script needs before it unpacks anything."""


@dataclass(frozen=True)
class _Table:
    """All paired instances, the tasks end to end; (N,) each."""

    task: Rows
    quadrant: Codes
    alignment: Codes
    change: NDArray[np.float64]
    """D = S_new - S_old; NaN where some log does not grade the instance."""


def collect(comparison: Comparison, limit: int, size: int) -> Instances:
    """Choose, read and pack at most `limit` instances in about `size` bytes."""
    table = _tabulate(comparison.items)
    smooth = comparison.update.smooth
    tolerance = smooth.tolerance if smooth else 0.0
    flips = _flips(table, tolerance)
    chosen = choose(flips, limit, comparison.seed)
    parts = _split(comparison.items, chosen)
    roles = [role for role in ROLES if role in comparison.inputs]
    texts = _read(comparison, parts, roles)
    columns = _columns(comparison, parts, roles)
    columns |= {
        "task": table.task[chosen].tolist(),
        "quadrant": table.quadrant[chosen].tolist(),
        "alignment": table.alignment[chosen].tolist() if "compatible" in roles else None,
        "texts": shortened_columns(_lines(parts, roles, texts), int(_LIST_SHARE * size)),
    }
    packed = pack(columns)
    change = table.change[chosen]
    graded = {"worse": change < -tolerance, "better": change > tolerance} if smooth else {}
    return Instances(
        total=len(table.quadrant),
        shown=len(chosen),
        flips=int(np.count_nonzero(flips)),
        flips_shown=int(np.count_nonzero(flips[chosen])),
        quadrants=_counts(table.quadrant[chosen], QUADRANTS),
        alignments=_counts(table.alignment[chosen], ALIGNMENTS),
        graded={name: int(np.count_nonzero(rows)) for name, rows in graded.items()},
        tasks=columns["tasks"],
        slices={
            column: sorted(enumerate(values["values"]), key=lambda value: natural(value[1]))
            for column, values in columns["slices"].items()
        },
        columns=packed,
        texts=pack_texts(texts, flips[chosen].tolist(), roles, size - len(packed)),
        config={
            "block": BLOCK,
            "roles": roles,
            "quadrants": QUADRANTS,
            "alignments": ALIGNMENTS,
            "tolerance": tolerance,
        },
    )


def natural(value: str | None) -> tuple[bool, float, str]:
    """A key to order values by: numbers by size, then texts, then none."""
    if value is None:
        return True, math.inf, ""
    try:
        number = float(value)
    except ValueError:
        number = math.inf
    return False, math.inf if math.isnan(number) else number, value


def choose(flips: NDArray[np.bool_], limit: int, seed: int) -> Rows:
    """Rows to show, in order: all, or all flips and a random sample of the rest, or a random sample of the flips.

    Args:
        flips: (N,) which rows to keep before others.
        limit: Largest number of rows to choose.
        seed: Of the sample.
    """
    if len(flips) <= limit:
        return np.arange(len(flips))
    random = np.random.default_rng(seed)
    first, rest = np.flatnonzero(flips), np.flatnonzero(~flips)
    if len(first) >= limit:
        return np.sort(random.choice(first, limit, replace=False))
    return np.sort(np.concatenate([first, random.choice(rest, limit - len(first), replace=False)]))


def _tabulate(tasks: Sequence[PairedTask]) -> _Table:
    def joined(columns: Iterable[NDArray[Any]], kind: type) -> NDArray[Any]:
        return np.concatenate([np.empty(0, dtype=kind), *columns])

    return _Table(
        task=joined((np.full(len(task.ids), i, dtype=np.intp) for i, task in enumerate(tasks)), np.intp),
        quadrant=joined((_quadrants(task) for task in tasks), np.int8),
        alignment=joined((_alignments(task) for task in tasks), np.int8),
        change=joined((_change(task) for task in tasks), np.float64),
    )


def _change(task: PairedTask) -> NDArray[np.float64]:
    graded = np.logical_and.reduce([np.isfinite(scores) for scores in task.scores.values()])
    changes: NDArray[np.float64] = np.full(len(task.ids), np.nan)
    changes[graded] = (task.scores["new"] - task.scores["old"])[graded]
    return changes


def _scored(task: PairedTask) -> NDArray[np.bool_]:
    """The rows that no log leaves unscored."""
    scored: NDArray[np.bool_] = np.logical_and.reduce([correct != UNSCORED for correct in task.correct.values()])
    return scored


def _quadrants(task: PairedTask) -> Codes:
    before, after = task.correct["old"] == RIGHT, task.correct["new"] == RIGHT
    changed = task.answers["old"] != task.answers["new"]
    cases = {
        "unscored": ~_scored(task),
        "both_right_different": before & after & changed,
        "both_right": before & after,
        "positive_flip": after,
        "negative_flip": before,
        "both_wrong_different": changed,
    }
    return _named(cases, QUADRANTS, "both_wrong")


def _alignments(task: PairedTask) -> Codes:
    if "compatible" not in task.correct:
        return np.zeros(len(task.ids), dtype=np.int8)
    old, new, compatible = (task.correct[role] == RIGHT for role in ROLES)
    cases = {
        "": ~_scored(task),
        "fixed": old & ~new & compatible,
        "made": old & new & ~compatible,
        "kept": old & ~new,
        "learnt": ~old & ~new & compatible,
        "inherited": ~old & new & ~compatible & task.same_answer("old", "compatible"),
        "forgotten": ~old & new & ~compatible,
    }
    return _named(cases, ALIGNMENTS, "")


def _named(cases: Mapping[str, NDArray[np.bool_]], kinds: Sequence[Kind], otherwise: str) -> Codes:
    """(N,) place of the kind of the first case that holds."""
    places = np.select(list(cases.values()), _places(kinds, *cases), _places(kinds, otherwise)[0])
    return places.astype(np.int8)


def _places(kinds: Sequence[Kind], *names: str) -> list[int]:
    known = [kind.name for kind in kinds]
    return [known.index(name) for name in names]


def _flips(table: _Table, tolerance: float) -> NDArray[np.bool_]:
    """What a page keeps before all else: flips, or where nothing is scored, answers graded differently."""
    flips = np.isin(table.quadrant, _places(QUADRANTS, "positive_flip", "negative_flip"))
    flips |= np.isin(table.alignment, _places(ALIGNMENTS, "fixed", "made"))
    if (table.quadrant == _places(QUADRANTS, "unscored")).all():
        flips |= np.abs(table.change) > tolerance  # not so where it is NaN
    return flips


def _counts(codes: Codes, kinds: Sequence[Kind]) -> dict[Kind, int]:
    counts = np.bincount(codes, minlength=len(kinds)).tolist()
    return {kind: count for kind, count in zip(kinds, counts, strict=True) if kind.name and count}


_Part = tuple[PairedTask, Rows]  # a task and the rows of it that are shown


def _split(tasks: Sequence[PairedTask], chosen: Rows) -> list[_Part]:
    ends = np.cumsum([len(task.ids) for task in tasks])
    pieces = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
    return [(task, rows - end + len(task.ids)) for task, end, rows in zip(tasks, ends, pieces, strict=True)]


def _read(comparison: Comparison, parts: Sequence[_Part], roles: Sequence[str]) -> list[list[Texts]]:
    """The texts of every shown instance, by role."""
    found = comparison.texts({task.task: set(task.items(rows)) for task, rows in parts if len(rows)})
    nothing = Texts(None, None, None)

    def texts(role: str, task: str, item: Item) -> Texts:
        side = found[role].get((task, item), nothing)
        return Texts(*(None if text is None else well_formed(text) for text in side))

    return [[texts(role, task.task, item) for role in roles] for task, rows in parts for item in task.items(rows)]


def _lines(
    parts: Sequence[_Part], roles: Sequence[str], texts: Sequence[Sequence[Texts]]
) -> dict[str, list[str | None]]:
    """The inputs and each role's answers, as texts of the list."""
    inputs: list[str | None] = []
    for _, rows in parts:
        of_task = texts[len(inputs) : len(inputs) + len(rows)]
        inputs += without_shared_head([next((side.input for side in sides if side.input), None) for sides in of_task])
    return {"input": inputs} | {role: [sides[i].answer for sides in texts] for i, role in enumerate(roles)}


def _columns(comparison: Comparison, parts: Sequence[_Part], roles: Sequence[str]) -> dict[str, Any]:
    draws = np.concatenate([task.draws[rows] for task, rows in parts])
    columns = dict.fromkeys(part.column for part in comparison.slices)
    graded = roles if comparison.update.smooth else ()
    return {
        "tasks": [well_formed(task.task) for task, _ in parts],
        "ids": [well_formed(task.ids[row]) for task, rows in parts for row in rows.tolist()],
        "draws": draws.tolist() if draws.any() else None,
        "correct": {
            role: np.concatenate([task.correct[role][rows] for task, rows in parts]).tolist() for role in roles
        },
        "scores": {
            role: [_rounded(score) for task, rows in parts for score in task.scores[role][rows].tolist()]
            for role in graded
        },
        "slices": {
            well_formed(column): coded([label for task, rows in parts for label in _labels(task, column, rows)])
            for column in columns
        },
    }


def _labels(task: PairedTask, column: str, rows: Rows) -> list[str | None]:
    values = task.labels.get(column)
    if values is None:
        return [None] * len(rows)
    return [None if (value := values[row]) is None else well_formed(value) for row in rows.tolist()]


def _rounded(score: float) -> float | None:
    """Six digits, to save room; None for what JSON does not have."""
    return None if not np.isfinite(score) else float(f"{score:.6g}")
