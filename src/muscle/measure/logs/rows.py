"""What readers yield: one row per item and draw; and how its cells become values."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from muscle.errors import LogError, quoted
from muscle.measure.predictions import RIGHT, UNSCORED, WRONG

_OUTCOME_TEXTS = {"true": RIGHT, "1": RIGHT, "1.0": RIGHT, "false": WRONG, "0": WRONG, "0.0": WRONG, "": UNSCORED}
OUTCOMES: Mapping[object, int] = {1: RIGHT, 0: WRONG, None: UNSCORED}
"""What nearly every cell is, to look up before asking `as_outcome`; True and 1.0 are the key 1."""
_WHOLE_FLOAT = re.compile(r"(-?[0-9]+)\.0")
_LONGEST_LIST = 1 << 17
_UNSCORED_REMEDY = "remove it, or write null to mark the item as unscored"


Duplicates = Literal["error", "first", "last", "draws"]
"""What rows of one id with different outcomes are: a fault, a choice of one, or several draws of the item."""


@dataclass(frozen=True)
class Selection:
    """What to read from a log, where it offers a choice."""

    format: str | None = None
    """Name of the format; None recognises it."""
    metric: str | None = None
    """The metric that says right or wrong; None takes each task's first."""
    filter: str | None = None
    """The lm-eval filter whose rows to read; None takes each task's first."""
    score: str | None = None
    """The metric or column that grades an answer; None takes a table's `score`, elsewhere nothing."""
    text_score: str | None = None
    """Grade computed from the texts of answer and target, by its name in `similarity.TEXT_SCORES`."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Of a table: our name of a column (id, correct, ...) -> the table's own."""
    labels: tuple[str, ...] = ()
    """Columns to slice or cluster by: of a table by name, elsewhere a dotted path such as doc.subject."""
    numeric: bool = False
    """Whether answers that are the same number ("18", "18.0") are the same answer."""
    duplicates: Duplicates = "error"


@dataclass(frozen=True)
class Task:
    """What the rows of one task have in common."""

    name: str
    """Empty where the log does not say."""
    metric: str | None = None
    filter: str | None = None
    score: str | None = None
    """What grades the answers; None where nothing does."""
    repeat_remedy: str = "keep one row per id, or choose with --duplicates"
    """The way out where an item occurs twice with different outcomes."""


class Row(msgspec.Struct, gc=False):
    """One answer of a model, as a reader found it."""

    task: Task
    file: Path
    line: int
    """Line or number of the row in the file, from 1, for messages."""
    id: str
    correct: int = UNSCORED
    answer: str | None = None
    """The predicted answer; where texts are wanted for showing, in the words that a person reads."""
    targets: tuple[str, ...] = ()
    """The true answers; none where the log does not say."""
    score: float = math.nan
    draw: int = 0
    doc_hash: str | None = None
    labels: tuple[str | None, ...] = ()
    """Cells of the columns in Selection.labels."""
    input: str | None = None
    """The question; only where texts are wanted."""


class Rows(NamedTuple):
    """Rows of one task and file in columns that are named after Row's fields: what a million rows are handed on as."""

    task: Task
    file: Path
    line: Sequence[int]
    id: Sequence[str]
    correct: Sequence[int]
    answer: Sequence[str | None]
    targets: Sequence[tuple[str, ...]]
    score: Sequence[float]
    draw: Sequence[int]
    doc_hash: Sequence[str | None]
    labels: Sequence[tuple[str | None, ...]]
    input: Sequence[str | None]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Rows":
        """Rows of one task and file, at least one, as columns."""
        _, _, *columns = zip(*map(msgspec.structs.astuple, rows), strict=True)
        return cls(rows[0].task, rows[0].file, *columns)

    def each(self) -> Iterator[Row]:
        """The rows one by one."""
        return map(Row, repeat(self.task), repeat(self.file), *self[2:])


class BadRowError(Exception):
    """What is wrong with one row, ending with the remedy; readers add file and line and raise LogError."""


def as_id(value: object) -> str:
    """Canonical text of an item's id: 1, 1.0 and their texts are the same item.

    CSV knows only text, and pandas turns a column of integers into floats as soon as one is missing.

    Raises:
        BadRowError: The id is missing, or not a text or number.
    """
    if type(value) is int:  # not bool
        return str(value)
    if value is None or value == "" or value != value:
        raise BadRowError("the row has no id; give every row the id of its item")
    if isinstance(value, bool | list | dict):
        raise BadRowError(f"the id is {quoted(value)}; an id must be a text or a number")
    text = str(value)
    if not text.endswith(".0"):
        return text
    whole = _WHOLE_FLOAT.fullmatch(text)
    return whole[1] if whole else text


def as_text(value: object) -> str | None:
    """Text of an answer or target for comparison.

    None stays None (missing); lists and mappings become JSON; a number that is whole loses its ".0", since then the log
    itself says that it is a number.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list | dict):
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    text = str(value)
    whole = _WHOLE_FLOAT.fullmatch(text) if isinstance(value, float) else None
    return whole[1] if whole else text


def as_outcome(value: object, name: str, remedy: str = "write true, false, 1, 0, or null for unscored") -> int:
    """RIGHT, WRONG or UNSCORED for a cell such as true, 0, 1.0, "False", null or an empty text.

    Args:
        value: The cell as read.
        name: The cell's field, for the message.
        remedy: The way out, where the value is neither right nor wrong.

    Raises:
        BadRowError: The value is NaN or anything else.
    """
    try:
        return OUTCOMES[value]
    except (KeyError, TypeError):  # TypeError: a list or mapping cannot be looked up
        pass
    if isinstance(value, str):
        text = value.strip().lower()
        if text in _OUTCOME_TEXTS:
            return _OUTCOME_TEXTS[text]
    if _is_nan(value):
        raise BadRowError(f"{name} is NaN; {_UNSCORED_REMEDY}")
    raise BadRowError(f"{name} is {quoted(value)}, neither right nor wrong; {remedy}")


def as_score(value: object, name: str = "score") -> float:
    """A graded score as a number; NaN where the log has none (null or empty).

    Args:
        value: The cell as read.
        name: The cell's field, for the message.

    Raises:
        BadRowError: The log itself says NaN, or the value is no number.
    """
    if value is None or value == "":
        return math.nan
    if _is_nan(value):
        raise BadRowError(f"{name} is NaN; remove it, or write null where there is no score")
    try:
        score = float(value)  # type: ignore[arg-type]  # whatever float refuses is refused here
        if math.isfinite(score):
            return score
    except (TypeError, ValueError, OverflowError):
        pass
    raise BadRowError(f"{name} is {quoted(value)}; write a number, or null where there is no score")


def _is_nan(value: object) -> bool:
    return value != value or (isinstance(value, str) and value.strip().lower() == "nan")


def inside(value: object, path: Sequence[str]) -> object:
    """What stands at a path into nested objects; None where it breaks off."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def listed(names: Iterable[str]) -> list[str]:
    """The names, though not more than some 100,000 characters: with a long prefix each they would fill the memory."""
    found, room = [], _LONGEST_LIST
    for name in names:
        room -= len(name)
        if room < 0:
            break
        found.append(name)
    return found


def located(file: Path, line: int, fault: BadRowError) -> LogError:
    """The fault of a row as the error that a user sees."""
    return LogError(f"{file}:{line}: {fault}")
