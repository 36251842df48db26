"""The rows of a batch, positions whose next token is a target: what they belong to, and what teachers say of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from muscle.update.heads import Head
from muscle.update.tokenized import IGNORED

Outcome = tuple[Tensor, Tensor, dict[str, Tensor]]
"""What the rows of a batch come to: (sum in nats, number of target positions, statistics).

Statistics are scalars without a graph, sums over the target positions: divided by the number they can be logged.
"""


@dataclass(frozen=True)
class Targets:
    """The n target positions of a batch, row by row."""

    gold: Tensor
    """Token ids (n,)."""
    sequence: Tensor
    """Which text of the batch, (n,)."""
    before: Tensor
    """Where in the text the logits stand that predict the token, one before it, (n,)."""
    item: Tensor
    """Which item of the training set, (n,)."""
    right: Tensor
    """Whether the text is its item's right one, bool (n,)."""

    @classmethod
    def of(cls, batch: Mapping[str, Tensor]) -> Targets:
        """Without `item` and `right` (B,) in the batch each text is an item of its own, and right."""
        following = batch["labels"][:, 1:]
        sequence, before = (following != IGNORED).nonzero(as_tuple=True)
        texts = torch.arange(len(following), device=following.device)
        item, right = batch.get("item", texts), batch.get("right", torch.ones_like(texts))
        return cls(following[sequence, before], sequence, before, item[sequence], right[sequence].bool())

    @property
    def count(self) -> Tensor:
        """n, without dimensions."""
        return self.gold.new_tensor(len(self.gold))

    @property
    def facts(self) -> dict[str, Tensor]:
        """What weights may read about the rows, whatever the models say."""
        return {
            "targets": self.gold,
            "sequence": self.sequence,
            "item": self.item,
            "right": self.right,
            "tokens": torch.ones_like(self.gold),
        }

    def of_states(self, hidden: Tensor) -> Tensor:
        """(B, T, H) -> (n, H)."""
        return hidden[self.sequence, self.before]

    @cached_property
    def text(self) -> Tensor:
        """Number of the text among the m texts that have targets, (n,)."""
        text: Tensor = torch.unique(self.sequence, return_inverse=True)[1]
        return text

    @cached_property
    def right_texts(self) -> Tensor:
        """Bool (m,)."""
        return sums(self.right.float(), self.text) > 0

    @cached_property
    def item_of_text(self) -> Tensor:
        """Number of the item among those that have targets, (m,)."""
        items: Tensor = torch.unique(self.item, return_inverse=True)[1]
        return items.new_zeros(len(self.right_texts)).scatter_(0, self.text, items)


@dataclass(frozen=True)
class TeacherRows:
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
class ChunkRows:
    """What an old teacher of another tokenizer says of the c chunks of a batch, stretches of its texts."""

    chunk: Tensor
    """Number of the chunk that holds each row's token, (n,); -1: none."""
    likelihood: Tensor
    """Log-likelihood of each chunk's gold text, in nats, (c,)."""
    right: Tensor
    """Whether each of the teacher's tokens there is its most likely one, bool (c,)."""
    alone: TranslatedRows | None = None
    """What it says of all tokens where a chunk is one token on both sides; None: only the likelihood counts."""

    def part(self, rows: slice) -> ChunkRows:
        """Of some rows, their chunks numbered anew."""
        chunk = self.chunk[rows]
        inside = chunk >= 0
        # those of a text follow each other, so that where the number changes the next chunk begins
        numbers, local = torch.unique_consecutive(chunk[inside], return_inverse=True)
        return ChunkRows(
            torch.full_like(chunk, -1).masked_scatter(inside, local),
            self.likelihood[numbers],
            self.right[numbers],
            self.alone and replace(self.alone, place=self.alone.place[rows]),
        )

    @property
    def first(self) -> Tensor:
        """The first row of each chunk, (c,)."""
        numbers = torch.arange(len(self.likelihood), device=self.chunk.device)
        return torch.searchsorted(self.chunk.cummax(0).values, numbers)

    def of_rows(self, numbers: Tensor, outside: float) -> Tensor:
        """Each row's of its chunk, (n,), of numbers (c,)."""
        inside = self.chunk >= 0
        found = numbers.new_full((len(self.chunk),), outside)
        found[inside] = numbers[self.chunk[inside]]
        return found


@dataclass(frozen=True)
class TranslatedRows:
    """What an old teacher of another tokenizer says of rows whose token is one of its own tokens, too."""

    place: Tensor
    """Which of the m states belongs to each row, (n,); -1: none."""
    states: Tensor
    """Final hidden states (m, H)."""
    head: Head
    translation: Callable[[Tensor, Tensor, float], Tensor]
    """See `translations.Translation`."""

    @torch.no_grad()
    def logits(self, student: Tensor, rows: slice, temperature: float) -> Tensor:
        """Of some rows in the student's tokens, (c, S), given the student's own; 0 where the teacher says nothing."""
        place = self.place[rows]
        known = (place >= 0).nonzero()[:, 0]
        with torch.autocast(self.states.device.type, enabled=False):
            said = self.head(self.states[place[known]])
            translated = self.translation(said, student[known], temperature)
        found = student.new_zeros(student.shape, dtype=translated.dtype)
        return found.index_copy_(0, known, translated)


def sums(numbers: Tensor, group: Tensor) -> Tensor:
    """Sum over each group, (groups,), of numbers (n,); groups are numbered from 0, (n,)."""
    return numbers.new_zeros(int(group.max()) + 1 if len(group) else 0).index_add(0, group, numbers)


def log_softmax_within(numbers: Tensor, group: Tensor) -> Tensor:
    """Log-softmax of numbers (n,) over the members of each group, (n,)."""
    start = numbers.new_zeros(int(group.max()) + 1 if len(group) else 0)
    centred = numbers - start.scatter_reduce(0, group, numbers, "amax", include_self=False)[group]
    return centred - sums(centred.exp(), group).log()[group]
