"""Parquet and Arrow files and data frames, by polars: imported only here, and only when one is met."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muscle.errors import LogError
from muscle.measure.logs.columns import Cells, Column, Fields, getter, numbered, plain

if TYPE_CHECKING:
    import polars

_SLICE = 1 << 16  # rows of a file that are in memory at a time
_ANY_ROWS, _MOST_ROWS = 100_000, 10
"""Rows that any Parquet file may have, and how many more for each of its bytes; ids alone take a byte or so."""
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
_STREAM_MAGIC = b"\xff\xff\xff\xff"
_PARQUET_MAGIC = b"PAR1"


def file_fields(path: Path) -> Fields:
    """The columns of a Parquet or Arrow file.

    Raises:
        LogError: The file is damaged.
    """
    with _damage(path):
        return schema_fields(_scan(path).collect_schema() if _is_parquet(path) else _arrow(path).schema)


def file_cells(path: Path, columns: Sequence[Column]) -> Iterator[tuple[int, Cells]]:
    """Yield (number of the row, its cells) of a Parquet or Arrow file.

    Raises:
        LogError: The file is damaged, or a cell holds nothing that a log can hold.
    """
    names = sorted({column.place[0] for column in columns if column.place})
    for start, frame in _slices(path, names):
        yield from frame_cells(frame, columns, path, start)


def frame_cells(
    frame: "polars.DataFrame", columns: Sequence[Column], path: Path, start: int = 1
) -> Iterator[tuple[int, Cells]]:
    """Yield (number of the row, its cells) of a frame whose first row has the number `start`.

    Raises:
        LogError: A cell holds nothing that a log can hold.
    """
    with _damage(path):  # a date that Python cannot hold
        values = [_values(frame.get_column(column.place[0])) if column.place else repeat(None) for column in columns]
    rows = zip(range(frame.height), *values, strict=False)  # the range ends it where no column is there
    return numbered((row for _, *row in rows), getter(columns, lambda row: row), path, start)


def schema_fields(schema: Mapping[str, Any]) -> Fields:
    """The columns of a schema, with the fields of those that hold structs."""
    import polars

    return {
        name: schema_fields({field.name: field.dtype for field in dtype.fields})
        if isinstance(dtype, polars.Struct)
        else None
        for name, dtype in schema.items()
    }


def _values(column: "polars.Series") -> Iterator[Any]:
    """The cells of a column, as JSON would hold them."""
    import polars

    is_plain = column.dtype in (polars.String, polars.Boolean) or column.dtype.is_integer() or column.dtype.is_float()
    cells = column.to_list()
    return iter(cells) if is_plain else map(plain, cells)


def _slices(path: Path, names: Sequence[str]) -> Iterator[tuple[int, "polars.DataFrame"]]:
    """Yield (number of the first row, rows) of a file, these columns only; of Arrow all rows at once."""
    from polars import selectors

    if not _is_parquet(path):
        with _damage(path):
            frame = _arrow(path, names)
        yield 1, frame
        return
    _check_rows(path)
    start = 1
    while True:
        with _damage(path):  # a name would be read as a pattern; a selector takes it to the letter
            frame = _scan(path).select(selectors.by_name(*names)).slice(start - 1, _SLICE).collect()
        yield start, frame
        if frame.height < _SLICE:
            return
        start += frame.height


def _check_rows(path: Path) -> None:
    """Refuse more rows than a log of this size can hold: a value that repeats takes no room, but its rows take time."""
    import polars

    with _damage(path):
        rows = _scan(path).select(polars.len()).collect().item()
    if rows > _ANY_ROWS + _MOST_ROWS * path.stat().st_size:
        raise LogError(
            f"{path}: {rows} rows in {path.stat().st_size >> 10} KiB, so all say the same; write a log's rows"
        )


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC


def _scan(path: Path) -> "polars.LazyFrame":
    import polars

    return polars.scan_parquet(path, glob=False, hive_partitioning=False)


def _arrow(path: Path, names: Sequence[str] | None = None) -> "polars.DataFrame":
    """These columns of an Arrow file in either of its formats; without names all columns, and no rows."""
    import polars

    with path.open("rb") as file:
        is_stream = file.read(len(_STREAM_MAGIC)) == _STREAM_MAGIC  # as the datasets library writes it
        file.seek(max(file.seek(0, os.SEEK_END) - len(_STREAM_END), 0))
        if is_stream and file.read() != _STREAM_END:  # polars would not miss a batch that is not there
            raise ValueError("the end mark is missing")
        file.seek(0)
        read = polars.read_ipc_stream if is_stream else polars.read_ipc
        if names is None:
            return read(file, n_rows=0)
        known = read(file, n_rows=0).columns
        file.seek(0)
        return read(file, columns=[known.index(name) for name in names])  # by number: a name would be a pattern


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn what polars says of a file that it cannot read into the error that a user sees."""
    import polars

    try:
        yield
    except (
        polars.exceptions.PolarsError,
        polars.exceptions.PanicException,
        ValueError,
        OverflowError,
        OSError,
    ) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the file system's, not polars'
            raise
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise LogError(f"{path}: damaged or cut off ({told}); write the file again") from None
