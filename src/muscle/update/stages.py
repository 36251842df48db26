"""The stages of a model update. Functions import what they need when they run: planning a run loads no torch.

Settings are plain values; a keyword that is a Path is the folder of another stage, and stands for what the settings
would name.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from msgspec import convert

from muscle.errors import MuscleError
from muscle.update.alignment_settings import Across, AlignmentSettings, CacheDtype
from muscle.update.pipeline import Report
from muscle.update.recipe import (
    Base,
    EvaluationSettings,
    LoraSettings,
    Reference,
    Scratch,
    Split,
    TaskModel,
    TaskSettings,
    TokenizerKind,
    TrainingSettings,
)
from muscle.update.settings import SideName, TargetTokens

if TYPE_CHECKING:
    from muscle.update.tasks import Task

Plain = Mapping[str, Any]
SPLITS: tuple[Literal["training"], Literal["validation"]] = ("training", "validation")


def check_task(
    destination: Path,
    report: Report,
    *,
    task: Plain,
    backend: str,
    choices: bool = False,
    unlabelled: bool = False,
    mixed: Sequence[Plain] | None = None,
    tasks_folder: Path | None = None,
) -> None:
    """Whether a task can be had and rendered, and the back end that is to score it; how many texts and items it has.

    With `choices` its items must have some; with `unlabelled` it must name inputs without labels; if its answers are
    generated, the old and the new model that are `mixed` must have one tokenizer, which none has got yet if there are
    no models.
    """
    from muscle.update.backends import find_backend

    find_backend(backend)
    loaded = task_of(task, tasks_folder)
    if mixed is not None and loaded.generates:
        _check_mixed(loaded, [_model(settings).base for settings in mixed])
    counts = {"test": len(loaded.for_evaluation("test").eval_docs)}
    if choices:
        loaded.require_choices()
    if unlabelled:
        counts["unlabelled"] = loaded.count_unlabelled()
    if not loaded.settings.chat_template:  # which needs a tokenizer, and with it a base
        counts |= {split: len(loaded.examples(split)) for split in SPLITS}
    (destination / "items.json").write_text(json.dumps(counts) + "\n")


def _check_mixed(task: Task, bases: Sequence[Base]) -> None:
    """That the ensemble of models on these bases can generate."""
    from muscle.update.models import load_tokenizer
    from muscle.update.same_tokenizer import tokenizer_difference
    from muscle.update.two_models import NOTHING_TO_MIX

    if bases:
        old, new = bases
        if not tokenizer_difference(old, new, load_tokenizer(new), task):
            return
    raise MuscleError(f"task {task.name}: {NOTHING_TO_MIX}")


def train_tokenizer(
    destination: Path,
    report: Report,
    *,
    vocabulary: int,
    tasks: Mapping[str, Plain],
    kind: TokenizerKind = "bytes",
    documents: Sequence[Plain] = (),
    tasks_folder: Path | None = None,
) -> None:
    """The tokenizer of one or both of the bases that are pretrained from scratch, of all that is read by any."""
    from muscle.update.scratch import train_tokenizer

    texts = _training_texts(tasks, tasks_folder) + _documents(documents)
    train_tokenizer(texts, vocabulary, kind).save_pretrained(destination)


def pretrain_base(
    destination: Path,
    report: Report,
    *,
    scratch: Plain,
    tasks: Mapping[str, Plain],
    tokenizer: Path,
    documents: Sequence[Plain] = (),
    tasks_folder: Path | None = None,
) -> None:
    """A small base, from scratch, on its documents or else the tasks' training texts."""
    from transformers import PreTrainedTokenizerFast

    from muscle.update.scratch import pretrain_on_texts

    words = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    texts = _documents(documents) if documents else _training_texts(tasks, tasks_folder)
    pretrain_on_texts(texts, convert(scratch, Scratch), words, destination, report)


def _documents(files: Sequence[Plain]) -> list[str]:
    """The lines of all files {"file", "sha256"}."""
    found: list[str] = []
    for file in files:
        try:
            lines = Path(file["file"]).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise MuscleError(f"{file['file']}: cannot be read ({error}); give one document a line, in UTF-8") from None
        found += [line for line in lines if line]
    return found


def _training_texts(tasks: Mapping[str, Plain], tasks_folder: Path | None) -> list[str]:
    rows = (row for task in tasks.values() for row in task_of(task, tasks_folder).examples("training", None))
    return [row.context + row.answer for row in rows]


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
        _model(model, base).base,
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

    models = _model(old, old_base, old_adapter), _model(new, new_base, new_adapter)
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
        _model(old, old_base, old_adapter) if old else None,
        _model(new, new_base, new_adapter),
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

    before, loaded = _model(old, old_base, old_adapter) if old else None, task_of(task, tasks_folder)
    chosen = convert(alignment, AlignmentSettings)
    settings = (
        chosen,
        convert(lora, LoraSettings),
        convert(training, TrainingSettings),
        convert(evaluation, EvaluationSettings),
    )
    after = _model(new, new_base, new_adapter)
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
    lm = scoring.task_model_lm(_model(model, base, adapter), settings)
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
    models = _model(old, old_base, old_adapter), _model(new, new_base, new_adapter)
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


def _model(settings: Plain, base: Path | None = None, adapter: Path | None = None) -> TaskModel:
    """The task model of {"base", "adapter"}, with the folders of stages in place of what is open there."""
    loaded = convert({**settings["base"], **({"base": str(base)} if base else {})}, Base)
    return TaskModel(base=loaded, adapter=str(adapter) if adapter else settings["adapter"])
