"""lm-evaluation-harness samples logs, 0.4.0 and later: one row per item and filter, one file per task.

Since 0.4.3 `samples_<task>_<date>.jsonl`, JSON lines; before, `<model_args>_<task>.jsonl`, which is one JSON list. Read
off the harness itself (0.4.13): `loggers/evaluation_tracker.py` writes the rows.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from muscle.errors import LogError, quoted
from muscle.measure.logs.collector import TOGETHER
from muscle.measure.logs.lines import json_rows, list_rows
from muscle.measure.logs.lm_eval_answers import (
    LENGTHS,
    Response,
    Sample,
    SampleWithChoices,
    SampleWithTexts,
    answer_rule,
    in_words,
    log_likelihoods,
    targets_of,
)
from muscle.measure.logs.lm_eval_metrics import Measure, check_named, choose, first_that_judges, notes_by_task
from muscle.measure.logs.lm_eval_old import task_of
from muscle.measure.logs.rows import BadRowError, Row, Rows, Selection, Task, as_id, as_score, as_text, inside, located
from muscle.measure.logs.source import LogFile
from muscle.measure.predictions import UNSCORED

FORMAT = "lm-eval"
EXPECTS = "lm-eval samples (rows with doc_id and filtered_resps)"

# What the harness writes into every row; each remaining field is a metric.
_OWN_FIELDS = {
    *("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"),
    *("doc_hash", "prompt_hash", "target_hash"),
}


def recognises(file: LogFile, selection: Selection) -> bool:
    """Whether the file's rows have these fields; columns that a user names make it a table."""
    return {"doc_id", "filtered_resps"} <= file.first_row.keys() and not selection.columns


def rows(files: Sequence[LogFile], selection: Selection, notes: list[str], *, texts: bool = False) -> Iterator[Row]:
    """The rows of `blocks` one by one."""
    for block in blocks(files, selection, notes, texts=texts):
        yield from block.each()


def blocks(files: Sequence[LogFile], selection: Selection, notes: list[str], *, texts: bool = False) -> Iterator[Rows]:
    """Read samples files, several of one task (reruns) included.

    A task that lacks the metric or filter which the selection names is read by its first, and a note says so.

    Raises:
        LogError: A row cannot be read, or no file has the metric or filter.
    """
    check_named([(file, _metric_values(file)) for file in files], selection)
    files_of: dict[str, list[LogFile]] = {}
    beside: dict[Path, set[str]] = {}
    for file in files:
        files_of.setdefault(task_of(file, beside), []).append(file)
    tasks = [_TaskReader(name, parts, selection, texts=texts) for name, parts in files_of.items()]
    for task in tasks:
        yield from task.blocks()
    filters = {name: None for task in tasks for name in task.filters}
    if selection.filter is not None and selection.filter not in filters:
        among = ", ".join(name for name in filters if name is not None)
        if not among:
            raise LogError(f"{files[0].path}: this log names no filters; leave out --filter")
        raise LogError(f"{files[0].path}: no filter {quoted(selection.filter)}; choose with --filter among {among}")
    notes += notes_by_task((task.name, task.remarks()) for task in tasks)


class _TaskReader:
    """Reads the files of one task."""

    def __init__(self, name: str, files: Sequence[LogFile], selection: Selection, *, texts: bool) -> None:
        """Choose what to judge the rows by.

        Raises:
            LogError: No metric fits, or not every file has it.
        """
        self.name = name
        self.filters: dict[str | None, None] = {}
        """Filters met; filled by reading."""
        self._files, self._selection, self._texts = files, selection, texts
        metrics = [(file, _metric_values(file)) for file in files]
        self._measure = choose(metrics, selection, self._first_that_judges)
        self._own_filter = as_text(files[0].first_row.get("filter"))

    def blocks(self) -> Iterator[Rows]:
        """Yield the rows of one filter: the one selected, or where the task lacks it the first."""
        selected = self._selection.filter
        for which in [self._own_filter] if selected is None else [selected, self._own_filter]:
            measure = self._measure
            task = Task(self.name, measure.metric, which, measure.score, _repeat_remedy(self._own_filter))
            for file in self._files:
                reader = _FileReader(file, task, measure, self._selection.labels, texts=self._texts)
                yield from reader.blocks(self.filters)
            if which in self.filters:
                return

    def remarks(self) -> list[str]:
        """What a user should know of the choices made."""
        selected, own = self._selection.filter, self._own_filter
        others = ", ".join(name for name in self.filters if name not in (None, own))
        remarks = self._measure.remarks(self._selection)
        if selected is None and others:
            return [f"filter {own} is read; choose with --filter among it and {others}", *remarks]
        if selected is not None and selected not in self.filters:
            return [f"no filter {selected} here; {own} is read", *remarks]
        return remarks

    def _first_that_judges(self, names: Sequence[str]) -> str | None:
        def values() -> Iterator[Sequence[object]]:
            for file in self._files:
                row_type, cell = _row_type(file, Sample, names)
                get = [cell[name] for name in names]
                for _, row in _read(file, row_type):
                    yield [value_of(row) for value_of in get]

        return first_that_judges(names, values())


class _FileReader:
    """Reads the rows of one filter in one file."""

    def __init__(self, file: LogFile, task: Task, measure: Measure, labels: Sequence[str], *, texts: bool) -> None:
        """Prepare to decode what is asked for and nothing else."""
        self._file, self._task, self._measure, self._texts = file, task, measure, texts
        paths = [label.split(".") for label in labels]
        base = SampleWithTexts if texts else SampleWithChoices if task.metric in LENGTHS else Sample
        self._row_type, cell = _row_type(file, base, [task.metric, task.score, *(path[0] for path in paths)])
        self._value_of, self._grade_of = cell[task.metric], cell[task.score]
        self._label_of = [(cell[path[0]], path[1:]) for path in paths]
        self._doubled = "acc_mutual_info" in _metric_values(file)
        self._answer_of = answer_rule(task.metric, doubled=self._doubled)

    def blocks(self, filters: dict[str | None, None]) -> Iterator[Rows]:
        """Yield the rows; put the names of all filters met into `filters`."""
        read = _read(self._file, self._row_type)
        while together := list(islice(read, TOGETHER)):
            met = dict.fromkeys([row.filter for _, row in together])
            filters |= met
            if len(met) > 1:
                together = [(line, row) for line, row in together if row.filter == self._task.filter]
            if self._task.filter in met:
                yield self._located(together)

    def _located(self, numbered: Sequence[tuple[int, Sample]]) -> Rows:
        """The rows as columns; on a fault the error names the row.

        Raises:
            LogError: A row cannot be read.
        """
        try:
            return self._columns(numbered)
        except BadRowError as fault:
            if len(numbered) == 1:
                raise located(self._file.path, numbered[0][0], fault) from None
        for each in numbered:
            self._located([each])
        raise AssertionError("a fault in many rows is a fault in one of them")

    def _columns(self, numbered: Sequence[tuple[int, Sample]]) -> Rows:
        lines, rows = zip(*numbered, strict=True)
        count, score = len(rows), self._task.score
        correct = self._measure.outcomes(list(map(self._value_of, rows)))
        answers = self._answers(rows, correct)
        targets = [targets_of(row.target) for row in rows]
        scores = [math.nan] * count
        prompts: list[str | None] = [None] * count
        labels: list[tuple[str | None, ...]] = [()] * count
        if score is not None:
            scores = [as_score(self._grade_of(row), score) for row in rows]
        if self._label_of:
            labels = [tuple(as_text(inside(get(row), path)) for get, path in self._label_of) for row in rows]
        if self._texts:
            shown = [in_words(*each, doubled=self._doubled) for each in zip(rows, answers, strict=True)]
            prompts, answers, targets = map(list, zip(*shown, strict=True))
        ids = [str(row.doc_id) if type(row.doc_id) is int else as_id(row.doc_id) for row in rows]
        hashes = [row.doc_hash for row in rows]
        return Rows(
            self._task,
            self._file.path,
            lines,
            ids,
            correct,
            answers,
            targets,
            scores,
            [0] * count,
            hashes,
            labels,
            prompts,
        )

    def _answers(self, rows: Sequence[Sample], correct: Sequence[int]) -> list[str | None]:
        if self._task.metric is None or UNSCORED not in correct:
            return list(map(self._answer_of, rows))
        # A row that is meant to be unscored may lack the answer.
        return [None if each[1] == UNSCORED else self._answer_of(each[0]) for each in zip(rows, correct, strict=True)]


def _metric_values(file: LogFile) -> dict[str, object]:
    """The metrics of the log in its own order, each with its value in the first row."""
    row = file.first_row
    named = row.get("metrics")  # since 0.4.7
    names = map(str, named if isinstance(named, list) else row)
    return {name: row.get(name) for name in names if name not in _OWN_FIELDS}


def _repeat_remedy(filter_name: str | None) -> str:
    if filter_name is None:
        return (
            "this log does not name its filters (lm-eval before 0.4.7), and several filters or a rerun repeat an id; "
            "take the first with --duplicates first, or evaluate again with 0.4.7 or later"
        )
    return (
        "a rerun was appended or two runs lie in one folder; name one run's file, delete the rows of the other, "
        "or choose with --duplicates"
    )


_Sample = TypeVar("_Sample", bound=Sample)
_Getter = Callable[[Sample], object]


def _row_type(
    file: LogFile, base: type[_Sample], keys: Sequence[str | None]
) -> tuple[type[_Sample], Mapping[str | None, _Getter]]:
    """The base with further fields of a row, whatever their names; and what gets each of them out of a row."""
    fields: list[tuple[str, Any, Any]] = []
    getters: dict[str | None, _Getter] = {None: lambda row: None}
    for key in keys:
        if key in getters or key is None:
            continue
        attribute = key
        if key not in base.__struct_fields__:
            attribute = f"extra_{len(fields)}"
            fields.append((attribute, Any, msgspec.field(name=key, default=None)))
        getters[key] = attrgetter(attribute)
    try:
        row_type = msgspec.defstruct("Row", fields, bases=(base,), gc=False, kw_only=True)
    except ValueError:  # a control character, a quote, half a surrogate pair
        names = ", ".join(quoted(key) for key in getters if key is not None)
        raise LogError(f"{file.path}: no field can have such a name: {names}; rename it in the log") from None
    return cast("type[_Sample]", row_type), getters


def _read(file: LogFile, row_type: type[_Sample]) -> Iterator[tuple[int, _Sample]]:
    """Yield (line, row); where the first row is multiple choice, the log-likelihoods are decoded as such."""
    read = list_rows if file.kind == "json list" else json_rows
    general = msgspec.json.Decoder(row_type)
    responses = file.first_row.get("filtered_resps")
    try:
        values = log_likelihoods(responses) if isinstance(responses, list) else None
    except BadRowError:
        values = None
    if values is None or len(values) < 2:
        return read(file.path, general)
    field = ("filtered_resps", list[Response])
    typed = msgspec.defstruct("Row", [field], bases=(row_type,), gc=False, kw_only=True)
    return read(file.path, msgspec.json.Decoder(cast("type[_Sample]", typed), strict=False), general)
