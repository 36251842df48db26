"""Stages with resumable, content-addressed outputs, run side by side in a few worker processes.

A stage writes one folder. It is done when that folder holds `stage.json` with the stage's fingerprint: a hash of its
function, its settings and the fingerprints of the stages it reads. So a second run does only what is missing, and a
changed setting redoes exactly what depends on it. An unfinished stage leaves nothing but a folder under `.partial`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from muscle import __version__
from muscle.errors import MuscleError

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


def run_pipeline(stages: Sequence[Stage], root: Path, jobs: int, console: Console) -> None:
    """Run every stage that is not done yet, up to `jobs` at a time, each on one thread.

    Args:
        stages: In an order in which inputs come before the stages that read them.
        root: Folder of all outputs; made if missing.
        jobs: Number of worker processes.
        console: Where progress is shown: bars on a terminal, a line per stage elsewhere.

    Raises:
        MuscleError: A worker died, for lack of memory as a rule, or a stage raised one.
    """
    fingerprints = fingerprint(stages)
    missing = {stage.name: stage for stage in stages if not _is_done(root / stage.name, fingerprints[stage.name])}
    if not missing:
        return
    context = multiprocessing.get_context("spawn")
    news: Queue[tuple[str, float, str]] = context.Queue()
    with _Display(len(stages), len(stages) - len(missing), news, console) as display:
        executor = ProcessPoolExecutor(min(jobs, len(missing)), context, _start_worker, (news,))
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


def fingerprint(stages: Sequence[Stage]) -> dict[str, str]:
    """Fingerprint of each stage, by name."""
    known: dict[str, str] = {}
    for stage in stages:
        content = {
            "muscle": __version__,
            "name": stage.name,
            "function": f"{stage.function.__module__}:{stage.function.__qualname__}",
            "settings": stage.settings,
            "inputs": {keyword: known[name] for keyword, name in stage.inputs.items()},
        }
        known[stage.name] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return known


def _is_done(folder: Path, expected: str) -> bool:
    try:
        return bool(json.loads((folder / "stage.json").read_text())["fingerprint"] == expected)
    except (OSError, ValueError, KeyError, TypeError):
        return False


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
            display.finish(name, seconds=future.result())
            del missing[name]


_news: Queue[tuple[str, float, str]]


def _start_worker(news: Queue[tuple[str, float, str]]) -> None:
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
    torch.set_num_threads(1)  # stages run side by side; and one thread gives the same sums everywhere


def _run_stage(stage: Stage, expected: str, root: Path) -> float:
    """Run one stage in a worker; its folder appears whole or not at all. Returns its seconds."""
    started = time.perf_counter()
    partial, final = root / ".partial" / stage.name, root / stage.name
    for stale in (partial, final):
        shutil.rmtree(stale, ignore_errors=True)
    partial.mkdir(parents=True)
    with (partial / "stage.log").open("w") as log:  # what libraries print would tear the progress bars
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    folders = {keyword: root / name for keyword, name in stage.inputs.items()}
    stage.function(partial, lambda share, words: _news.put((stage.name, share, words)), **stage.settings, **folders)
    seconds = time.perf_counter() - started
    record = {
        "fingerprint": expected,
        "settings": dict(stage.settings),
        "inputs": dict(stage.inputs),
        "muscle": __version__,
        "seconds": round(seconds, 2),
    }
    (partial / "stage.json").write_text(json.dumps(record, indent=2) + "\n")
    final.parent.mkdir(parents=True, exist_ok=True)
    partial.rename(final)
    return seconds


_END = ("", 0.0, "")


class _Display:
    """Progress bars on a terminal; elsewhere one line for each finished stage."""

    def __init__(self, total: int, done: int, news: Queue[tuple[str, float, str]], console: Console) -> None:
        self._console, self._news = console, news
        self._progress = Progress(
            TextColumn("{task.description:<20}"),
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
        self._listener = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> _Display:
        self._progress.start()
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._news.put(_END)
        self._listener.join()
        self._progress.stop()

    def start(self, name: str) -> None:
        self._bars[name] = self._progress.add_task(name, total=1.0, words="")

    def finish(self, name: str, seconds: float) -> None:
        self._progress.remove_task(self._bars.pop(name))
        self._done += 1
        self._progress.update(self._overall, completed=self._done, words=f"{self._done}/{self._total}")
        if not self._console.is_terminal:
            self._console.print(f"[{self._done}/{self._total}] {name}: {seconds:.1f} s", markup=False, highlight=False)

    def _listen(self) -> None:
        while (item := self._news.get()) != _END:
            name, share, words = item
            if (bar := self._bars.get(name)) is not None:
                self._progress.update(bar, completed=share, words=words)
