"""Texts and columns packed for a browser: shortened, deflated, small enough, and unpacked there a block at a time."""

import base64
import json
import zlib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from muscle.measure.predictions import Texts

_LENGTHS = (2000, 1400, 1000, 700, 500, 350, 250, 180, 120, 60)
LIMITS = (
    *((_LENGTHS[0], length) for length in _LENGTHS),
    *((length, _LENGTHS[-1]) for length in _LENGTHS[1:]),
    (30, 30),
    (0, 0),
)
"""Longest texts in characters, of flips and of all others: the first pair with which the page is small enough.

Flips are what people read, so their texts are cut last."""

CUT = " [...] "
"""Stands where the middle of a text was."""

SNIPPETS = (100, 60, 40, 20, 0)
"""The same of the texts in the list, which has one line for each instance."""

BLOCK = 256
"""Instances whose texts are unpacked together: few enough to be instant, enough to compress well."""

_TRIED = 16  # blocks packed to estimate the size of all
_TRIED_ROWS = 4000  # the same of lines of the list
_MARGIN = 1.02  # of estimates
_PIECE = 400  # characters of a text, from which a snippet is made


@dataclass(frozen=True)
class Packed:
    """The texts of all instances."""

    blocks: Sequence[str]
    limits: tuple[int, int]
    """Characters that longer texts are cut to: of flips, and of all others."""
    cut: int
    """Texts that are cut."""


def pack(document: object) -> str:
    """JSON, deflated, in base64: what every browser unpacks by itself, and nothing that HTML could mistake."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode(), 6)).decode()


def pack_texts(texts: Sequence[Sequence[Texts]], flips: Sequence[bool], roles: Sequence[str], size: int) -> Packed:
    """Pack the texts of each instance, by role, into `size` bytes: whole, or shortened to what fits."""
    starts = range(0, len(texts), BLOCK)
    tried = starts[:: max(1, len(starts) // _TRIED)]

    def block(start: int, limits: tuple[int, int]) -> str:
        rows = slice(start, start + BLOCK)
        return _block(texts[rows], [limits[0] if flip else limits[1] for flip in flips[rows]], roles)

    def fits(limits: tuple[int, int]) -> bool:
        return _MARGIN * sum(len(block(start, limits)) for start in tried) * len(starts) <= size * len(tried)

    for limits in LIMITS[bisect_left(LIMITS[:-1], True, key=fits) :]:
        blocks = [block(start, limits) for start in starts]
        if sum(map(len, blocks)) <= size:
            break
    cut = sum(
        len(text) > limits[not flip]
        for sides, flip in zip(texts, flips, strict=True)
        for side in sides
        for text in side
        if text
    )
    return Packed(blocks, limits, cut)


def shorten(text: str, limit: int) -> str:
    """The text, or its two ends: a question stands last in its prompt, and an answer last in its reasoning."""
    if len(text) <= limit:
        return text
    head = limit // 3
    return text[:head] + CUT + text[len(text) - limit + head :]


def well_formed(text: str) -> str:
    """The text with the halves of surrogate pairs, which no page can hold, as Python escapes them."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def shortened_columns(columns: Mapping[str, Sequence[str | None]], size: int) -> dict[str, dict[str, Any]]:
    """The texts of the list, by column, each on a line as long as fits into `size` bytes once packed."""
    rows = max(1, *map(len, columns.values()))
    step = max(1, rows // _TRIED_ROWS)
    for limit in SNIPPETS:
        tried = [[snippet(text, limit) for text in column[::step]] for column in columns.values()]
        if len(pack(tried)) * step <= size:
            break
    return {name: coded([snippet(text, limit) for text in column]) for name, column in columns.items()}


def snippet(text: str | None, limit: int) -> str | None:
    """The beginning of the text on one line."""
    if text is None:
        return None
    line = " ".join(text[:_PIECE].split())
    return line if len(line) <= limit and len(text) <= _PIECE else line[:limit] + "…"


def without_shared_head(texts: Sequence[str | None]) -> list[str | None]:
    """Texts of one task without the instruction that all of them begin with."""
    known = [text for text in texts if text]
    first, last = (min(known), max(known)) if known else ("", "")
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    while shared and not known[0][shared - 1].isspace():  # never begin within a word
        shared -= 1
    return [text and text[shared : shared + _PIECE] for text in texts]


def coded(values: Sequence[str | None]) -> dict[str, Any]:
    """Each different value once, and its place there for every row."""
    places: dict[str | None, int] = {}
    index = [places.setdefault(value, len(places)) for value in values]
    return {"values": list(places), "index": index}


def _block(texts: Sequence[Sequence[Texts]], limits: Sequence[int], roles: Sequence[str]) -> str:
    """Every different text of these instances once, in order of use: likely repetitions lie close together."""
    places: dict[str, int] = {}
    columns: dict[str, dict[str, list[int]]] = {role: {field: [] for field in Texts._fields} for role in roles}
    for sides, limit in zip(texts, limits, strict=True):
        for field in Texts._fields:
            for role, side in zip(roles, sides, strict=True):
                text = getattr(side, field)
                place = -1 if text is None else places.setdefault(shorten(text, limit), len(places))
                columns[role][field].append(place)
    return pack({"texts": list(places), "columns": columns})
