"""What a run will take, told before it starts: time, memory and disk of every stage.

`probe` measures, `memory` counts bytes, `forecast` puts both together for a plan; `inputs` is what they are made on.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from muscle.errors import MuscleError
from muscle.measure.report.terminal import new_table, say
from muscle.update.pipeline import Stage, pipeline_status

if TYPE_CHECKING:
    from muscle.update.estimate.forecast import Cost, Forecast
    from muscle.update.estimate.inputs import Inputs

TOLERANCE = 0.3
"""How far from the truth a prediction may be."""
LIBRARIES = ("muscle.update.adapters", "muscle.update.scoring")
"""What stages load before anything else."""


@dataclass(frozen=True)
class Machine:
    """What is free, in bytes."""

    memory: float
    disk: float

    @classmethod
    def here(cls, root: Path) -> Machine:
        """This machine: its memory, or that of its accelerator, and the disk of a folder that may not be there yet."""
        import torch

        memory = float(psutil.virtual_memory().available)
        if torch.cuda.is_available():
            memory = float(torch.cuda.mem_get_info()[0])
        folder = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
        return cls(memory, float(shutil.disk_usage(folder).free))


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
        MuscleError: A base or a task cannot be had.
    """
    done = done_stages(stages, root, keep)
    if len(done) == len(stages):
        say(console, f"All {len(stages)} stages in {root} are done.")
        return True
    machine = Machine.here(root)
    found = _measure(stages, root, done, jobs, machine.memory, console)
    _print_table(found, console)
    say(console, _total(found, stages, jobs, len(stages) - len(done)))
    say(console, f"free: {_size(machine.memory)} of memory, {_size(machine.disk)} of disk")
    refusal = refuse(found, jobs, machine)
    say(console, refusal or "It fits.")
    return refusal is None


def done_stages(stages: Sequence[Stage], root: Path, keep: bool = False) -> frozenset[str]:
    """Names of the stages that need not run."""
    states = {"done", "outdated"} if keep else {"done"}
    return frozenset(found.name for found in pipeline_status(stages, root) if found.state in states)


def refuse(found: Forecast, jobs: int, machine: Machine) -> str | None:
    """Why a run cannot fit, and what would make it; None where it fits."""
    memory, disk = found.memory(jobs), found.disk(jobs)
    if memory > machine.memory:
        way_out = (
            f"what would make it fit: {', or '.join(found.remedies)}"
            if found.remedies
            else (f"no setting makes it fit: choose smaller bases, or a machine with {_size(memory)}")
        )
        needed, free = _size(memory), _size(machine.memory)
        return f"It does not fit: it needs about {needed} of memory, and {free} are free; {way_out}"
    if disk > machine.disk:
        return (
            f"It does not fit: it needs about {_size(disk)} of disk, and {_size(machine.disk)} are free; "
            "what would make it fit: another disk with --out, a lower lora.rank, or fewer tasks in a run"
        )
    return None


SMALLER: Mapping[str, Mapping[str, str]] = {
    "dtype: bfloat16": {"dtype": "bfloat16"},
    "quantization: 8bit": {"quantization": "8bit"},
    "quantization: 4bit": {"quantization": "4bit"},
}
"""What makes a base take less, in a recipe's words and in settings."""


def check_weights(stages: Sequence[Stage], root: Path, keep: bool = False) -> None:
    """Refuse before anything starts what this machine cannot hold: the largest published base alone, or the adapters.

    Far less is counted than is needed, so that nothing is refused that would run; no data is read, and nothing probed.
    A training itself refuses teachers' states that do not fit, before it computes them.

    Raises:
        MuscleError: It cannot fit.
    """
    from muscle.update.estimate.inputs import Inputs
    from muscle.update.estimate.memory import stage_bytes

    done = done_stages(stages, root, keep)
    inputs, machine = Inputs(stages, root, done, root), Machine.here(root)
    room, left = machine.memory + psutil.swap_memory().free, 0.0
    for stage in stages:
        published = _published(stage)
        if stage.name in done or published is None:
            continue
        for side in published:
            _check_base(stage, inputs, side, room)
        left += stage_bytes(stage, inputs, None).left
    if left > machine.disk:
        raise MuscleError(
            f"{root}: the adapters need {_size(left)} of disk, and {_size(machine.disk)} are free: lower lora.rank, "
            "run fewer tasks, or choose another disk with --out"
        )


def _published(stage: Stage) -> list[str] | None:
    """The sides of a stage; None where one of their bases is not there yet."""
    sides = [side for side in ("model", "old", "new") if isinstance(stage.settings.get(side), Mapping)]
    return sides if all(stage.settings[side]["base"]["base"] for side in sides) else None


def _check_base(stage: Stage, inputs: Inputs, side: str, room: float) -> None:
    from muscle.update.estimate.memory import base_bytes

    base, config = stage.settings[side]["base"], inputs.config(stage, side)
    needed = base_bytes(config, base)
    if needed <= room:
        return
    smaller = [words for words, change in SMALLER.items() if base_bytes(config, {**base, **change}) <= room]
    way_out = f"set {' or '.join(smaller)} for it" if smaller else "choose a smaller base or another machine"
    raise MuscleError(
        f"base {base['base']} needs {_size(needed)} of memory for its weights alone, and {_size(room)} are free: "
        f"{way_out}"
    )


def _measure(
    stages: Sequence[Stage], root: Path, done: frozenset[str], jobs: int, free: float, console: Console
) -> Forecast:
    """A forecast whose probes run as many at a time as stages will: so each gets its share of what cores and memory
    can do, as stages will.
    """
    started = time.perf_counter()
    for library in LIBRARIES:
        importlib.import_module(library)
    start_up = time.perf_counter() - started
    from muscle.update.estimate.forecast import forecast
    from muscle.update.estimate.inputs import Inputs

    missing = [stage for stage in stages if stage.name not in done]
    workers = min(jobs, len(missing), os.cpu_count() or 1)
    with (
        tempfile.TemporaryDirectory(prefix="muscle-estimate-") as work,
        ProcessPoolExecutor(workers, _context(), _start_worker) as executor,
        Progress(
            TextColumn("measuring {task.description:<20}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        ) as progress,
    ):

        def each(function: Callable[[Any], Any], arguments: Sequence[Any], words: str) -> list[Any]:
            if not console.is_terminal:
                say(console, f"measuring {words}: {len(arguments)}")
            futures = [executor.submit(function, argument) for argument in arguments]
            return [future.result() for future in progress.track(futures, description=words)]

        try:
            return forecast(Inputs(stages, root, done, Path(work)), missing, jobs, free, start_up, each)
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise


def _context() -> Any:
    """Workers are forked from a process that has the libraries; not where it would have talked to a GPU."""
    import torch

    if torch.accelerator.is_available() or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LIBRARIES))
    before = [os.dup(stream) for stream in (1, 2)]
    _be_silent()
    forkserver.ensure_running()
    for stream, descriptor in enumerate(before, 1):
        os.dup2(descriptor, stream)
        os.close(descriptor)
    return context


def _start_worker() -> None:
    """On one thread, as stages are."""
    _be_silent()
    for library in LIBRARIES:
        importlib.import_module(library)
    import torch

    torch.set_num_threads(1)


def _be_silent() -> None:
    """What libraries say of miniatures tells nothing of the run."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)


def _print_table(found: Forecast, console: Console) -> None:
    groups: dict[str, list[str]] = {}
    for name in found.costs:
        kind, _, rest = name.partition("/")
        groups.setdefault(f"{kind}/{rest.partition('/')[0]}" if "/" in rest else kind, []).append(name)
    table = new_table(console)
    table.add_column("stages", no_wrap=True)
    for column in ("number", "time", "memory", "disk"):
        table.add_column(column, justify="right", no_wrap=True)
    for group, names in groups.items():
        costs = [found.costs[name] for name in names]
        table.add_row(
            group,
            str(len(names)),
            _sum(costs),
            _size(found.process + max(cost.bytes.memory + cost.bytes.host for cost in costs)),
            _size(sum(cost.bytes.left for cost in costs)),
        )
    console.print(table)


def _total(found: Forecast, stages: Sequence[Stage], jobs: int, missing: int) -> str:
    words = [f"{missing} of {len(stages)} stages with --jobs {jobs}:"]
    if any(cost.seconds is not None for cost in found.costs.values()):
        seconds = found.seconds(stages, jobs)
        low, high = (_time(seconds * factor) for factor in (1 - TOLERANCE, 1 + TOLERANCE))
        words.append(f"about {_time(seconds)} ({low} to {high}),")
    words.append(f"{_size(found.memory(jobs))} of memory, {_size(found.disk(jobs))} of disk at the most")
    return " ".join(words)


def _sum(costs: Sequence[Cost]) -> str:
    """Time of some stages; nothing is told of part of them."""
    seconds = [cost.seconds for cost in costs if cost.seconds is not None]
    return _time(sum(seconds)) if len(seconds) == len(costs) else "not measured"


def _time(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02} min"
    return f"{round(seconds) // 60}:{round(seconds) % 60:02} min"


def _size(amount: float) -> str:
    """In megabytes or gigabytes."""
    return f"{amount / 1e9:.1f} GB" if amount >= 1e9 else f"{amount / 1e6:.0f} MB" if amount >= 1e6 else "< 1 MB"
