"""The old task model's side of an update that changes the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from muscle.errors import MuscleError
from muscle.update.across.chunks import Chunks
from muscle.update.across.old_teachers import (
    ChunkTeacher,
    Likelihoods,
    TranslatedTeacher,
    joined,
    open_likelihoods,
    read_likelihoods,
)
from muscle.update.across.same_tokenizer import tokenizer_difference
from muscle.update.across.surfaces import surfaces
from muscle.update.across.translations import by_rank, projected, shared_tokens
from muscle.update.alignment_settings import (
    BY_TOKEN,
    LOGITS_ACROSS,
    Across,
    AlignmentSettings,
    CacheDtype,
    default_across,
)
from muscle.update.heads import Head
from muscle.update.models import load_tokenizer
from muscle.update.pipeline import Report
from muscle.update.prompts import Example
from muscle.update.recipe import TaskModel
from muscle.update.settings import TargetTokens
from muscle.update.tasks import Task
from muscle.update.teacher_cache import HEAD, States, Texts, check_room, compute_states, open_states, states_size
from muscle.update.teachers import CachedTeacher, LiveTeacher, Teacher
from muscle.update.training_data import TaskData

TRANSLATIONS = {"shared": shared_tokens, "projected": projected, "ranks": by_rank, "combined": shared_tokens}
"""By the name that settings use."""


def way_across(
    old: TaskModel, new: TaskModel, data: TaskData, task: Task, across: Across | None, level: str = "token"
) -> Across | None:
    """How the old teacher is heard where its tokenizer is another one; None: token by token, as the new one is.

    Args:
        old: The old task model.
        new: The new task model.
        data: The training texts in its tokens.
        task: Their task.
        across: What the settings say: with None the tokenizers decide.
        level: Likewise; choices are compared by whole texts, whatever their tokens.

    Raises:
        MuscleError: One of them does not tell where in the text its tokens lie.
    """
    difference = tokenizer_difference(old.base, new.base, data.tokenizer, task, data.beyond_gold)
    if not across and not difference:
        return None
    across = across or default_across(level)
    if across == "texts" or level == "choice":
        return across
    for base, tokenizer in ((old.base, load_tokenizer(old.base)), (new.base, data.tokenizer)):
        if not tokenizer.is_fast:
            why = f"{difference}, and " if difference else ""
            raise MuscleError(
                f"{why}the tokenizer of {base.base} gives no character offsets: set `across: texts` under `alignment`, "
                "or choose a base with a fast tokenizer"
            )
    return across


LESS_KEPT = "set `across` under `alignment` to likelihood, which keeps nine bytes of each token of the old teacher"


class OldSide:
    """The training texts in the old model's own tokens, and what it says of them.

    Args:
        old: The old task model.
        task: Whose texts they are.
        data: The same texts in the student's tokens.
        tokens: Which tokens are targets.
        texts: What is learnt from an item, as in `AlignmentSettings`.
        across: How it is heard.

    Raises:
        MuscleError: The task's data cannot be loaded, or the two sides have different texts.
    """

    def __init__(
        self,
        old: TaskModel,
        task: Task,
        data: TaskData,
        tokens: TargetTokens,
        texts: Literal["gold", "choices"],
        across: Across,
    ) -> None:
        self._model, self._student, self._across = old, data, across
        self._data = TaskData(old.base, task, tokens, texts, _without_labels(old, task, data.training.rows))
        ours, theirs = ([row.context + row.answer for row in d.training.rows] for d in (data, self._data))
        if not task.settings.chat_template and ours != theirs:
            raise MuscleError(f"task {task.name}: its texts depend on the tokenizer, and the bases have two: change it")
        self._cuts = data.tokenizer.is_fast and self._data.tokenizer.is_fast
        if task.settings.chat_template and not self._cuts:
            raise MuscleError(
                f"task {task.name}: without character offsets the texts of two chat templates cannot be compared: "
                "choose bases with fast tokenizers, or set chat_template to false"
            )
        self.texts = Texts(self._data.training, self._data.collator)

    @classmethod
    def where_needed(
        cls,
        old: TaskModel | None,
        new: TaskModel,
        task: Task,
        data: TaskData,
        alignment: AlignmentSettings,
        tokens: TargetTokens,
    ) -> OldSide | None:
        """None where the old model is never read, or token by token as the new one is: see `way_across`.

        Raises:
            MuscleError: As of `way_across`, and of `OldSide`.
        """
        if not old or "old" not in alignment.teachers:
            return None
        across = way_across(old, new, data, task, alignment.across, alignment.level)
        if across and across not in BY_TOKEN and alignment.distance == "logits":
            raise MuscleError(LOGITS_ACROSS)
        return cls(old, task, data, tokens, alignment.texts, across) if across else None

    @cached_property
    def parts(self) -> Chunks:
        """The texts of both sides, cut where both have a boundary."""
        return Chunks.of(self._student.training, self._data.training)

    def teacher(
        self, texts: Texts, alignment: AlignmentSettings, folder: Path | None, report: Report, beside: int = 0
    ) -> ChunkTeacher | TranslatedTeacher:
        """What the old model says, for a training on the student's texts; the model is freed before this returns.

        Args:
            texts: The student's.
            alignment: What is compared.
            folder: Where what it says is kept, and taken from if it is there; None: in memory only.
            report: Told how far it is.
            beside: Bytes that are to be kept of the new teacher in the same place.

        Raises:
            MuscleError: The model cannot be loaded, or what it says not be kept.
        """
        if self._across in TRANSLATIONS:
            states, head = self._states(alignment.cache_dtype, folder, report, beside)
            return self._by_token(texts, states, head, alignment.boundary_threshold, report)
        said = self._likelihoods(folder, report)
        if alignment.level == "choice" or not self._cuts:
            return ChunkTeacher.by_text(said, self.texts, texts)
        threshold = math.inf if self._across == "texts" else alignment.boundary_threshold
        return ChunkTeacher.by_chunk(said, joined(self.parts, said, texts, threshold), texts)

    def _by_token(
        self, texts: Texts, states: States, head: Head, threshold: float, report: Report
    ) -> ChunkTeacher | TranslatedTeacher:
        """Heard by distributions on chunks of one token, and combined: by likelihoods on the others."""
        translation = TRANSLATIONS[self._across](self._student.tokenizer, self._data.tokenizer)
        tokens = self._student.training.gold, self._data.training.gold, translation.same
        alone = self.parts.alone(*tokens)
        if self._across != "combined":
            return TranslatedTeacher.over(self.parts, alone, texts, states, head, translation)
        said = self._read(CachedTeacher(states, head), None, report)
        parts = joined(self.parts, said, texts, threshold, alone)
        translated = TranslatedTeacher.over(parts, parts.alone(*tokens), texts, states, head, translation)
        return ChunkTeacher.by_chunk(said, parts, texts, translated)

    def keep(self, kept: CacheDtype, folder: Path, report: Report) -> None:
        """Keep on disk what `teacher` will read.

        Raises:
            MuscleError: The model cannot be loaded, or there is no room.
        """
        if self._across in TRANSLATIONS:
            self._states(kept, folder, report)
        else:
            self._likelihoods(folder, report)

    def _likelihoods(self, folder: Path | None, report: Report) -> Likelihoods:
        if folder and (kept := open_likelihoods(folder, self.texts)):
            return kept
        teacher = LiveTeacher(self._data.load(self._model))
        said = self._read(teacher, folder, report)
        del teacher
        clear_device_cache(garbage_collection=True)
        return said

    def _read(self, teacher: Teacher, folder: Path | None, report: Report) -> Likelihoods:
        starts = _word_starts(self._data.tokenizer) if self._cuts else torch.zeros(0, dtype=torch.bool)
        return read_likelihoods(teacher, self.texts, starts, folder, report)

    def _states(self, kept: CacheDtype, folder: Path | None, report: Report, beside: int = 0) -> tuple[States, Head]:
        if folder and (states := open_states(folder, self.texts)):
            return states, Head.load(folder / HEAD)
        size = states_size(self._model.base, self.texts, kept) + beside
        check_room(size, folder, LESS_KEPT if folder else f"{LESS_KEPT}, or `teacher_cache` to `disk`")
        model = self._data.load(self._model)
        states = compute_states(model, self.texts, kept, folder, report)
        head = Head.load(folder / HEAD) if folder else Head.of(model)
        del model
        clear_device_cache(garbage_collection=True)
        return states, head


def _without_labels(old: TaskModel, task: Task, rows: Sequence[Example]) -> list[Example]:
    """The texts of inputs without labels among these, in the prompts that the old model's chat template makes."""
    found = [row for row in rows if row.item is not None and row.item < 0]
    if not task.settings.chat_template or not found:
        return found
    asked = task.unlabelled(load_tokenizer(old.base))
    return [replace(row, context=asked[-1 - (row.item or 0)][0].args[0]) for row in found]


NO_SPACES = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x9FFF),
    (0x20000, 0x3FFFF),
)
"""Blocks of Unicode: Thai and Lao, Burmese, Khmer, Japanese, Chinese."""


def _word_starts(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Which tokens cannot go on with a word that has begun, bool (V,).

    Those that start with no letter or digit, or with a letter of a script that has no spaces between words.
    """
    texts = [text or b" " for text in surfaces(tokenizer)]  # special tokens end a word, too
    first = ["" if 0x80 <= text[0] < 0xC0 else text.decode("utf-8", "ignore")[:1] for text in texts]
    return torch.tensor([bool(letter) and (not letter.isalnum() or _stands_alone(letter)) for letter in first])


def _stands_alone(letter: str) -> bool:
    """Whether it is of such a script."""
    return any(low <= ord(letter) <= high for low, high in NO_SPACES)
