"""Trials of a search: what is known of each, and the record of all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec

from muscle.update.alignment_settings import SearchSettings
from muscle.update.judging import Figures
from muscle.update.report.search import TRIAL

LENGTHS = {0.25: "a quarter of the length", 0.5: "half the length", 1.0: "full length"}


class Trial(msgspec.Struct, frozen=True):
    """A candidate that was trained to some length."""

    name: str
    alignment: dict[str, Any]
    """Keys of `alignment` that it changes."""
    training: dict[str, Any]
    """Keys of `training` that it changes, its length among them."""
    length: float
    """Of the full training, in (0, 1]."""
    epochs: int
    best_epoch: int | None
    """None where it failed."""
    tokens: int
    """Through the student in training."""
    cost: float
    """The same in units of one alignment."""
    seconds: float
    """Of its training and evaluations, since it was last started."""
    figures: Figures | None
    """None where it failed."""
    admissible: bool
    score: float | None
    """By which trials are ranked, smaller is better: see `judging.Judge.score`; None where it failed."""
    folder: str
    failed: str | None = None
    """Why it came to nothing."""

    @property
    def rank(self) -> float:
        """Its score; of one that failed, infinite."""
        return math.inf if self.score is None else self.score

    @property
    def words(self) -> str:
        """What it is."""
        return f"{self.name}, {length_in_words(self.length)}"


class SearchRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The content of search.json. What an older program left out has a default."""

    search: SearchSettings
    unit_tokens: int
    """Of one alignment."""
    budget_used: float
    """In units of one alignment."""
    graded: bool
    """Whether answers have grades, not only right and wrong."""
    old: Figures
    new: Figures
    trials: list[Trial]
    """In the order in which they were trained."""
    chosen: int | None
    """Number of the one that is kept; None: the new task adapter as it is."""
    why: str
    warning: str | None = None


def length_in_words(length: float) -> str:
    """A share of the full training."""
    return LENGTHS.get(length, f"{length:g} of the length")


def read_trial(folder: Path) -> Trial | None:
    """The trial of that folder, if it is done."""
    file = folder / TRIAL
    return msgspec.json.decode(file.read_bytes(), type=Trial) if file.exists() else None
