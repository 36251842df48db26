"""How a student's rows are compared with an old teacher whose tokenizer is another one; see docs/tokenizers.md.

What it says of the gold text is comparable wherever both tokenizations have a boundary: chunk by chunk, by
approximate likelihood matching (ALM: Minixhofer et al. 2025, arXiv 2503.20083); and text by text, for choices. On
tokens that both have alone, its distribution can be put into the student's tokens (`translations`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from muscle.update.comparison import Comparison, Heard
from muscle.update.heads import Head
from muscle.update.losses import Aim, chunks, loss_of_rows
from muscle.update.rows import ChunkRows, TranslatedRows
from muscle.update.weights import WHOLE, model_facts

LEAST = 1e-6
"""Nats: what is likelier counts as just so likely. Float32 knows no difference, and the limit of ALM is a ratio."""


def likelihood_matching(student: Tensor, teacher: Tensor, tau: float | None) -> Tensor:
    """Tau KL(Bernoulli(e^(l_T / tau)) || Bernoulli(e^(l_S / tau))) of each chunk (ALM, arXiv 2503.20083).

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

    Where the old teacher says something of all tokens (`ChunkRows.alone`), the token's divergence from
    softmax((w z_old + (1 - w) z_new) / T) stands for both terms.

    With the level "choice" a chunk is a whole text, whose total log-likelihood under the teacher is
    w l_old + (1 - w) l_new.
    """

    said: ChunkRows

    def _tokens(self, states: Tensor, head: Head, shared: int) -> tuple[Tensor, dict[str, Tensor]]:
        aims, gold = self.aims, self.targets.gold
        share, ce_share = aims.divergence_share / aims.temperature**2, self._ce_share()
        slices = None if aims.reads & WHOLE else self._whole_chunks([*chunks(states, shared)])
        ahead = self._judged(self._all_facts(states, head, shared), slice(None)) if slices is None else None

        def take(logits: Tensor, rows: slice) -> Aim:
            noted = (
                self._judged(self._row_facts(logits, rows, shared), rows)
                if ahead is None
                else {name: column[rows] for name, column in ahead.items()}
            )
            ce = ce_share[rows] if isinstance(ce_share, Tensor) else ce_share
            old, new = noted["old_share"], noted["new_share"]
            heard = bool((old + new).any())
            noted |= {"token_accuracy": (logits.argmax(-1) == gold[rows]).float()}
            return Aim(
                gold[rows],
                ce_share=ce - share * noted["slope"],
                teacher=self._told(logits[:, :shared], old, new, rows) if heard else None,
                distance=aims.distance,
                distance_share=aims.divergence_share * (old + new) * noted["times"],
                temperature=aims.temperature,
                noted=noted if heard else noted | {"distance": torch.zeros_like(new)},
            )

        total, by_row = loss_of_rows(states, head, take, slices)
        slope, times, old, new, distance = (
            by_row.pop(name) for name in ("slope", "times", "old_share", "new_share", "distance")
        )
        known = share * (times * by_row["old_divergence"] + slope * by_row["cross_entropy"]).sum()
        by_row["old_divergence"] = by_row["old_divergence"] + old * distance
        return total + known.detach(), by_row | {"new_divergence": new * distance}

    @torch.no_grad()
    def _totals(self, states: Tensor, head: Head, shared: int) -> tuple[Tensor, Tensor, Tensor]:
        found = self._all_facts(states, head, shared, new=self.new is not None)
        facts = self._chunk_facts(found, self.said, slice(None))
        w, _ = self._weigh(facts, slice(None))
        teacher = w * self.said.likelihood
        if self.new:
            teacher = teacher + (1 - w) * facts["new_gold"]
        return facts["student_gold"], teacher, self.said.of_rows(w, 0.0)

    def _whole_chunks(self, slices: list[slice]) -> list[slice] | None:
        """Slices of the rows as long as these at most, that cut no chunk in two; None where a chunk is longer."""
        chunk, size, found = self.said.chunk, slices[0].stop, list[slice]()
        if not len(chunk):
            return slices
        until = chunk.cummax(0).values
        since = torch.where(chunk < 0, len(chunk), chunk).flip(0).cummin(0).values.flip(0)
        ends = [0, *((until[:-1] < since[1:]).nonzero()[:, 0] + 1).tolist(), len(chunk)]
        while not found or found[-1].stop < len(chunk):
            start = found[-1].stop if found else 0
            stop = ends[bisect_right(ends, start + size) - 1]
            if stop == start:
                return None
            found.append(slice(start, stop))
        return found

    def _judged(self, found: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
        """Of rows that hold their chunks whole, by what models say of them: each (c,), as `_tokens` reads them.

        The chunk's w as `aligned_to_old`; r as `times`; the parts of the row's divergence that are the old and the new
        teacher's, `old_share` and `new_share`; and of a chunk that is compared by its likelihood w r times the `slope`
        of its loss, and at its first row its `old_divergence`.
        """
        said, aims = self.said.part(rows), self.aims
        facts = self._chunk_facts(found, said, rows)
        w_chunk, r_chunk = self._weigh(facts, rows)
        ours, theirs, tau = facts["student_gold"], said.likelihood, aims.chunk_temperature
        w, times = said.of_rows(w_chunk, 0.0), torch.ones_like(found["student_gold"])
        old_share = torch.zeros_like(w)
        if said.alone:
            alone = said.alone.place >= 0
            old_share, w_chunk = w * alone, w_chunk.index_fill(0, said.chunk[alone], 0.0)
        slope = w_chunk * matching_slope(ours, theirs, tau)
        if r_chunk is not None:
            slope, times = slope * r_chunk, said.of_rows(r_chunk, 1.0)
        divergence = (w_chunk * likelihood_matching(ours, theirs, tau)).to(ours.dtype)
        return {
            "aligned_to_old": w,
            "old_share": old_share,
            "new_share": 1 - w if self.new else torch.zeros_like(w),
            "times": times,
            "slope": said.of_rows(slope, 0.0),
            "old_divergence": ours.new_zeros(len(w)).index_copy(0, said.first, divergence),
        }

    @torch.no_grad()
    def _all_facts(self, states: Tensor, head: Head, shared: int, new: bool = False) -> dict[str, Tensor]:
        """`_row_facts` of all rows, before the first of them is learnt from."""
        found = [self._row_facts(head(states[rows]), rows, shared, new) for rows in chunks(states, shared)]
        return {name: torch.cat([facts[name] for facts in found]) for name in found[0]}

    def _row_facts(self, logits: Tensor, rows: slice, shared: int, new: bool = False) -> dict[str, Tensor]:
        """What models say of some rows: the student's likelihood, and what weights read.

        Args:
            logits: Of the student.
            rows: Which.
            shared: Rows of the vocabulary that student and new teacher have.
            new: Whether the new teacher's likelihoods are needed whatever the weights read.
        """
        gold, reads = self.targets.gold[rows], self.aims.reads
        facts = model_facts("student", logits, gold, frozenset({"student_gold"}))
        facts |= model_facts("student", logits[:, :shared], gold, reads & {"student_top"})
        if read := (reads | ({"new_gold"} if new else set())) & {"new_top", "new_gold"}:
            assert self.new
            facts |= model_facts("new", self.new.logits(rows)[:, :shared], gold, read)
        return facts

    def _chunk_facts(self, found: Mapping[str, Tensor], said: ChunkRows, rows: slice) -> dict[str, Tensor]:
        """What weights may read, of chunks in place of rows: likelihoods of the whole, and 0 for the right token."""
        count, inside = len(said.likelihood), said.chunk >= 0
        chunk = said.chunk[inside]
        whole = {"targets": chunk.new_zeros(count), "old_gold": said.likelihood}
        whole["old_top"] = said.right.long() - 1
        for name, column in found.items():
            if name.endswith("_top"):
                wrong = (column != self.targets.gold[rows]).float()
                whole[name] = -(wrong.new_zeros(count).index_add(0, chunk, wrong[inside]) > 0).long()
            else:
                whole[name] = column.new_zeros(count).index_add(0, chunk, column[inside])
        for name in ("sequence", "item", "right"):
            column = self.targets.facts[name][rows]
            whole[name] = column.new_zeros(count).scatter_(0, chunk, column[inside])
        whole["tokens"] = chunk.bincount(minlength=count)
        return whole

    def _told(self, student: Tensor, old_share: Tensor, new_share: Tensor, rows: slice) -> Tensor:
        """Logits (c, S) of old and new teacher in their proportions, each asked only where it has a say."""
        count, shared = student.shape
        index, told = new_share.nonzero()[:, 0], student.new_zeros(())
        if len(index):
            assert self.new
            told = self.new.logits(rows, slice(None) if len(index) == count else index)[:, :shared]
            if len(index) < count:
                told = told.new_zeros(count, shared).index_copy_(0, index, told)
        if not old_share.any():
            return told
        assert self.said.alone
        place = torch.where(old_share > 0, self.said.alone.place[rows], -1)
        old = replace(self.said.alone, place=place).logits(student, slice(None), self.aims.temperature)
        return torch.lerp(told.to(old.dtype), old, old_share[:, None].to(old.dtype))  # exact at 0 and 1


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
