"""A run of a recipe: its folder, its stages, its tables."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from muscle import __version__
from muscle.errors import MuscleError
from muscle.measure.report.terminal import new_table, say
from muscle.update.estimate import check_weights, print_estimate
from muscle.update.pipeline import pipeline_status
from muscle.update.plan import Plan
from muscle.update.provenance import digest
from muscle.update.recipe import Recipe, Scratch, Side, TokenizerKind, split_revision
from muscle.update.report.search import SEARCH
from muscle.update.report.study import RECORD, collect, recipe_of
from muscle.update.report.tables import print_tables
from muscle.update.settings import merged
from muscle.update.workers import Outdated, run_pipeline


def run_update(
    recipe: Recipe, root: Path, jobs: int, console: Console, outdated: Outdated = "refuse", owner: str | None = None
) -> None:
    """Run what is missing of an update and show its tables.

    Args:
        recipe: What to run.
        root: Folder of the run; made if missing. A run of another recipe there is brought up to this one.
        jobs: Stages at a time.
        console: Where progress and tables are shown.
        outdated: What becomes of stages that another version of the program has done.
        owner: Of the hub's repositories that the results are uploaded to; None uploads nothing.

    Raises:
        MuscleError: `root` holds something else, a base or task cannot be had, or a stage failed.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise MuscleError("muscle update starts its own processes: run it without a launcher, with --jobs")
    if owner:
        from muscle.update import hub  # it loads torch, which --help of a run's status does without

        hub.check_login(owner)
    recipe = located(recipe)
    _check_root(root)
    commits = pins(recipe, _record(root).get("commits", {}))
    record = json.dumps({"muscle": __version__, "recipe": recipe.as_dict(), "commits": commits}, indent=2) + "\n"
    stages = Plan(recipe, commits=commits).stages()
    if recipe.old.base or recipe.new.base:
        check_weights(stages, root, outdated == "keep")
    run_pipeline(stages, root, jobs, console, outdated, {RECORD: record})
    print_tables(collect([root]), console)
    for task in recipe.tasks:
        for method in recipe.methods:
            folder = root / "models" / task / method
            say(console, f"adapter   {folder}")
            if (chosen := folder / SEARCH).exists():
                say(console, f"chosen    {json.loads(chosen.read_text())['why']} ({chosen})")
            if owner:
                repository = f"{owner}/{root.resolve().name}-{task}-{method}"
                say(console, f"uploaded  {hub.push(folder, repository, private=True)}")


def print_update_estimate(
    recipe: Recipe, root: Path, jobs: int, console: Console, outdated: Outdated = "refuse"
) -> bool:
    """Print what the missing stages of `run_update` will take; nothing is written.

    Returns:
        Whether it fits into memory and disk.

    Raises:
        MuscleError: A base or task cannot be had.
    """
    recipe = located(recipe)
    stages = Plan(recipe, commits=pins(recipe, _record(root).get("commits", {}))).stages()
    return print_estimate(stages, root, jobs, console, keep=outdated == "keep")


def located(recipe: Recipe) -> Recipe:
    """The recipe with its local paths from the root, so that it means the same from every folder.

    Raises:
        MuscleError: The data's folder is not there, or documents that a base is to read.
    """
    if recipe.data is not None and not Path(recipe.data).is_dir():
        raise MuscleError(f"data: no folder {recipe.data}: correct it, or leave it out to use the hub's")
    for name, side in (("old", recipe.old), ("new", recipe.new)):
        documents = side.scratch and side.scratch.documents
        if documents and not Path(recipe.data or "", documents).is_file():
            where = recipe.data or "a folder of data, as none is set"
            raise MuscleError(
                f"{name}.scratch.documents: no file {documents} in {where}: set `data` to the folder that has it"
            )
    sides = {
        name: msgspec.structs.replace(
            side,
            base=_located(side.base),
            adapters={task: _located(adapter) for task, adapter in side.adapters.items()},
        )
        for name, side in (("old", recipe.old), ("new", recipe.new))
    }
    tasks = {name: merged(task, {"include_path": _located(task.include_path)}) for name, task in recipe.tasks.items()}
    return msgspec.structs.replace(recipe, data=_located(recipe.data), tasks=tasks, **sides)


def _located(path: str | None) -> str | None:
    return path if path is None or not Path(path).is_dir() else str(Path(path).resolve())


def pins(recipe: Recipe, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """The hub's commit of each base and adapter that the recipe names.

    Args:
        recipe: With local paths located.
        known: Commits that an earlier start of the same run has read: they stay.

    Raises:
        MuscleError: One is neither a local folder nor a model of the hub.
    """
    named = [model for side in (recipe.old, recipe.new) for model in (side.base, *side.adapters.values()) if model]
    known = known or {}
    return {
        model: known.get(model) or digest(model).removeprefix("commit:")
        for model in dict.fromkeys(named)
        if not Path(model).is_dir()
    }


def plan_in(root: Path, recipe: Recipe) -> Plan:
    """The stages of a recipe in a run's folder, with the hub's commits that are recorded there."""
    return Plan(recipe, commits=_record(root).get("commits", {}))


def print_status(root: Path, console: Console) -> None:
    """Print how far each stage of a run is.

    Raises:
        MuscleError: `root` is no run of a recipe.
    """
    statuses = pipeline_status(plan_in(root, recipe_of(root)).stages(), root)
    table = new_table(console)
    table.add_column("stage", no_wrap=True)
    table.add_column("state")
    table.add_column("seconds", justify="right")
    for status in statuses:
        table.add_row(status.name, status.state, "" if status.seconds is None else f"{status.seconds:.0f}")
    console.print(table)
    done = sum(status.state == "done" for status in statuses)
    say(console, f"{done} of {len(statuses)} stages are done")


def stand_in(recipe: Recipe) -> Recipe:
    """The same update, every stage of it real, with models and data so small that it takes minutes on any machine."""
    training = {
        "epochs": 2,
        "batch_size": 4,
        "accumulation": 2,
        "warmup_steps": 1,
        "precision": "float32",
        "deepspeed": None,
        "report_to": (),
    }
    tasks = {
        name: merged(
            task,
            {
                "train_limit": 20,
                "lora": {**task.lora, "rank": 4, "alpha": 8},
                "training": {**task.training, **training},
                "alignment_training": {**task.alignment_training, **training},
                "evaluation": {**task.evaluation, "backend": "hf", "backend_args": {}, "limit": 6, "batch_size": 8},
            },
        )
        for name, task in recipe.tasks.items()
    }
    differ = _tokenizer(recipe.old) != _tokenizer(recipe.new)
    old, new = _stand_in_side(recipe.old, 1, 480 if differ else 400), _stand_in_side(recipe.new, 2, 400)
    return msgspec.structs.replace(recipe, old=old, new=new, tasks=tasks)


def _tokenizer(side: Side) -> tuple[TokenizerKind, object]:
    """Equal where both sides share one."""
    if side.scratch:
        return side.scratch.tokenizer, side.scratch.vocabulary
    return side.tokenizer or "bytes", side.base if side.tokenizer else None


def _stand_in_side(side: Side, seed: int, vocabulary: int) -> Side:
    scratch = Scratch(
        architecture=side.scratch.architecture if side.scratch else side.architecture or _architecture(side),
        tokenizer=_tokenizer(side)[0],
        hidden_size=32,
        layers=2,
        heads=2,
        vocabulary=vocabulary,
        steps=5,
        batch_size=4,
        seed=seed,
    )
    return Side(scratch=scratch)


def _architecture(side: Side) -> str:
    from transformers import AutoConfig

    from muscle.update.load_errors import explained

    assert side.base is not None
    name, revision = split_revision(side.base)
    with explained("base", side.base):
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=side.trust_remote_code)
    return str(config.model_type)


def _check_root(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not (root / RECORD).exists() and any(path.name != ".lock" for path in root.iterdir()):
            raise MuscleError(f"{root} holds something else: choose a new or empty folder with --out")
    except OSError as error:
        raise MuscleError(f"{root} cannot be used ({error.strerror}): choose another folder with --out") from None


def _record(root: Path) -> dict[str, Any]:
    try:
        record = json.loads((root / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
