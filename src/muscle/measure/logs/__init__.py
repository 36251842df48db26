"""Evaluation logs as people have them. One module per format; the format is recognised by what is in the file.

A reader module has FORMAT (its name), EXPECTS (for the message when nothing fits), `recognises` and `read`.
To add a format, write such a module and list it in READERS.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

from muscle.errors import LogError, quoted
from muscle.measure.logs import lm_eval, table
from muscle.measure.logs.rows import Collector
from muscle.measure.logs.source import LogFile, digest, find
from muscle.measure.predictions import Log


class Reader(Protocol):
    """What a reader module offers."""

    FORMAT: str
    EXPECTS: str

    def recognises(self, fields: Collection[str]) -> bool:
        """Whether a row with these fields is one of this format."""

    def read(
        self, files: Sequence[LogFile], metric: str | None, filter_name: str | None
    ) -> tuple[list[Collector], list[str]]:
        """Read the files; return one collector per task, and notes on choices made."""


READERS: tuple[Reader, ...] = (lm_eval, table)
EXPECTED = " or ".join(reader.EXPECTS for reader in READERS)


def read(path: str | Path, *, metric: str | None = None, filter_name: str | None = None) -> Log:
    """Read the log of one model.

    Args:
        path: A file, or a folder whose log files together are one model's log.
        metric: The lm-eval metric that says right or wrong; None takes each task's first.
        filter_name: The lm-eval filter whose rows to read; None takes each task's first.

    Raises:
        LogError: Nothing is there, the format is unknown, or a row cannot be read.
    """
    if not str(path):  # Path would take it for the current folder
        raise LogError("the path of a log is empty; name a file or folder")
    root = Path(path)
    try:
        files = find(root, EXPECTED)
        reader = _reader_of(files)
        collectors, notes = reader.read(files, metric, filter_name)
        sha256 = digest(root, [file.path for file in files])
    except OSError as error:
        raise LogError(f"{error.filename or root}: cannot be read ({error.strerror}); check its permissions") from None
    tasks = {collector.task: collector.predictions() for collector in collectors}
    repeated = sum(task.repeated for task in tasks.values())
    if repeated:
        notes.append(f"repeated rows with the same outcome, counted once: {repeated}")
    return Log(path=str(path), format=reader.FORMAT, sha256=sha256, tasks=tasks, notes=tuple(notes))


def _reader_of(files: Sequence[LogFile]) -> Reader:
    readers = [_recognise(file) for file in files]
    for file, reader in zip(files, readers, strict=True):
        if reader is not readers[0]:
            formats = f"{reader.FORMAT} beside {readers[0].FORMAT} ({files[0].path.name})"
            raise LogError(f"{file.path}: {formats} in one folder; name one file, or keep one format per folder")
    return readers[0]


def _recognise(file: LogFile) -> Reader:
    for reader in READERS:
        if reader.recognises(file.first_row.keys()):
            return reader
    if hint := _near_miss(file):
        raise LogError(f"{file.path}: {hint}")
    fields = ", ".join(file.first_row) or "none"
    raise LogError(f"{file.path}: unknown format with the fields {quoted(fields)}; expected {EXPECTED}")


def _near_miss(file: LogFile) -> str | None:
    """What keeps a file from being recognised, where it is blanks and capitals in the names, or the separator."""
    fields = list(file.first_row)
    found = {field.strip().lower(): field for field in fields}
    for reader in READERS:
        if reader.recognises(found):
            needed = [name for name in found if not reader.recognises(found.keys() - {name})]
            wrong = [f"{quoted(name)} by {quoted(found[name])}" for name in needed if name != found[name]]
            return f"did you mean {' and '.join(wrong)}? Names must fit to the letter; rename the fields"
    for separator in () if file.is_json else (";", "\t", "|"):
        cells = [cell.strip('" ').lower() for field in fields for cell in field.split(separator)]
        if any(reader.recognises(cells) for reader in READERS):
            return f"the columns are separated by {quoted(separator)}; separate them by commas"
    return None
