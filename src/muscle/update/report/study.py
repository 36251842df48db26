"""Run folders: `run.json` with the recipe, and evaluation logs in `logs/<task>/<model>`, as far as they are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from muscle.errors import MuscleError
from muscle.update.alignment_settings import AlignmentSettings
from muscle.update.recipe import Recipe
from muscle.update.report.figures import TaskFigures, measure_task

RECORD = "run.json"
"""File of a run folder that holds the recipe."""


@dataclass(frozen=True)
class TaskResult:
    """One task of a run."""

    run: str
    """Name of the run's folder."""
    update: str
    """The recipe's row of the paper, or else the names of both bases, or of the run where they are from scratch."""
    paper_update: str | None
    controls: tuple[str, ...]
    losses: Mapping[str, AlignmentSettings]
    """By name: what the models that are trained by alignment learnt from."""
    figures: TaskFigures

    @property
    def task(self) -> str:
        """Its name."""
        return self.figures.task


def collect(runs: Sequence[Path]) -> list[TaskResult]:
    """Measure every task of some run folders, as far as their logs are there.

    Raises:
        MuscleError: A folder is no run, its recipe cannot be read, or a log is damaged.
    """
    return [result for run in runs for result in _run_results(run)]


def _run_results(run: Path) -> Iterator[TaskResult]:
    recipe = recipe_of(run)
    sides = (recipe.old, recipe.new)
    bases = "->".join(_last_part(side.base) for side in sides if side.base is not None) or run.resolve().name
    for task in recipe.tasks:
        logs = {name: run / "logs" / task / name for name in recipe.models}
        yield TaskResult(
            run=run.resolve().name,
            update=recipe.paper_update or bases,
            paper_update=recipe.paper_update,
            controls=tuple(recipe.controls),
            losses={name: recipe.alignment_of(task, name) for name in recipe.aligned},
            figures=measure_task(task, logs, several_draws=recipe.evaluation_of(task).draws > 1),
        )


def recipe_of(run: Path) -> Recipe:
    """The recipe of a run folder.

    Raises:
        MuscleError: The folder is no run, or its recipe cannot be read.
    """
    file = run / RECORD
    try:
        return msgspec.convert(msgspec.json.decode(file.read_bytes())["recipe"], Recipe)
    except OSError as error:
        raise MuscleError(f"{file}: cannot be read ({error.strerror}); name the folder of a run") from None
    except (ValueError, KeyError, TypeError) as error:  # not UTF-8, no JSON, or no recipe
        raise MuscleError(f"{file}: no recipe of this version ({error}); run the recipe again") from None


def _last_part(base: str) -> str:
    return base.rstrip("/").rpartition("/")[2]
