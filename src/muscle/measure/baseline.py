"""Baselines: bless the log of an accepted model, and notice when what was blessed no longer fits what is evaluated."""

import datetime
import json
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from muscle import __version__
from muscle.errors import MuscleError
from muscle.measure.logs import OpenLog, Source
from muscle.measure.logs.baseline import AGAIN, FORMAT, VERSION, BlessedTask, Header, Stored, read_header
from muscle.measure.logs.rows import Duplicates, Row, Selection, Task
from muscle.measure.logs.source import reads
from muscle.measure.report.files import replace_whole
from muscle.measure.results import Comparison


def bless(source: Source, file: Path, selection: Selection | None = None, today: datetime.date | None = None) -> Header:
    """Write the log of an accepted model as a baseline, which then stands in for the old log.

    Args:
        source: As `compare` takes it.
        file: New, or a baseline to replace.
        selection: What to read of the log; comparing with the baseline later takes the same, or nothing.
        today: The date of blessing; None asks the clock.

    Raises:
        MuscleError: The log cannot be read or says right and wrong of nothing, or the file cannot be written.
    """
    selection = selection or Selection()
    log = OpenLog(source, selection)
    read = log.read()
    if read.format == FORMAT:
        raise MuscleError(f"{read.path}: is a baseline already; bless an evaluation log")
    if not any((task.correct >= 0).any() or (task.scores == task.scores).any() for task in read.tasks.values()):
        raise MuscleError(f"{read.path}: no row says right or wrong or has a score; bless a log that does")
    tasks: dict[str, Task] = {}
    rows = _settled(log.rows(), tasks, selection.duplicates)
    header = Header(
        muscle_baseline=VERSION,
        muscle=__version__,
        blessed=today or datetime.date.today(),
        source=read.path,
        format=read.format,
        sha256=read.sha256,
        rows=len(rows),
        tasks=[BlessedTask(task.name, task.metric, task.filter, task.score) for task in tasks.values()],
    )
    entries: list[Header | Stored] = [header, *rows]
    _write(file, Path(read.path), b"".join(_line(entry) for entry in entries))
    return header


def check_fresh(comparison: Comparison, max_age_days: int | None, today: datetime.date | None = None) -> None:
    """Refuse a baseline that no longer fits; every other old log is taken as it is.

    It is stale where an item has another content or target than when it was blessed, or after too many days. Items that
    only one side has are counted by the comparison and limited by `max_missing`: an evaluation of fewer items is no
    reason to bless again. Another metric or filter, or a layout that this version does not know, is an error already
    when logs are read and paired.

    Args:
        comparison: Of what may be a baseline.
        max_age_days: Of the baseline; None is no limit.
        today: None asks the clock.

    Raises:
        MuscleError: It is stale.
    """
    old = comparison.inputs["old"]
    if old.format != FORMAT:
        return
    for task in comparison.items:
        if changed := task.changed["new"]:
            about = f"task {task.task}: " if task.task else ""
            items = "1 item has" if changed == 1 else f"{changed} items have"
            raise MuscleError(f"{old.path}: the baseline is stale ({about}{items} another target or doc_hash); {AGAIN}")
    if max_age_days is None:
        return
    if not Path(old.path).is_file():
        raise MuscleError(f"{old.path}: the age of a baseline is known only of a file; name the file itself")
    blessed = read_header(Path(old.path)).blessed
    age = ((today or datetime.date.today()) - blessed).days
    if age > max_age_days:
        aged = f"blessed on {blessed}, {age} days ago, of at most {max_age_days}"
        raise MuscleError(f"{old.path}: the baseline is stale ({aged}); {AGAIN}")


def _settled(rows: Iterable[Row], tasks: dict[str, Task], duplicates: Duplicates) -> list[Stored]:
    """One row per item and draw, as the collector of logs settles them; also gathers the tasks."""
    settled: dict[tuple[str, str, int], Stored] = {}
    asked: dict[tuple[str, str], int] = {}
    for row in rows:
        task = tasks.setdefault(row.task.name, row.task)
        draw = row.draw
        if duplicates == "draws":
            draw = asked[task.name, row.id] = asked.get((task.name, row.id), -1) + 1
        if duplicates == "last" or (task.name, row.id, draw) not in settled:
            settled[task.name, row.id, draw] = Stored.of(row, draw)
    return list(settled.values())


def _line(entry: Header | Stored) -> bytes:
    try:
        return msgspec.json.encode(entry) + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can hold
        return json.dumps(msgspec.to_builtins(entry)).encode() + b"\n"


def _write(file: Path, source: Path, content: bytes) -> None:
    """Replace the file whole or not at all, and nothing that is not a baseline."""
    try:
        if reads(source, file):
            raise MuscleError(f"{file}: belongs to the log itself; write the baseline to another file")
        if file.exists() and b'"muscle_baseline"' not in file.read_bytes()[:100]:
            raise MuscleError(f"{file}: is there already and is no baseline; name another file")
        replace_whole(Path(os.path.realpath(file)), content)
    except OSError as error:
        raise MuscleError(f"{file}: cannot be written ({error.strerror}); check the folder") from None
