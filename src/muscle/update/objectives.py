"""What one training step minimises: a function of the batch to a function of the student's final hidden states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from muscle.errors import MuscleError
from muscle.update.heads import Head
from muscle.update.losses import Aim, chunks, loss_of_rows
from muscle.update.recipe import AlignmentSettings
from muscle.update.tasks import IGNORED
from muscle.update.teachers import Teacher
from muscle.update.weights import WEIGHTS, Weight, facts_read, model_facts

Outcome = tuple[Tensor, Tensor, dict[str, Tensor]]
"""(sum in nats, number of target positions, statistics).

Statistics are scalars without a graph, sums over the target positions: divided by the number they can be logged.
"""
Read = Callable[[Tensor, Head], Outcome]
"""The student's final hidden states (B, T, H), and its head -> what they come to."""
Objective = Callable[[Mapping[str, Tensor]], Read]
"""Batch -> what reads the student's states on it; teachers have been asked by then, before the student runs."""


def task_objective(batch: Mapping[str, Tensor]) -> Read:
    """Plain cross-entropy: how task adapters are trained, and the control of the compatibility adapter.

    Statistics: `cross_entropy` in nats, `token_accuracy` (targets that are the student's most likely token).
    """
    rows = _Targets.of(batch)

    def take(logits: Tensor, some: slice) -> Aim:
        gold = rows.gold[some]
        return Aim(gold, noted={"token_accuracy": (logits.argmax(-1) == gold).float()})

    def read(hidden: Tensor, head: Head) -> Outcome:
        total, by_row = loss_of_rows(rows.of_states(hidden), head, take)
        return total, rows.count, {name: column.sum() for name, column in by_row.items()}

    return read


@dataclass(frozen=True)
class Compatibility:
    """lambda * L_comp + (1 - lambda) * L_CE (the paper's section 4, eq. 1, and appendix A.4).

    L_comp is KL(softmax((w z_old + (1 - w) z_new) / T) || softmax(z_student / T)), with w in {0, 1} eq. 1. Vocabularies
    may be padded to different sizes: L_comp and w see the rows that student and teachers share, L_CE all rows of the
    student.
    """

    old: Teacher
    new: Teacher | None
    """None where it never rules."""
    weight: Weight
    """Which teacher rules a token: w."""
    temperature: float
    """T of both softmaxes of L_comp."""
    squared_temperature: bool
    """L_comp times T^2, so that its gradient hardly depends on T (Hinton et al. 2015, section 2.1); the paper has it
    without."""
    ce_share: float
    """1 - lambda, in [0, 1]."""

    def __call__(self, batch: Mapping[str, Tensor]) -> Read:
        """Ask the teachers about a batch.

        Statistics: those of `task_objective`; `aligned_to_old`, the weights w; `old_divergence` and `new_divergence`,
        w and 1 - w times each token's divergence from the teacher that rules it, never times T^2: the two terms of
        eq. 1.

        Raises:
            MuscleError: On reading: a target lies beyond the rows that the vocabularies share.
        """
        counted = batch["labels"][:, 1:] != IGNORED
        return _Comparison(
            self,
            _Targets.of(batch),
            _TeacherRows(*self.old.states(batch, counted)),
            _TeacherRows(*self.new.states(batch, counted)) if self.new else None,
            facts_read(self.weight),
        )


def compatibility(old: Teacher, new: Teacher | None, settings: AlignmentSettings) -> Compatibility:
    """The objective that the settings describe, which must name a weight: without one there is nothing to ask teachers.

    Args:
        old: The old task model.
        new: The new task model; None where it never rules (`AlignmentSettings.teachers`).
        settings: What to learn from.
    """
    assert settings.weight is not None
    return Compatibility(
        old=old,
        new=new,
        weight=WEIGHTS[settings.weight],
        temperature=settings.temperature,
        squared_temperature=settings.squared_temperature,
        ce_share=settings.ce_share,
    )


@dataclass(frozen=True)
class _Targets:
    """The n target positions of a batch, row by row."""

    gold: Tensor
    """Token ids (n,)."""
    sequence: Tensor
    """Which text of the batch, (n,)."""
    before: Tensor
    """Where in the text the logits stand that predict the token, one before it, (n,)."""

    @classmethod
    def of(cls, batch: Mapping[str, Tensor]) -> _Targets:
        following = batch["labels"][:, 1:]
        sequence, before = (following != IGNORED).nonzero(as_tuple=True)
        return cls(following[sequence, before], sequence, before)

    @property
    def count(self) -> Tensor:
        return self.gold.new_tensor(len(self.gold))

    def of_states(self, hidden: Tensor) -> Tensor:
        """(B, T, H) -> (n, H)."""
        return hidden[self.sequence, self.before]


@dataclass(frozen=True)
class _TeacherRows:
    """What a teacher has to say of the n target positions."""

    states: Tensor
    """Final hidden states (n, H)."""
    head: Head

    @torch.no_grad()
    def logits(self, rows: slice, index: slice | Tensor = slice(None)) -> Tensor:
        """Of some rows, or of some of these; in the teacher's own precision, whatever the student's."""
        with torch.autocast(self.states.device.type, enabled=False):
            logits: Tensor = self.head(self.states[rows][index])
        return logits

    @property
    def vocabulary(self) -> int:
        """How many rows the head has."""
        return self.logits(slice(0)).shape[-1]


@dataclass(frozen=True)
class _Comparison:
    """Reads the student's states on a batch on which the teachers have been asked: a `Read`."""

    aims: Compatibility
    targets: _Targets
    old: _TeacherRows
    new: _TeacherRows | None
    reads: frozenset[str]
    """Facts that the weight reads."""

    def __call__(self, hidden: Tensor, head: Head) -> Outcome:
        states = self.targets.of_states(hidden)
        teachers = [teacher for teacher in (self.old, self.new) if teacher]
        shared = min(head(states[:0]).shape[-1], *(teacher.vocabulary for teacher in teachers))
        _check_shared(self.targets.gold, shared)
        aims = self.aims
        ahead = self._weigh_all(states, head, shared) if "sequence" in self.reads else None

        def take(logits: Tensor, rows: slice) -> Aim:
            gold = self.targets.gold[rows]
            heard = None  # what the old teacher says of all these rows, where the weight wants to know
            if ahead is not None:
                w = ahead[rows]
            else:
                heard = self._old_logits(rows, shared)
                w = aims.weight(**self._facts(logits[:, :shared], heard, rows))
            return Aim(
                gold,
                ce_share=aims.ce_share,
                teacher=self._ruling(w, rows, shared, heard),
                divergence_share=(1 - aims.ce_share) * (aims.temperature**2 if aims.squared_temperature else 1),
                temperature=aims.temperature,
                noted={"token_accuracy": (logits.argmax(-1) == gold).float(), "aligned_to_old": w},
            )

        total, by_row = loss_of_rows(states, head, take)
        w, towards = by_row["aligned_to_old"], by_row.pop("divergence")
        by_row |= {"old_divergence": w * towards, "new_divergence": (1 - w) * towards}
        return total, self.targets.count, {name: column.sum() for name, column in by_row.items()}

    @torch.no_grad()
    def _weigh_all(self, states: Tensor, head: Head, shared: int) -> Tensor:
        """Weights (n,) that depend on whole sequences: the facts of all rows come before the first of them."""
        found = [
            self._facts(head(states[rows])[:, :shared], self._old_logits(rows, shared), rows)
            for rows in chunks(states, shared)
        ]
        return self.aims.weight(**{name: torch.cat([facts[name] for facts in found]) for name in found[0]})

    def _facts(self, student: Tensor, old: Tensor | None, rows: slice) -> dict[str, Tensor]:
        """What the weight reads about some rows."""
        gold = self.targets.gold[rows]
        known = {"targets": gold, "sequence": self.targets.sequence[rows]}
        found = {name: fact for name, fact in known.items() if name in self.reads}
        found |= model_facts("student", student, gold, self.reads)
        return found if old is None else found | model_facts("old", old, gold, self.reads)

    def _old_logits(self, rows: slice, shared: int) -> Tensor | None:
        """Of all these rows, if the weight asks for it."""
        asked = any(name.startswith("old_") for name in self.reads)
        return self.old.logits(rows)[:, :shared] if asked else None

    def _ruling(self, w: Tensor, rows: slice, shared: int, heard: Tensor | None) -> Tensor:
        """Logits (c, S) of w * old + (1 - w) * new; each teacher is asked only where it has a say."""

        def of_old(index: slice | Tensor) -> Tensor:
            return self.old.logits(rows, index)[:, :shared] if heard is None else heard[index]

        def of_new(index: slice | Tensor) -> Tensor:
            assert self.new
            return self.new.logits(rows, index)[:, :shared]

        mixed = None
        for share, logits_of in ((w, of_old), (1 - w, of_new)):
            if (share == 1).all():
                return logits_of(slice(None))
            if len(index := share.nonzero()[:, 0]):
                said = logits_of(index) * share[index, None]
                mixed = said.new_zeros(len(w), shared) if mixed is None else mixed
                mixed.index_add_(0, index, said.to(mixed.dtype))
        assert mixed is not None
        return mixed


def _check_shared(gold: Tensor, shared: int) -> None:
    if beyond := gold[gold >= shared].tolist():
        raise MuscleError(
            f"token {beyond[0]} of the training texts has no logit in every model, which share the first {shared} rows "
            "of their vocabularies: choose bases with the same added tokens, or remove it from the texts"
        )
