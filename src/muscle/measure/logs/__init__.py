"""Evaluation logs as people have them. One module per format; the format is recognised by what is in the file.

A reader module has FORMAT (its name), EXPECTS (for the message when nothing fits), `recognises` and `rows`.
To add a format, write such a module and list it in READERS.
"""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Protocol

from muscle.errors import LogError, quoted
from muscle.measure.logs import baseline, helm, inspect_ai, lm_eval, lm_eval_old, promptfoo, table
from muscle.measure.logs.collector import gather, graded_by_texts
from muscle.measure.logs.objects import digest_records, inspect_records, json_lines
from muscle.measure.logs.rows import Row, Selection
from muscle.measure.logs.source import LogFile, digest, find, inspect, spool, write_copy
from muscle.measure.predictions import Log, Texts


class Reader(Protocol):
    """What a reader module offers."""

    FORMAT: str
    EXPECTS: str

    def recognises(self, file: LogFile, selection: Selection) -> bool:
        """Whether the file is one of this format."""

    def rows(
        self, files: Sequence[LogFile], selection: Selection, notes: list[str], *, texts: bool = False
    ) -> Iterator[Row]:
        """Read the files.

        Args:
            files: All of this format; together one model's log.
            selection: What to read of them.
            notes: Takes a line for every choice made that a user should know of.
            texts: Whether the rows are for showing: then `input` is filled, and `answer` and `targets` are in the words
                that a person reads (a choice's text, not its number).

        Raises:
            LogError: A row cannot be read, or the log lacks what the selection names.
        """


READERS: tuple[Reader, ...] = (baseline, lm_eval, lm_eval_old, inspect_ai, helm, promptfoo, table)
FORMATS = tuple(reader.FORMAT for reader in READERS)
EXPECTED = " or ".join(reader.EXPECTS for reader in READERS)
_MOST_TRIED = 50  # names of fields; recognising a file takes a millisecond

Source = object
"""What a user may name as a log: a path, "-" for standard input, or a Python object that holds rows."""


class OpenLog:
    """One model's log, recognised and ready to be read, as often as needed."""

    def __init__(self, source: Source, selection: Selection) -> None:
        """Find and recognise the files.

        Args:
            source: A file, a folder whose log files together are one model's log, "-" for standard input, a data frame
                (polars, pandas), a pyarrow.Table, a datasets.Dataset, a list of dicts, or a dict of these by task.
            selection: What to read.

        Raises:
            LogError: Nothing is there, or the format is unknown.
        """
        self.selection = selection
        self._records: Sequence[LogFile] = ()
        self._spooled: dict[str, str] = {}  # by the name of a copy, what the user calls it
        if isinstance(source, str | os.PathLike):
            self.path = os.fsdecode(source)
            self._open_path()
        else:
            self.path = f"<{type(source).__name__}>"
            self._open_records(source)

    def read(self) -> Log:
        """Read everything into columns.

        Raises:
            LogError: A row cannot be read, or the log lacks what the selection names.
        """
        notes: list[str] = []
        try:
            tasks = gather(self._rows(notes), self.selection)
            sha256 = digest_records(self._records) if self._records else self._digest()
        except OSError as error:
            raise self._unreadable(error) from None
        except LogError as error:
            raise self._named(error) from None
        if not tasks:
            raise LogError(f"{self.path}: no rows; run the evaluation again, or leave the file out")
        if repeated := sum(task.repeated for task in tasks.values()):
            notes.append(f"repeated rows with the same outcome, counted once: {repeated}")
        if conflicting := sum(task.conflicting for task in tasks.values()):
            which = self.selection.duplicates
            notes.append(f"repeated rows with another outcome, of which the {which} was read: {conflicting}")
        return Log(path=self.path, format=self._reader.FORMAT, sha256=sha256, tasks=tasks, notes=tuple(notes))

    def rows(self) -> Iterator[Row]:
        """Every row with the answer that is compared, graded by its texts where that is asked; repeated rows too."""
        rows = self._rows([])
        return rows if self.selection.text_score is None else graded_by_texts(rows, self.selection)

    def texts(self, wanted: Mapping[str, set[tuple[str, int]]]) -> dict[tuple[str, tuple[str, int]], Texts]:
        """Read the log again for the texts of some items.

        Args:
            wanted: By task, the items (id, draw).

        Returns:
            By (task, item), what there is to show.
        """
        ids = {task: {item for item, _ in items} for task, items in wanted.items()}
        found: dict[tuple[str, str, int], Texts] = {}
        numbers: dict[str, set[int]] = {task: set() for task in wanted}
        asked: dict[tuple[str, str], int] = {}
        for row in self._rows([], texts=True):
            task = row.task.name
            if task not in ids:
                continue
            numbers[task].add(row.draw)
            if row.id not in ids[task]:
                continue
            draw = row.draw
            if self.selection.duplicates == "draws":
                draw = asked[task, row.id] = asked.get((task, row.id), -1) + 1
                numbers[task].add(draw)
            if (task, row.id, draw) not in found or self.selection.duplicates == "last":
                targets = dict.fromkeys(row.targets)
                found[task, row.id, draw] = Texts(row.input, " | ".join(targets) or None, row.answer)
        ranks = {task: {number: rank for rank, number in enumerate(sorted(drawn))} for task, drawn in numbers.items()}
        by_item = {(task, (item, ranks[task][draw])): texts for (task, item, draw), texts in found.items()}
        return {key: texts for key, texts in by_item.items() if key[1] in wanted[key[0]]}

    def _open_path(self) -> None:
        """Find the files and the reader; a pipe is copied first, since it can be read only once."""
        root = Path(self.path)
        if not self.path:  # Path would take it for the current folder
            raise LogError("the path of a log is empty; name a file or folder")
        try:
            if self.path == "-" or (root.exists() and not root.is_file() and not root.is_dir()):
                root = spool(None if self.path == "-" else root)
                self._spooled[str(root)] = self.path
            self._root = root
            self._files = find(root, EXPECTED)
            self._reader, self._files = _reader_of(self._files, self.selection)
        except OSError as error:
            raise self._unreadable(error) from None
        except LogError as error:
            raise self._named(error) from None

    def _open_records(self, source: object) -> None:
        """Find the reader of a Python object; readers other than the tables' know only files."""
        self._records = inspect_records(source)
        self._reader, self._files = _reader_of(self._records, self.selection)
        if self._reader is not table:
            self._files = [self._written(file) for file in self._files]

    def _written(self, records: LogFile) -> LogFile:
        path = write_copy(json_lines(records))
        self._spooled[str(path)] = str(records.path)
        return replace(inspect(path, EXPECTED), task=records.task)

    def _rows(self, notes: list[str], *, texts: bool = False) -> Iterator[Row]:
        try:
            yield from self._reader.rows(self._files, self.selection, notes, texts=texts)
        except OSError as error:
            raise self._unreadable(error) from None
        except LogError as error:
            raise self._named(error) from None

    def _named(self, error: LogError) -> LogError:
        """The error with the name that the user gave in place of the copy's."""
        told = str(error)
        for copy, name in self._spooled.items():
            told = told.replace(copy, name)
        return LogError(told)

    def _unreadable(self, error: OSError) -> LogError:
        return LogError(f"{error.filename or self.path}: cannot be read ({error.strerror}); check its permissions")

    def _digest(self) -> str:
        return digest(self._root, [file.path for file in self._files])


def _reader_of(files: Sequence[LogFile], selection: Selection) -> tuple[Reader, list[LogFile]]:
    """The reader of the files, and those of them that it reads.

    In a folder with logs of one format, .json files that no reader knows are left aside: every tool writes some.
    """
    if selection.format is not None:
        for reader in READERS:
            if selection.format == reader.FORMAT:
                return reader, list(files)
        near = difflib.get_close_matches(selection.format, FORMATS, n=1)
        hint = f"did you mean {quoted(near[0])}?" if near else f"choose among {', '.join(FORMATS)}"
        raise LogError(f"no format {quoted(selection.format)}; {hint}")
    readers = [_recognise(file, selection) for file in files]
    known = [(file, reader) for file, reader in zip(files, readers, strict=True) if reader is not None]
    strangers = [file for file, reader in zip(files, readers, strict=True) if reader is None]
    if not known or any(not file.kind.startswith("json ") for file in strangers):
        raise _unknown(strangers[0], selection)
    first_file, first = known[0]
    for file, reader in known:
        if reader is not first:
            formats = f"{reader.FORMAT} beside {first.FORMAT} ({first_file.path.name})"
            raise LogError(f"{file.path}: {formats} in one folder; name one file, or keep one format per folder")
    return first, [file for file, _ in known]


def _recognise(file: LogFile, selection: Selection) -> Reader | None:
    return next((reader for reader in READERS if reader.recognises(file, selection)), None)


def _unknown(file: LogFile, selection: Selection) -> LogError:
    if hint := _near_miss(file, selection):
        return LogError(f"{file.path}: {hint}")
    fields = f" with the fields {quoted(', '.join(file.first_row))}" if file.first_row else ""
    return LogError(f"{file.path}: unknown format{fields}; expected {EXPECTED}")


def _near_miss(file: LogFile, selection: Selection) -> str | None:
    """What keeps a file from being recognised, where it is blanks and capitals in the names, or the separator."""
    fields = list(file.first_row)

    def recognised(names: Iterable[str]) -> Reader | None:
        return _recognise(replace(file, first_row=dict.fromkeys(names)), selection)

    found = {field.strip().lower(): field for field in fields}
    if recognised(found):
        unlike = islice((name for name in found if name != found[name]), _MOST_TRIED)
        needed = (name for name in unlike if not recognised(found.keys() - {name}))
        wrong = [f"{quoted(name)} by {quoted(found[name])}" for name in needed]
        remedy = "rename the fields, or name them with --column"
        if wrong:
            return f"did you mean {' and '.join(wrong)}? Names must fit to the letter; {remedy}"
    for separator in (";", "\t", "|") if file.kind == "csv" else ():
        if recognised(cell.strip('" ').lower() for field in fields for cell in field.split(separator)):
            return f"the columns are separated by {quoted(separator)}; separate them by commas"
    return None
