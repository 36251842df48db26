"""What one training step minimises: a function of the batch to a function of the student's final hidden states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from muscle.update.across.comparisons import ChunkComparison, TranslatedComparison
from muscle.update.across.old_teachers import ChunkTeacher, TranslatedTeacher
from muscle.update.alignment_settings import AlignmentSettings
from muscle.update.comparison import Aims, Comparison, Scales
from muscle.update.heads import Head
from muscle.update.losses import Aim, loss_of_rows
from muscle.update.rows import Outcome, Targets, TeacherRows
from muscle.update.teachers import Teacher
from muscle.update.tokenized import IGNORED
from muscle.update.weights import EMPHASES, WEIGHTS, with_settings

Read = Callable[[Tensor, Head], Outcome]
"""The student's final hidden states (B, T, H), and its head -> what they come to."""
OldTeacher = Teacher | ChunkTeacher | TranslatedTeacher
"""The latter two have another tokenizer than the student."""
Objective = Callable[[Mapping[str, Tensor]], Read]
"""Batch -> what reads the student's states on it; teachers have been asked by then, before the student runs."""


def task_objective(batch: Mapping[str, Tensor]) -> Read:
    """Plain cross-entropy: how task adapters are trained, and the control of the compatibility adapter.

    Statistics: `cross_entropy` in nats, `token_accuracy` (targets that are the student's most likely token).
    """
    rows = Targets.of(batch)

    def take(logits: Tensor, some: slice) -> Aim:
        gold = rows.gold[some]
        return Aim(gold, noted={"token_accuracy": (logits.argmax(-1) == gold).float()})

    def read(hidden: Tensor, head: Head) -> Outcome:
        total, by_row = loss_of_rows(rows.of_states(hidden), head, take)
        return total, rows.count, {name: column.sum() for name, column in by_row.items()}

    return read


ONE = Scales()
"""Of a training set of gold texts."""


@dataclass(frozen=True)
class Compatibility:
    """What `Aims` say, with the teachers that are asked."""

    old: OldTeacher | None
    """None where it is never read; likewise the new one."""
    new: Teacher | None
    aims: Aims

    def __call__(self, batch: Mapping[str, Tensor]) -> Read:
        """Ask the teachers about a batch.

        Statistics: those of `task_objective`; `aligned_to_old`, the weights w; `old_divergence` and `new_divergence`,
        w and 1 - w times each token's distance from its teacher, never times T^2 or r: the two terms of eq. 1. With the
        level "choice" `choice_divergence`, KL(p || q), in place of the latter.

        Raises:
            MuscleError: On reading: a target lies beyond the rows that the vocabularies share.
        """
        counted, targets = batch["labels"][:, 1:] != IGNORED, Targets.of(batch)
        new = TeacherRows(*self.new.states(batch, counted)) if self.new else None
        match self.old:
            case None:
                return Comparison(self.aims, targets, None, new)
            case ChunkTeacher():
                return ChunkComparison(self.aims, targets, None, new, self.old.of(batch, counted))
            case TranslatedTeacher():
                return TranslatedComparison(self.aims, targets, None, new, self.old.of(batch, counted))
            case teacher:
                return Comparison(self.aims, targets, TeacherRows(*teacher.states(batch, counted)), new)


def compatibility(
    old: OldTeacher | None,
    new: Teacher | None,
    settings: AlignmentSettings,
    scales: Scales = ONE,
) -> Compatibility:
    """The objective that the settings describe, which must name a weight: without one there is nothing to ask teachers.

    Args:
        old: The old task model; None where it is never read (`AlignmentSettings.teachers`).
        new: The new task model; likewise.
        settings: What to learn from.
        scales: Of the training set.
    """
    assert settings.weight is not None
    aims = Aims(
        weight=with_settings(WEIGHTS[settings.weight], settings),
        temperature=settings.temperature,
        squared_temperature=settings.squared_temperature,
        ce_share=settings.ce_share,
        emphasis=with_settings(EMPHASES[settings.emphasis], settings) if settings.emphasis else None,
        distance="absolute" if settings.across == "ranks" else settings.distance,
        level=settings.level,
        scales=scales,
        chunk_temperature=settings.chunk_temperature,
    )
    return Compatibility(old, new, aims)
