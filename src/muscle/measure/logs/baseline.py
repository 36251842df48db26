"""Baselines: the log of an accepted model in one compact file, written by `muscle gate --bless`, to keep in git.

JSON lines: a header that says where the rows come from, then a row per item and draw.
"""

import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from muscle.errors import LogError, quoted
from muscle.measure.logs.lines import decode, json_rows, numbered_lines
from muscle.measure.logs.rows import BadRowError, Row, Selection, Task, as_id, as_outcome, as_score, located
from muscle.measure.logs.source import LogFile
from muscle.measure.predictions import UNSCORED

FORMAT = "baseline"
EXPECTS = "a baseline (muscle gate --bless)"
VERSION = 1
AGAIN = "bless the log again with muscle gate --bless LOG --baseline FILE"


class BlessedTask(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the rows of one task have in common; as in `rows.Task`."""

    name: str
    metric: str | None = None
    filter: str | None = None
    score: str | None = None


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first line."""

    muscle_baseline: int
    """Version of the layout."""
    muscle: str
    """Version of the program that wrote it."""
    blessed: datetime.date
    source: str
    """Where the log was, as the user named it."""
    format: str
    """Of that log, as `sha256` is."""
    sha256: str
    rows: int
    """Rows below."""
    tasks: Sequence[BlessedTask]


class Stored(msgspec.Struct, omit_defaults=True, gc=False):
    """A row; defaults are not written."""

    task: str = ""
    id: str = ""
    draw: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] = 0
    correct: int | None = None
    answer: str | None = None
    targets: tuple[str, ...] = ()
    score: float | None = None
    doc_hash: str | None = None

    @classmethod
    def of(cls, row: Row, draw: int) -> "Stored":
        """A reader's row; 64 bits of the hash are all that pairing looks at."""
        return cls(
            task=row.task.name,
            id=row.id,
            draw=draw,
            correct=None if row.correct == UNSCORED else row.correct,
            answer=row.answer,
            targets=row.targets,
            score=None if math.isnan(row.score) else row.score,
            doc_hash=row.doc_hash[:16] if row.doc_hash else None,
        )


def recognises(file: LogFile, selection: Selection) -> bool:
    """Whether the file starts with a baseline's header."""
    return file.kind == "jsonl" and "muscle_baseline" in file.first_row


def rows(files: Sequence[LogFile], selection: Selection, notes: list[str], *, texts: bool = False) -> Iterator[Row]:
    """Read baselines. They hold no questions, and answers only as they are compared.

    Raises:
        LogError: A row cannot be read, rows are missing, or the log was blessed by another metric, filter or score.
    """
    for file in files:
        header = _checked(file.path, file.first_row)
        notes.append(f"baseline blessed on {header.blessed} from {header.source} (sha256 {header.sha256[:8]})")
        tasks = {task.name: _chosen(file.path, task, selection) for task in header.tasks}
        read = 0
        for line, row in _below_header(file.path):
            try:
                if row.task not in tasks:
                    raise BadRowError(f"the header has no task {quoted(row.task)}; {AGAIN}")
                yield Row(
                    tasks[row.task],
                    file.path,
                    line,
                    as_id(row.id),
                    as_outcome(row.correct, "correct"),
                    row.answer,
                    row.targets,
                    as_score(row.score),
                    row.draw,
                    row.doc_hash,
                    (None,) * len(selection.labels),
                )
            except BadRowError as fault:
                raise located(file.path, line, fault) from None
            read += 1
        if read != header.rows:
            raise LogError(f"{file.path}: {read} rows where the header promises {header.rows}; {AGAIN}")


def read_header(file: Path) -> Header:
    """The header of a baseline that has been read as a log.

    Raises:
        LogError: It is not one.
    """
    _, line = next(numbered_lines(file), (0, b""))
    return _checked(file, decode(line, msgspec.json.Decoder(dict[str, Any])))


def _checked(file: Path, header: Mapping[str, Any]) -> Header:
    if "muscle_baseline" not in header:
        raise LogError(f"{file}: expected {EXPECTS}; name the log's own --format, or leave it out")
    if header["muscle_baseline"] != VERSION:
        found = quoted(header["muscle_baseline"])
        raise LogError(f"{file}: a baseline of version {found}, and this program reads {VERSION}; {AGAIN}")
    try:
        return msgspec.convert(header, Header)
    except ValueError as error:  # a field of another type, or half a surrogate pair
        raise LogError(f"{file}:1: the header is damaged ({error}); {AGAIN}") from None


def _chosen(file: Path, task: BlessedTask, selection: Selection) -> Task:
    for kind in ("metric", "filter", "score"):
        wanted, blessed = getattr(selection, kind), getattr(task, kind)
        if wanted is not None and wanted != blessed:
            about = f"task {task.name}: " if task.name else ""
            by = f"by {kind} {quoted(blessed)}" if blessed else f"without a {kind}"
            raise LogError(f"{file}: {about}blessed {by}; leave out --{kind}, or bless again with it")
    return Task(task.name, task.metric, task.filter, task.score, AGAIN)


def _below_header(file: Path) -> Iterator[tuple[int, Stored]]:
    lines = json_rows(file, msgspec.json.Decoder(Stored))
    next(lines)
    yield from lines
