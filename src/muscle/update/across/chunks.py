"""Stretches of text that two tokenizers share: the finest that both cut a text into, and which tokens lie in each.

Where two models read a text as different tokens, their likelihoods can be compared for such a stretch: on either side
it is the product of its tokens' likelihoods (approximate likelihood matching: Minixhofer et al.,
arXiv 2503.20083).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from muscle.errors import MuscleError, quoted
from muscle.measure.statistics import BoolArray, IntArray
from muscle.update.prompts import Example
from muscle.update.spans import Spans
from muscle.update.tokenized import TokenizedExamples

NONE = -1
"""Number of a token that lies in no chunk."""


class Piece(NamedTuple):
    """A stretch of text that both sides read."""

    student: int
    """Where it begins in the student's text, in characters."""
    old: int
    """Where it begins in the old model's text."""
    length: int
    """Its characters."""


@dataclass(frozen=True)
class Chunks:
    """The chunks of a whole data set, which one model reads as its own tokens and another as its own."""

    student: IntArray
    """(N,) the chunk of each target of the student's texts, text by text, or `NONE`. Numbers rise from 0 through the
    data set, and none is left out."""
    old: IntArray
    """(M,) likewise of the old side's targets."""
    count: int
    """How many chunks there are."""
    aligned: float
    """Share of the student's targets that lie in a chunk."""

    @classmethod
    def of(cls, student: TokenizedExamples, old: TokenizedExamples) -> Chunks:
        """Cut the texts of a data set; only chunks whose tokens are known targets on both sides are kept.

        Args:
            student: The texts as the student reads them.
            old: The same texts in the same order, as the old model reads them: prompts may differ, answers may not.

        Raises:
            MuscleError: A tokenizer does not tell where its tokens lie, or two texts differ in their answers.
        """
        if student.spans is None or old.spans is None:
            whose = "new" if student.spans is None else "old"
            raise MuscleError(
                f"the {whose} base's tokenizer gives no character offsets, so that its tokens cannot be aligned with "
                "the other's: set alignment.across to texts"
            )
        if len(student) != len(old):
            raise MuscleError(f"the new base reads {len(student)} texts, the old one {len(old)}: they must be the same")
        lost = (_lost_tokens(student), _lost_tokens(old))
        numbers: tuple[list[IntArray], list[IntArray]] = ([], [])
        count = 0
        for text, spans in enumerate(zip(student.spans, old.spans, strict=True)):
            pair = cut(*spans, common_pieces(student.rows[text], old.rows[text]))
            kept = np.append(np.ones(int(pair[0][-1]) + 1, bool), False)  # NONE is the last
            for side, (_, missing) in zip(pair, (each[text] for each in lost), strict=True):
                kept[side[missing]] = False
            renumbered = np.where(kept, count - 1 + kept.cumsum(), NONE)
            for all_numbers, side, (first, _) in zip(numbers, pair, (each[text] for each in lost), strict=True):
                all_numbers.append(renumbered[side[first:]])
            count += int(kept.sum())
        ours, theirs = (np.concatenate([np.empty(0, np.int64), *side]) for side in numbers)
        return cls(ours, theirs, count, float((ours != NONE).mean()) if len(ours) else 0.0)

    def alone(self, student: IntArray, old: IntArray, same: Mapping[int, int] | None) -> BoolArray:
        """Which chunks are one token on either side, and the same one.

        Stretches of text may be the same where tokens are not: one of them begins with a space, which the text has not,
        or a tokenizer writes all in lower case.

        Args:
            student: The student's targets, (N,).
            old: The old side's, (M,).
            same: The student's token of each old one that stands for the same text; None: any are taken as the same.

        Returns:
            (C,).
        """
        found, tokens = np.ones(self.count, bool), list[IntArray]()
        for numbers, gold in ((self.student, student), (self.old, old)):
            inside = numbers != NONE
            found &= np.bincount(numbers[inside], minlength=self.count) == 1
            tokens.append(np.zeros(self.count, np.int64))
            tokens[-1][numbers[inside]] = gold[inside]
        if same is None:
            return found
        student_of = np.full(1 + max([*same, int(tokens[1].max(initial=0))]), NONE)
        student_of[[*same]] = [*same.values()]
        found &= student_of[tokens[1]] == tokens[0]
        return found


def _lost_tokens(data: TokenizedExamples) -> list[tuple[int, IntArray]]:
    """Of each text its first target, and which tokens say nothing of the text: no targets, and unknown words."""
    found = []
    for ids, targets in zip(data.ids, data.targets, strict=True):
        first = len(ids) - targets
        unknown = np.flatnonzero(np.array(ids) == data.unknown) if data.unknown is not None else np.empty(0, np.int64)
        found.append((first, np.concatenate([np.arange(first), unknown])))
    return found


def cut(student: Spans, old: Spans, pieces: Sequence[Piece]) -> tuple[IntArray, IntArray]:
    """Cut a text at all boundaries that both of its tokenizations have.

    The last token of either side ends its text; both are one chunk, the last. Any other chunk reaches from one common
    boundary of a piece to its next, so that every token between the first and the last is in exactly one, and what both
    sides' tokens of a chunk hold is the same text. (A character that one tokenizer drops is in a chunk of the other's;
    tokens that share a character, as bytes do, are in the same chunk.)

    Args:
        student: Spans of the tokens, (T, 2) with T of 1 or more.
        old: Of the old model's, (U, 2) with U of 1 or more.
        pieces: What of the texts is the same, in order and apart, such as `common_pieces` gives.

    Returns:
        The chunk of each token, (T,) and (U,): rising from 0, with none left out, or `NONE`.
    """
    spans = student, old
    numbers = np.full(len(student), NONE), np.full(len(old), NONE)
    boundaries = [_boundaries(side) for side in spans]
    since, count = [0, 0], 0
    for piece in pieces:
        found = [
            _within(side, begin, begin + piece.length, first)
            for side, begin, first in zip(boundaries, piece[:2], since, strict=True)
        ]
        ends = _matched(*found)
        if len(ends) == 0:
            continue
        chunks = np.arange(count, count + len(ends) - 1)
        for side, tokens in zip(numbers, ends.T, strict=True):
            side[tokens[0] : tokens[-1]] = np.repeat(chunks, np.diff(tokens))
        since, count = ends[-1].tolist(), count + len(chunks)
    for side in numbers:
        side[-1] = count
    return numbers


def common_pieces(student: Example, old: Example) -> list[Piece]:
    """What two texts share, in order.

    Equal texts are one piece. Those of one item in different prompts, each in the chat template of its own model, share
    the longest text that is in both contexts, and the answer.

    Raises:
        MuscleError: The answers differ.
    """
    if student.context + student.answer == old.context + old.answer:
        pieces = [Piece(0, 0, len(student.context) + len(student.answer))]
    elif student.answer != old.answer:
        raise MuscleError(
            f"the new base reads the answer {quoted(student.answer)} where the old one reads {quoted(old.answer)}: "
            "across tokenizers both must learn the same answers"
        )
    else:
        block = _longest_common_block(student.context, old.context)
        answer = Piece(len(student.context), len(old.context), len(student.answer))
        if block.student + block.length == answer.student and block.old + block.length == answer.old:
            pieces = [Piece(block.student, block.old, block.length + answer.length)]  # then a token may lie in both
        else:
            pieces = [block, answer]
    return [piece for piece in pieces if piece.length]


def _boundaries(spans: Spans) -> tuple[IntArray, IntArray, IntArray]:
    """Between which tokens a text can be cut, and where: before token k, anywhere from the first place to the second.

    There is room between two places where a tokenizer drops what is between its tokens. Between tokens that share a
    character there is no place.
    """
    ends, starts = np.zeros(len(spans), np.int64), spans[::-1, 0].astype(np.int64)
    np.maximum.accumulate(spans[:-1, 1], out=ends[1:])
    starts = np.minimum.accumulate(starts)[::-1]
    tokens = np.flatnonzero(ends <= starts)
    return tokens, ends[tokens], starts[tokens]


def _within(
    boundaries: tuple[IntArray, IntArray, IntArray], begin: int, end: int, since: int
) -> tuple[list[int], list[int], list[int]]:
    """The boundaries with a place in a piece, from some token on; places are counted from the piece's beginning.

    Places outside may stay: two boundaries that each have one inside, and one in common, have one in common inside.
    """
    tokens, first, last = boundaries
    inside = (first <= end) & (last >= begin) & (tokens >= since)
    return tokens[inside].tolist(), (first[inside] - begin).tolist(), (last[inside] - begin).tolist()


def _matched(student: tuple[list[int], list[int], list[int]], old: tuple[list[int], list[int], list[int]]) -> IntArray:
    """(n, 2) the boundaries that have a place in common, one to one and in order; as many as can be.

    Both lists rise in their first and in their last places, so that of two that miss each other the earlier meets no
    later one either.
    """
    pairs = []
    (tokens, begins, ends), (other_tokens, other_begins, other_ends) = student, old
    here, there = 0, 0
    while here < len(tokens) and there < len(other_tokens):
        if ends[here] < other_begins[there]:
            here += 1
        elif other_ends[there] < begins[here]:
            there += 1
        else:
            pairs.append((tokens[here], other_tokens[there]))
            here, there = here + 1, there + 1
    return np.array(pairs, np.int64).reshape(-1, 2)


@lru_cache(maxsize=4)  # the choices of an item follow each other and share their contexts
def _longest_common_block(student: str, old: str) -> Piece:
    """The longest text that two others hold; of several the one that begins first in both together.

    A block of 2 n - 1 characters or more holds one of the stretches of n characters that the student's text consists
    of. These are looked for in the other text, and what is found is made as long as it can be; n halves until no block
    that is as long can have been missed.
    """
    best, rank = Piece(0, 0, 0), (0, 0, "")
    step = 2 * max(1, min(len(student), len(old)) // 2)
    while step > 1 and best.length < 2 * step - 1:
        step //= 2
        for start in range(0, len(student) - step + 1, step):
            stretch = student[start : start + step]
            place = old.find(stretch)
            while place >= 0:
                back = _agree(student[:start][::-1], old[:place][::-1])
                length = back + _agree(student[start:], old[place:])
                begin, other = start - back, place - back
                found = length, -begin - other, student[begin : begin + length]  # the same, whichever side is which
                if found > rank:
                    best, rank = Piece(begin, other, length), found
                place = old.find(stretch, place + 1)
    return best


def _agree(one: str, other: str) -> int:
    """How many characters two texts have in common from their beginnings on."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
