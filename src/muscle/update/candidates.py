"""What a search tries, and how often: pure arithmetic, without models.

Successive halving (Jamieson & Talwalkar 2016, AISTATS): many candidates for a short training, the best of them for a
longer one, fewest for the full length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

from muscle.update.alignment_settings import PLAIN, AlignmentSettings, SearchSettings

FEW_CHOICES = 8
"""The most choices of an item that are all learnt from."""
ROUNDING = 1e-9
"""By how much sums of costs may pass a budget."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Candidate:
    """One way to train, as what it changes of the settings at hand."""

    name: str
    alignment: Mapping[str, Any]
    training: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Variant:
    """What mixtures are learnt from."""

    suffix: str
    alignment: Mapping[str, Any]
    training: Mapping[str, Any]
    first_ce_share: int
    """Which of the candidate shares of cross-entropy comes first."""


def candidates(settings: AlignmentSettings, choices: int, unlabelled: bool, offsets: bool = True) -> list[Candidate]:
    """What is tried, the most promising first, since a small budget reaches the first ones only.

    The tokens of answers alone: of items with few choices with some cross-entropy, then on the texts of all choices; of
    others without it, on as many inputs as there are (docs/experiments.md).

    Args:
        settings: The alignment as given, which is the last candidate: with the recipe's defaults the paper's.
        choices: The most choices that an item has; 0 where answers are generated.
        unlabelled: Whether there are inputs without labels to learn from.
        offsets: Whether both tokenizers tell where an answer's tokens begin; else none is trained on these alone.
    """
    search = settings.search or SearchSettings()
    answers = {"tokens": "answer"}
    whole = _Variant("", {}, {}, 1)
    if 0 < choices <= FEW_CHOICES:
        variants = [_Variant(", answers", {}, answers, 1), _Variant(", all choices", {"texts": "choices"}, answers, 0)]
    elif unlabelled:
        variants = [_Variant(", unlabelled", {"unlabelled": True}, answers, 0), whole]
    else:
        variants = [_Variant(", answers", {}, answers, 0), whole]
    variants = variants if offsets else [whole]
    found = []
    for turn in range(len(search.ce_shares)):
        for variant in variants:
            for share in search.old_shares:
                ce = search.ce_shares[(turn + variant.first_ce_share) % len(search.ce_shares)]
                mixture = {"weight": "mixture", "old_share": share, "ce_share": ce, "temperature": 1.0}
                name = f"mixture a {share:g}, CE {ce:g}{variant.suffix}"
                found.append(Candidate(name, {**PLAIN, **mixture, **variant.alignment}, variant.training))
    return [*found, Candidate("as given", {})]


def schedule(costs: Sequence[Sequence[float]], budget: float) -> tuple[list[int], list[int]]:
    """Who is trained first, and how many to each length, so that all of it together stays within the budget.

    About the same is spent on each length, and at least one candidate is trained to the longest, which may leave
    nothing for others.

    Args:
        costs: By length, shortest first: what each candidate costs, in the unit of the budget. Each alone is within it
            at the longest.
        budget: To spend.

    Returns:
        The candidates that begin, by their numbers, rising; and how many are trained to each length: none, or no more
        than to the one before.
    """
    dearest, left = [max(row) for row in costs], budget
    last, counts = len(costs) - 1, [0] * len(costs)
    for place in range(last, 0, -1):  # who will come that far is not known yet
        share = left / (place + 1)
        counts[place] = min(len(costs[0]), max(int(place == last), int(share / dearest[place] + ROUNDING)))
        left -= counts[place] * dearest[place]
    first = []
    for number, cost in enumerate(costs[0]):
        if cost <= left + ROUNDING:
            first.append(number)
            left -= cost
    counts[0] = len(first)
    steps = list(pairwise(place for place, count in enumerate(counts) if count))
    for before, place in steps:  # nobody goes on who has not begun
        left += max(0, counts[place] - counts[before]) * dearest[place]
        counts[place] = min(counts[place], counts[before])
    for before, place in reversed(steps):  # what is left lets more go on
        more = min(counts[before] - counts[place], int(left / dearest[place] + ROUNDING))
        counts[place] += more
        left -= more * dearest[place]
    return first or list(range(len(costs[0]))), counts


def halving(pool: Sequence[_T], counts: Sequence[int], run: Callable[[int, _T], float]) -> None:
    """Run candidates length by length; the best go on.

    Args:
        pool: Those that begin, the most promising first.
        counts: How many to run at each length, as of `schedule`.
        run: Runs one to the length of that number and returns its score, smaller is better; inf goes no further.
    """
    standing = list(pool)
    for length, count in enumerate(counts):
        scores = [run(length, each) for each in standing[:count]]
        order = sorted(range(len(scores)), key=scores.__getitem__)
        if scores:
            standing = [standing[place] for place in order if scores[place] < math.inf]
