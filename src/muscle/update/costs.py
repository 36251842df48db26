"""What the candidates of a search are trained with, and what that costs.

Costs are counted in tokens through the student; one unit is one alignment as the settings have it, on gold texts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from muscle.update.adapters import Size, training_size
from muscle.update.alignment_settings import AlignmentSettings
from muscle.update.candidates import Candidate
from muscle.update.recipe import Base, TrainingSettings
from muscle.update.settings import merged
from muscle.update.tasks import Task
from muscle.update.training_arguments import batches_per_epoch, check_warmup


class Costs:
    """Settings and costs of candidates at each length, which is a share of the full training, in (0, 1].

    Args:
        base: Whose tokenizer counts.
        task: What is learnt.
        alignment: What candidates change.
        settings: Of the full training.

    Raises:
        MuscleError: The task's data cannot be loaded, or the warm-up is never over.
    """

    def __init__(self, base: Base, task: Task, alignment: AlignmentSettings, settings: TrainingSettings) -> None:
        self._base, self._task, self._alignment, self._settings = base, task, alignment, settings
        self._sizes: dict[str, Size] = {}
        self._gold = self._size(Candidate("gold", {"texts": "gold", "unlabelled": False}))
        check_warmup(settings, batches_per_epoch(settings, self._gold.items))
        self.unit = settings.epochs * self._gold.tokens
        """Tokens of one alignment."""

    def tokens(self, candidate: Candidate, length: float) -> int:
        """Through the student in training."""
        return self._epochs(candidate, length) * self._size(candidate).tokens

    def cost(self, candidate: Candidate, length: float) -> float:
        """The same in units of one alignment."""
        return self.tokens(candidate, length) / self.unit

    def settings(self, candidate: Candidate, length: float) -> tuple[AlignmentSettings, TrainingSettings]:
        """What a trial is trained with: its warm-up is as large a part of its steps as it is of the full training."""
        cache = "off" if self._alignment.teacher_cache == "off" else "disk"  # which all trials share
        alignment = merged(self._alignment, candidate.alignment, {"search": None, "teacher_cache": cache})
        epochs = self._epochs(candidate, length)
        share = epochs * self._steps(self._size(candidate)) / (self._settings.epochs * self._steps(self._gold))
        changes = {
            "epochs": epochs,
            "warmup_steps": int(self._settings.warmup_steps * share),
            "select_by": "flips",
            "early_stopping": None,
        }
        return alignment, merged(self._settings, candidate.training, changes)

    def distinct(self, pool: Sequence[Candidate]) -> list[Candidate]:
        """The first of those that are trained alike."""
        found: dict[str, Candidate] = {}
        for candidate in pool:
            key = json.dumps([settings.as_dict() for settings in self.settings(candidate, 1.0)])
            found.setdefault(key, candidate)
        return list(found.values())

    def lengths(self, pool: Sequence[Candidate], lengths: Sequence[float]) -> list[float]:
        """Those of `lengths`, less those at which nobody of the pool is trained differently than at the next."""
        epochs = [[self._epochs(each, length) for each in pool] for length in lengths]
        last = len(lengths) - 1
        return [length for i, length in enumerate(lengths) if i == last or epochs[i] != epochs[i + 1]]

    def _epochs(self, candidate: Candidate, length: float) -> int:
        return max(1, int(length * self.unit / self._size(candidate).tokens + 0.5))

    def _steps(self, size: Size) -> int:
        """Of an epoch."""
        return -(-batches_per_epoch(self._settings, size.items) // self._settings.accumulation)

    def _size(self, candidate: Candidate) -> Size:
        alignment = merged(self._alignment, candidate.alignment, {"search": None})
        tokens = merged(self._settings, candidate.training).tokens
        kind = json.dumps([alignment.texts, alignment.unlabelled, tokens])
        if kind not in self._sizes:
            self._sizes[kind] = training_size(self._base, self._task, alignment, tokens)
        return self._sizes[kind]
