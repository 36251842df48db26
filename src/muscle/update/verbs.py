"""Single steps of an update on their own: in this process, or in each process of `accelerate launch`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from muscle.errors import MuscleError
from muscle.update import scoring
from muscle.update.adapters import train_compatibility_adapter, train_task_adapter
from muscle.update.distributed import processes
from muscle.update.pipeline import CHECKPOINTS, Report
from muscle.update.recipe import Base, Recipe, Side, TaskModel
from muscle.update.report.model_card import Subject, write_model_card
from muscle.update.tasks import load_task


def adapt(recipe: Recipe, task: str, out: Path) -> None:
    """Train a task adapter on the recipe's new base.

    Raises:
        MuscleError: `out` holds something else, or what `train_task_adapter` raises.
    """
    training, lora = recipe.training_of(task), recipe.lora_of(task)
    base = _base(recipe.new)
    _claim(out, ["adapt", base.as_dict(), recipe.tasks[task].as_dict(), lora.as_dict(), training.as_dict()])
    with _progress(f"adapt {task}") as report:
        train_task_adapter(base, load_task(task, recipe.tasks[task], _data(recipe)), lora, training, out, report)
    _finish(out, Subject(task=task, base=base.base, model="new"))


def align(recipe: Recipe, task: str, out: Path) -> None:
    """Train a compatibility adapter between the recipe's two task models, as `alignment` says.

    Raises:
        MuscleError: `out` holds something else, or what `train_compatibility_adapter` raises.
    """
    method = next(iter(recipe.methods))
    alignment, training = recipe.alignment_of(task, method), recipe.alignment_training_of(task)
    old, new = (TaskModel(base=_base(side), adapter=side.adapters[task]) for side in (recipe.old, recipe.new))
    settings = [part.as_dict() for part in (old, new, recipe.tasks[task], alignment, recipe.lora_of(task), training)]
    _claim(out, ["align", *settings])
    with _progress(f"align {task}") as report:
        train_compatibility_adapter(
            old,
            new,
            load_task(task, recipe.tasks[task], _data(recipe)),
            alignment,
            recipe.lora_of(task),
            training,
            recipe.evaluation_of(task),
            out,
            report,
        )
    _finish(out, Subject(task=task, base=new.base.base, model=method, old_base=old.base.base))


def evaluate(recipe: Recipe, tasks: Sequence[str], adapter: str | None, out: Path) -> None:
    """Evaluate the recipe's new base, with an adapter or without, and write a log of each task to `out`/<task>.

    Raises:
        MuscleError: A task's folder is there already, or what `scoring` raises.
    """
    if there := [task for task in tasks if (out / task).exists()]:
        raise MuscleError(f"{out / there[0]}: is there already; choose another folder with --out, or remove it")
    model = TaskModel(base=_base(recipe.new), adapter=adapter)
    loaded = [load_task(task, recipe.tasks[task], _data(recipe)) for task in tasks]
    lm = scoring.task_model_lm(model, recipe.evaluation_of(tasks[0]))
    for task in loaded:
        name = adapter or model.base.base
        scoring.evaluate(lm, name, task, "test", out / task.name, recipe.evaluation_of(task.name))
        _say(f"wrote {out / task.name}")


def _finish(out: Path, subject: Subject) -> None:
    if processes().is_main_process:
        write_model_card(out, subject)
    _say(f"wrote {out}; next: muscle evaluate {subject.base} {subject.task} --adapter {out} --out LOGS")


def _base(side: Side) -> Base:
    assert side.base is not None
    return side.loaded_from(side.base)


def _data(recipe: Recipe) -> Path | None:
    return Path(recipe.data) if recipe.data else None


def _claim(out: Path, settings: object) -> None:
    """Make the folder, or check that the same training was stopped in it."""
    state, mark = processes(), out / CHECKPOINTS / "settings"
    wanted = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    problem = None
    if state.is_main_process:
        if mark.exists() and mark.read_text() != wanted:
            problem = "holds a training that was begun with other settings; remove it"
        elif not mark.exists() and out.exists() and any(out.iterdir()):
            problem = "is not empty; remove it"
        else:
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.write_text(wanted)
    if problem:
        raise MuscleError(f"{out}: {problem}, or choose another folder with --out")
    state.wait_for_everyone()


@contextmanager
def _progress(words: str) -> Iterator[Report]:
    """A progress bar on standard error, of the main process."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True, quiet=not processes().is_main_process)
    with Progress(*columns, TextColumn("[dim]{task.fields[words]}"), console=console, transient=True) as progress:
        bar = progress.add_task(words, total=1.0, words="")
        yield lambda share, said: progress.update(bar, completed=share, words=said)


def _say(words: str) -> None:
    if processes().is_main_process:
        print(words)
