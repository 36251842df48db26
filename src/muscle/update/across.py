"""How a student's rows are compared with an old teacher whose tokenizer is another one; see docs/tokenizers.md.

What it says of the gold text is comparable wherever both tokenizations have a boundary: chunk by chunk, by
approximate likelihood matching (ALM: Minixhofer et al. 2025, arXiv 2503.20083); and text by text, for choices. On
tokens that both have alone, its distribution can be put into the student's tokens (`translations`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from muscle.update.comparison import Comparison, Heard
from muscle.update.heads import Head
from muscle.update.losses import Aim, chunks, loss_of_rows
from muscle.update.rows import ChunkRows, TranslatedRows
from muscle.update.weights import model_facts

LEAST = 1e-6
"""Nats: what is likelier counts as just so likely, since float32 knows no difference and the limit of ALM is a ratio."""


def likelihood_matching(student: Tensor, teacher: Tensor, tau: float | None) -> Tensor:
    """tau KL(Bernoulli(e^(l_T / tau)) || Bernoulli(e^(l_S / tau))) of each chunk (ALM, arXiv 2503.20083).

    For large tau it is l_T - l_S + l_T ln(l_S / l_T), which adds up over chunks as log-likelihoods do. With tau = 1 it
    is the part of the chunk's divergence that the gold text alone tells, and never more than it.

    Args:
        student: Log-likelihoods of the gold text, in nats, at most 0, (c,).
        teacher: Likewise, (c,).
        tau: Above 0; None is the limit.

    Returns:
        Numbers at least 0, (c,), that are 0 where both are equal.
    """
    s, t = student.clamp(max=-LEAST), teacher.clamp(max=-LEAST)
    if tau is None:
        return (t - s + t * (s / t).log()).clamp(min=0)
    s, t = s / tau, t / tau
    no = torch.log(-torch.expm1(t)) - torch.log(-torch.expm1(s))
    return (tau * (t.exp() * (t - s) - torch.expm1(t) * no)).clamp(min=0)


def matching_slope(student: Tensor, teacher: Tensor, tau: float | None) -> Tensor:
    """The derivative of `likelihood_matching` by the student's log-likelihood, (c,)."""
    s, t = student.clamp(max=-LEAST), teacher.clamp(max=-LEAST)
    if tau is None:
        return t / s - 1
    s, t = s / tau, t / tau
    return (s.exp() - t.exp()) / -torch.expm1(s)


@dataclass(frozen=True)
class ChunkComparison(Comparison):
    """Chunk by chunk towards the old teacher, and token by token towards the new one.

    With w and r of each chunk, L_comp is the sum over chunks of w r L_ALM / T^2, and over tokens of (1 - w) r times
    the divergence from the new teacher, by the number of tokens; tokens in no chunk have w = 0 and r = 1. Of a chunk a
    model is right if each of its own tokens there is the most likely one. ALM has no T, and the divergence at T is
    about 1 / T^2 of what it is at 1, so that w means the same as between two teachers of one tokenizer.

    A chunk's loss depends on a token's logits through that token's likelihood alone: its gradient is that of the
    tokens' cross-entropies, each times minus the loss's derivative by the chunk's log-likelihood.

    With the level "choice" a chunk is a whole text, whose total log-likelihood under the teacher is
    w l_old + (1 - w) l_new.
    """

    said: ChunkRows

    def _tokens(self, states: Tensor, head: Head, shared: int) -> tuple[Tensor, dict[str, Tensor]]:
        aims, gold = self.aims, self.targets.gold
        facts = self._chunk_facts(states, head, shared)
        w_chunk, r_chunk = self._weigh(facts, slice(None))
        times = w_chunk if r_chunk is None else w_chunk * r_chunk
        share = aims.divergence_share / aims.temperature**2
        ours, theirs, tau = facts["student_gold"], self.said.likelihood, aims.chunk_temperature
        matching = likelihood_matching(ours, theirs, tau)
        slope = self._of_rows(share * times * matching_slope(ours, theirs, tau), 0.0)
        w = self._of_rows(w_chunk, 0.0)
        r = self._of_rows(r_chunk, 1.0) if r_chunk is not None else torch.ones_like(w)
        rest, ce_share = 1 - w, self._ce_share()
        if not self.new:
            rest = torch.zeros_like(w)

        def take(logits: Tensor, rows: slice) -> Aim:
            ce = ce_share[rows] if isinstance(ce_share, Tensor) else ce_share
            noted = {"token_accuracy": (logits.argmax(-1) == gold[rows]).float(), "aligned_to_old": w[rows]}
            return Aim(
                gold[rows],
                ce_share=ce - slope[rows],
                teacher=self._new_teacher(rest[rows], rows, shared) if rest.any() else None,
                distance=aims.distance,
                distance_share=aims.divergence_share * rest[rows] * r[rows],
                temperature=aims.temperature,
                noted=noted,
            )

        total, by_row = loss_of_rows(states, head, take)
        known = (share * times * matching).sum() + (slope * by_row["cross_entropy"]).sum()
        towards_new = rest * by_row.pop("distance", torch.zeros_like(w))
        return total + known.detach(), by_row | {"old_divergence": w_chunk * matching, "new_divergence": towards_new}

    @torch.no_grad()
    def _totals(self, states: Tensor, head: Head, shared: int) -> tuple[Tensor, Tensor, Tensor]:
        facts = self._chunk_facts(states, head, shared, new=self.new is not None)
        w, _ = self._weigh(facts, slice(None))
        teacher = w * self.said.likelihood
        if self.new:
            teacher = teacher + (1 - w) * facts["new_gold"]
        return facts["student_gold"], teacher, self._of_rows(w, 0.0)

    @torch.no_grad()
    def _chunk_facts(self, states: Tensor, head: Head, shared: int, new: bool = False) -> dict[str, Tensor]:
        """What weights may read, of chunks in place of rows: likelihoods of the whole, and 0 for the right token.

        Args:
            states: Of the student.
            head: Of the student.
            shared: Rows of the vocabulary that student and new teacher have.
            new: Whether the new teacher's likelihoods are needed whatever the weights read.
        """
        targets, count = self.targets, len(self.said.likelihood)
        found: list[dict[str, Tensor]] = []
        for rows in chunks(states, shared):
            gold, student = targets.gold[rows], head(states[rows])
            facts = model_facts("student", student, gold, frozenset({"student_gold"}))
            facts |= model_facts("student", student[:, :shared], gold, self.aims.reads & {"student_top"})
            if read := (self.aims.reads | ({"new_gold"} if new else set())) & {"new_top", "new_gold"}:
                assert self.new
                facts |= model_facts("new", self.new.logits(rows)[:, :shared], gold, read)
            found.append(facts)
        inside = self.said.chunk >= 0
        chunk = self.said.chunk[inside]
        whole = {"targets": chunk.new_zeros(count), "old_gold": self.said.likelihood}
        whole["old_top"] = self.said.right.long() - 1
        for name in found[0]:
            column = torch.cat([facts[name] for facts in found])
            if name.endswith("_top"):
                wrong = (column != targets.gold).float()
                whole[name] = -(wrong.new_zeros(count).index_add(0, chunk, wrong[inside]) > 0).long()
            else:
                whole[name] = column.new_zeros(count).index_add(0, chunk, column[inside])
        for name in ("sequence", "item", "right"):
            column = targets.facts[name]
            whole[name] = column.new_zeros(count).scatter_(0, chunk, column[inside])
        return whole

    def _of_rows(self, numbers: Tensor, outside: float) -> Tensor:
        """Each row's of its chunk, (n,)."""
        chunk = self.said.chunk
        inside = chunk >= 0
        found = numbers.new_full((len(chunk),), outside)
        found[inside] = numbers[chunk[inside]]
        return found

    def _new_teacher(self, rest: Tensor, rows: slice, shared: int) -> Tensor:
        """Logits (c, S) of the new teacher, asked only where it has a say."""
        assert self.new
        index = rest.nonzero()[:, 0]
        if len(index) == len(rest):
            return self.new.logits(rows)[:, :shared]
        part = self.new.logits(rows, index)[:, :shared]
        return part.new_zeros(len(rest), shared).index_copy_(0, index, part)


@dataclass(frozen=True)
class TranslatedComparison(Comparison):
    """Token by token, where the old teacher's distribution can be put into the student's tokens; elsewhere w = 0."""

    said: TranslatedRows

    def _hear(self, student: Tensor, rows: slice) -> Heard:
        return {"old": self.said.logits(student, rows, self.aims.temperature)}

    def _weigh(self, facts: Mapping[str, Tensor], rows: slice) -> tuple[Tensor, Tensor | None]:
        w, r = super()._weigh(facts, rows)
        known = (self.said.place[rows] >= 0).float()
        if not self.new:  # then nothing is to be learnt elsewhere
            return w * known, known if r is None else r * known
        return w * known, None if r is None else torch.where(known > 0, r, 1.0)

    def _ruling(self, w: Tensor, rows: slice, shared: int, heard: Heard) -> Tensor:
        return super()._ruling(w, rows, shared, heard) if self.new else heard["old"]
