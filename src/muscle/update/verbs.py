"""Single stages of an update on their own: in this process, or in each process of `accelerate launch`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from muscle.errors import MuscleError
from muscle.update.alignment_settings import KNOWN_METHODS
from muscle.update.distributed import leave, processes
from muscle.update.pipeline import CHECKPOINTS, Report, Stage, fingerprint
from muscle.update.plan import Plan
from muscle.update.recipe import Recipe
from muscle.update.recipe_file import make_recipe
from muscle.update.report.model_card import Subject, write_model_card
from muscle.update.report.search import SEARCH, TRIAL, TRIALS, print_search
from muscle.update.run import located, pins

BEGUN = "begun"
"""File in the folder of an adapter that is not finished: the fingerprint of its stage."""


WORK = ("checkpoint-*", f"{TRIALS}/*/{TRIAL}", f"{TRIALS}/*/{CHECKPOINTS}/checkpoint-*")
"""What is in the checkpoints of an adapter where some of its training, or of its search, is done."""


def adapt(recipe: Recipe, task: str, out: Path) -> None:
    """Train a task adapter on the recipe's new base.

    Raises:
        MuscleError: `out` holds something else, or what `adapters.train_task_adapter` raises.
    """
    recipe = located(recipe)
    stage = Plan(recipe, commits=pins(recipe)).task_adapter_stage(task, "new")
    _train(stage, out, Subject(task=task, base=recipe.new.base or "", model="new"))


def align(recipe: Recipe, task: str, method: str | None, out: Path, budget: float | None = None) -> None:
    """Train a compatibility adapter between the recipe's two task models.

    Args:
        recipe: Names both task models.
        task: What they do.
        method: Which of the recipe's methods, or of those known without it; None where the recipe has one only.
        out: Folder of the adapter.
        budget: Of a method that searches, in place of its own.

    Raises:
        MuscleError: There is no such method, or several and none is named; a budget is given and it does not search;
            `out` holds something else; or what `adapters.train_compatibility_adapter` raises.
    """
    methods = {**KNOWN_METHODS, **recipe.methods}
    chosen = method or (next(iter(recipe.methods)) if len(recipe.methods) == 1 else None)
    if chosen is None or chosen not in methods:
        raise MuscleError(f"name one of the recipe's methods by --method (there are: {', '.join(methods)})")
    changes = dict(methods[chosen])
    if budget is not None:
        if not isinstance(changes.get("search"), Mapping):
            raise MuscleError(f"method {chosen} does not search: leave --budget out, or choose --method auto")
        changes["search"] = {**changes["search"], "budget": budget}
    recipe = make_recipe(msgspec.structs.replace(recipe, methods={chosen: changes}).as_dict())  # which checks them
    recipe = located(recipe)
    stage = Plan(recipe, commits=pins(recipe)).alignment_stage(task, chosen)
    _train(stage, out, Subject(task=task, base=recipe.new.base or "", model=chosen, old_base=recipe.old.base))


def evaluate(recipe: Recipe, tasks: Sequence[str], out: Path) -> None:
    """Evaluate the recipe's new task models, and write a log of each task to `out`/<task>.

    Raises:
        MuscleError: A task's folder is there already or cannot be made, or what `scoring` raises.
    """
    recipe = located(recipe)
    plan = Plan(recipe, commits=pins(recipe))
    if there := [task for task in tasks if (out / task).exists()]:
        raise MuscleError(f"{out / there[0]}: is there already; choose another folder with --out, or remove it")
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        stage = plan.evaluation_stage(task, "new")
        name = recipe.new.adapters[task] or recipe.new.base
        stage.function(out / task, lambda *_: None, **{**stage.settings, "name": name})
        _say(f"wrote {out / task}")
    leave()


def _train(stage: Stage, out: Path, subject: Subject) -> None:
    """Run a stage in `out`; stopped, it goes on from its last epoch."""
    main = processes().is_main_process
    if main:
        _claim(out, _mark_of(stage))
    processes().wait_for_everyone()
    with _progress(stage.name) as report:
        stage.function(out, report, **stage.settings)
    if main:
        if (out / SEARCH).exists():
            print_search(out / SEARCH, Console(highlight=False, emoji=False, markup=False))
        write_model_card(out, subject)
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
        (out / BEGUN).unlink()
    _say(f"wrote {out}")
    leave()


def _mark_of(stage: Stage) -> str:
    """Its fingerprint, but for how to search: trials that are done serve another search too."""
    alignment = stage.settings.get("alignment") or {}
    if alignment.get("search"):
        stage = replace(stage, settings={**stage.settings, "alignment": {**alignment, "search": {}}})
    return fingerprint([stage])[stage.name]


def _claim(out: Path, wanted: str) -> None:
    """Make the folder, or check that the same training was stopped in it."""
    mark = out / BEGUN
    with _writing(out):
        if not mark.exists() and out.exists() and any(out.iterdir()):
            raise MuscleError(f"{out} is not empty: remove it, or choose another folder with --out")
        trained = any(any((out / CHECKPOINTS).glob(pattern)) for pattern in WORK)  # else nothing is lost
        if mark.exists() and mark.read_text() != wanted and trained:
            raise MuscleError(
                f"{out} holds a training or a search that was begun with other settings, models or data: remove it, "
                "or choose another folder with --out"
            )
        out.mkdir(parents=True, exist_ok=True)
        mark.write_text(wanted)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MuscleError(f"{out} cannot be used ({error.strerror}): choose another folder with --out") from None


@contextmanager
def _progress(words: str) -> Iterator[Report]:
    """A progress bar on standard error, of the main process."""
    share = TextColumn("{task.percentage:>3.0f} %")
    columns = TextColumn("{task.description}"), BarColumn(), share, TimeElapsedColumn()
    console = Console(stderr=True, quiet=not processes().is_main_process)
    with Progress(*columns, TextColumn("[dim]{task.fields[words]}"), console=console, transient=True) as progress:
        bar = progress.add_task(words, total=1.0, words="")
        yield lambda share, said: progress.update(bar, completed=share, words=said)


def _say(words: str) -> None:
    if processes().is_main_process:
        print(words)
