"""From a path to log files: expand folders, look at the first row, name the task."""

import csv
import difflib
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from muscle.errors import LogError, quoted
from muscle.measure.logs.lines import decode, diagnosis, numbered_lines

_SUFFIXES = (".jsonl", ".csv")
_SAMPLES_NAME = re.compile(r"samples_(?P<task>.+)_\d{4}-\d\d-\d\dT[\d.-]+")
_ANY_ROW: msgspec.json.Decoder[Mapping[str, Any]] = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True)
class LogFile:
    """One file of a log, opened just far enough to know what it is."""

    path: Path
    task: str
    """From the file's name; empty for a single file that is not named after a task."""
    is_json: bool
    """JSON lines; otherwise CSV."""
    first_row: Mapping[str, Any]
    """The first row of JSON lines; of CSV, the columns, each with None."""


def find(path: Path, expected: str) -> list[LogFile]:
    """The log files at a path: the file itself, or those in the folder and its subfolders, sorted.

    A folder that holds lm-eval samples files is read for these alone; otherwise every .jsonl and .csv in it is a table.

    Args:
        path: File or folder.
        expected: Which formats can be read, for the message.

    Raises:
        LogError: Nothing is there, or it is no log.
    """
    if path.is_dir():
        found = _files_below(path)
        samples = [file for file in found if _SAMPLES_NAME.fullmatch(file.stem)]
        if not found:
            raise LogError(f"{path}: no .jsonl or .csv file in this folder or below; expected {expected}")
        return [_inspect(file, expected, in_folder=True) for file in sorted(samples or found)]
    return [_inspect(path, expected, in_folder=False)]


def reads(root: Path, file: Path) -> bool:
    """Whether `file`, which may not exist yet, is among what a log at `root` is read from."""
    target = Path(os.path.realpath(file))
    sources = _files_below(root) if root.is_dir() else [root]
    if target.exists() and any(source.exists() and source.samefile(target) for source in sources):
        return True
    return target.name.endswith(_SUFFIXES) and root.is_dir() and target.is_relative_to(os.path.realpath(root))


def digest(root: Path, files: Sequence[Path]) -> str:
    """SHA-256 as hexadecimal: of the file's content, or for a folder of the relative names and hashes of its files."""
    if root.is_file():
        return _sha256(root)
    listing = sorted(f"{file.relative_to(root).as_posix()}\0{_sha256(file)}\n" for file in files)
    return hashlib.sha256("".join(listing).encode(errors="surrogateescape")).hexdigest()  # names need not be UTF-8


def _files_below(folder: Path) -> list[Path]:
    return [
        Path(parent, name)
        for parent, _, names in os.walk(folder, onerror=_raise)
        for name in names
        if name.endswith(_SUFFIXES)
    ]


def _raise(error: OSError) -> NoReturn:
    """A subfolder that cannot be read is not an empty one."""
    raise error


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _inspect(file: Path, expected: str, *, in_folder: bool) -> LogFile:
    if not file.exists():
        raise _missing(file)
    if not file.is_file():  # a pipe could be read only once, and is read three times
        raise LogError(f"{file}: not a regular file; write it to a file first")
    named = _SAMPLES_NAME.fullmatch(file.stem)
    task = named["task"] if named else file.stem if in_folder else ""
    lines = numbered_lines(file)
    number, line = next(lines, (0, b""))
    if not line:
        raise LogError(f"{file}: the file is empty; run the evaluation again, or leave the file out")
    if line.startswith(b"\x1f\x8b"):
        raise LogError(f"{file}: compressed; unpack it first with gunzip")
    if line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line[:2]:
        raise LogError(f"{file}: looks like UTF-16; convert the file to UTF-8")
    if not line.lstrip().startswith(b"{"):
        return LogFile(file, task, is_json=False, first_row=dict.fromkeys(_header(file, number, line, expected)))
    try:
        return LogFile(file, task, is_json=True, first_row=decode(line, _ANY_ROW))
    except (ValueError, RecursionError) as error:
        if next(lines, None) is None:
            problem = diagnosis(error, is_last=True)
        else:
            problem = f"unknown format: the first row is not JSON on one line; expected {expected}"
        raise LogError(f"{file}:{number}: {problem}") from None


def _header(file: Path, number: int, line: bytes, expected: str) -> list[str]:
    try:
        if not line.startswith(b"["):  # a JSON list is no CSV
            return next(csv.reader([line.decode()]))
    except (ValueError, csv.Error):
        pass
    start = quoted(line.decode(errors="backslashreplace"), limit=24)
    raise LogError(f"{file}:{number}: unknown format, starting with {start}; expected {expected}")


def _missing(path: Path) -> LogError:
    """What to say of a path that leads nowhere: where it breaks off, and the nearest thing that does exist."""
    missing = path
    while not missing.parent.exists():
        missing = missing.parent
    if missing.is_symlink():
        return LogError(f"{missing}: broken link to {missing.readlink()}; mend the link, or name the file itself")
    suggestion = "check the path"
    if missing.parent.is_dir():
        names = [entry.name for entry in missing.parent.iterdir()]
        for name in difflib.get_close_matches(missing.name, names, n=1):
            suggestion = f"did you mean {missing.with_name(name)}?"
    return LogError(f"{path}: no such file or folder; {suggestion}")
