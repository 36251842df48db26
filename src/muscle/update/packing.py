"""Which tokens of many texts need to be read only once.

Sorted, texts that begin alike are neighbours, and what neighbours share tells all: texts, as leaves, form a tree whose
inner nodes are common beginnings. `plan` cuts this tree into groups, which share a prefix that is read once and kept,
and the groups into rows, each of which is read as a tree of its own: trunk and branches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

ATTENTION = 2048
"""So many keys cost a token as much as all weights do; 6 times the hidden size, if feed-forward layers are as usual."""

PASS = 128
"""What another pass through the model costs, in tokens: below that many saved, a prefix is not kept."""


class Row(NamedTuple):
    """Neighbouring texts `start` to `stop`, read as one tree of `size` tokens beyond the group's prefix."""

    start: int
    stop: int
    size: int


@dataclass(frozen=True)
class Group:
    """Rows on top of a prefix: the first `depth` tokens of the text with number `text`."""

    text: int = 0
    depth: int = 0
    rows: list[Row] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    """Those whose prefixes begin with this one."""

    def batches(self, budget: int, tokens: int) -> Iterator[list[Row]]:
        """The rows, longest first, and no more at once than have `budget` positions, prefix and padding included.

        Nor do they have more than so many `tokens`, which are read, unless a single one does.
        """
        rows = sorted(self.rows, key=lambda row: -row.size)
        while rows:
            size = rows[0].size
            number = max(1, min(budget // (self.depth + size), tokens // size))
            yield rows[:number]
            del rows[:number]


class Texts:
    """Distinct texts in lexicographical order, and what each shares with the one before it.

    Args:
        tokens: Each text, of at least one token; no two are equal.
        unread: For each text, how many of its tokens come before the first whose state is needed: no kept prefix may be
            longer.
    """

    def __init__(self, tokens: Sequence[Integers], unread: Sequence[int]) -> None:
        keys = [each.astype(">u4").tobytes() for each in tokens]  # bytes sort as their tokens do, and faster
        self.order = sorted(range(len(tokens)), key=keys.__getitem__)
        self.tokens = [tokens[i] for i in self.order]
        self.unread = np.array([unread[i] for i in self.order])
        self.lengths = np.array([len(each) for each in self.tokens])
        self.shared = np.zeros(len(tokens), dtype=np.int64)
        for i in range(1, len(tokens)):
            self.shared[i] = common_length(self.tokens[i - 1], self.tokens[i])

    def plan(self, budget: int) -> Group:
        """The groups and rows that cost least, as far as it can be told from one level of the tree to the next.

        Args:
            budget: A row of several texts has no more positions than that, its prefix included.
        """
        keepable = self.shared.copy()  # of the common beginning of a text and the one before it
        keepable[1:] = np.minimum(keepable[1:], np.minimum(self.unread[:-1], self.unread[1:]))
        grown = np.cumsum(self.lengths - self.shared)  # tokens that no text before has
        root = Group()
        undecided = [(0, len(self.tokens), root)]
        while undecided:
            start, stop, group = undecided.pop()
            size = int(self.lengths[start] - group.depth + grown[stop - 1] - grown[start])
            whole = Row(start, stop, size)
            if stop - start == 1:
                group.rows.append(whole)
                continue
            depth = int(keepable[start + 1 : stop].min())
            starts = np.append(start, start + 1 + np.flatnonzero(keepable[start + 1 : stop] == depth))
            stops = np.append(starts[1:], stop)
            parts = self.lengths[starts] - depth + grown[stops - 1] - grown[starts]
            further = depth - group.depth
            keep = further * (len(parts) - 1) > PASS
            if keep:
                apart = PASS + _cost(further, group.depth) + _cost(parts, depth).sum()
            else:
                apart = _cost(further + parts, group.depth).sum()
            if size + group.depth <= budget and _cost(size, group.depth) <= apart:
                group.rows.append(whole)
                continue
            if keep:
                group.groups.append(Group(start, depth))
                group = group.groups[-1]
            undecided.extend((int(a), int(b), group) for a, b in zip(starts, stops, strict=True))
        return root


@dataclass(frozen=True)
class Tree:
    """Texts of one row as a tree of tokens, each after its parent: siblings' descendants do not mix."""

    tokens: Integers
    depths: Integers
    """Position of each token in its text."""
    ends: Integers
    """The descendants of token i, and it itself, are the tokens from i up to ends[i]."""
    paths: list[Integers]
    """For each text, the tokens in this row that it consists of."""


def tree(texts: Texts, row: Row, depth: int) -> Tree:
    """A row of texts without their first `depth` tokens."""
    tokens, depths, ends = np.empty((3, row.size), dtype=np.int64)
    paths: list[Integers] = []
    path, size = np.empty(0, dtype=np.int64), 0
    for i in range(row.start, row.stop):
        kept = int(texts.shared[i]) - depth if paths else 0
        new = texts.tokens[i][depth + kept :]
        ends[path[kept:]] = size
        path = np.append(path[:kept], np.arange(size, size + len(new)))
        tokens[size : size + len(new)] = new
        depths[size : size + len(new)] = np.arange(depth + kept, depth + len(path))
        size += len(new)
        paths.append(path)
    ends[path] = size
    return Tree(tokens, depths, ends, paths)


def common_length(one: Integers, other: Integers) -> int:
    """How many tokens two texts begin with alike."""
    length = min(len(one), len(other))
    differ = one[:length] != other[:length]
    return int(differ.argmax()) if differ.any() else length


def _cost(tokens: NDArray[np.int64] | int, depth: int) -> NDArray[np.float64]:
    """Of rows of so many tokens on top of a prefix, in tokens read alone."""
    tokens = np.asarray(tokens)
    cost: NDArray[np.float64] = tokens * (1 + (tokens + depth) / ATTENTION)
    return cost
