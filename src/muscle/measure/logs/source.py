"""From what a user names to log files: expand folders, spool pipes, look at the start of each file, name the task."""

import atexit
import csv
import difflib
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import msgspec

from muscle.errors import LogError, quoted
from muscle.measure.logs.frames import file_fields
from muscle.measure.logs.lines import decode, diagnosis, numbered_lines

SUFFIXES = (".jsonl", ".json", ".csv", ".eval", ".parquet", ".arrow")
_SAMPLES_NAME = re.compile(r"samples_(?P<task>.+)_\d{4}-\d\d-\d\dT[\d.-]+")
# As datasets, the hub and Spark name them: data-00000-of-00002.arrow, test-00000-of-00001-<hash>.parquet, 0000.parquet
_SHARD = re.compile(r"(?P<table>.*?)-?\d+-of-\d+(-\w+)?\.\w+|(part-\d+.*|\d+)\.parquet")
_HEAD = 1 << 16
_ANY_ROW: msgspec.json.Decoder[Mapping[str, Any]] = msgspec.json.Decoder(dict[str, Any])

Kind = Literal["jsonl", "json object", "json list", "csv", "zip", "parquet", "arrow", "records"]


@dataclass(frozen=True)
class LogFile:
    """One file of a log, opened just far enough to know what it is."""

    path: Path
    task: str
    """From the file's name; empty for a single file that is not named after a task."""
    kind: Kind
    first_row: Mapping[str, Any]
    """The first row of JSON lines or of a JSON list; of CSV, Parquet, Arrow and Python objects, the columns, each with
    None (nested ones with theirs); empty for the other kinds.
    """
    head: bytes
    """The first 64 KiB."""
    records: object = None
    """For the kind "records": the Python object that holds the rows."""


def spool(path: Path | None) -> Path:
    """Copy what can be read only once, standard input (None) or a pipe, to a file that lives as long as the process."""
    if path is not None:
        with path.open("rb") as pipe:
            return write_copy(iter(partial(pipe.read, _HEAD), b""))
    stdin = getattr(sys.stdin, "buffer", None)  # None where the process was started without it, or in a notebook
    if stdin is None:
        raise LogError("-: there is no standard input; name a file")
    return write_copy(iter(partial(stdin.read, _HEAD), b""))


def write_copy(chunks: Iterable[bytes]) -> Path:
    """Write bytes to a file that lives as long as the process."""
    handle, name = tempfile.mkstemp(prefix="muscle-", suffix=".log")
    atexit.register(Path(name).unlink, missing_ok=True)
    with open(handle, "wb") as copy:  # noqa: PTH123  # a file descriptor
        copy.writelines(chunks)
    return Path(name)


def find(path: Path, expected: str) -> list[LogFile]:
    """The log files at a path: the file itself, or those in the folder and its subfolders, sorted.

    A folder that holds lm-eval samples files is read for these alone; otherwise every file in it that may be a log is
    looked into.

    Args:
        path: File or folder.
        expected: Which formats can be read, for the message.

    Raises:
        LogError: Nothing is there, or it is no log.
    """
    if path.is_dir():
        if (path / "dataset_dict.json").is_file():
            splits = ", ".join(sorted(str(entry) for entry in path.iterdir() if entry.is_dir()))
            raise LogError(f"{path}: a dataset of several splits; name the folder of one: {splits}")
        found = _files_below(path)
        samples = [file for file in found if _SAMPLES_NAME.fullmatch(file.stem)]
        if not found:
            raise LogError(f"{path}: no {', '.join(SUFFIXES)} file in this folder or below; expected {expected}")
        return [inspect(file, expected, path) for file in sorted(samples or found)]
    return [inspect(path, expected)]


def reads(root: Path, file: Path) -> bool:
    """Whether `file`, which may not exist yet, is among what a log at `root` is read from."""
    target = Path(os.path.realpath(file))
    sources = _files_below(root) if root.is_dir() else [root]
    if target.exists() and any(source.exists() and source.samefile(target) for source in sources):
        return True
    return target.name.endswith(SUFFIXES) and root.is_dir() and target.is_relative_to(os.path.realpath(root))


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
        if name.endswith(SUFFIXES) and not (name.startswith("cache-") and name.endswith(".arrow"))  # datasets' own
    ]


def _raise(error: OSError) -> NoReturn:
    """A subfolder that cannot be read is not an empty one."""
    raise error


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def inspect(file: Path, expected: str, folder: Path | None = None) -> LogFile:
    """Look at the start of a file.

    Args:
        file: The file.
        expected: Which formats can be read, for the message.
        folder: The folder that the user named, where it is not the file itself.

    Raises:
        LogError: It is missing, empty, compressed, or not made of anything that a log is made of.
    """
    if not file.exists():
        raise _missing(file)
    named = _SAMPLES_NAME.fullmatch(file.stem)
    task = named["task"] if named else _task_of(file, folder) if folder else ""
    with file.open("rb") as handle:
        head = handle.read(_HEAD)
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return LogFile(file, task, kind, file_fields(file) if kind in ("parquet", "arrow") else {}, head)
    lines = numbered_lines(file)
    number, line = next(lines, (0, b""))
    if not line:
        raise LogError(f"{file}: the file is empty; run the evaluation again, or leave the file out")
    if line.startswith(b"\x1f\x8b"):
        raise LogError(f"{file}: compressed; unpack it first with gunzip")
    if line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line[:2]:
        raise LogError(f"{file}: looks like UTF-16; convert the file to UTF-8")
    if line.lstrip().startswith(b"["):
        return LogFile(file, task, "json list", _first_element(file), head)
    if not line.lstrip().startswith(b"{"):
        return LogFile(file, task, "csv", dict.fromkeys(_header(file, number, line, expected)), head)
    try:
        return LogFile(file, task, "jsonl", decode(line, _ANY_ROW), head)
    except (ValueError, RecursionError) as error:
        is_last = next(lines, None) is None
        if is_last or line.rstrip().endswith(b"}"):  # a row that is broken; otherwise an object over several lines
            raise LogError(f"{file}:{number}: {diagnosis(error, is_last=is_last)}") from None
        return LogFile(file, task, "json object", {}, head)


_MAGIC: Mapping[bytes, Kind] = {
    b"PK\x03\x04": "zip",
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
    b"\xff\xff\xff\xff": "arrow",  # a stream without the file header, as the datasets library writes it
}


def _task_of(file: Path, folder: Path) -> str:
    """A file's task by its name in a folder; the shards of a table are one task, and nameless ones the folder's."""
    shard = _SHARD.fullmatch(file.name)
    name = file.stem if shard is None else shard["table"] or ""
    if shard is not None and name in ("", "data"):
        return "" if file.parent == folder else file.parent.name
    return name


def _first_element(file: Path) -> Mapping[str, Any]:
    """The first object of a JSON list, read without the rest of it; empty where there is none."""
    text = ""
    with file.open(encoding="utf-8-sig", errors="replace") as handle:
        while chunk := handle.read(max(_HEAD, len(text))):  # doubles: a long first element costs no more than twice
            text += chunk
            start = text.find("{")
            if start >= 0:
                try:
                    element, _ = json.JSONDecoder().raw_decode(text, start)
                except (ValueError, RecursionError):
                    continue
                return element if isinstance(element, dict) else {}
    return {}


def _header(file: Path, number: int, line: bytes, expected: str) -> list[str]:
    try:
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
