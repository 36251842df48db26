"""What one model said about the items of a task, in columns: small enough for 10^7 rows, texts stay in the log."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RIGHT, WRONG, UNSCORED = 1, 0, -1
MISSING = 0
"""The key of a text that is not there."""


class Texts(NamedTuple):
    """What a page shows of one item in one log; None where the log does not hold it."""

    input: str | None
    target: str | None
    answer: str | None


@dataclass(frozen=True)
class Predictions:
    """One model on one task: columns of equal length, one row per item and draw, in the order of the log.

    Texts are kept as keys: equal texts have equal keys within one process, and MISSING is no text.
    """

    task: str
    """The task's name; empty where the log does not say."""
    metric: str | None
    """The metric that says right or wrong; None where the log has no choice of them."""
    filter: str | None
    """The lm-eval filter whose rows these are; None where the log names none."""
    score: str | None
    """What grades the answers; None where nothing does."""
    ids: list[str]
    """Unique within the task together with the draw."""
    draws: NDArray[np.int32]
    """(N,) which of several draws of the item; 0 where it was asked once."""
    correct: NDArray[np.int8]
    """(N,) RIGHT, WRONG or UNSCORED."""
    scores: NDArray[np.float64]
    """(N,) graded quality; NaN where there is none."""
    answers: NDArray[np.int64]
    """(N,) keys of the predicted answers."""
    numbers: NDArray[np.int64]
    """(N,) the same, with answers that are one number in different letters ("18", "18.0") made equal."""
    targets: NDArray[np.int64]
    """(N,) keys of the true answers."""
    doc_hashes: NDArray[np.uint64]
    """(N,) head of the hash of the item's content; 0 where the log has none."""
    labels: Mapping[str, list[str | None]]
    """By column name: what to slice or cluster by, a text per row."""
    repeated: int
    """Rows that occurred again with the same outcome and were read once."""
    conflicting: int
    """Rows that occurred again with another outcome, of which the user's choice was read."""

    def emptied(self) -> "Predictions":
        """The same task without a row."""
        columns = {field.name: getattr(self, field.name)[:0] for field in fields(self) if field.name in _COLUMNS}
        return replace(self, **columns, labels={name: [] for name in self.labels}, repeated=0, conflicting=0)


_COLUMNS = {"ids", "draws", "correct", "scores", "answers", "numbers", "targets", "doc_hashes"}


@dataclass(frozen=True)
class Log:
    """Everything read from one source: the predictions of one model, by task."""

    path: str
    """As the user named it; "-" for standard input, "<DataFrame>" and the like for a Python object."""
    format: str
    sha256: str
    tasks: Mapping[str, Predictions]
    notes: tuple[str, ...]
    """Choices made while reading that a user should know of."""

    @property
    def rows(self) -> int:
        """Number of rows in all tasks, repeated ones counted once."""
        return sum(len(task.ids) for task in self.tasks.values())
