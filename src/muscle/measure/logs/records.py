"""The rows of a table as cells of the wanted columns, whatever holds them: a file or a Python object."""

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from operator import attrgetter
from typing import Any

import msgspec

from muscle.errors import LogError, quoted
from muscle.measure.logs.columns import Cells, Column, Fields, fields_of, getter
from muscle.measure.logs.frames import file_cells
from muscle.measure.logs.lines import json_rows, list_rows
from muscle.measure.logs.objects import object_cells
from muscle.measure.logs.rows import BadRowError, located
from muscle.measure.logs.source import LogFile

KINDS = ("jsonl", "json list", "csv", "parquet", "arrow", "records")
"""Kinds of files that can be tables."""

_SEPARATORS = " \t\r\n,["


def fields(file: LogFile) -> Fields:
    """The columns of a table; of JSON the fields of its first rows, since a writer may leave out what is null."""
    if file.kind not in ("jsonl", "json list"):
        return file.first_row
    return fields_of([file.first_row, *_head_rows(file)])


def is_loose(file: LogFile) -> bool:
    """Whether rows need not all have the same fields."""
    return file.kind in ("jsonl", "json list") or isinstance(file.records, list | tuple)


def cells(file: LogFile, columns: Sequence[Column]) -> Iterator[tuple[int, Cells]]:
    """Yield (line or number of the row, its cells).

    Raises:
        LogError: The file is damaged, a row lacks a field that it must have, or a cell is no value.
    """
    if file.kind in ("parquet", "arrow"):
        return file_cells(file.path, columns)
    if file.kind == "records":
        return object_cells(file, columns)
    return _csv_cells(file, columns) if file.kind == "csv" else _json_cells(file, columns)


def _head_rows(file: LogFile) -> Iterator[object]:
    """The rows that are whole in the file's head."""
    text = file.head.decode("utf-8-sig", errors="replace")
    decoder, place = json.JSONDecoder(), 0
    while True:
        while text[place : place + 1] in _SEPARATORS and place < len(text):
            place += 1
        try:
            row, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):  # the end of the head, or what will be told of when it is read
            return
        yield row


def _json_cells(file: LogFile, columns: Sequence[Column]) -> Iterator[tuple[int, Cells]]:
    """JSON lines or a JSON list, of which only the wanted fields are decoded."""
    names = list(dict.fromkeys(column.place[0] for column in columns if column.place))
    attributes = {name: f"f{index}" for index, name in enumerate(names)}
    needed = {column.place[0] for column in columns if column.required and len(column.place) == 1}
    decoder = msgspec.json.Decoder(_row_type(file, attributes, needed))
    outermost = attrgetter(*(attributes[column.place[0]] if column.place else "absent" for column in columns))
    of_row = getter(columns, outermost)
    for number, row in (list_rows if file.kind == "json list" else json_rows)(file.path, decoder):
        try:
            found = of_row(row)
        except BadRowError as fault:
            raise located(file.path, number, fault) from None
        yield number, found


def _row_type(file: LogFile, attributes: Mapping[str, str], needed: Set[str]) -> type[msgspec.Struct]:
    """A row with an attribute for each of these fields; one that is not needed is None where a row lacks it."""
    members = [
        (attribute, Any, msgspec.field(name=name) if name in needed else msgspec.field(name=name, default=None))
        for name, attribute in attributes.items()
    ]
    try:
        return msgspec.defstruct("Row", members, namespace={"absent": None}, kw_only=True, gc=False)
    except ValueError:  # a control character, a quote, half a surrogate pair
        names = quoted(", ".join(attributes), limit=300)
        raise LogError(f"{file.path}: one of the columns {names} has a name that cannot be; rename it") from None


def _csv_cells(file: LogFile, columns: Sequence[Column]) -> Iterator[tuple[int, Cells]]:
    """CSV: yield (number of the row's last line, its cells); an empty cell is a missing value."""
    reader = csv.reader(_text_lines(file), strict=True)
    rows = (cells for cells in reader if "".join(cells).strip() or len(cells) > 1)  # blank lines are no rows
    limit = csv.field_size_limit(sys.maxsize)  # answers may be longer than the default 131,072 characters
    try:
        header = next(rows, [])
        places = _places(file, header, columns)
        line = None
        for row in rows:
            line = reader.line_num
            if len(row) != len(header):
                is_cut_off = len(row) < len(header) and next(rows, None) is None
                problem = "the last line is cut off" if is_cut_off else "the row does not fit the header"
                counts = f"{len(row)} cells where the header has {len(header)}"
                raise LogError(f"{file.path}:{line}: {problem} ({counts}); complete the line, or delete it")
            yield line, [None if place is None else row[place] or None for place in places]
        if line is None:
            raise LogError(f"{file.path}: no rows below the header; run the evaluation again, or leave the file out")
    except csv.Error as error:
        problem = f"not CSV, or the last line is cut off ({error})"
        raise LogError(f"{file.path}:{reader.line_num}: {problem}; complete the line, or delete it") from None
    finally:
        csv.field_size_limit(limit)


def _places(file: LogFile, header: Sequence[str], columns: Sequence[Column]) -> list[int | None]:
    """Where in a line each column stands; others may have any name, even one twice."""
    for column in columns:
        if column.place and (count := header.count(column.place[0])) > 1:
            raise LogError(f"{file.path}: the header has {count} columns {quoted(column.place[0])}; keep one of them")
        if column.place and not count:
            raise LogError(f"{file.path}: the header is not one line of names; write it as the first line of the file")
    return [header.index(column.place[0]) if column.place else None for column in columns]


def _text_lines(file: LogFile) -> Iterator[str]:
    """Yield every line, blank ones too: they may lie inside a quoted cell."""
    with file.path.open("rb") as handle:
        for number, line in enumerate(handle, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise LogError(f"{file.path}:{number}: not valid UTF-8; convert the file to UTF-8") from None
