"""Rows gathered into the columns of Predictions, one collector per task; settles rows that name the same item."""

import math
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from operator import attrgetter, itemgetter, lt
from pathlib import Path
from typing import Any, cast

import numpy as np

from muscle.errors import quoted
from muscle.measure.logs.rows import BadRowError, Row, Rows, Selection, Task, located
from muscle.measure.predictions import MISSING, RIGHT, UNSCORED, WRONG, Predictions
from muscle.measure.similarity import as_number, scorer

_OUTCOME_NAMES = {RIGHT: "right", WRONG: "wrong", UNSCORED: "unscored"}
_LONGEST_NUMBER = 40  # in characters; what is longer is not compared as a number
_MAX_KNOWN = 100_000
TOGETHER = 256
"""Rows that are taken into the columns at a time: more of them leave the processor's cache."""
_MOST_TASKS = 10_000
_TOO_MANY_TASKS = f"more than {_MOST_TASKS} tasks; name the field that says the task, or split the log"
_HEAD = 16  # hexadecimal digits
_HEXADECIMAL = re.compile(r"[0-9a-fA-F]+")


def gather(rows: Iterable[Row] | Iterable[Rows], selection: Selection) -> dict[str, Predictions]:
    """Columns by task, in order of appearance.

    Args:
        rows: One by one, or many at a time, which saves a fifth of the time that it takes to read a log.
        selection: What becomes of repeated items, and whether the texts are to be graded.

    Raises:
        LogError: An item occurs twice with different outcomes, and no choice was made.
    """
    collectors: dict[str, Collector] = {}
    if selection.text_score is not None:
        rows = graded_by_texts(_one_by_one(rows), selection)
    for block in _in_blocks(rows):
        task = block.task
        if task.name not in collectors:
            if len(collectors) == _MOST_TASKS:  # each takes memory of its own
                raise located(block.file, block.line[0], BadRowError(_TOO_MANY_TASKS))
            collectors[task.name] = Collector(task, selection)
        collectors[task.name].add(block)
    return {name: collector.predictions() for name, collector in collectors.items()}


def _in_blocks(rows: Iterable[Row | Rows]) -> Iterator[Rows]:
    rest = iter(rows)
    for first in rest:
        if isinstance(first, Rows):
            yield first
            continue
        together = [first, *cast("Iterator[Row]", islice(rest, TOGETHER - 1))]
        for _, part in groupby(together, attrgetter("task", "file")):
            yield Rows.of(list(part))


def _one_by_one(rows: Iterable[Row | Rows]) -> Iterator[Row]:
    for item in rows:
        if isinstance(item, Rows):
            yield from item.each()
        else:
            yield item


def graded_by_texts(rows: Iterable[Row], selection: Selection) -> Iterator[Row]:
    """The rows graded by their texts; an exact match says right or wrong, every other score is a grade."""
    name = selection.text_score or ""
    score = scorer(name, numeric=selection.numeric)
    tasks: dict[Task, Task] = {}
    for row in rows:
        judges = name == "exact_match"
        value = math.nan  # without a target nothing is known; without an answer there is nothing right in it
        if row.targets:
            value = 0.0 if row.answer is None else score(row.answer, row.targets)
        if judges:
            row.correct = (RIGHT if value else WRONG) if row.targets else UNSCORED
        else:
            row.score = value
        if row.task not in tasks:
            old = row.task
            tasks[old] = (
                Task(old.name, name, old.filter, old.score, old.repeat_remedy)
                if judges
                else Task(old.name, old.metric, old.filter, name, old.repeat_remedy)
            )
        row.task = tasks[row.task]
        yield row


class Collector:
    """The columns of one task; they grow by some hundreds of rows at a time, which costs a third of one by one."""

    def __init__(self, task: Task, selection: Selection) -> None:
        """Start an empty task."""
        self.task = task
        self._duplicates = selection.duplicates
        self._row_of: dict[str | tuple[str, int], int] = {}
        self._highest = -math.inf  # id so far; infinity once they do not go up
        self._ids: list[str] = []
        self._draws = array("i")
        self._correct = array("b")
        self._scores = array("d")
        self._answers = array("q")
        self._numbers = array("q")
        self._targets = array("q")
        self._doc_hashes = array("Q")
        self._labels: list[list[str | None]] = [[] for _ in selection.labels]
        self._names = selection.labels
        # Keys of short answers, of which there are few.
        self._known: dict[str | None, tuple[int, int]] = {None: (MISSING, MISSING)}
        self._shared: dict[str | None, str | None] = {}  # one object per distinct label
        self._files: list[tuple[int, Path]] = []  # for messages: from which row on, and the file
        self._lines = array("I")
        self._asked: dict[str, int] = {}  # by id, the number of its last draw, where repeated rows are draws
        self._repeated = 0
        self._conflicting = 0

    def add(self, rows: Rows) -> None:
        """Append rows: all at once if none of their items was met before.

        Raises:
            LogError: An item was met before with another outcome, answer or content.
        """
        if self._duplicates == "draws":
            rows = rows._replace(draw=[self._next_draw(item) for item in rows.id])
        if self._all_ascend(rows.id):
            self._extend(rows)
            return
        keys = list(map(_item_key, rows.id, rows.draw))
        if len(set(keys)) == len(keys) and self._index().keys().isdisjoint(keys):
            self._extend(rows)
            return
        for row, key in zip(rows.each(), keys, strict=True):
            place = self._index().get(key)
            if place is None:
                self._extend(Rows.of([row]))
            else:
                self._settle(place, row)

    def predictions(self) -> Predictions:
        """The columns of all rows; draws are numbered from 0, whatever the log calls them."""
        draws, scores = np.asarray(self._draws), np.asarray(self._scores)
        answers, numbers = np.asarray(self._answers), np.asarray(self._numbers)
        if (draws == draws[:1]).all():
            draws = np.broadcast_to(np.int32(0), draws.shape)  # a column in four bytes
        else:
            draws = np.unique(draws, return_inverse=True)[1].astype(np.int32)
        if np.isnan(scores).all():
            scores = np.broadcast_to(np.nan, scores.shape)
        return Predictions(
            task=self.task.name,
            metric=self.task.metric,
            filter=self.task.filter,
            score=self.task.score,
            ids=self._ids,
            draws=draws,
            correct=np.asarray(self._correct),
            scores=scores,
            answers=answers,
            numbers=answers if np.array_equal(answers, numbers) else numbers,
            targets=np.asarray(self._targets),
            doc_hashes=np.asarray(self._doc_hashes),
            labels=dict(zip(self._names, self._labels, strict=True)),
            repeated=self._repeated,
            conflicting=self._conflicting,
        )

    def _next_draw(self, item: str) -> int:
        self._asked[item] = draw = self._asked.get(item, -1) + 1
        return draw

    def _all_ascend(self, ids: Sequence[str]) -> bool:
        """Whether the ids are numbers that only go up, as the harness writes them: then no item was met before."""
        if self._highest == math.inf:
            return False
        try:
            numbers = [self._highest, *map(int, ids)]
        except ValueError:
            numbers = [math.inf, math.inf]
        if all(map(lt, numbers, numbers[1:])):
            self._highest = numbers[-1]
            return True
        self._highest = math.inf
        return False

    def _index(self) -> Mapping[str | tuple[str, int], int]:
        """The row that each item is in; kept only where it is needed, for it takes more memory than all columns."""
        for place in range(len(self._row_of), len(self._ids)):
            self._row_of[_item_key(self._ids[place], self._draws[place])] = place
        return self._row_of

    def _extend(self, rows: Rows) -> None:
        """Append rows of new items, at least one."""
        if not self._files or self._files[-1][1] is not rows.file:
            self._files.append((len(self._ids), rows.file))
        self._ids += rows.id
        known = self._known
        answers = [known.get(answer) or self._answer_keys(answer) for answer in rows.answer]
        columns: tuple[tuple[array[Any], Sequence[object]], ...] = (
            (self._draws, rows.draw),
            (self._correct, rows.correct),
            (self._scores, rows.score),
            (self._answers, [key for key, _ in answers]),
            (self._numbers, [number for _, number in answers]),
            (self._targets, [_key("\0".join(targets)) if targets else MISSING for targets in rows.targets]),
            (self._doc_hashes, _hash_heads(rows)),
            (self._lines, rows.line),
        )
        for column, values in columns:
            column.extend(array(column.typecode, values))  # twice as fast as extending by the values
        for texts, labels in zip(self._labels, zip(*rows.labels, strict=True), strict=True):
            texts += [self._shared.setdefault(label, label) for label in labels]

    def _answer_keys(self, answer: str | None) -> tuple[int, int]:
        """Keys of an answer as text and as number."""
        if answer is None:
            return MISSING, MISSING
        key = _key(answer)
        number = as_number(answer) if len(answer) <= _LONGEST_NUMBER else None
        keys = key, key if number is None else _key(number)
        if len(answer) <= _LONGEST_NUMBER and len(self._known) < _MAX_KNOWN:
            self._known[answer] = keys
        return keys

    def _settle(self, place: int, row: Row) -> None:
        """Decide what a second row of one item is: the same again, a choice that the user made, or a fault."""
        answer, number = self._answer_keys(row.answer)
        (content,) = _hash_heads(Rows.of([row]))
        outcome = (self._correct[place], self._answers[place], self._doc_hashes[place])
        earlier_score = self._scores[place]
        same_score = earlier_score == row.score or (math.isnan(earlier_score) and math.isnan(row.score))
        if outcome == (row.correct, answer, content) and same_score:
            self._repeated += 1
            return
        if self._duplicates == "error":
            raise located(row.file, row.line, BadRowError(self._conflict(place, row, answer, content)))
        self._conflicting += 1
        if self._duplicates == "last":
            self._correct[place], self._scores[place] = row.correct, row.score
            self._answers[place], self._numbers[place], self._doc_hashes[place] = answer, number, content

    def _conflict(self, place: int, row: Row, answer: int, content: int) -> str:
        file, line = self._files[bisect_right(self._files, place, key=itemgetter(0)) - 1][1], self._lines[place]
        where = f"line {line}" if file == row.file else f"{file}:{line}"
        if self._correct[place] != row.correct:
            was = _OUTCOME_NAMES[self._correct[place]]
            change = f"was {was} in {where} and is {_OUTCOME_NAMES[row.correct]} here"
        elif self._answers[place] != answer:
            change = f"has another answer in {where} than here ({quoted(row.answer)})"
        elif self._doc_hashes[place] != content:
            change = f"has another doc_hash in {where}"
        else:
            change = f"was graded {self._scores[place]:g} in {where} and is graded {row.score:g} here"
        return f"id {quoted(row.id)} {change}; {self.task.repeat_remedy}"


def _item_key(item: str, draw: int) -> str | tuple[str, int]:
    return (item, draw) if draw else item


def _key(text: str) -> int:
    """A text's key: Python's own hash, 64 bits and seeded by chance for each process: nobody can aim at a collision."""
    return hash(text) or 1


def _hash_heads(rows: Rows) -> list[int]:
    """64 bits of each are plenty to notice that two items differ, in 8 bytes instead of the text's 113."""
    try:
        heads = [int(value[:_HEAD], 16) if value else 0 for value in rows.doc_hash]
        if min(heads) >= 0:
            return heads
    except ValueError:
        pass
    bad = next(row for row in rows.each() if row.doc_hash and not _HEXADECIMAL.fullmatch(row.doc_hash[:_HEAD]))
    raise located(bad.file, bad.line, BadRowError(f"doc_hash is {quoted(bad.doc_hash)}; expected hexadecimal digits"))
