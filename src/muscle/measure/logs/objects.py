"""Python objects that hold rows: data frames (polars, pandas), pyarrow tables, datasets, lists of dicts.

Which one an object is shows by its class, so no library is imported that the caller does not use.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from muscle.errors import LogError, quoted
from muscle.measure.logs import frames
from muscle.measure.logs.columns import (
    LOOKED_AT,
    Cells,
    Column,
    Fields,
    fields_of,
    from_mapping,
    getter,
    numbered,
    plain,
)
from muscle.measure.logs.rows import BadRowError
from muscle.measure.logs.source import LogFile

if TYPE_CHECKING:
    import polars

SUPPORTED = "a polars or pandas DataFrame, a pyarrow.Table, a datasets.Dataset, or a list of dicts"

_BY_POLARS = ("polars.DataFrame", "polars.LazyFrame", "pyarrow.Table", "datasets.Dataset")
_BATCH = 1 << 14  # rows of a dataset that are in memory at a time


def inspect_records(records: object) -> list[LogFile]:
    """A Python object that holds rows, as a file that is named after its class; a dict of them as one file per task.

    Raises:
        LogError: It is no such object.
    """
    path = Path(f"<{type(records).__name__}>")
    if isinstance(records, dict | list | tuple) and not records:
        raise LogError(f"{path}: no rows; run the evaluation again, or leave it out")
    if type(records) is dict:
        return [_inspected(rows, f"{path}[{task!r}]", str(task)) for task, rows in records.items()]
    return [_inspected(records, str(path), "")]


def _inspected(records: object, name: str, task: str) -> LogFile:
    path = Path(name)
    with _faults(path):
        return LogFile(path, task, "records", _opened(records, path).fields(), b"", records)


def digest_records(files: Sequence[LogFile]) -> str:
    """SHA-256 of the tasks' names and the rows as JSON, as hexadecimal.

    Raises:
        LogError: An object cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.task!r}\n".encode())
        for line in json_lines(file, canonical=True):
            digest.update(line)
    return digest.hexdigest()


def json_lines(file: LogFile, *, canonical: bool = False) -> Iterator[bytes]:
    """The rows as lines of JSON.

    Args:
        file: A Python object.
        canonical: Whether the fields are sorted by name and those without a value left out.

    Raises:
        LogError: The object cannot be read.
    """
    encode = msgspec.json.Encoder(enc_hook=_jsonable, order="sorted" if canonical else None).encode
    with _faults(file.path):
        for mapping in _opened(file.records, file.path).mappings():
            row = {str(name): value for name, value in mapping.items() if value is not None or not canonical}
            try:
                yield encode(row) + b"\n"
            except (UnicodeEncodeError, TypeError):  # half a surrogate pair, or names that are no text
                row = {name: _jsonable(value) for name, value in row.items()}
                yield json.dumps(row, sort_keys=canonical).encode() + b"\n"


def object_cells(file: LogFile, columns: Sequence[Column]) -> Iterator[tuple[int, Cells]]:
    """Yield (number of the row from 1, its cells).

    Raises:
        LogError: The object cannot be read, or a cell holds nothing that a log can hold.
    """
    with _faults(file.path):
        yield from _opened(file.records, file.path).cells(columns)


class _Table(Protocol):
    """An object that holds rows."""

    def fields(self) -> Fields:
        """Its columns."""

    def mappings(self) -> Iterable[Mapping[Any, Any]]:
        """Its rows, all columns."""

    def cells(self, columns: Sequence[Column]) -> Iterator[tuple[int, Cells]]:
        """Its rows, these columns, numbered from 1."""


def _opened(records: Any, path: Path) -> _Table:
    """The object by its class or one that it inherits from."""
    classes = {f"{cls.__module__.partition('.')[0]}.{cls.__name__}" for cls in type(records).__mro__}
    if isinstance(records, list | tuple):
        return _Mappings(records, path)
    if "pandas.DataFrame" in classes:
        return _Pandas(records, path)
    for name in _BY_POLARS:
        if name in classes:
            return _Frames(records, path, library=name.partition(".")[0])
    if "datasets.DatasetDict" in classes:
        raise LogError(f"{path}: several splits; give one of them: {', '.join(map(repr, records))}")
    if isinstance(records, Iterator) or "datasets.IterableDataset" in classes:
        raise LogError(f"{path}: can be read only once; give a list of its rows: list(...)")
    raise LogError(f"{path}: no log; give a path, or {SUPPORTED}")


class _Mappings:
    """A list of dicts."""

    def __init__(self, rows: Sequence[Any], path: Path) -> None:
        self._rows, self._path = rows, path

    def fields(self) -> Fields:
        return fields_of(self.mappings())

    def mappings(self) -> Iterator[Mapping[Any, Any]]:
        return (row for _, row in numbered(self._rows, _as_mapping, self._path))

    def cells(self, columns: Sequence[Column]) -> Iterator[tuple[int, Cells]]:
        return numbered(self.mappings(), from_mapping(columns), self._path)


class _Pandas:
    """A pandas.DataFrame; its index is a column where it has a name. NaN in it stands for a missing value."""

    def __init__(self, frame: Any, path: Path) -> None:
        index = {str(name): frame.index.get_level_values(name) for name in frame.index.names if name is not None}
        names = [str(name) for name in frame.columns]
        for name, count in Counter(names).items():
            if count > 1:
                raise LogError(f"{path}: {count} columns {quoted(name)}; rename or drop all but one")
        self._columns = index | {name: frame.iloc[:, place] for place, name in enumerate(names)}
        self._length = len(frame)
        self._path = path

    def fields(self) -> Fields:
        return dict.fromkeys(self._columns) | fields_of(self._mappings(LOOKED_AT))

    def mappings(self) -> Iterator[Mapping[str, Any]]:
        return self._mappings(self._length)

    def cells(self, columns: Sequence[Column]) -> Iterator[tuple[int, Cells]]:
        values = [
            map(plain, self._values(column.place[0], self._length)) if column.place else repeat(None)
            for column in columns
        ]
        rows = zip(range(self._length), *values, strict=False)  # the range ends it where no column is there
        return numbered((row for _, *row in rows), getter(columns, lambda row: row), self._path)

    def _mappings(self, limit: int) -> Iterator[Mapping[str, Any]]:
        rows = zip(*(self._values(name, limit) for name in self._columns), strict=True)
        return (dict(zip(self._columns, row, strict=True)) for row in rows)

    def _values(self, name: str, limit: int) -> list[Any]:
        column = self._columns[name][:limit]
        absent = column.isna().tolist()
        return [None if missing else value for value, missing in zip(column.tolist(), absent, strict=True)]


class _Frames:
    """What polars holds or takes over: its own frames, pyarrow tables, datasets."""

    def __init__(self, records: Any, path: Path, library: str) -> None:
        self._records, self._path, self._library = records, path, library

    def fields(self) -> Fields:
        import polars

        if self._library == "polars":
            return frames.schema_fields(self._records.collect_schema())
        is_table = self._library == "pyarrow"
        empty = self._records.slice(0, 0) if is_table else self._records.features.arrow_schema.empty_table()
        return frames.schema_fields(polars.DataFrame(empty).schema)

    def mappings(self) -> Iterator[Mapping[str, Any]]:
        for frame in self._batches(list(self.fields())):
            yield from frame.iter_rows(named=True)

    def cells(self, columns: Sequence[Column]) -> Iterator[tuple[int, Cells]]:
        start = 1
        for frame in self._batches(sorted({column.place[0] for column in columns if column.place})):
            yield from frames.frame_cells(frame, columns, self._path, start)
            start += frame.height

    def _batches(self, names: list[str]) -> "Iterator[polars.DataFrame]":
        """The rows, these columns only."""
        import polars
        from polars import selectors

        if self._library == "polars":
            yield self._records.lazy().select(selectors.by_name(*names)).collect()
        elif self._library == "pyarrow":
            yield polars.DataFrame(self._records.select(names))
        else:
            for batch in self._records.select_columns(names).with_format("arrow").iter(_BATCH):
                yield polars.DataFrame(batch)


def _as_mapping(row: object) -> Mapping[Any, Any]:
    if isinstance(row, Mapping):
        return row
    raise BadRowError(f"the row is {quoted(row)}; make it a dict")


def _jsonable(value: object) -> Any:
    """What JSON can hold in place of a cell; of an object that is no value, its type."""
    try:
        return plain(value)
    except BadRowError:
        return type(value).__name__


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    """Turn whatever a library raises on its own object (a LazyFrame of a file that is gone) into a LogError."""
    try:
        yield
    except LogError:
        raise
    except Exception as error:
        told = (str(error).splitlines() or [""])[0]
        reason = f"{type(error).__name__}: {told}"
        raise LogError(f"{path}: cannot be read ({reason}); check it with its own library") from None
