"""Compare the logs of an old and a new model: read, pair, measure."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TypedDict, Unpack, get_args

import numpy as np

from muscle.errors import MuscleError, quoted
from muscle.measure.logs import OpenLog, Source
from muscle.measure.logs.rows import Duplicates, Selection
from muscle.measure.measures import Pool, Settings, measure
from muscle.measure.notes import merged, on_noise, on_unknowns
from muscle.measure.pairing import Item, Missing, PairedTask, pair
from muscle.measure.predictions import Log, Texts
from muscle.measure.repeats import Draws, Repeats, reliable_changes
from muscle.measure.results import Comparison, Input, Measures, Slice, Update
from muscle.measure.statistics import CONFIDENCE, RESAMPLES, IntArray, benjamini_hochberg

_MANY_VALUES = 1000


class Reading(TypedDict, total=False):
    """What to read of each log, where it offers a choice; the fields of `logs.rows.Selection`, which explains them."""

    format: str | None
    metric: str | None
    filter: str | None
    score: str | None
    text_score: str | None
    columns: Mapping[str, str]
    numeric: bool
    duplicates: Duplicates


def compare(
    old: Source,
    new: Source,
    compatible: Source | None = None,
    *,
    repeat: Source | None = None,
    controls: Mapping[str, Source] | None = None,
    slices: Sequence[str] = (),
    cluster: str | None = None,
    missing: Missing = "drop",
    tolerance: float = 0.0,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    **reading: Unpack[Reading],
) -> Comparison:
    """Compare the evaluation logs of an old and a new model, item by item.

    A log is a file, a folder whose files together are one model's log, "-" for standard input, a data frame (polars,
    pandas), a `datasets` object, or a list of dicts. All logs are measured on the items that every one of them has.

    Args:
        old: Log of the old model.
        new: Log of the new one.
        compatible: Log of the compatible model, to see what its training gave.
        repeat: Log of the old model drawn or trained once more: the flips between the two are the floor of noise.
        controls: Logs of further models by name, each compared with the old one.
        slices: Columns whose values divide the items; of a table by name, elsewhere a dotted path such as doc.subject.
        cluster: Column whose equal values mark items that depend on each other; several draws of an item always do.
        missing: What to do with an item that some log lacks: "error", "drop", or count it as "wrong" there.
        tolerance: Changes of a score up to this size, >= 0, are neither gain nor regression.
        confidence: Of every interval, two-sided, in (0, 1).
        seed: Seed of the bootstrap, >= 0.
        **reading: What to read of each log: format, metric, filter, score, text_score, columns, numeric, duplicates.

    Raises:
        LogError: A log cannot be read.
        PairingError: The logs hold nothing that can be compared.
        MuscleError: The arguments do not fit together.
    """
    _check_arguments(slices, missing, tolerance, confidence, seed, reading)
    labels = tuple(dict.fromkeys([*slices, *([] if cluster is None else [cluster])]))
    selection = Selection(**reading, labels=labels)
    sources = _by_role(old, new, compatible, repeat, controls or {})
    opened = {role: OpenLog(source, _for_role(selection, role, sources)) for role, source in sources.items()}
    logs = {role: log.read() for role, log in opened.items()}
    _check_labels(logs, labels)
    pairing = pair(logs, missing, numeric=selection.numeric)
    settings = Settings(confidence, seed, tolerance)
    drawn = any(task.asked for task in pairing.tasks)
    clustering = "id" if drawn and cluster is None else cluster
    codes = None if clustering is None else clusters_of(pairing.tasks, cluster)
    pool = Pool.of(pairing.tasks, codes)
    total = measure(pool, controls or {}, settings)
    tasks = [total]
    if len(pairing.tasks) > 1:
        tasks = [
            measure(Pool.of([task], None if codes is None else [codes[i]]), controls or {}, settings)
            for i, task in enumerate(pairing.tasks)
        ]
    clusters = None if pool.clusters is None else len(np.unique(pool.clusters))
    notes = [f"{role}: {note}" for role, log in logs.items() for note in log.notes]
    repeats, reliable = _repeats(pairing.tasks) if drawn else (None, {})
    return Comparison(
        total=total,
        tasks=dict(zip((task.task for task in pairing.tasks), tasks, strict=True)),
        slices=_slices(pairing.tasks, pool, slices, controls or {}, settings),
        repeats=repeats,
        inputs={role: _input(log) for role, log in logs.items()},
        cluster=clustering,
        clusters=clusters,
        missing=missing,
        confidence=confidence,
        seed=seed,
        resamples=RESAMPLES,
        notes=merged([*notes, *pairing.notes, *on_unknowns(pairing.tasks), *on_noise(clusters, repeats)]),
        settings={**asdict(selection), "tolerance": tolerance},
        reliable=reliable,
        items=pairing.tasks,
        texts=_Texts(opened, logs, pairing.tasks),
    )


def _check_arguments(
    slices: Sequence[str], missing: str, tolerance: float, confidence: float, seed: int, reading: Mapping[str, object]
) -> None:
    """Refuse what a type checker would, and what no type tells."""
    for name, value, allowed in (
        ("missing", missing, get_args(Missing)),
        ("duplicates", reading.get("duplicates", "error"), get_args(Duplicates)),
    ):
        if value not in allowed:
            raise MuscleError(f"{name} is {quoted(value)}; choose among {', '.join(allowed)}")
    if unknown := reading.keys() - Reading.__annotations__.keys():
        raise MuscleError(f"no argument {quoted(min(unknown))}; choose among {', '.join(Reading.__annotations__)}")
    if isinstance(slices, str) or not all(isinstance(column, str) for column in slices):
        raise MuscleError(f"slices is {quoted(slices)}; give a list of names of columns")
    if not 0 < confidence < 1:
        raise MuscleError(f"confidence is {confidence}; give a share between 0 and 1, such as 0.95")
    if not (tolerance >= 0 and math.isfinite(tolerance)):
        raise MuscleError(f"tolerance is {tolerance}; give a number of 0 or more")
    if not isinstance(seed, int) or seed < 0:
        raise MuscleError(f"seed is {quoted(seed)}; give a whole number of 0 or more")


def _by_role(
    old: Source, new: Source, compatible: Source | None, repeat: Source | None, controls: Mapping[str, Source]
) -> dict[str, Source]:
    sources = {"old": old, "new": new}
    sources |= {"compatible": compatible} if compatible is not None else {}
    sources |= {"repeat": repeat} if repeat is not None else {}
    if taken := [name for name in controls if name in ("old", "new", "compatible", "repeat")]:
        raise MuscleError(f"a control cannot be named {quoted(taken[0])}; that is the name of a role")
    if [source for source in (*sources.values(), *controls.values()) if isinstance(source, str)].count("-") > 1:
        raise MuscleError("only one log can come from standard input (-); write the others to files")
    return {**sources, **controls}


def _for_role(selection: Selection, role: str, roles: Collection[str]) -> Selection:
    """The selection for one log: a column named "new:answer" is that of the new log alone."""
    columns = {name: theirs for name, theirs in selection.columns.items() if ":" not in name}
    for name in selection.columns.keys() - columns.keys():
        whose, _, ours = name.rpartition(":")
        if whose not in roles:
            raise MuscleError(
                f"column {quoted(name)}: no log is called {quoted(whose)}; choose among {', '.join(roles)}"
            )
        if whose == role:
            columns[ours] = selection.columns[name]
    return replace(selection, columns=columns)


def _check_labels(logs: Mapping[str, Log], labels: Sequence[str]) -> None:
    for column in labels:
        held = (task.labels[column] for log in logs.values() for task in log.tasks.values())
        if not any(value is not None for values in held for value in values):
            remedy = "name a column of the table, or a path into a row such as doc.subject"
            raise MuscleError(f"no log has anything in {quoted(column)}; {remedy}")


def clusters_of(tasks: Sequence[PairedTask], column: str | None) -> list[IntArray]:
    """The cluster of each item as a number, by task: equal values of the column, or draws of one item of a task."""
    numbers: dict[object, int] = {}
    codes = []
    for task in tasks:
        values: Iterator[object]
        if column is None:
            values = ((task.task, item) for item in task.ids)
        else:  # an item without a value stands for itself
            cells = zip(task.labels[column], task.ids, strict=True)
            values = ((task.task, item) if value is None else value for value, item in cells)
        of_items = [numbers.setdefault(value, len(numbers)) for value in values]
        if task.asked and len(set(zip(task.ids, of_items, strict=True))) > len(set(task.ids)):
            remedy = "they depend on each other, so cluster by another column"
            raise MuscleError(f"{column} differs between draws of one item; {remedy}")
        codes.append(np.array(of_items, dtype=np.int64))
    return codes


def _slices(
    tasks: Sequence[PairedTask], pool: Pool, columns: Sequence[str], controls: Mapping[str, Source], settings: Settings
) -> list[Slice]:
    """Every value of every column, in order of appearance, with p-values adjusted over all of them."""
    parts: list[tuple[str, str | None, Measures]] = []
    for column in columns:
        values = [value for task in tasks for value in task.labels[column]]
        names = {value: code for code, value in enumerate(dict.fromkeys(values))}
        if len(names) > _MANY_VALUES:
            raise MuscleError(
                f"{column} has {len(names)} different values; slice by a column with fewer than {_MANY_VALUES}"
            )
        codes = np.array([names[value] for value in values])
        parts += [
            (column, value, measure(pool.part(np.flatnonzero(codes == code)), controls, settings))
            for value, code in names.items()
        ]
    p = np.array([_p_value(measures.update) for _, _, measures in parts])
    adjusted = [None if np.isnan(q) else float(q) for q in benjamini_hochberg(p)]
    return [Slice(*part, q_value=q) for part, q in zip(parts, adjusted, strict=True)]


def _p_value(update: Update) -> float:
    """The p-value of old against new, by scores where nothing is right or wrong; NaN where there is nothing to test."""
    p = update.mcnemar_mid_p if update.clustered_p is None else update.clustered_p
    if p is None and update.smooth:
        p = update.smooth.p_value
    return np.nan if p is None else p


def _repeats(tasks: Sequence[PairedTask]) -> tuple[Repeats, dict[str, list[tuple[str, str]]]]:
    """What the draws say in numbers, and which items changed beyond their noise."""
    old, new = (
        Draws(
            np.concatenate([task.asked[role].right for task in tasks if task.asked]),
            np.concatenate([task.asked[role].total for task in tasks if task.asked]),
        )
        for role in ("old", "new")
    )
    changes = reliable_changes(old, new)
    items = [(task.task, item) for task in tasks for item in task.asked_ids]
    flags = {"reliable_regressions": changes.regression, "reliable_gains": changes.gain}
    reliable = {kind: [items[row] for row in np.flatnonzero(rows)] for kind, rows in flags.items()}
    return Repeats.summarise(old, new), reliable


def _input(log: Log) -> Input:
    return Input(
        path=log.path,
        format=log.format,
        rows=log.rows,
        sha256=log.sha256,
        metric={name: task.metric for name, task in log.tasks.items()},
        filter={name: task.filter for name, task in log.tasks.items()},
        score={name: task.score for name, task in log.tasks.items()},
    )


class _Texts:
    """Fetches texts from the logs once more, since they are not kept."""

    def __init__(self, opened: Mapping[str, OpenLog], logs: Mapping[str, Log], tasks: Sequence[PairedTask]) -> None:
        self._opened = opened
        # A lone task may have another name in its log, or none.
        self._names = {
            role: {tasks[0].task: next(iter(log.tasks))} if len(log.tasks) == len(tasks) == 1 else {}
            for role, log in logs.items()
        }

    def __call__(self, wanted: Mapping[str, set[Item]]) -> Mapping[str, Mapping[tuple[str, Item], Texts]]:
        found = {}
        for role, log in self._opened.items():
            names = self._names[role]
            theirs = {names.get(task, task): items for task, items in wanted.items()}
            ours = {name: task for task, name in names.items()}
            found[role] = {(ours.get(task, task), item): texts for (task, item), texts in log.texts(theirs).items()}
        return found
