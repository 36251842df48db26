"""The frontier of a run: compatibility adapters from "only new" to "only old", and what each trades.

Their teacher is the mixture softmax(a z_old + (1 - a) z_new). They are further stages of the run's folder, trained and
evaluated as its methods are; its record stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile

import msgspec
from rich.console import Console

from muscle import __version__
from muscle.errors import MuscleError, quoted
from muscle.measure import Comparison, compare
from muscle.measure.plane import Model, Plane, mixture_name, plane_of
from muscle.measure.report.files import refuse_logs, replace_whole
from muscle.measure.report.planes import planes_to_html, planes_to_svg
from muscle.measure.report.terminal import new_table, say
from muscle.update.pipeline import Stage, pipeline_status
from muscle.update.plan import Plan
from muscle.update.recipe import Recipe, Split
from muscle.update.recipe_file import make_recipe
from muscle.update.report.figures import Reading
from muscle.update.report.study import recipe_of
from muscle.update.run import plan_in
from muscle.update.workers import run_pipeline

FOLDERS: Mapping[Split, str] = {"test": "logs", "validation": "validation-logs"}
"""Where the logs of a split are, below the run's folder."""
CHECKS = "frontier-checks"
"""Folder of the checks of the tasks."""
_ANY = "points"  # stands for every point where the settings are checked


@dataclass(frozen=True)
class Run:
    """A folder of finished, or half-finished, stages."""

    root: Path
    recipe: Recipe
    plan: Callable[[Recipe], Plan]
    """The stages of a recipe there."""
    world: Sequence[Stage] = ()
    """Stages that the plan's read and that are not of it."""


def update_frontier(root: Path) -> Run:
    """A run of a recipe, to train a frontier in.

    Raises:
        MuscleError: `root` is no run of a recipe.
    """
    return Run(root, recipe_of(root), lambda recipe: plan_in(root, recipe))


def read_points(text: str) -> list[float]:
    """Shares of the old model, such as "0,0.5,1", in order.

    Raises:
        MuscleError: One is no number in [0, 1], or has more than 4 decimals.
    """
    points = set()
    for part in text.split(","):
        try:
            point = float(part)
        except ValueError:
            raise MuscleError(f"--points: {quoted(part)} is no number; give some such as 0,0.5,1") from None
        if not 0 <= point <= 1 or round(point, 4) != point:
            raise MuscleError(f"--points: {part} must be a share from 0 to 1 of at most 4 decimals, such as 0.25")
        points.add(point + 0.0)  # no -0
    return sorted(points)


def run_frontier(
    run: Run,
    points: Sequence[float],
    overrides: Sequence[str],
    split: Split,
    jobs: int,
    console: Console,
    *,
    html: Path | None = None,
    svg: Path | None = None,
) -> None:
    """Train and evaluate what is missing of a frontier, and show it with the models that the run has already.

    Writes `frontier.json` (of the validation items: `frontier-validation.json`) into the run's folder.

    Args:
        run: The run; its own stages are kept, but for old and new task models that it has not trained yet.
        points: Shares a of the old model, in [0, 1].
        overrides: KEY=VALUE of the keys of `alignment` that differ from the run's.
        split: Which items are scored.
        jobs: Stages at a time.
        console: Where progress and tables are shown.
        html: Where to write the page.
        svg: Where to write the picture.

    Raises:
        MuscleError: A key is wrong, the run's stages are not those of its recipe any more, a stage failed, or a file
            cannot be written.
    """
    for picture in (html, svg):
        if picture:
            _check_writable(picture)
    names = [mixture_name(point) for point in points]
    recipe = with_points(run.recipe, points, overrides)
    stages, models = frontier_stages(run, recipe, names, split)
    run_pipeline(stages, run.root, jobs, console, "keep")
    comparisons, planes = {}, {}
    for task in recipe.tasks:
        logs = {model: run.root / FOLDERS[split] / task / model for model in models[task]}
        comparisons[task], planes[task] = _measure(recipe, task, logs)
    name = "frontier.json" if split == "test" else f"frontier-{split}.json"
    settings = {key: value for key, value in recipe.methods[names[0]].items() if key not in ("old_share", "search")}
    record = {"muscle": __version__, "split": split, "points": list(points), "settings": settings}
    record |= {"tasks": {task: asdict(plane) for task, plane in planes.items()}}
    files: dict[Path, bytes] = {run.root / name: (json.dumps(record, indent=1) + "\n").encode()}
    if html:
        files[html] = planes_to_html(planes, f"Flips and accuracy: {run.root.resolve().name}", _lead(recipe, split))
    if svg:
        files[svg] = planes_to_svg(planes)
    for file, content in files.items():
        _write(file, content, list(comparisons.values()))
    for task, plane in planes.items():
        _print(task, plane, console)
        if absent := [model for model in recipe.models if model not in models[task]]:
            say(console, f"not trained yet, so not shown: {task}: {', '.join(absent)}")
    say(console, _legend(split), style="dim")
    for file in files:
        say(console, f"wrote {file}")


def with_points(recipe: Recipe, points: Sequence[float], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe with a method for each point: the run's alignment settings, weight "mixture" and these keys.

    Raises:
        MuscleError: A key is unknown or a value out of range; or the recipe has another method of a point's name.
    """
    for override in overrides:
        if override.partition("=")[0].strip() in ("old_share", "search"):
            raise MuscleError(f"--set {override}: the points say that; use --points")
    content = recipe.as_dict() | {
        "old": {"base": _ANY},
        "new": {"base": _ANY},
    }  # those of a demo are made by its stages
    content["methods"] = {_ANY: {"weight": "mixture", "search": None}}
    where = f"methods.{_ANY}."
    try:
        checked = make_recipe(content, [where + override for override in overrides]).methods[_ANY]
    except MuscleError as error:
        raise MuscleError(Exception.__str__(error).replace(where, "")) from None
    methods = {mixture_name(point): {**checked, "old_share": point} for point in points}
    whole = msgspec.structs.replace(recipe, methods={**recipe.methods, **methods})
    for name in methods.keys() & recipe.methods.keys():
        for task in recipe.tasks:
            if whole.alignment_of(task, name) != recipe.alignment_of(task, name):
                raise MuscleError(
                    f"the run has a method {quoted(name)} of its own with other settings: leave this point out with "
                    "--points, or say the same with --set"
                )
    return whole


def frontier_stages(
    run: Run, recipe: Recipe, names: Sequence[str], split: Split
) -> tuple[list[Stage], dict[str, list[str]]]:
    """The stages of a frontier, and by task the models that it shows.

    Those are old, new, the points, and what else the run has trained; of these the logs that are missing are written.

    Args:
        run: The run.
        recipe: Its recipe with the points as methods.
        names: Those of the points.
        split: Which items are scored.

    Raises:
        MuscleError: Stages of the run were done with other settings, task definitions or data than its record says.
    """
    plan = run.plan(recipe)
    every = {stage.name: stage for stage in [*run.world, *plan.stages()]}
    state = {status.name: status.state for status in pipeline_status(list(every.values()), run.root)}
    needed: dict[str, Stage] = {}
    models: dict[str, list[str]] = {}

    def need(stage: Stage) -> None:
        for name in stage.inputs.values():
            if name not in needed:
                need(every[name])
        needed[stage.name] = stage

    for task in recipe.tasks:
        shown = models[task] = []
        # Under a name of its own: what is checked depends on the methods, and the run's own check stays as it is.
        need(replace(every[f"checks/{task}"], name=f"{CHECKS}/{task}"))
        for model in dict.fromkeys([*recipe.models, *names]):
            log = plan.evaluation_stage(task, model, split, FOLDERS[split])
            wanted = model in ("old", "new", *names)
            if wanted or all(name in needed or state[name] in ("done", "outdated") for name in log.inputs.values()):
                need(log)
                shown.append(model)
    points = {
        f"{folder}/{task}/{name}" for folder in ("adapters", FOLDERS[split]) for task in recipe.tasks for name in names
    }
    points |= {f"{CHECKS}/{task}" for task in recipe.tasks}
    changed = [name for name in needed if state.get(name) == "changed" and name not in points]
    if changed:
        raise MuscleError(
            f"{run.root}: {changed[0]} was made with other settings, task definitions or data than now: bring the run "
            "up to date first, by the command that made it"
        )
    return list(needed.values()), models


def _measure(recipe: Recipe, task: str, logs: Mapping[str, Path]) -> tuple[Comparison, Plane]:
    """Compare all models of a task, on the items that all of their logs score."""
    reading = Reading.of(list(logs.values()), recipe.evaluation_of(task).draws > 1)
    roles = {_role(model): log for model, log in logs.items()}
    comparison = compare(roles.pop("old"), roles.pop("new"), controls=roles, **reading.options)
    methods = {_role(method) for method in recipe.methods}
    return comparison, plane_of(comparison, graded=reading.kind == "graded", methods=methods)


def _role(model: str) -> str:
    """A method's name among those of `compare`, where two are taken."""
    return f"{model} (method)" if model in ("compatible", "repeat") else model


def _check_writable(file: Path) -> None:
    """Refuse a place where nothing can be written, before hours of training."""
    try:
        if file.is_dir():
            raise MuscleError(f"{file}: is a folder; name a file")
        with TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise _unwritable(file, error) from None


def _unwritable(file: Path, error: OSError) -> MuscleError:
    return MuscleError(f"{file}: cannot be written ({error.strerror}); check the folder")


def _write(file: Path, content: bytes, comparisons: Sequence[Comparison]) -> None:
    for comparison in comparisons:
        refuse_logs(comparison, file)
    try:
        replace_whole(file, content)
    except OSError as error:
        raise _unwritable(file, error) from None


def _print(task: str, plane: Plane, console: Console) -> None:
    table = new_table(console)
    table.add_column(task, no_wrap=True)
    for header in ("score" if plane.graded else "accuracy", "NFR", "rel. NFR", "change", "fixed", "made"):
        table.add_column(header, justify="right")
    unit = 1 if plane.graded and (plane.old.value or 0) > 1 else 100
    table.add_row("old", _number(plane.old.value, unit))
    for model in sorted(plane.models, key=lambda model: -1.0 if model.share is None else model.share):
        table.add_row(*_cells(model, unit), style="bold" if model.best else None)
    console.print(table)


def _cells(model: Model, unit: float) -> list[str]:
    name = model.name if model.share is None else f"a = {model.share:g}"
    cells = [
        f"{name} *" if model.best else name,
        _number(model.accuracy.value, unit),
        _number(model.nfr.value),
        _number(model.relative_nfr.value),
    ]
    if model.kind == "new":
        return cells
    change = "" if model.change.value is None else f"{model.change.value:+.0f} %"
    return [*cells, change, str(model.fixed), str(model.made)]


def _number(value: float | None, unit: float = 100) -> str:
    return "" if value is None else f"{unit * value:.1f}"


def _legend(split: Split) -> str:
    return (
        f"Percent of all {split} items. a: share of the old model in the mixture that is learnt from. rel. NFR: of the "
        "flips that independent errors would make. fixed, made: negative flips gone and new, against new. *: no other "
        "single model has both fewer flips and a higher score."
    )


def _lead(recipe: Recipe, split: Split) -> str:
    what = f"{recipe.description.rstrip('.')}. " if recipe.description else ""
    warning = "" if split == "validation" else " To choose one of them, look at the validation items."
    return f"{what}What each model breaks of what the old one had right, and how good it is: {split} items.{warning}"
