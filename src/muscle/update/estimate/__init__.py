"""What a run will take, told before it starts: time, memory and disk of every stage.

`probe` measures, `memory` counts bytes, `forecast` puts both together for a plan; `inputs` and `shapes` are what they
are made on.
"""

from __future__ import annotations

import importlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from muscle.errors import MuscleError
from muscle.measure.report.terminal import new_table, say
from muscle.update.pipeline import Stage, pipeline_status
from muscle.update.room import free_disk, free_memory, in_words

if TYPE_CHECKING:
    from muscle.update.estimate.forecast import Cost, Forecast
    from muscle.update.estimate.inputs import Inputs

TOLERANCE = 0.3
"""How far from the truth a prediction may be."""
LIBRARIES = ("muscle.update.adapters", "muscle.update.scoring")
"""What stages load before anything else."""


def print_estimate(stages: Sequence[Stage], root: Path, jobs: int, console: Console, keep: bool = False) -> bool:
    """Print what the missing stages of a run will take, and whether it fits; nothing is written or downloaded but
    configurations, tokenizers and task data.

    Args:
        stages: All stages of the plan.
        root: Folder of the run, which need not be there.
        jobs: Stages at a time.
        console: Where it is shown.
        keep: Whether stages that another version has done count as done.

    Returns:
        Whether it fits into memory and disk.

    Raises:
        MuscleError: A base or a task cannot be had, or a base's code does not let itself be counted.
    """
    done = done_stages(stages, root, keep)
    if len(done) == len(stages):
        say(console, f"All {len(stages)} stages in {root} are done.")
        return True
    memory, disk = _computing_memory(), free_disk(root)
    found = _measure(stages, root, done, jobs, memory, console)
    _print_table(found, console)
    say(console, _total(found, stages, jobs))
    for words in found.unknown:
        say(console, f"not predicted: {words}")
    say(console, f"free: {in_words(memory)} of memory, {in_words(disk)} of disk")
    refusal = refuse(found, jobs, memory, disk)
    say(console, refusal or "It fits.")
    return refusal is None


def done_stages(stages: Sequence[Stage], root: Path, keep: bool = False) -> frozenset[str]:
    """Names of the stages that need not run."""
    states = {"done", "outdated"} if keep else {"done"}
    return frozenset(found.name for found in pipeline_status(stages, root) if found.state in states)


def refuse(found: Forecast, jobs: int, memory: float, disk: float) -> str | None:
    """Why a run cannot fit into so many free bytes, and what would make it; None where it fits."""
    if (needed := found.memory(jobs)) > memory:
        way_out = (
            f"what would make it fit: {', or '.join(found.remedies)}"
            if found.remedies
            else f"no setting makes it fit: choose smaller bases, or a machine with {in_words(needed)}"
        )
        return (
            f"It does not fit: it needs about {in_words(needed)} of memory, and {in_words(memory)} are free; {way_out}"
        )
    if (needed := found.disk(jobs)) > disk:
        return (
            f"It does not fit: it needs about {in_words(needed)} of disk, and {in_words(disk)} are free; "
            "what would make it fit: another disk with --out, a lower lora.rank, or fewer tasks in a run"
        )
    return None


def check_weights(stages: Sequence[Stage], root: Path, keep: bool = False) -> None:
    """Refuse before anything starts what this machine cannot hold: the largest published base alone, or the adapters.

    Far less is counted than is needed, so that nothing is refused that would run; no data is read, and nothing probed.
    A training itself refuses teachers' states that do not fit, before it computes them.

    Raises:
        MuscleError: It cannot fit.
    """
    done = done_stages(stages, root, keep)
    missing = [stage for stage in stages if stage.name not in done]
    if not missing:
        return  # without a library loaded
    from muscle.update.estimate.inputs import Inputs, sides_of
    from muscle.update.estimate.memory import stage_bytes
    from muscle.update.estimate.shapes import UncountableError

    inputs, disk = Inputs(stages, root, done, root), free_disk(root)
    room, left = _computing_memory() + psutil.swap_memory().free, 0.0
    for stage in missing:
        if not all(stage.settings[side]["base"]["base"] for side in sides_of(stage)):
            continue  # a stage has yet to write it
        with suppress(UncountableError):
            for side in sides_of(stage):
                _check_base(stage, inputs, side, room)
            left += stage_bytes(stage, inputs, None).left
    if left > disk:
        raise MuscleError(
            f"{root}: the adapters need {in_words(left)} of disk, and {in_words(disk)} are free: lower lora.rank, "
            "run fewer tasks, or choose another disk with --out"
        )


def _check_base(stage: Stage, inputs: Inputs, side: str, room: float) -> None:
    from muscle.update.estimate.memory import SMALLER, base_bytes

    base, config = stage.settings[side]["base"], inputs.config(stage, side)
    needed = base_bytes(config, base)
    if needed <= room:
        return
    smaller = [words for words, change in SMALLER.items() if base_bytes(config, {**base, **change}) <= room]
    way_out = f"set {' or '.join(smaller)} for it" if smaller else "choose a smaller base or another machine"
    raise MuscleError(
        f"base {base['base']} needs {in_words(needed)} of memory for its weights alone, and {in_words(room)} are free: "
        f"{way_out}"
    )


def _computing_memory() -> float:
    """Free where models compute: on the accelerator, or in the machine's own memory."""
    import torch

    return float(torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else free_memory())


def _measure(
    stages: Sequence[Stage], root: Path, done: frozenset[str], jobs: int, free: float, console: Console
) -> Forecast:
    """A forecast whose probes run as many at a time as stages will: so each gets its share of what cores and memory
    can do, as stages will.
    """
    started = time.perf_counter()
    _load_libraries()
    start_up = time.perf_counter() - started
    from muscle.update.estimate.forecast import forecast
    from muscle.update.estimate.inputs import Inputs

    missing = [stage for stage in stages if stage.name not in done]
    workers = min(jobs, len(missing), os.cpu_count() or 1)
    columns = TextColumn("measuring {task.description:<20}"), BarColumn(bar_width=24), MofNCompleteColumn()
    hidden = not console.is_terminal
    with (
        _stopped_in_order(),
        tempfile.TemporaryDirectory(prefix="muscle-estimate-", ignore_cleanup_errors=True) as work,
        ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker) as executor,
        Progress(*columns, console=console, disable=hidden, transient=True) as progress,
    ):

        def each(function: Callable[[Any], Any], arguments: Sequence[Any], words: str) -> list[Any]:
            if hidden:
                say(console, f"measuring {words}: {len(arguments)}")
            futures = [executor.submit(function, argument) for argument in arguments]
            return [future.result() for future in progress.track(futures, description=words)]

        try:
            return forecast(Inputs(stages, root, done, Path(work)), missing, jobs, free, start_up, each)
        except BaseException:  # do not wait for what is under way, which would write on into the folder
            for worker in multiprocessing.active_children():
                worker.terminate()
            executor.shutdown(cancel_futures=True)
            raise


@contextmanager
def _stopped_in_order() -> Iterator[None]:
    """Let a request to end the process clean up behind itself, as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _load_libraries() -> None:
    for library in LIBRARIES:
        importlib.import_module(library)


def _start_worker() -> None:
    """On one thread, as stages are, and silent: what libraries say of miniatures tells nothing of the run."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _load_libraries()
    importlib.import_module("torch").set_num_threads(1)


def _end_with_parent() -> None:
    """Where the parent is killed, it cannot stop its workers."""
    parent = multiprocessing.parent_process()
    assert parent
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _print_table(found: Forecast, console: Console) -> None:
    groups: dict[str, list[Cost]] = {}
    for name, cost in found.costs.items():
        kind, _, rest = name.partition("/")
        groups.setdefault(f"{kind}/{rest.partition('/')[0]}" if "/" in rest else kind, []).append(cost)
    table = new_table(console)
    table.add_column("stages", no_wrap=True)
    for column in ("number", "time", "memory", "disk"):
        table.add_column(column, justify="right", no_wrap=True)
    for group, costs in groups.items():
        seconds = [cost.seconds for cost in costs if cost.seconds is not None]  # nothing is told of part of them
        table.add_row(
            group,
            str(len(costs)),
            _time(sum(seconds)) if len(seconds) == len(costs) else "not measured",
            in_words(found.process + max(cost.bytes.memory + cost.bytes.host for cost in costs)),
            in_words(sum(cost.bytes.left for cost in costs)),
        )
    console.print(table)


def _total(found: Forecast, stages: Sequence[Stage], jobs: int) -> str:
    words = [f"{len(found.costs)} of {len(stages)} stages with --jobs {jobs}:"]
    if any(cost.seconds is not None for cost in found.costs.values()):
        seconds = found.seconds(stages, jobs)
        low, high = (_time(seconds * factor) for factor in (1 - TOLERANCE, 1 + TOLERANCE))
        words.append(f"about {_time(seconds)} ({low} to {high}),")
    words.append(f"{in_words(found.memory(jobs))} of memory, {in_words(found.disk(jobs))} of disk at the most")
    return " ".join(words)


def _time(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02} min"
    return f"{round(seconds) // 60}:{round(seconds) % 60:02} min"
