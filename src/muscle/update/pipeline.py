"""Stages with resumable, content-addressed outputs, run side by side in a few worker processes.

A stage writes one folder. It is done when that folder holds `stage.json` with the stage's fingerprint: a hash of the
program, the stage's settings and the fingerprints of the stages it reads. So a second run does only what is missing,
and a changed setting redoes what depends on it, no more. A stage that does not finish leaves its output in `.partial`;
of that only the folder CHECKPOINTS is there when the same stage starts again.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from typing import Any, Literal

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from muscle import __version__
from muscle.errors import MuscleError

CHECKPOINTS = "checkpoints"
"""Folder in a stage's destination from which the stage can go on where it was stopped; the stage removes it."""

Report = Callable[[float, str], None]
"""Told the share done in [0, 1] and a few words."""


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline."""

    name: str
    """Also its folder below the pipeline's root, for example "scenes/new"."""
    function: Callable[..., None]
    """Module-level; called as function(destination, report, **settings, **{keyword: folder of that input})."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Everything that decides the output besides the inputs; plain JSON values."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Keyword of the function -> name of the stage whose folder it gets."""


def run_pipeline(stages: Sequence[Stage], root: Path, jobs: int, console: Console, threads: int = 1) -> None:
    """Run every stage that is not done yet, up to `jobs` at a time.

    Args:
        stages: In an order in which inputs come before the stages that read them.
        root: Folder of all outputs; made if missing.
        jobs: Number of worker processes.
        console: Where progress is shown: bars on a terminal, a line per stage elsewhere.
        threads: Threads of each worker's arithmetic. One gives the same sums on every machine.

    Raises:
        MuscleError: A folder of that name is not a stage's, another run is at work in `root`, a stage failed, or a
            worker died, for lack of memory as a rule.
    """
    root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / ".lock", timeout=0):  # the system frees it however a run ends
            _run_missing(stages, root, jobs, console, threads)
    except Timeout:
        raise MuscleError(f"another run is at work in {root}: wait for it, or choose another folder") from None


def _run_missing(stages: Sequence[Stage], root: Path, jobs: int, console: Console, threads: int) -> None:
    fingerprints = fingerprint(stages)
    _refuse_foreign_folders(stages, root)
    missing = {stage.name: stage for stage in stages if not _is_done(root / stage.name, fingerprints[stage.name])}
    if not missing:
        return
    context = multiprocessing.get_context("spawn")
    news: Queue[tuple[str, float, str]] = context.Queue()
    with _Display(len(stages), len(stages) - len(missing), news, console) as display:
        executor = ProcessPoolExecutor(min(jobs, len(missing)), context, _start_worker, (news, threads))
        try:
            _run_ready(missing, fingerprints, root, executor, jobs, display)
        except BrokenProcessPool:
            raise MuscleError(
                "a worker process was killed, probably for lack of memory: free some, or use --jobs 1, and run the "
                "same command again; finished stages are kept"
            ) from None
        except BaseException as stop:  # do not wait for the stages under way
            for worker in multiprocessing.active_children():
                worker.terminate()
            if isinstance(stop, KeyboardInterrupt):
                console.print("Stopped. Finished stages are kept: the same command goes on from here.", markup=False)
            raise
        finally:
            executor.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class StageStatus:
    """How far a stage is."""

    name: str
    state: Literal["done", "changed", "stopped", "missing"]
    """changed: done with other settings or by another version, so it will run again; stopped: begun, not finished."""
    seconds: float | None
    """That it took, where it is done."""


def pipeline_status(stages: Sequence[Stage], root: Path) -> list[StageStatus]:
    """How far each stage of a run is."""
    fingerprints = fingerprint(stages)
    statuses = []
    for stage in stages:
        record = _record(root / stage.name)
        if record.get("fingerprint") == fingerprints[stage.name]:
            statuses.append(StageStatus(stage.name, "done", record.get("seconds")))
        elif (root / ".partial" / stage.name).exists():
            statuses.append(StageStatus(stage.name, "stopped", None))
        else:
            statuses.append(StageStatus(stage.name, "changed" if record else "missing", None))
    return statuses


def fingerprint(stages: Sequence[Stage]) -> dict[str, str]:
    """Fingerprint of each stage, by name."""
    known: dict[str, str] = {}
    program = _program(stages)
    for stage in stages:
        content = {
            "program": program,
            "name": stage.name,
            "function": f"{stage.function.__module__}:{stage.function.__qualname__}",
            "settings": stage.settings,
            "inputs": {keyword: known[name] for keyword, name in stage.inputs.items()},
        }
        known[stage.name] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return known


def _program(stages: Sequence[Stage]) -> str:
    """Hash of this package, of those that the stages' functions are from, and of the libraries underneath."""
    digest = hashlib.sha256()
    for package in sorted({Path(__file__).parent, *(Path(inspect.getfile(stage.function)).parent for stage in stages)}):
        for path in sorted(package.rglob("*")):
            if path.suffix in {".py", ".yaml"}:
                digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    for library in ("torch", "transformers", "peft", "lm_eval"):
        digest.update(f"{library} {version(library)}".encode())
    return digest.hexdigest()


def _refuse_foreign_folders(stages: Sequence[Stage], root: Path) -> None:
    """A stage's folder is replaced whole, so it must be one that a stage wrote."""
    for stage in stages:
        folder = root / stage.name
        if folder.exists() and not (folder / "stage.json").exists():
            raise MuscleError(f"{folder} exists and was not written by this pipeline: choose another folder")


def _is_done(folder: Path, expected: str) -> bool:
    return _record(folder).get("fingerprint") == expected


def _record(folder: Path) -> dict[str, Any]:
    """What the stage of that folder wrote when it was done; empty where none did."""
    try:
        record = json.loads((folder / "stage.json").read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _run_ready(
    missing: dict[str, Stage],
    fingerprints: Mapping[str, str],
    root: Path,
    executor: ProcessPoolExecutor,
    jobs: int,
    display: _Display,
) -> None:
    """Keep the workers busy with stages whose inputs are there. Empties `missing`."""
    waiting, running = dict(missing), dict[Future[float], str]()
    while waiting or running:
        ready = [stage for stage in waiting.values() if not missing.keys() & set(stage.inputs.values())]
        for stage in ready[: jobs - len(running)]:
            del waiting[stage.name]
            display.start(stage.name)
            running[executor.submit(_run_stage, stage, fingerprints[stage.name], root)] = stage.name
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            name = running.pop(future)
            try:
                display.finish(name, seconds=future.result())
            except (MuscleError, BrokenProcessPool):
                raise
            except Exception as error:
                log = root / ".partial" / name / "stage.log"
                raise MuscleError(f"stage {name} failed ({type(error).__name__}: {error}): see {log}") from error
            del missing[name]


_news: Queue[tuple[str, float, str]]


def _start_worker(news: Queue[tuple[str, float, str]], threads: int) -> None:
    global _news  # a worker process can get its queue only here
    _news = news
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    parent = multiprocessing.parent_process()
    assert parent is not None

    def die_with_parent() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=die_with_parent, daemon=True).start()
    tqdm = importlib.import_module("tqdm").tqdm
    tqdm.set_lock(threading.RLock())  # its own lock is a semaphore, which a terminated process would leave behind
    torch = importlib.import_module("torch")
    torch.set_num_threads(threads)


def _run_stage(stage: Stage, expected: str, root: Path) -> float:
    """Run one stage in a worker; its folder appears whole or not at all. Returns its seconds."""
    started = time.perf_counter()
    partial, final, replaced = (root / part / stage.name for part in (".partial", ".", ".replaced"))
    shutil.rmtree(replaced, ignore_errors=True)
    _keep_checkpoints(partial, expected)
    folders = {keyword: root / name for keyword, name in stage.inputs.items()}
    with _output_to(partial / "stage.log"):
        stage.function(partial, lambda share, words: _news.put((stage.name, share, words)), **stage.settings, **folders)
    seconds = time.perf_counter() - started
    record = {
        "fingerprint": expected,
        "settings": dict(stage.settings),
        "inputs": dict(stage.inputs),
        "muscle": __version__,
        "seconds": round(seconds, 2),
    }
    (partial / "fingerprint").unlink()
    (partial / "stage.json").write_text(json.dumps(record, indent=2) + "\n")
    for folder in (final, replaced):
        folder.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        final.rename(replaced)  # a rename is whole; a removal may be interrupted halfway
    partial.rename(final)
    shutil.rmtree(replaced, ignore_errors=True)
    return seconds


def _keep_checkpoints(partial: Path, expected: str) -> None:
    """Make the folder of an unfinished stage anew, with the checkpoints of the same stage if it was stopped."""
    mark = partial / "fingerprint"
    same = mark.exists() and mark.read_text() == expected
    for path in partial.iterdir() if partial.exists() else ():
        if path.is_file() or path.is_symlink():
            path.unlink()
        elif not (same and path.name == CHECKPOINTS):
            shutil.rmtree(path)
    partial.mkdir(parents=True, exist_ok=True)
    mark.write_text(expected)


@contextmanager
def _output_to(file: Path) -> Iterator[None]:
    """Send what libraries print into a file, from native code too; on a terminal it would tear the progress bars."""
    before = [os.dup(1), os.dup(2)]
    with file.open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        yield
    except Exception:
        traceback.print_exc()
        raise
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, descriptor in enumerate(before, 1):
            os.dup2(descriptor, number)
            os.close(descriptor)


class _Display:
    """Progress bars on a terminal; elsewhere one line for each finished stage."""

    def __init__(self, total: int, done: int, news: Queue[tuple[str, float, str]], console: Console) -> None:
        self._console, self._news = console, news
        self._progress = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[words]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._total, self._done = total, done
        self._overall = self._progress.add_task("all stages", total=total, completed=done, words=f"{done}/{total}")
        self._bars: dict[str, TaskID] = {}
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._listener = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> _Display:
        self._progress.start()
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._listener.join(timeout=1)  # a worker that was killed may have left half a message, which never ends
        self._progress.stop()

    def start(self, name: str) -> None:
        with self._lock:
            self._bars[name] = self._progress.add_task(name, total=1.0, words="")

    def finish(self, name: str, seconds: float) -> None:
        with self._lock:
            self._progress.remove_task(self._bars.pop(name))
        self._done += 1
        self._progress.update(self._overall, completed=self._done, words=f"{self._done}/{self._total}")
        if not self._console.is_terminal:
            self._console.print(f"[{self._done}/{self._total}] {name}: {seconds:.1f} s", markup=False, highlight=False)

    def _listen(self) -> None:
        while not self._stopped.is_set():
            try:
                name, share, words = self._news.get(timeout=0.2)
            except Empty:
                continue
            with self._lock:
                if (bar := self._bars.get(name)) is not None:
                    self._progress.update(bar, completed=share, words=words)
