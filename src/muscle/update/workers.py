"""The stages of a pipeline that are missing, run side by side in a few worker processes."""

from __future__ import annotations

import importlib
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
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from rich.console import Console

from muscle import __version__
from muscle.errors import MuscleError
from muscle.measure.report.files import replace_whole
from muscle.update.pipeline import CHECKPOINTS, Report, Stage, fingerprint, pipeline_status, program_hash
from muscle.update.stage_display import StageDisplay

Outdated = Literal["redo", "keep", "refuse"]
"""What becomes of stages that another version of the program, or of a library, has done."""


def run_pipeline(
    stages: Sequence[Stage],
    root: Path,
    jobs: int,
    console: Console,
    outdated: Outdated = "redo",
    record: Mapping[str, str] | None = None,
) -> None:
    """Run every stage that is not done yet, up to `jobs` at a time, each on one thread.

    Args:
        stages: In an order in which inputs come before the stages that read them.
        root: Folder of all outputs; made if missing.
        jobs: Number of worker processes.
        console: Where progress is shown: bars on a terminal, a line per stage elsewhere.
        outdated: Whether to do again what another version did, to keep it, or to refuse to choose.
        record: Files to write into `root` before all else, by name: what is run there.

    Raises:
        MuscleError: A folder of that name is not a stage's, another run is at work in `root`, a stage is outdated and
            that is refused, a stage failed, or a worker died, for lack of memory as a rule.
    """
    root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / ".lock", timeout=0):  # the system frees it however a run ends
            missing = _missing(stages, root, outdated)
            for name, text in (record or {}).items():
                replace_whole(root / name, text.encode())
            if missing:
                _run_missing(stages, missing, root, jobs, console)
    except Timeout:
        raise MuscleError(f"another run is at work in {root}: wait for it, or choose another folder") from None


def _missing(stages: Sequence[Stage], root: Path, outdated: Outdated) -> dict[str, Stage]:
    """The stages to run, by name."""
    _refuse_foreign_folders(stages, root)
    status = {found.name: found.state for found in pipeline_status(stages, root)}
    old = [name for name, state in status.items() if state == "outdated"]
    if old and outdated == "refuse":
        raise MuscleError(
            f"{len(old)} of {len(stages)} stages in {root}, {old[0]} among them, were done by another version of "
            "muscle or its libraries: --outdated redo runs them again, --outdated keep takes them as they are"
        )
    kept = {"done", "outdated"} if outdated == "keep" else {"done"}
    return {stage.name: stage for stage in stages if status[stage.name] not in kept}


def _run_missing(stages: Sequence[Stage], missing: dict[str, Stage], root: Path, jobs: int, console: Console) -> None:
    fingerprints, program = fingerprint(stages), program_hash(stages)
    context = multiprocessing.get_context("spawn")
    news: Queue[tuple[str, float, str]] = context.Queue()
    numbers: Queue[int] = context.Queue()
    for number in range(jobs):
        numbers.put(number)
    with StageDisplay(len(stages), len(stages) - len(missing), news, console) as display:
        executor = ProcessPoolExecutor(min(jobs, len(missing)), context, _start_worker, (news, numbers))
        try:
            _run_ready(missing, fingerprints, program, root, executor, jobs, display)
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


def _refuse_foreign_folders(stages: Sequence[Stage], root: Path) -> None:
    """A stage's folder is replaced whole, so it must be one that a stage wrote."""
    for stage in stages:
        folder = root / stage.name
        if folder.exists() and not (folder / "stage.json").exists():
            raise MuscleError(f"{folder} exists and was not written by this pipeline: choose another folder")


def _run_ready(
    missing: dict[str, Stage],
    fingerprints: Mapping[str, str],
    program: str,
    root: Path,
    executor: ProcessPoolExecutor,
    jobs: int,
    display: StageDisplay,
) -> None:
    """Keep the workers busy with stages whose inputs are there. Empties `missing`."""
    waiting, running = dict(missing), dict[Future[float], str]()
    while waiting or running:
        ready = [stage for stage in waiting.values() if not missing.keys() & set(stage.inputs.values())]
        for stage in ready[: jobs - len(running)]:
            del waiting[stage.name]
            display.start(stage.name)
            running[executor.submit(_run_stage, stage, fingerprints[stage.name], program, root)] = stage.name
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            name = running.pop(future)
            try:
                display.finish(name, seconds=future.result())
            except _StageError as error:
                log = root / ".partial" / name / "stage.log"
                raise MuscleError(f"stage {name} failed ({error}): see {log}") from None
            except MuscleError as error:
                raise MuscleError(f"stage {name}: {error}") from None
            del missing[name]


_news: Queue[tuple[str, float, str]]


def _start_worker(news: Queue[tuple[str, float, str]], numbers: Queue[int]) -> None:
    global _news  # a worker process can get its queue only here
    _news = news
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if len(devices) > 1:  # a device for each worker, chosen before torch looks for them
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[numbers.get() % len(devices)]
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


class _StageError(Exception):
    """What a stage did not foresee, as text: not every exception survives the way to another process."""


def _run_stage(stage: Stage, expected: str, program: str, root: Path) -> float:
    """Run one stage in a worker; its folder appears whole or not at all. Returns its seconds."""
    started = time.perf_counter()
    partial, final, replaced = (root / part / stage.name for part in (".partial", ".", ".replaced"))
    shutil.rmtree(replaced, ignore_errors=True)
    _keep_checkpoints(partial, expected)
    folders = {keyword: root / name for keyword, name in stage.inputs.items()}
    try:
        with _output_to(partial / "stage.log"):
            report: Report = lambda share, words: _news.put((stage.name, share, words))  # noqa: E731
            stage.function(partial, report, **stage.settings, **folders)
    except MuscleError:
        raise
    except Exception as error:
        raise _StageError(f"{type(error).__name__}: {error}") from None
    shutil.rmtree(partial / CHECKPOINTS, ignore_errors=True)
    seconds = time.perf_counter() - started
    record = {
        "fingerprint": expected,
        "program": program,
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
