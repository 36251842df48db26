"""Fuzzes one reader of evaluation logs with atheris: whatever the bytes, it may raise MuscleError and nothing else.

    python fuzz/readers.py inspect-zip -max_total_time=60 [further options of libFuzzer]
    python fuzz/readers.py inspect-zip fuzz/found/FILE.input    (once more, with the traceback)

An input is four bytes of options (what to read of the log, and how to write its files) and a body, which a target
writes into files. What goes wrong is kept in fuzz/found, the smallest input for each place, and fuzzing goes on.

To add a reader: seeds in seeds.py, and a Target here.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import seeds
from mutation import OPTION_BYTES, mutate

if sys.version_info >= (3, 14):
    import zipfile
else:
    from backports.zstd import zipfile

try:
    import atheris
except ImportError:  # the tests run the targets without it
    atheris = None

with atheris.instrument_imports(include=["muscle"]) if atheris and __name__ == "__main__" else nullcontext():
    from muscle.errors import MuscleError
    from muscle.measure.logs import OpenLog
    from muscle.measure.logs.rows import Selection

FOUND, CORPUS = Path(__file__).parent / "found", Path(__file__).parent / "corpus"
_SLOW, _LARGE = 2.0, 300  # seconds and MiB that an input of a few KB must stay below
_DEEPEST_TYPE = 6  # lists and structs in each other, for which polars takes a second to find the type, and then hours
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_ZSTANDARD)


class NoInputError(Exception):
    """No files can be made of the bytes."""


Write = Callable[[Path, bytes, int], object]
"""(empty folder, body, layout) -> the path or Python object to open.

The layout is a number below 256 that chooses among variants.
"""


@dataclass(frozen=True)
class Target:
    """A format, and what an input may choose to read of it."""

    format: str | None
    """None for whatever is recognised."""
    write: Write
    metrics: Sequence[str | None] = (None,)
    scores: Sequence[str | None] = (None,)
    filters: Sequence[str | None] = (None,)
    labels: Sequence[tuple[str, ...]] = ((),)
    columns: Sequence[Mapping[str, str]] = field(default=({},))


def _rows(folder: Path, body: bytes, layout: int) -> Path:
    """A file of rows: JSON lines, or a list of them; several names, since a task is told by them."""
    names = ("log.jsonl", "samples_t_2024-01-01T00-00-00.jsonl", "a__b_t.json", "t_write_out_info.json")
    file = folder / names[layout >> 1 & 3]
    file.write_bytes(b"[" + b",\n".join(body.split(b"\n")) + b"]" if layout & 1 else body)
    return folder if layout & 8 else file


def _document(folder: Path, body: bytes, layout: int) -> Path:
    """A file as it is."""
    file = folder / ("log.json", "log.jsonl")[layout & 1]
    file.write_bytes(body)
    return file


def _named(name: str) -> Write:
    def write(folder: Path, body: bytes, layout: int) -> Path:
        (folder / name).write_bytes(body)
        return folder / name

    return write


def _frame(suffix: str) -> Write:
    """A Parquet or Arrow file of the rows, one per line, one column of it cast to another type.

    Its bytes are whole: of forged sizes polars' allocator ends the process, which no Python can catch.
    """

    def write(folder: Path, body: bytes, layout: int) -> Path:
        import polars

        types = (
            polars.Date,
            polars.Datetime("ms"),
            polars.Time,
            polars.Duration("ms"),
            polars.Categorical,
            polars.Binary,
        )
        file = folder / f"log{suffix}"
        if max(accumulate((char in b"[{") - (char in b"]}") for char in body), default=0) > _DEEPEST_TYPE:
            raise NoInputError
        try:
            frame = polars.DataFrame([json.loads(line) for line in body.split(b"\n")], strict=False)
            if layout & 8 and frame.width:
                name = frame.columns[(layout >> 4) % frame.width]
                frame = frame.with_columns(polars.col(f"^{re.escape(name)}$").cast(types[layout % 6], strict=False))
            if suffix == ".parquet":
                frame.write_parquet(file)
            else:
                (frame.write_ipc if layout & 1 else frame.write_ipc_stream)(file)
        except BaseException as error:
            raise NoInputError from error
        return file

    return write


def _objects(folder: Path, body: bytes, layout: int) -> object:
    """A Python object: a list of the rows, one per line, or such a list by task."""
    try:
        rows = [json.loads(line) for line in body.split(b"\n")]
    except (ValueError, RecursionError) as error:
        raise NoInputError from error
    return {"a": rows, "b": rows[:1]} if layout & 1 else tuple(rows) if layout & 2 else rows


def _archive(folder: Path, body: bytes, layout: int) -> Path:
    """A zip file: the first line is its header, each further line a sample."""
    header, *samples = body.split(b"\n")
    file, method = folder / "log.eval", _METHODS[max(layout % 16 - 11, 0)]
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method) as archive:
        warnings.simplefilter("ignore")  # of the same name twice
        archive.writestr("_journal/start.json" if layout & 0x10 else "header.json", header)
        for number, sample in enumerate(samples):
            archive.writestr(f"samples/{number >> (layout >> 5 & 1)}_epoch_1.json", sample)
    return file


def _run_folder(folder: Path, body: bytes, layout: int) -> Path:
    """A HELM run: a line each for the stats, the requests and the specification."""
    names = ("per_instance_stats.json", "scenario_state.json", "run_spec.json")
    for name, document in zip(names, body.split(b"\n", 2), strict=False):
        (folder / name).write_bytes(document)
    opened = folder / names[layout & 3] if layout & 3 < 3 else folder
    return opened if opened.exists() else folder


_LABELS = ((), ("doc.subject",), ("metadata.a.b", "metadata"), ("id", "input.0.role", "no such field"))
_TABLE_COLUMNS: Sequence[Mapping[str, str]] = (
    *({}, {"id": "#"}, {"id": "#", "correct": "score"}, {"id": "id.a", "answer": "gold.answer", "target": "gold"}),
    *({"correct": "answer", "score": "correct"}, {"task": "answer", "draw": "score", "input": "question"}),
    {"correct": ""},
)
_TABLE_LABELS = ((), ("gold.subject",), ("task", "answer"), ("gold", "no such column"))
_TABLE: Any = {"scores": (None, "score", "f1"), "columns": _TABLE_COLUMNS, "labels": _TABLE_LABELS}

TARGETS: Mapping[str, Target] = {
    "baseline": Target("baseline", _rows, (None, "acc"), (None, "f1"), (None, "none"), _LABELS),
    "lm-eval": Target(
        "lm-eval",
        _rows,
        (None, "acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match"),
        (None, "acc", "exact_match", "ppl"),
        (None, "strict", "none"),
        _LABELS,
    ),
    "lm-eval-0.3": Target("lm-eval-0.3", _rows, (None, "acc", "acc_norm"), (None, "f1", "acc"), labels=_LABELS),
    "inspect-json": Target(
        "inspect_ai", _document, (None, "choice", "all.f1", "both.0"), (None, "all.f1", "choice"), labels=_LABELS
    ),
    "inspect-zip": Target(
        "inspect_ai", _archive, (None, "choice", "all.exact", "both.1"), (None, "all.f1", "choice"), labels=_LABELS
    ),
    "zip": Target("inspect_ai", _named("log.eval")),
    "helm": Target(
        "helm",
        _run_folder,
        (None, "quasi_exact_match", "f1_score"),
        (None, "f1_score", "exact_match"),
        (None, "typos"),
        ((), ("instance.sub_split",), ("instance.references.0.tags", "result")),
    ),
    "promptfoo": Target(
        "promptfoo", _document, (None, "success", "tone"), (None, "score", "tone"), (None, "gpt", "p"), _LABELS
    ),
    "table-json": Target("table", _rows, **_TABLE),
    "table-csv": Target("table", _named("log.csv"), **_TABLE),
    "parquet": Target("table", _frame(".parquet"), **_TABLE),
    "arrow": Target("table", _frame(".arrow"), **_TABLE),
    "objects": Target("table", _objects, **_TABLE),
    "any": Target(None, _rows, scores=(None, "score", "acc"), labels=_LABELS, columns=({}, {"id": "#"})),
}


def selected(target: Target, options: bytes) -> Selection:
    """What the bytes of options choose."""
    first, second, third, _ = options.ljust(OPTION_BYTES, b"\0")

    def pick(choices: Sequence[Any], number: int) -> Any:
        return choices[number % len(choices)]

    return Selection(
        format=target.format if third & 0x20 else None,
        metric=pick(target.metrics, first & 15),
        filter=pick(target.filters, second & 15),
        score=pick(target.scores, first >> 4),
        text_score=(None, None, "exact_match", "rougeL")[third >> 2 & 3],
        columns=pick(target.columns, third >> 6 | (second >> 5 & 4)),
        labels=pick(target.labels, second >> 4 & 7),
        numeric=bool(third & 0x10),
        duplicates=("error", "first", "last", "draws")[third & 3],
    )


def attempt(target: Target, data: bytes, folder: Path) -> None:
    """Read an input as a log, and some of its texts.

    Args:
        target: Its format.
        data: The input.
        folder: Where to write its files; emptied first.

    Raises:
        BaseException: A fault of the reader: anything but a MuscleError.
    """
    for left in folder.iterdir():
        left.unlink()
    options, body = data[:OPTION_BYTES].ljust(OPTION_BYTES, b"\0"), data[OPTION_BYTES:]
    try:
        source = target.write(folder, body, options[3])
    except NoInputError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning would reach the user
        try:
            log = OpenLog(source, selected(target, options))
            tasks = log.read().tasks
            log.texts({name: {(item, 0) for item in task.ids[:5]} for name, task in tasks.items()})
        except MuscleError as error:
            if "\n" in str(error):
                raise AssertionError("the message has several lines") from error


def corpus(name: str) -> list[bytes]:
    """What fuzzing of a target starts from: its seeds, each with several options."""
    options = ("00000000", "11002001", "22116208", "3122b703", "00000a02", "10302504")
    return [bytes.fromhex(option) + body for body in seeds.bodies(name) for option in options]


class _Hunt:
    """Runs inputs of a target, and keeps those that go wrong."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name, self._target, self._folder = name, TARGETS[name], folder
        self.known: dict[str, int] = {}

    def __call__(self, data: bytes) -> None:
        start, before = time.process_time(), _peak()
        try:
            attempt(self._target, data, self._folder)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the panics of polars are no Exception
            self._keep(data, place(error), "".join(traceback.format_exception(error)))
            return
        seconds, grown = time.process_time() - start, _peak() - before
        if seconds > _SLOW:
            self._keep(data, "slow", f"{seconds:.1f} s\n")
        if grown > _LARGE:
            self._keep(data, "large", f"{grown} MiB\n")

    def _keep(self, data: bytes, where: str, told: str) -> None:
        if len(data) >= self.known.get(where, sys.maxsize):
            return
        if where not in self.known:
            print(f"FOUND {self._name} {where}: {told.splitlines()[-1][:200]}", file=sys.stderr, flush=True)
        self.known[where] = len(data)
        file = FOUND / f"{self._name}-{where}.input"
        file.write_bytes(data)
        file.with_suffix(".txt").write_text(told, encoding="utf-8", errors="backslashreplace")


def _peak() -> int:
    """The most memory that the process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def place(error: BaseException) -> str:
    """The exception's type and the innermost line of the readers that it came through; part of a file's name."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "muscle" in Path(frame.filename).parts]
    where = f"{Path(frames[-1].filename).name}-{frames[-1].lineno}" if frames else "outside"
    return re.sub(r"\W+", "_", type(error).__name__) + f"-{where}"


def main() -> None:
    """Fuzz the reader that the command line names, or run one input again."""
    name, *options = sys.argv[1:] or [""]
    if name not in TARGETS:
        sys.exit(f"usage: {sys.argv[0]} {{{','.join(TARGETS)}}} [INPUT or options of libFuzzer]")
    shared_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="muscle-fuzz-", dir=shared_memory if shared_memory.is_dir() else None
    ) as folder:
        if options and Path(options[0]).is_file():
            attempt(TARGETS[name], Path(options[0]).read_bytes(), Path(folder))
        elif atheris is None:
            sys.exit("atheris is not installed, which there is for Python 3.11 to 3.13 on Linux: pip install atheris")
        elif child := os.fork():  # libFuzzer ends its process, and the folder is to go
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        else:
            _fuzz(name, Path(folder), options)


def _fuzz(name: str, folder: Path, options: Sequence[str]) -> None:
    inside, seeded, grown = folder / "log", folder / "seeds", CORPUS / name
    for each in (inside, seeded, grown, FOUND):
        each.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(corpus(name)):
        (seeded / str(number)).write_bytes(data)

    def changed(data: bytes, most: int, seed: int) -> bytes:
        return mutate(data, most, random.Random(seed), atheris.Mutate)

    limits = ["-max_len=16384", "-timeout=10", "-rss_limit_mb=2000", "-len_control=0"]
    told = ["-print_final_stats=1", f"-artifact_prefix={FOUND}/{name}-"]
    command = [sys.argv[0], *limits, *told, *options, str(grown), str(seeded)]
    atheris.Setup(command, _Hunt(name, inside), custom_mutator=changed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
