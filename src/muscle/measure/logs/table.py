"""Plain tables, JSON lines or CSV: one row per item with `id` and `correct`.

`answer`, `target`, `score` and `task` are read where present; other fields are ignored.
"""

import csv
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import msgspec

from muscle.errors import LogError, quoted
from muscle.measure.logs.lines import json_rows
from muscle.measure.logs.rows import BadRowError, Collector, as_id, as_outcome, as_score, as_text, located
from muscle.measure.logs.source import LogFile

FORMAT = "table"
EXPECTS = "a table (JSON lines or CSV with id and correct)"

_REPEAT_REMEDY = "keep one row per id"


class _Row(msgspec.Struct, gc=False):
    id: Any
    correct: Any
    answer: Any = None
    target: Any = None
    score: Any = None
    task: Any = None


def recognises(fields: Collection[str]) -> bool:
    """Whether a row with these fields is one of this format."""
    return {"id", "correct"} <= set(fields)


def read(files: Sequence[LogFile], metric: str | None, filter_name: str | None) -> tuple[list[Collector], list[str]]:
    """Read tables; a row's `task` cell overrides the task that the file's name gives.

    Args:
        files: The files, all of this format.
        metric: Must be None: a table says right or wrong in one column only.
        filter_name: Must be None.

    Returns:
        One collector per task, and no notes.

    Raises:
        LogError: A row cannot be read.
    """
    if metric is not None or filter_name is not None:
        raise LogError(f"{files[0].path}: a table has neither metrics nor filters; leave out --metric and --filter")
    collectors: dict[str, Collector] = {}
    for file in files:
        for line, row in json_rows(file.path, msgspec.json.Decoder(_Row)) if file.is_json else _csv_rows(file):
            try:
                name = as_text(row.task) or file.task
                if name not in collectors:
                    collectors[name] = Collector(name, None, None, _REPEAT_REMEDY)
                collectors[name].add(
                    file.path,
                    line,
                    as_id(row.id),
                    correct=as_outcome(row.correct, "correct"),
                    answer=as_text(row.answer),
                    target=as_text(row.target),
                    score=as_score(row.score),
                )
            except BadRowError as fault:
                raise located(file.path, line, fault) from None
    return list(collectors.values()), []


def _csv_rows(file: LogFile) -> Iterator[tuple[int, _Row]]:
    """Yield (number of the row's last line, row); an empty cell is a missing value."""
    reader = csv.reader(_text_lines(file), strict=True)
    rows = (cells for cells in reader if "".join(cells).strip() or len(cells) > 1)  # blank lines are no rows
    limit = csv.field_size_limit(sys.maxsize)  # answers may be longer than the default 131,072 characters
    try:
        columns = next(rows)
        wanted = _wanted(file, columns)
        line = None
        for cells in rows:
            line = reader.line_num
            if len(cells) != len(columns):
                is_cut_off = len(cells) < len(columns) and next(rows, None) is None
                problem = "the last line is cut off" if is_cut_off else "the row does not fit the header"
                counts = f"{len(cells)} cells where the header has {len(columns)}"
                raise LogError(f"{file.path}:{line}: {problem} ({counts}); complete the line, or delete it")
            yield line, _Row(**{name: cells[index] or None for name, index in wanted})
        if line is None:
            raise LogError(f"{file.path}: no rows below the header; run the evaluation again, or leave the file out")
    except csv.Error as error:
        problem = f"not CSV, or the last line is cut off ({error})"
        raise LogError(f"{file.path}:{reader.line_num}: {problem}; complete the line, or delete it") from None
    finally:
        csv.field_size_limit(limit)


def _wanted(file: LogFile, columns: Sequence[str]) -> list[tuple[str, int]]:
    """The columns that are read, each with its place; others may have any name, even one twice."""
    for name in _Row.__struct_fields__:
        if columns.count(name) > 1:
            raise LogError(
                f"{file.path}: the header has {columns.count(name)} columns {quoted(name)}; keep one of them"
            )
    return [(name, columns.index(name)) for name in _Row.__struct_fields__ if name in columns]


def _text_lines(file: LogFile) -> Iterator[str]:
    """Yield every line, blank ones too: they may lie inside a quoted cell."""
    with file.path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise LogError(f"{file.path}:{number}: not valid UTF-8; convert the file to UTF-8") from None
