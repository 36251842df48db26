"""What an old teacher with another tokenizer recommends, told in the student's tokens, row by row.

It means something only where both are about to read the same text: after a boundary that both tokenizations have.
Which rows these are is for others to say (`muscle.update.across.chunks`), and so are rows whose next tokens differ.

Tokens are compared by the text that they stand for (`muscle.update.across.surfaces`). What is impossible gets the least
probability that a normal number can be, about 1e-38 in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from muscle.update.across.surfaces import Lexicon, first_pieces, matched


@dataclass(frozen=True)
class Translation:
    """From the old teacher's tokens to the student's."""

    logits: Callable[[Tensor, Tensor, float], Tensor]
    """Old logits (n, V_old), the student's (n, S) and the temperature T -> logits t (n, S), in float32 at least, such
    that softmax(t / T) is what the old teacher recommends. Vocabularies may be padded, or cut, to any number of
    rows."""
    same: Mapping[int, int] | None
    """The student's token of each old one that stands for the same text; None where tokens are not told apart."""


def shared_tokens(student: PreTrainedTokenizerBase, old: PreTrainedTokenizerBase) -> Translation:
    """The old distribution over tokens that both have; the student's own proportions among its others.

    KL to it equals, in value and gradient, KL between both distributions over the shared tokens and one more outcome,
    "any other token": what the old model gives to tokens that the student lacks is dealt out to those that the old
    model lacks in proportion to the student's own probabilities, through which no gradient flows. Where the student has
    none of these, that mass is left out, and the rest brought to 1.

    Args:
        student: Its tokenizer.
        old: The old teacher's.

    Raises:
        MuscleError: One of them does not show its rules (`surfaces`).
    """
    shared = matched(Lexicon.of(student), Lexicon.of(old))

    @cache
    def indices(old_rows: int, rows: int, device: torch.device) -> tuple[Tensor, ...]:
        sources, targets = _fitting(shared, old_rows, rows)
        source_of = torch.zeros(rows, dtype=torch.long).index_copy_(0, targets, sources)  # 0 stands for any
        found = (source_of, _all_but(sources, old_rows), _all_but(targets, rows))
        return tuple(index.to(device) for index in found)

    @torch.no_grad()
    def translate(old: Tensor, student: Tensor, temperature: float) -> Tensor:
        source_of, old_rest, rest = indices(old.shape[-1], student.shape[-1], old.device)
        log_p = _log_softmax(old, temperature)
        found = log_p.index_select(1, source_of)  # three times as fast as by brackets on a CPU
        others = log_p.index_select(1, old_rest).logsumexp(-1, keepdim=True)  # -inf where there are none
        own = _log_softmax(student.index_select(1, rest), temperature).to(log_p.dtype)
        found.index_copy_(1, rest, others + own)
        return _floored(found if len(rest) else found.log_softmax(-1)) * temperature

    return Translation(translate, shared)


def projected(student: PreTrainedTokenizerBase, old: PreTrainedTokenizerBase) -> Translation:
    """Each old token's probability goes to the same token of the student, or else to the first piece of its text there.

    After the projection P-KL of X-Token (Sreenivas et al. 2026, arXiv 2605.21699), of which it is a simple form and no
    reproduction: there a sparse matrix, which starts from rules on strings and can weigh several pieces of a token,
    takes the student's distribution to the teacher's vocabulary; here the teacher's goes to the student's, each token
    to one piece with weight 1, and nothing is learnt.

    Pieces are those into which the student's tokenizer cuts the token's text, without a space of its own before it.
    Where that does not begin with what the token stands for (bytes that are no text, letters that it rewrites), the
    longest of the student's tokens that does is taken, single bytes included, unless its tokens are whole words. What
    then has no place (unknown and special tokens without a counterpart, rows of padding) is left out, and the rest
    brought to 1.

    Args:
        student: Its tokenizer.
        old: The old teacher's.

    Raises:
        MuscleError: One of them does not show its rules (`surfaces`).
    """
    ours, theirs = Lexicon.of(student), Lexicon.of(old)
    shared = matched(ours, theirs)
    lost = [(token, text) for token, text in enumerate(theirs.surfaces) if text and token not in shared]
    pieces = first_pieces(student, ours, [text for _, text in lost])
    goes_to = shared | {token: piece for (token, _), piece in zip(lost, pieces, strict=True) if piece is not None}

    @cache
    def indices(old_rows: int, rows: int, device: torch.device) -> tuple[Tensor, ...]:
        return tuple(index.to(device) for index in _fitting(goes_to, old_rows, rows))

    @torch.no_grad()
    def translate(old: Tensor, student: Tensor, temperature: float) -> Tensor:
        sources, targets = indices(old.shape[-1], student.shape[-1], old.device)
        p = _log_softmax(old, temperature)[:, sources].softmax(-1)  # of what is not left out
        mass = p.new_zeros(student.shape).scatter_add_(-1, targets.expand(len(p), -1), p)
        return _floored(mass.log()) * temperature

    return Translation(translate, shared)


def by_rank(student: PreTrainedTokenizerBase, old: PreTrainedTokenizerBase) -> Translation:
    """The student's i-th most likely token gets the i-th largest old probability, whatever the tokens are.

    With `muscle.update.losses.absolute_difference` that is the distance of the universal logit distillation loss (ULD:
    Boizard et al. 2024, arXiv 2402.12030, section 3): both distributions sorted, the shorter one filled up with zeros,
    and compared by the sum of absolute differences, an optimal transport with equal costs. ULD pairs the i-th positions
    of both tokenizations and cuts off the longer one; here rows are paired that stand at a common boundary. Where the
    old vocabulary is the larger one, its smallest probabilities are left out, and the rest brought to 1.

    Args:
        student: Not read: ranks need no tokens.
        old: Likewise.
    """

    @torch.no_grad()
    def translate(old: Tensor, student: Tensor, temperature: float) -> Tensor:
        k = min(old.shape[-1], student.shape[-1])
        largest = _log_softmax(old, temperature).sort(dim=-1, descending=True).values[:, :k]
        order = student.argsort(dim=-1, descending=True)[:, :k]
        found = torch.full_like(student, -math.inf, dtype=largest.dtype)
        return _floored(found.scatter_(-1, order, largest.log_softmax(-1))) * temperature

    return Translation(translate, None)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return functional.log_softmax(wide / temperature, dim=-1)


def _floored(log_p: Tensor) -> Tensor:
    """Without infinities, which no difference of logarithms survives."""
    return log_p.clamp_(min=math.log(torch.finfo(log_p.dtype).tiny))


def _fitting(goes_to: dict[int, int], old_rows: int, rows: int) -> tuple[Tensor, Tensor]:
    """Old and student's ids (K,) of those pairs that have a row on both sides."""
    pairs = [(source, target) for source, target in goes_to.items() if source < old_rows and target < rows]
    both = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T.contiguous()
    return both[0], both[1]


def _all_but(index: Tensor, rows: int) -> Tensor:
    return torch.ones(rows, dtype=torch.bool).index_fill_(0, index, False).nonzero()[:, 0]
