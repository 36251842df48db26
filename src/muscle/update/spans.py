"""Where in a text its tokens lie, from the offsets that fast tokenizers give."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

Spans = npt.NDArray[np.int32]
"""(T, 2): of each token the first character of the text that it holds, in whole or in part, and the one after the last.

A token that holds none, such as one that only marks an end, is as long as nothing: both numbers are the same.
"""


class SpanReader:
    """Offsets of one tokenizer as spans."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """See what the tokenizer leaves out of its offsets: byte-level ones may not count spaces around a token."""
        processor = tokenizer.backend_tokenizer.post_processor
        trims = processor is not None and b'"trim_offsets":true' in processor.__getstate__()
        self._spaces = _outer_spaces(tokenizer.get_vocab()) if trims else None

    def read(self, ids: Sequence[int], offsets: Sequence[tuple[int, int]], text: str) -> Spans:
        """Spans of a text's tokens.

        Args:
            ids: All of them; the end-of-text token may have been added after tokenizing.
            offsets: Of the tokens that tokenizing gave, in characters.
            text: What was tokenized; tokens that were put after it lie at its end.
        """
        spans = np.full((len(ids), 2), len(text), np.int32)
        told = len(offsets)
        spans[:told] = np.fromiter(chain.from_iterable(offsets), np.int32, 2 * told).reshape(-1, 2)
        if self._spaces is not None:
            _put_spaces_back(spans[:told], self._spaces[np.asarray(ids[:told], np.int64)])
        held = np.flatnonzero(spans[:told, 1])
        spans[held[-1] + 1 if len(held) else 0 : told] = len(text)  # added ones have (0, 0), wherever they are
        if not text.isascii():
            _put_marks_back(spans, text)
        return spans


def _outer_spaces(vocabulary: dict[str, int]) -> npt.NDArray[np.int32]:
    """(V, 3): of each token how many spaces it begins with, how many it ends with, and whether it has nothing else.

    As the tokenizers library counts them: its byte-level vocabulary writes a space as "Ġ", and added tokens as it is.
    """
    spaces = np.zeros((max(vocabulary.values(), default=-1) + 1, 3), np.int32)
    for token, number in vocabulary.items():
        if token[:1] == "Ġ" or token[-1:] == "Ġ" or token[:1].isspace() or token[-1:].isspace():
            plain = token.replace("Ġ", " ")
            begins, ends = (len(plain) - len(stripped) for stripped in (plain.lstrip(), plain.rstrip()))
            spaces[number] = begins, ends, not plain.strip()
    return spaces


def _put_spaces_back(spans: Spans, spaces: npt.NDArray[np.int32]) -> None:
    """Undo `trim_offsets` of byte-level post-processors, in place.

    They move both ends of a token over its spaces, as far as the other end. Of the text's first token one space may be
    left, or be no part of the text at all: hence the limits at 0, and of a token of spaces alone at their number.
    """
    starts, ends = spans.T
    begins_with, ends_with, alone = spaces.T
    whole = np.where(alone, np.maximum(ends, ends_with), ends + ends_with)
    starts[:] = np.maximum(np.where(alone, whole - begins_with, starts - begins_with), 0)
    ends[:] = whole


def _put_marks_back(spans: Spans, text: str) -> None:
    """Let tokens hold the marks that follow their letters, in place.

    Where a tokenizer normalises "e" and an accent to "é", or drops the accent, it says that only the "e" was there.
    """
    ends = np.maximum.accumulate(spans[:, 1])
    for token in np.flatnonzero(ends[:-1] < spans[1:, 0]).tolist():
        first, end, last = (int(place) for place in (ends[token], ends[token], spans[token + 1, 0]))
        while end < last and unicodedata.category(text[end]).startswith("M"):
            end += 1
        if end > first:  # one letter may be several tokens, of some bytes each
            before = spans[: token + 1]
            before[(before[:, 1] == first) & (before[:, 0] < first), 1] = end
