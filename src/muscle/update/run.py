"""A run of a recipe: its folder, its stages, its tables."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
from rich.console import Console

from muscle import __version__
from muscle.errors import MuscleError
from muscle.measure.report.terminal import new_table, say
from muscle.update.pipeline import pipeline_status, run_pipeline
from muscle.update.plan import Plan
from muscle.update.recipe import Recipe, Scratch, Side, merged
from muscle.update.report.study import RECORD, recipe_of


def run_update(recipe: Recipe, root: Path, jobs: int, console: Console, owner: str | None = None) -> None:
    """Run what is missing of an update and show its tables.

    Args:
        recipe: What to run.
        root: Folder of the run; made if missing. A run of another recipe there is brought up to this one.
        jobs: Stages at a time.
        console: Where progress and tables are shown.
        owner: Of the hub's repositories that the results are uploaded to; None uploads nothing.

    Raises:
        MuscleError: `root` holds something else, or a stage failed.
    """
    _claim(root, recipe)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    run_pipeline(Plan(recipe).stages(), root, jobs, console, threads)
    from muscle.update.report.study import collect
    from muscle.update.report.tables import print_tables

    print_tables(collect([root]), console)
    for task in recipe.tasks:
        for method in recipe.methods:
            say(console, f"adapter   {root / 'models' / task / method}")
            if owner:
                from muscle.update.hub import push

                repository = f"{owner}/{root.resolve().name}-{task}-{method}"
                say(console, f"uploaded  {push(root / 'models' / task / method, repository, private=True)}")


def print_status(root: Path, console: Console) -> None:
    """Print how far each stage of a run is.

    Raises:
        MuscleError: `root` is no run of a recipe.
    """
    statuses = pipeline_status(Plan(recipe_of(root)).stages(), root)
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
    return msgspec.structs.replace(
        recipe, old=_stand_in_side(recipe.old, 1), new=_stand_in_side(recipe.new, 2), tasks=tasks
    )


def _stand_in_side(side: Side, seed: int) -> Side:
    architecture = side.scratch.architecture if side.scratch else side.architecture or _architecture(side)
    scratch = Scratch(
        architecture=architecture, hidden_size=32, layers=2, heads=2, vocabulary=400, steps=5, batch_size=4, seed=seed
    )
    return Side(scratch=scratch)


def _architecture(side: Side) -> str:
    from transformers import AutoConfig

    from muscle.update.load_errors import explained
    from muscle.update.models import split_revision

    assert side.base is not None
    name, revision = split_revision(side.base)
    with explained("base", side.base):
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=side.trust_remote_code)
    return str(config.model_type)


def _claim(root: Path, recipe: Recipe) -> None:
    record = root / RECORD
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not record.exists() and any(root.iterdir()):
            raise MuscleError(f"{root} holds something else: choose a new or empty folder with --out")
        record.write_text(json.dumps({"muscle": __version__, "recipe": recipe.as_dict()}, indent=2) + "\n")
    except OSError as error:
        raise MuscleError(f"{root} cannot be used ({error.strerror}): choose another folder with --out") from None
