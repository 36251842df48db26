"""Texts as token ids, with the labels that say which tokens are learnt, and as padded batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from muscle.errors import MuscleError
from muscle.measure.statistics import IntArray
from muscle.update.prompts import Example
from muscle.update.spans import SpanReader, Spans

IGNORED = -100
"""Label of a position that is no target: padding, and the first token of a sequence."""


class TokenizedExamples(Dataset[dict[str, Tensor]]):
    """Examples as token ids: context and answer tokenized as one text, closed by the end-of-text token.

    Rows hold `input_ids` and `labels` (T,); `index` (), the position in the data set, by which cached teachers find
    their row; `item` (), which item of `items` the text belongs to; and `right` (), whether it is that item's gold
    text. With tokens="all" every token but the first is a target, context and answer alike, as the paper has it for the
    compatibility adapter (appendix A.1); where an item has several texts, its context counts in each. With "answer"
    only tokens that hold a character of the answer are, and the end-of-text token: a token that runs from the context
    into the answer is a target.
    """

    def __init__(
        self, rows: list[Example], tokenizer: PreTrainedTokenizerBase, tokens: Literal["all", "answer"] = "all"
    ) -> None:
        """Tokenize; a text that begins with the begin-of-text token, by its chat template, does not get another.

        Raises:
            MuscleError: The tokenizer has no end-of-text token, or cannot tell where in the text its tokens lie.
        """
        if tokenizer.eos_token_id is None:
            raise MuscleError(f"tokenizer {tokenizer.name_or_path} has no end-of-text token: set its eos_token")
        if tokens == "answer" and not tokenizer.is_fast:
            raise MuscleError(f"tokenizer {tokenizer.name_or_path} gives no character offsets: set tokens to all")
        self.rows = rows
        self.ids: list[list[int]] = []
        self.unknown = tokenizer.unk_token_id if tokenizer.unk_token_id != tokenizer.eos_token_id else None
        """The token that stands for what the tokenizer cannot say; None: it says all."""
        self.spans: list[Spans] | None = [] if tokenizer.is_fast else None
        """Of each text where in context and answer its tokens lie; None where the tokenizer cannot tell."""
        self._first_targets: list[int] = []
        self._items = _numbered([row.item for row in rows])
        reader = SpanReader(tokenizer) if tokenizer.is_fast else None
        for row, ids, offsets in _tokenized(rows, tokenizer):
            if ids[-1:] != [tokenizer.eos_token_id]:
                ids.append(tokenizer.eos_token_id)
            self.ids.append(ids)
            if reader and self.spans is not None:
                self.spans.append(reader.read(ids, offsets, row.context + row.answer))
            ends = [end for _, end in offsets] if tokens == "answer" else []
            before = (place for place, end in enumerate(ends) if end > len(row.context))
            self._first_targets.append(max(1, next(before, len(ends))))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = torch.tensor(self.ids[index])
        labels = ids.clone()
        labels[: self._first_targets[index]] = IGNORED
        return {
            "input_ids": ids,
            "labels": labels,
            "index": torch.tensor(index),
            "item": torch.tensor(self._items[index]),
            "right": torch.tensor(self.rows[index].right),
        }

    @property
    def items(self) -> list[list[int]]:
        """The texts of each item, by their positions; items are numbered in the order of their first texts."""
        texts: dict[int, list[int]] = {}
        for text, item in enumerate(self._items):
            texts.setdefault(item, []).append(text)
        return list(texts.values())

    @property
    def targets(self) -> list[int]:
        """How many targets each text has."""
        return [len(ids) - first for ids, first in zip(self.ids, self._first_targets, strict=True)]

    @property
    def gold(self) -> IntArray:
        """The targets of all texts, one text after the other, (N,)."""
        found = (ids[first:] for ids, first in zip(self.ids, self._first_targets, strict=True))
        return np.fromiter(chain.from_iterable(found), np.int64)


def _tokenized(
    rows: list[Example], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[Example, list[int], list[tuple[int, int]]]]:
    """The ids of each text, and the offsets that a fast tokenizer gives.

    Many texts at once save time, and not all at once memory: what a tokenizer returns is large.
    """
    for some in (rows[first : first + 1000] for first in range(0, len(rows), 1000)):
        texts = [row.context + row.answer for row in some]
        has_bos = [bool(tokenizer.bos_token) and text.startswith(str(tokenizer.bos_token)) for text in texts]
        encoded: dict[int, tuple[list[int], list[tuple[int, int]]]] = {}
        for own in {*has_bos}:
            alike = [place for place, bos in enumerate(has_bos) if bos == own]
            batch = tokenizer(
                [texts[place] for place in alike],
                add_special_tokens=not own,
                return_offsets_mapping=tokenizer.is_fast,
            )
            offsets = batch["offset_mapping"] if tokenizer.is_fast else [[] for _ in alike]
            encoded.update(zip(alike, zip(batch["input_ids"], offsets, strict=True), strict=True))
        for place, row in enumerate(some):
            ids, offsets = encoded[place]
            yield row, list(ids), offsets


def _numbered(names: Sequence[int | None]) -> list[int]:
    """Numbers from 0 on, in order of appearance: equal ones for equal names, and another for each None."""
    seen: dict[object, int] = {}
    return [seen.setdefault(object() if name is None else name, len(seen)) for name in names]


@dataclass(frozen=True)
class PaddingCollator:
    """Right-pad a batch: `input_ids`, `attention_mask`, `labels` (B, T); `index`, where given `item`, `right` (B,)."""

    pad_id: int

    def __call__(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Stack rows of unequal length."""
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        return {
            "input_ids": pad_sequence([row["input_ids"] for row in rows], True, self.pad_id),
            "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
            "labels": pad_sequence([row["labels"] for row in rows], True, IGNORED),
        } | {name: torch.stack([row[name] for row in rows]) for name in ("index", "item", "right") if name in rows[0]}
