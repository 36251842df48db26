"""The stages of a model update. Functions import what they need when they run: planning a run loads no torch.

Settings are plain values; a keyword that is a Path is the folder of another stage, and stands for what the settings
would name.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from msgspec import convert

from muscle.update.alignment_settings import Across, AlignmentSettings, CacheDtype
from muscle.update.pipeline import Report
from muscle.update.recipe import (
    Base,
    EvaluationSettings,
    LoraSettings,
    Reference,
    Split,
    TaskModel,
    TaskSettings,
    TrainingSettings,
)
from muscle.update.settings import SideName, TargetTokens

if TYPE_CHECKING:
    from muscle.update.tasks import Task

Plain = Mapping[str, Any]


def adapt(
    destination: Path,
    report: Report,
    *,
    task: Plain,
    model: Plain,
    lora: Plain,
    training: Plain,
    base: Path | None = None,
    tasks_folder: Path | None = None,
) -> None:
    """A task adapter."""
    from muscle.update.adapters import train_task_adapter

    train_task_adapter(
        model_of(model, base).base,
        task_of(task, tasks_folder),
        convert(lora, LoraSettings),
        convert(training, TrainingSettings),
        destination,
        report,
    )


def answer(
    destination: Path,
    report: Report,
    *,
    task: Plain,
    old: Plain,
    new: Plain,
    evaluation: Plain,
    old_base: Path | None = None,
    old_adapter: Path | None = None,
    new_base: Path | None = None,
    new_adapter: Path | None = None,
    tasks_folder: Path | None = None,
) -> None:
    """What both task models together answer to inputs without labels."""
    from muscle.update.answers import keep_answers

    models = model_of(old, old_base, old_adapter), model_of(new, new_base, new_adapter)
    keep_answers(*models, task_of(task, tasks_folder), convert(evaluation, EvaluationSettings), destination)


def teach(
    destination: Path,
    report: Report,
    *,
    task: Plain,
    tokens: TargetTokens,
    kept: CacheDtype,
    new: Plain,
    texts: Literal["gold", "choices"] = "gold",
    unlabelled: bool = False,
    old: Plain | None = None,
    old_base: Path | None = None,
    old_adapter: Path | None = None,
    new_base: Path | None = None,
    new_adapter: Path | None = None,
    tasks_folder: Path | None = None,
    answers: Path | None = None,
    across: Across | None = None,
    level: str = "token",
) -> None:
    """What the old task model says of the training texts, or where none is given the new one, on disk."""
    from muscle.update.adapters import cache_teacher

    cache_teacher(
        model_of(old, old_base, old_adapter) if old else None,
        model_of(new, new_base, new_adapter),
        task_of(task, tasks_folder),
        tokens,
        kept,
        destination,
        report,
        texts,
        unlabelled,
        answers,
        across,
        level,
    )


def align(
    destination: Path,
    report: Report,
    *,
    task: Plain,
    new: Plain,
    alignment: Plain,
    lora: Plain,
    training: Plain,
    evaluation: Plain,
    old: Plain | None = None,
    old_base: Path | None = None,
    old_adapter: Path | None = None,
    new_base: Path | None = None,
    new_adapter: Path | None = None,
    tasks_folder: Path | None = None,
    old_states: Path | None = None,
    new_states: Path | None = None,
    answers: Path | None = None,
) -> None:
    """A compatibility adapter, chosen among several where that is asked for, or one of the trained controls."""
    from muscle.update.adapters import train_compatibility_adapter
    from muscle.update.search import Search

    before, loaded = model_of(old, old_base, old_adapter) if old else None, task_of(task, tasks_folder)
    chosen = convert(alignment, AlignmentSettings)
    settings = (
        chosen,
        convert(lora, LoraSettings),
        convert(training, TrainingSettings),
        convert(evaluation, EvaluationSettings),
    )
    after = model_of(new, new_base, new_adapter)
    if chosen.search and before:
        Search(before, after, loaded, *settings, destination).run(report)
        return
    states: dict[SideName, Path | None] = {"old": old_states, "new": new_states}
    kept = {side: folder for side, folder in states.items() if folder}
    train_compatibility_adapter(before, after, loaded, *settings, destination, report, kept, answers=answers)


def evaluate(
    destination: Path,
    report: Report,
    *,
    task: Plain,
    name: str,
    model: Plain,
    evaluation: Plain,
    split: Split = "test",
    base: Path | None = None,
    adapter: Path | None = None,
    tasks_folder: Path | None = None,
) -> None:
    """The evaluation log of one task model."""
    from muscle.update import scoring

    settings = convert(evaluation, EvaluationSettings)
    lm = scoring.task_model_lm(model_of(model, base, adapter), settings)
    scoring.evaluate(lm, name, task_of(task, tasks_folder), split, destination, settings)


def evaluate_ensemble(
    destination: Path,
    report: Report,
    *,
    task: Plain,
    old: Plain,
    new: Plain,
    evaluation: Plain,
    name: Reference = "ensemble",
    split: Split = "test",
    old_base: Path | None = None,
    old_adapter: Path | None = None,
    new_base: Path | None = None,
    new_adapter: Path | None = None,
    tasks_folder: Path | None = None,
) -> None:
    """The evaluation log of old and new task model together, in one of the ways that there are."""
    from muscle.update import scoring
    from muscle.update.two_models import reference

    settings = convert(evaluation, EvaluationSettings)
    models = model_of(old, old_base, old_adapter), model_of(new, new_base, new_adapter)
    there = task_of(task, tasks_folder)
    scoring.evaluate(reference(name, *models, there, settings), name, there, split, destination, settings)


def package(
    destination: Path,
    report: Report,
    *,
    task: str,
    method: str,
    description: str,
    old: str,
    new: str,
    several_draws: bool,
    adapter: Path,
    **logs: Path,
) -> None:
    """A compatibility adapter with its model card, ready to be handed on; "log_<model>" are folders of logs."""
    from muscle.update.report.figures import measure_task
    from muscle.update.report.model_card import Subject, write_model_card

    for path in adapter.iterdir():
        if path.is_file() and not path.name.startswith(("stage.", "README", "fingerprint")):
            (_link_or_copy if path.suffix == ".safetensors" else shutil.copyfile)(path, destination / path.name)
    subject = Subject(task=task, base=new, model=method, old_base=old, description=description)
    folders = {name.removeprefix("log_"): folder for name, folder in logs.items()}
    write_model_card(destination, subject, measure_task(task, folders, several_draws=several_draws))


def _link_or_copy(source: Path, destination: Path) -> None:
    """A second name for a large file that nobody edits, or its bytes a second time where that cannot be."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)


def task_of(settings: Plain, tasks_folder: Path | None) -> Task:
    """The task of {"name", "settings", "data"}."""
    from muscle.update.tasks import load_task

    chosen = dict(settings["settings"])
    if tasks_folder:
        chosen["include_path"] = str(tasks_folder)
    data = Path(settings["data"]) if settings["data"] else None
    return load_task(settings["name"], convert(chosen, TaskSettings), data)


def model_of(settings: Plain, base: Path | None = None, adapter: Path | None = None) -> TaskModel:
    """The task model of {"base", "adapter"}, with the folders of stages in place of what is open there."""
    loaded = convert({**settings["base"], **({"base": str(base)} if base else {})}, Base)
    return TaskModel(base=loaded, adapter=str(adapter) if adapter else settings["adapter"])
