"""What one model said about the items of a task, in columns; every reader fills these and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RIGHT, WRONG, UNSCORED = 1, 0, -1


@dataclass(frozen=True)
class Predictions:
    """One model on one task: columns of equal length, one row per item, in the order of the log."""

    task: str
    """The task's name; empty where the log does not say."""
    metric: str | None
    """The metric that says right or wrong; None where the log has no choice of them."""
    filter: str | None
    """The lm-eval filter whose rows these are; None where the log names none."""
    ids: list[str]
    """Unique within the task."""
    correct: NDArray[np.int8]
    """(N,) RIGHT, WRONG or UNSCORED."""
    scores: NDArray[np.float64]
    """(N,) graded quality; NaN where the log has none."""
    answers: list[str | None]
    """The predicted answer as text; None where it is missing."""
    targets: list[str | None]
    """The true answer as text; None where it is missing."""
    doc_hashes: NDArray[np.uint64]
    """(N,) head of the hash of the item's content; 0 where the log has none."""
    repeated: int
    """Rows that occurred again with the same outcome and were read once."""


@dataclass(frozen=True)
class Log:
    """Everything read from one path: the predictions of one model, by task."""

    path: str
    format: str
    sha256: str
    tasks: Mapping[str, Predictions]
    notes: tuple[str, ...]
    """Choices made while reading that a user should know of."""

    @property
    def rows(self) -> int:
        """Number of items in all tasks, repeated rows counted once."""
        return sum(len(task.ids) for task in self.tasks.values())
