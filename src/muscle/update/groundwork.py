"""The stages before the first adapter: tasks are checked, tokenizers and small bases made from scratch.

As in `muscle.update.stages`, functions import what they need when they run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec import convert

from muscle.errors import MuscleError
from muscle.update.alignment_settings import LOGITS_ACROSS
from muscle.update.pipeline import Report
from muscle.update.recipe import Base, Scratch, TokenizerKind
from muscle.update.stages import Plain, model_of, task_of

if TYPE_CHECKING:
    from muscle.update.tasks import Task

SPLITS: tuple[Literal["training"], Literal["validation"]] = ("training", "validation")


def check_task(
    destination: Path,
    report: Report,
    *,
    task: Plain,
    backend: str,
    choices: bool = False,
    unlabelled: bool = False,
    one_tokenizer: Sequence[str] = (),
    models: Sequence[Plain] = (),
    tasks_folder: Path | None = None,
) -> None:
    """Whether a task can be had and rendered, and the back end that is to score it; how many texts and items it has.

    With `choices` its items must have some; with `unlabelled` it must name inputs without labels. What asks for
    `one_tokenizer` of the old and the new of the models is refused if they have two, as they do if there are none.
    """
    from muscle.update.backends import find_backend

    find_backend(backend)
    loaded = task_of(task, tasks_folder)
    _check_one_tokenizer(loaded, one_tokenizer, [model_of(settings).base for settings in models])
    counts = {"test": len(loaded.for_evaluation("test").eval_docs)}
    if choices:
        loaded.require_choices()
    if unlabelled:
        counts["unlabelled"] = loaded.count_unlabelled()
    if not loaded.settings.chat_template:  # which needs a tokenizer, and with it a base
        counts |= {split: len(loaded.examples(split)) for split in SPLITS}
    (destination / "items.json").write_text(json.dumps(counts) + "\n")


def _check_one_tokenizer(task: Task, needs: Sequence[str], bases: Sequence[Base]) -> None:
    """That both bases have one, where it is for the ensemble that generates, or for the distance of logits."""
    from muscle.update.across.same_tokenizer import tokenizer_difference
    from muscle.update.models import load_tokenizer
    from muscle.update.two_models import NOTHING_TO_MIX

    faults = {"ensemble": NOTHING_TO_MIX, "logits": LOGITS_ACROSS}
    found = [faults[need] for need in needs if need != "ensemble" or task.generates]
    if not found:
        return
    if bases:
        old, new = bases
        if not tokenizer_difference(old, new, load_tokenizer(new), task):
            return
    raise MuscleError(f"task {task.name}: {found[0]}")


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
