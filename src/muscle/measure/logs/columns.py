"""Columns of a table by the user's names: found in the fields of its rows, nested ones by dotted paths."""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from muscle.errors import quoted
from muscle.measure.logs.rows import BadRowError, listed, located

Fields = Mapping[str, Any]
"""The fields of a table's rows, each with what one of them holds in it, so that nested fields show; None otherwise."""
Cells = Sequence[Any]
"""What a row holds in the columns that were asked for, in their order."""
Made = TypeVar("Made")

LOOKED_AT = 1000  # rows; fields that none of them has are not known
_DEEPEST = 50  # fields in fields; what is in those is not known


class Column(NamedTuple):
    """A column to read."""

    place: tuple[str, ...]
    """The names of the fields from the outermost in; empty where the table has no such column: its cells are None."""
    required: bool = False
    """Whether a row without the field is a fault, and not a missing value."""


def find(name: str, fields: Fields) -> tuple[str, ...] | None:
    """The place of the column that the user calls so, such as gold.answer; names of fields may hold dots themselves."""
    if name in fields:
        return (name,)
    for field, value in fields.items():
        if isinstance(value, Mapping) and name.startswith(f"{field}."):
            inner = find(name[len(field) + 1 :], value)
            if inner is not None:
                return (field, *inner)
    return None


def suggestion(name: str, fields: Fields) -> str:
    """The way out where no column has this name."""
    names = listed(_dotted(fields))
    near = difflib.get_close_matches(name, names, n=1) or [
        known for known in names if known.rpartition(".")[2].lower() == name.lower()
    ]
    return f"did you mean {quoted(near[0])}?" if near else f"choose among {quoted(', '.join(names), limit=300)}"


def fields_of(rows: Iterable[object]) -> dict[str, Any]:
    """The fields that the first rows have between them; what is no row is passed over."""
    fields: dict[str, Any] = {}
    for row in islice(rows, LOOKED_AT):
        if isinstance(row, Mapping):
            _merge(fields, row)
    return fields


def numbered(
    rows: Iterable[Any], made: Callable[[Any], Made], path: Path, start: int = 1
) -> Iterator[tuple[int, Made]]:
    """Yield (number of the row, what is made of it).

    Args:
        rows: Whatever `made` takes.
        made: What to make of a row.
        path: Where the rows come from, for messages.
        start: The number of the first row.

    Raises:
        LogError: `rows` or `made` finds a fault in a row.
    """
    number = start
    try:
        for found in map(made, rows):
            yield number, found
            number += 1
    except BadRowError as fault:
        raise located(path, number, fault) from None


def getter(columns: Sequence[Column], outermost: Callable[[Any], Cells]) -> Callable[[Any], Cells]:
    """How to get a row's cells, given how to get what the outermost fields of their places hold.

    The function raises BadRowError where a nested field is not there.
    """
    nested = [(index, column.place[1:], column) for index, column in enumerate(columns) if len(column.place) > 1]
    if not nested:
        return outermost

    def cells(row: Any) -> Cells:
        found = list(outermost(row))
        for index, names, column in nested:
            value = found[index]
            try:
                for name in names:
                    value = value[name]
            except (KeyError, TypeError):
                value = _inside(found[index], column)
            found[index] = value
        return found

    return cells


def from_mapping(columns: Sequence[Column]) -> Callable[[Any], Cells]:
    """How to get a row's cells where it is a mapping; the function raises BadRowError where a field is not there."""
    names = [column.place[0] if column.place else None for column in columns]
    required = [column.place[0] for column in columns if column.required]

    def outermost(row: Any) -> Cells:
        for name in required:
            if name not in row:
                raise BadRowError(f"the row has no {quoted(name)}; complete it, or leave it out")
        return [None if name is None else plain(row.get(name)) for name in names]

    return getter(columns, outermost)


def plain(value: Any) -> Any:
    """A cell of a data frame or Python object as JSON would hold it; NaT and pandas' NA become None.

    Raises:
        BadRowError: It is bytes that are no text, or an object that is no value at all.
    """
    kind = type(value)
    if value is None or kind is str or kind is int or kind is float or kind is bool:
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(inner) for inner in value), key=repr)
    if kind.__name__ in {"NAType", "NaTType"}:
        return None
    if isinstance(value, bytes):
        return _decoded(value)
    if isinstance(value, Decimal):
        return int(value) if value.is_finite() and value == value.to_integral_value() else float(value)
    for unpack in ("tolist", "to_list"):  # of numpy's scalars and arrays, of polars' series
        if hasattr(value, unpack):
            return plain(getattr(value, unpack)())
    text = str(value)  # dates, UUIDs, paths, members of an Enum
    if text == object.__repr__(value):
        raise BadRowError(f"a cell is a Python object of the type {kind.__name__}; write a text, number, list or dict")
    return text


def _decoded(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise BadRowError(f"a cell is {quoted(value)}, bytes that are no UTF-8; make the column text") from None


def _inside(value: Any, column: Column) -> Any:
    """What the nested field of a row that may lack it holds, given what its outermost field does."""
    for depth, name in enumerate(column.place[1:], 1):
        if value is not None and not isinstance(value, Mapping):
            outer = ".".join(column.place[:depth])
            raise BadRowError(f"{outer} is {quoted(value)}, which has no {quoted(name)}; correct the row")
        if column.required and (value is None or name not in value):
            raise BadRowError(f"the row has no {quoted('.'.join(column.place))}; complete it, or leave it out")
        value = None if value is None else value.get(name)
    return value


def _dotted(fields: Fields, outer: str = "") -> Iterator[str]:
    for field, value in fields.items():
        yield outer + field
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{outer}{field}.")


def _merge(fields: dict[str, Any], row: Mapping[Any, Any], depth: int = _DEEPEST) -> None:
    for name, value in row.items():
        if not isinstance(name, str):
            continue
        if isinstance(value, Mapping):
            known = fields.get(name)
            inner = known if isinstance(known, dict) else {}
            if depth:
                _merge(inner, value, depth - 1)
            fields[name] = inner
        elif fields.get(name) is None:
            fields[name] = value
