"""Plain tables: one row per item with its id and what the model's answer was worth, under any names of columns."""

import difflib
import json
import math
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import count

from muscle.errors import LogError, quoted
from muscle.measure.logs.columns import Cells, Column, Fields, find, suggestion
from muscle.measure.logs.records import KINDS, cells, fields, is_loose
from muscle.measure.logs.rows import BadRowError, Row, Selection, Task, as_id, as_outcome, as_score, as_text, located
from muscle.measure.logs.source import LogFile

FORMAT = "table"
EXPECTS = "a table (JSON, CSV, Parquet or Arrow, with id and correct or with --column)"

NAMES = ("id", "correct", "answer", "target", "score", "task", "draw", "doc_hash", "input")
"""Our names of the columns; what Selection.columns maps to the table's own."""
ROW_NUMBER = "#"
"""In place of the column of ids: the number of the row."""

_INPUTS = ("input", "question", "prompt")
_LARGEST_DRAW = 2**31 - 1


def recognises(file: LogFile, selection: Selection) -> bool:
    """Whether the file can be a table, and one by the names of its columns or because the user names columns."""
    if file.kind not in KINDS:
        return False
    known = fields(file).keys()
    graded = {"correct", "score", selection.score} & known or {"answer", "target"} <= known
    return bool(selection.columns) or ("id" in known and bool(graded))


def rows(files: Sequence[LogFile], selection: Selection, notes: list[str], *, texts: bool = False) -> Iterator[Row]:
    """Read tables; a row's `task` cell overrides the task that the file's name gives.

    Raises:
        LogError: A column that is needed or named is not there, or a row cannot be read.
    """
    if selection.metric is not None or selection.filter is not None:
        raise LogError(f"{files[0].path}: a table has neither metrics nor filters; leave out --metric and --filter")
    if selection.columns.get("id") == ROW_NUMBER:
        notes.append("ids are the numbers of the rows; the logs must hold the same items in the same order")
    tasks: dict[str, Task] = {}
    numbers: dict[str, Iterator[int]] = {}  # by the files' task, so that the shards of a table go on counting
    for file in files:
        layout = _layout(file, selection, texts=texts)
        notes += [note for note in _missing_labels(file, selection) if note not in notes]
        yield from _file_rows(file, layout, tasks, numbers.setdefault(file.task, count(1)))


@dataclass(frozen=True)
class _Layout:
    """Where a file's columns are, and what they mean."""

    columns: Sequence[Column]
    """In the order of NAMES, then the labels."""
    is_numbered: bool
    """Whether the numbers of the rows are the ids."""
    score: str | None
    """The user's name of the score; None where the table has none."""
    late: Sequence[int]
    """Which of the columns the first rows do not have, so that no later row may."""
    texts: bool
    """Whether the rows are for showing."""


def _layout(file: LogFile, selection: Selection, *, texts: bool) -> _Layout:
    """Find the columns.

    Raises:
        LogError: One that is needed or named is not there.
    """
    if file.kind not in KINDS:
        raise LogError(f"{file.path}: no table; expected JSON lines, a JSON list, CSV, Parquet or Arrow")
    known, chosen = fields(file), _chosen(file, selection)
    there: dict[str, tuple[str, ...]] = {name: (name,) for name in NAMES if name in known}
    there |= {name: _place(file, theirs, known, f"for {name}") for name, theirs in chosen.items()}
    is_numbered = selection.columns.get("id") == ROW_NUMBER
    if is_numbered:
        there["id"] = ()
    _check_sufficient(file, there.keys(), known, selection)
    loose = is_loose(file)
    late = [NAMES.index(name) for name in ("correct", "score") if loose and name not in there]
    needed = {"id", "correct" if "correct" in there else "score"} if selection.text_score is None else {"id"}
    score = chosen.get("score", "score") if "score" in there else None
    if selection.text_score == "exact_match":
        there["correct"] = ()  # the texts say what is right
    question = there.get("input") or next(((name,) for name in _INPUTS if name in known), ())
    there["input"] = question if texts else ()
    places = {name: there.get(name, (name,) if loose else ()) for name in NAMES}
    columns = [Column(place, bool(place) and name in needed) for name, place in places.items()]
    labels = [Column(find(label, known) or (tuple(label.split(".")) if loose else ())) for label in selection.labels]
    return _Layout([*columns, *labels], is_numbered, score, late, texts)


def _missing_labels(file: LogFile, selection: Selection) -> Iterator[str]:
    """Notes, not faults: another log of the comparison may have the column."""
    known = fields(file)
    for label in selection.labels:
        if find(label, known) is None:
            yield f"no column {quoted(label)} to slice or cluster by; {suggestion(label, known)}"


def _chosen(file: LogFile, selection: Selection) -> dict[str, str]:
    """By our names, the columns that the user names."""
    for name in selection.columns:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"did you mean {quoted(near[0])}?" if near else f"choose among {', '.join(NAMES)}"
            raise LogError(f"{file.path}: --column {name}=... maps {quoted(name)}, which is not read; {hint}")
    chosen = {name: theirs for name, theirs in selection.columns.items() if (name, theirs) != ("id", ROW_NUMBER)}
    if selection.score is not None and chosen.setdefault("score", selection.score) != selection.score:
        both = f"{quoted(chosen['score'])} and {quoted(selection.score)}"
        raise LogError(f"{file.path}: two columns are named for the score, {both}; leave out --score")
    return chosen


def _place(file: LogFile, name: str, known: Fields, purpose: str) -> tuple[str, ...]:
    place = find(name, known)
    if place is None:
        raise LogError(f"{file.path}: no column {quoted(name)} {purpose}; {suggestion(name, known)}")
    return place


def _check_sufficient(file: LogFile, there: Set[str], known: Fields, selection: Selection) -> None:
    """Refuse a table that has no ids, or nothing that says how good an answer is."""
    if "id" not in there:
        remedy = f"name it with --column id=NAME, or take the row's number with --column id={ROW_NUMBER}"
        raise LogError(f"{file.path}: no column 'id'; {remedy}; {suggestion('id', known)}")
    texts = [name for name in ("answer", "target") if name not in there]
    if selection.text_score is not None and texts:
        remedy = f"name it with --column {texts[0]}=NAME; {suggestion(texts[0], known)}"
        raise LogError(f"{file.path}: no column {quoted(texts[0])} for --text-score; {remedy}")
    if selection.text_score is None and not there & {"correct", "score"}:
        remedy = f"name one with --column correct=NAME; {suggestion('correct', known)}"
        if not texts:
            remedy = f"grade the answers with --text-score exact_match (or another score), or {remedy}"
        raise LogError(f"{file.path}: no column 'correct' or 'score'; {remedy}")


def _file_rows(file: LogFile, layout: _Layout, tasks: dict[str, Task], numbers: Iterator[int]) -> Iterator[Row]:
    """Yield a file's rows, and put their tasks into `tasks`."""
    task: Task | None = None
    are_sets = False  # whether answers are sets of labels; a missing one is taken to be what the last one was
    for line, found in cells(file, layout.columns):
        identity, correct, answer, target, score, named, draw, doc_hash, question, *labels = found
        try:
            name = file.task if named is None else _text(named, "task") or file.task
            if task is None or name != task.name:
                task = tasks.setdefault(name, Task(name, score=layout.score))
            if answer is not None:
                are_sets = isinstance(answer, list)
                answer = _label_set(answer) if are_sets and not layout.texts else _text(answer, "answer")
            if layout.late:
                _check_late(layout, found)
            row = Row(
                task,
                file.path,
                line,
                str(next(numbers)) if layout.is_numbered else as_id(identity),
                as_outcome(correct, "correct"),
                answer,
                () if target is None else _targets(target, one_set=are_sets and not layout.texts),
                math.nan if score is None else as_score(score),
                0 if draw is None else _draw(draw),
                None if doc_hash is None else _text(doc_hash, "doc_hash"),
                tuple(map(_label, labels)) if labels else (),
                None if question is None else _text(question, "input"),
            )
        except BadRowError as fault:
            raise located(file.path, line, fault) from None
        except (ValueError, RecursionError) as error:  # a number of 5000 digits, a list in a thousand lists
            raise LogError(f"{file.path}:{line}: a cell is too large or too deep ({error}); correct the row") from None
        yield row


def _check_late(layout: _Layout, found: Cells) -> None:
    for index in layout.late:
        if found[index] is not None:
            name = NAMES[index]
            raise BadRowError(f"{quoted(name)} is here but not in the first rows; write null into them, or name it")


def _text(value: object, name: str) -> str | None:
    if type(value) is str:
        return value
    if isinstance(value, float) and math.isnan(value):
        raise BadRowError(f"{name} is NaN; remove it, or write null where there is none")
    return as_text(value)


def _label(value: object) -> str | None:
    return None if value is None else _text(value, "a label")


def _label_set(labels: list[object]) -> str:
    """One text for all labels, the same in whatever order they stand."""
    return json.dumps(sorted({text for label in labels if (text := as_text(label)) is not None}), ensure_ascii=False)


def _targets(target: object, *, one_set: bool) -> tuple[str, ...]:
    """The acceptable answers; for answers that are sets of labels, the one set."""
    if type(target) is str and not one_set:
        return (target,)
    acceptable = target if isinstance(target, list) else [target]
    if one_set:
        return (_label_set(acceptable),)
    return tuple(text for one in acceptable if (text := _text(one, "target")) is not None)


def _draw(value: object) -> int:
    try:
        number = int(value) if isinstance(value, str | int | float) else -1
    except (ValueError, OverflowError):
        number = -1
    if not 0 <= number <= _LARGEST_DRAW or (isinstance(value, float) and value != number):
        raise BadRowError(f"draw is {quoted(value)}; number the draws of an item 0, 1, 2, ...")
    return number
