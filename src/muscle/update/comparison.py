"""How a student's rows are compared with those of its two teachers: loss, gradient and statistics of one batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from muscle.errors import MuscleError
from muscle.update.heads import Head
from muscle.update.losses import Aim, Distance, chunks, loss_of_rows
from muscle.update.rows import Outcome, Targets, TeacherRows, log_softmax_within, sums
from muscle.update.weights import WHOLE, Weight, facts_read, model_facts

Heard = dict[str, Tensor]
"""Logits of teachers, by "old" and "new", that were needed already."""


@dataclass(frozen=True)
class Scales:
    """What brings sums over different texts to one scale: each mean is over what it is about. From the training set."""

    right: float = 1.0
    """Targets of all texts, in proportion to those of right texts: cross-entropy is a mean over the latter."""
    item: float = 1.0
    """Targets of all texts, in proportion to the number of items: the loss of the choices is a mean over these."""
    labelled: float = 1.0
    """Items, in proportion to those whose right text is known."""


@dataclass(frozen=True)
class Aims:
    """lambda * L_comp + (1 - lambda) * L_CE (the paper's section 4, eq. 1, and appendix A.4), and what goes beyond it.

    With the level "token", L_comp is the mean over the targets of r_i KL(softmax((w_i z_old + (1 - w_i) z_new) / T) ||
    softmax(z_student / T)). With w in {0, 1} and r = 1 that is eq. 1. L_CE is the mean over the targets of right texts.

    With the level "choice", p and q are distributions over the choices of an item, softmax over its texts k of
    sum_i log softmax(z_i)[y_i] / T, z of the teacher (w z_old + (1 - w) z_new) and of the student. L_comp is the mean
    over items of KL(p || q), L_CE that of -log q[right] at T = 1.

    Vocabularies may be padded to different sizes: w and the distance of tokens see the rows that student and teachers
    share, as the teacher of choices does; L_CE and the likelihoods of choices have all rows of the student.
    """

    weight: Weight
    """Which teacher rules a token: w."""
    temperature: float
    """T of both softmaxes of L_comp."""
    squared_temperature: bool
    """L_comp times T^2, so that its gradient hardly depends on T (Hinton et al. 2015, section 2.1); the paper has it
    without."""
    ce_share: float
    """1 - lambda, in [0, 1]."""
    emphasis: Weight | None = None
    """r; None is 1."""
    distance: Distance = "divergence"
    """What stands for KL, of tokens."""
    level: str = "token"
    scales: Scales = Scales()
    chunk_temperature: float | None = None
    """tau, where chunks of text are compared instead of tokens (`across`); None is its limit."""

    @property
    def divergence_share(self) -> float:
        """lambda, and T^2 where it is wanted."""
        return (1 - self.ce_share) * (self.temperature**2 if self.squared_temperature else 1)

    @cached_property
    def reads(self) -> frozenset[str]:
        """Facts that weight and emphasis read."""
        return facts_read(self.weight) | (facts_read(self.emphasis) if self.emphasis else frozenset())


@dataclass(frozen=True)
class Comparison:
    """Reads the student's states on a batch on which the teachers have been asked: an `objectives.Read`."""

    aims: Aims
    targets: Targets
    old: TeacherRows | None
    new: TeacherRows | None

    def __call__(self, hidden: Tensor, head: Head) -> Outcome:
        states = self.targets.of_states(hidden)
        teachers = [teacher for teacher in (self.old, self.new) if teacher]
        shared = min([head(states[:0]).shape[-1], *(teacher.vocabulary for teacher in teachers)])
        _check_shared(self.targets.gold, shared)
        by_token = self.aims.level == "token"
        total, by_row = (self._tokens if by_token else self._choices)(states, head, shared)
        return total, self.targets.count, {name: column.sum() for name, column in by_row.items()}

    def _tokens(self, states: Tensor, head: Head, shared: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Each token's distance from its teacher."""
        aims, gold = self.aims, self.targets.gold
        ahead = self._weigh_all(states, head, shared) if aims.reads & WHOLE else None
        ce_share = self._ce_share()

        def take(logits: Tensor, rows: slice) -> Aim:
            heard = self._hear(logits[:, :shared], rows)
            w, times = (
                self._weigh(self._facts(logits[:, :shared], heard, rows, shared), rows)
                if ahead is None
                else (ahead[0][rows], None if ahead[1] is None else ahead[1][rows])
            )
            noted = {"token_accuracy": (logits.argmax(-1) == gold[rows]).float(), "aligned_to_old": w}
            return Aim(
                gold[rows],
                ce_share=ce_share[rows] if isinstance(ce_share, Tensor) else ce_share,
                teacher=self._ruling(w, rows, shared, heard),
                distance=aims.distance,
                distance_share=aims.divergence_share if times is None else aims.divergence_share * times,
                temperature=aims.temperature,
                noted=noted,
            )

        total, by_row = loss_of_rows(states, head, take)
        w, towards = by_row["aligned_to_old"], by_row.pop("distance")
        return total, by_row | {"old_divergence": w * towards, "new_divergence": (1 - w) * towards}

    def _ce_share(self) -> float | Tensor:
        """The factor of each row's cross-entropy, where not one holds for all."""
        if not self.aims.ce_share or (self.aims.scales.right == 1 and bool(self.targets.right.all())):
            return self.aims.ce_share
        return self.aims.ce_share * self.aims.scales.right * self.targets.right.float()

    def _choices(self, states: Tensor, head: Head, shared: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The distributions over choices.

        Their loss depends on a token's logits through its text's likelihood alone. So its gradient is that of the
        tokens' cross-entropies, each times minus the loss's derivative by that likelihood, which is known first.
        """
        gold, aims = self.targets.gold, self.aims
        student, teacher, w = self._totals(states, head, shared)
        value, slopes = self._slopes(student, teacher)

        def take(logits: Tensor, rows: slice) -> Aim:
            right = (logits.argmax(-1) == gold[rows]).float()
            return Aim(gold[rows], ce_share=-slopes[rows], noted={"token_accuracy": right, "aligned_to_old": w[rows]})

        total, by_row = loss_of_rows(states, head, take)
        divergence, likelihood = value
        whole = aims.divergence_share * divergence + aims.ce_share * aims.scales.labelled * likelihood
        scaled = {"choice_divergence": aims.scales.item * divergence}
        return total + (aims.scales.item * whole - total).detach(), by_row | scaled

    @torch.no_grad()
    def _totals(self, states: Tensor, head: Head, shared: int) -> tuple[Tensor, Tensor, Tensor]:
        """The texts' total log-likelihoods under the student and under the teacher, (m,) each; and w of all rows."""
        w, _ = self._weigh_all(states, head, shared)
        found = []
        for rows in chunks(states, shared):
            gold, reads = self.targets.gold[rows], frozenset({"student_gold"})
            logits = head(states[rows]), self._ruling(w[rows], rows, shared, {})
            found.append([model_facts("student", z, gold, reads)["student_gold"] for z in logits])
        student, teacher = (sums(torch.cat(column), self.targets.text) for column in zip(*found, strict=True))
        return student, teacher, w

    @torch.no_grad()
    def _slopes(self, student: Tensor, teacher: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """(sums over items of KL(p || q) and of -log q[right]), and the loss's derivative by each row's likelihood."""
        aims, targets = self.aims, self.targets
        right = targets.right_texts.float()
        labelled = sums(right, targets.item_of_text)[targets.item_of_text]
        log_q, log_p, log_q1 = (
            log_softmax_within(totals / t, targets.item_of_text)
            for totals, t in ((student, aims.temperature), (teacher, aims.temperature), (student, 1.0))
        )
        p, q = log_p.exp(), log_q.exp()
        slope = aims.divergence_share * (q - p) / aims.temperature
        slope += aims.ce_share * aims.scales.labelled * (labelled * log_q1.exp() - right)
        value = (p * (log_p - log_q)).sum(), -(right * log_q1).sum()
        return value, aims.scales.item * slope[targets.text]

    @torch.no_grad()
    def _weigh_all(self, states: Tensor, head: Head, shared: int) -> tuple[Tensor, Tensor | None]:
        """`_weigh` of all rows, where it depends on whole texts: the facts of all come before the first of them."""
        found = []
        for rows in chunks(states, shared):
            student = head(states[rows])[:, :shared]
            found.append(self._facts(student, self._hear(student, rows), rows, shared))
        return self._weigh({name: torch.cat([facts[name] for facts in found]) for name in found[0]}, slice(None))

    def _hear(self, student: Tensor, rows: slice) -> Heard:
        """What teachers say of some rows whatever the weights are, given the student's logits (c, S)."""
        return {}

    def _weigh(self, facts: Mapping[str, Tensor], rows: slice) -> tuple[Tensor, Tensor | None]:
        """W and r of some rows."""
        weight, emphasis = self.aims.weight, self.aims.emphasis
        w = weight(**{name: facts[name] for name in facts_read(weight)})
        return w, emphasis(**{name: facts[name] for name in facts_read(emphasis)}) if emphasis else None

    def _facts(self, student: Tensor, heard: Heard, rows: slice, shared: int) -> dict[str, Tensor]:
        """What is read about some rows; what teachers say of all of these is put into `heard`."""
        reads, gold = self.aims.reads, self.targets.gold[rows]
        found = {name: fact[rows] for name, fact in self.targets.facts.items() if name in reads}
        found |= model_facts("student", student, gold, reads)
        for name, teacher in (("old", self.old), ("new", self.new)):
            if any(fact.startswith(name) for fact in reads):
                if name not in heard:
                    assert teacher
                    heard[name] = teacher.logits(rows)[:, :shared]
                found |= model_facts(name, heard[name], gold, reads)
        return found

    def _ruling(self, w: Tensor, rows: slice, shared: int, heard: Heard) -> Tensor:
        """Logits (c, S) of w * old + (1 - w) * new; each teacher is asked only where it has a say."""

        def said(name: str, teacher: TeacherRows | None, index: slice | Tensor) -> Tensor:
            if name in heard:
                return heard[name][index]
            assert teacher
            return teacher.logits(rows, index)[:, :shared]

        mixed = None
        for name, teacher, share in (("old", self.old, w), ("new", self.new, 1 - w)):
            if (share == 1).all() and (teacher or name in heard):
                return said(name, teacher, slice(None))
            if len(index := share.nonzero()[:, 0]):
                part = said(name, teacher, index) * share[index, None]
                mixed = part.new_zeros(len(w), shared) if mixed is None else mixed
                mixed.index_add_(0, index, part.to(mixed.dtype))
        assert mixed is not None
        return mixed


def _check_shared(gold: Tensor, shared: int) -> None:
    if beyond := gold[gold >= shared].tolist():
        raise MuscleError(
            f"token {beyond[0]} of the training texts has no logit in every model, which share the first {shared} rows "
            "of their vocabularies: choose bases with the same added tokens, or remove it from the texts"
        )
