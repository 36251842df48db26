"""How good a compatibility adapter is on the held-out items: few negative flips, and accuracy above a floor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import numpy as np
from torch import nn

from muscle.errors import MuscleError
from muscle.measure.report.files import replace_whole
from muscle.measure.statistics import (
    CONFIDENCE,
    ROUNDING,
    FloatArray,
    Interval,
    clustered_difference_error,
    normal_quantile,
    wilson_interval,
)
from muscle.update.alignment_settings import SearchSettings
from muscle.update.distributed import processes

BELOW_FLOOR = 1000.0
"""Added to the score of a model whose accuracy is below the floor: more than any share of flips."""
TIE = 1e-6
"""What a point of the second criterion weighs: less than one item of the first."""

Scores = Mapping[int, float]
"""Of each held-out item by its number; larger is better."""


class Figures(msgspec.Struct, frozen=True):
    """A model on the held-out items, against the old and the new task model."""

    items: int
    accuracy: float
    """Share of right answers, or mean grade."""
    accuracy_interval: Interval
    """At 95 %: Wilson's, or mean plus and minus 1.96 standard errors of grades."""
    nfr: float
    """Negative flip rate against the old model; share of items whose grade fell."""
    nfr_interval: Interval
    """Wilson's at 95 %."""
    relative_nfr: float | None
    """NFR over that of independent errors; None where that is 0, and of grades."""
    fixed: int
    """Negative flips of the new model that this one does not have."""
    made: int
    """Its own, which the new model does not have."""
    shortfall: float
    """How far its accuracy lies below the floor; 0 where it does not."""

    @property
    def admissible(self) -> bool:
        """Whether its accuracy is not below the floor."""
        return self.shortfall == 0


class Judge:
    """Measures and ranks models by their scores on the held-out items.

    Args:
        old: The old task model's.
        new: The new one's, on the same items.
        search: What is to be small, and where the floor is.

    Raises:
        MuscleError: There are no items, or relative NFR is asked for of grades.
    """

    def __init__(self, old: Scores, new: Scores, search: SearchSettings) -> None:
        if not old:
            raise MuscleError("no item is held out to choose by: raise validation_share, or choose another method")
        self._items, self.search = sorted(old), search
        self._old, self._new = self._column(old), self._column(new)
        self.graded = not {*self._old.tolist(), *self._new.tolist()} <= {0.0, 1.0}
        """Whether items have grades, of which 0 and 1 are not all."""
        if self.graded and search.aim == "relative_nfr":
            raise MuscleError("search.aim: relative_nfr is of answers that are right or wrong; choose nfr for grades")
        self.old, self.new = self.figures(old), self.figures(new)

    def figures(self, scores: Scores) -> Figures:
        """Measure a model by its scores."""
        these, n = self._column(scores), len(self._items)
        flips, before = these < self._old, self._new < self._old
        difference = these - self._new
        error = clustered_difference_error(difference, np.arange(n))  # one item each: of the paired difference
        shortfall = -(float(difference.mean()) + self.search.floor * error)
        count = int(flips.sum())
        nfr_interval = wilson_interval(count, n)
        assert nfr_interval is not None
        return Figures(
            items=n,
            accuracy=float(these.mean()),
            accuracy_interval=self._interval(these),
            nfr=count / n,
            nfr_interval=nfr_interval,
            relative_nfr=None if self.graded else self._relative(these, count),
            fixed=int((before & ~flips).sum()),
            made=int((flips & ~before).sum()),
            shortfall=shortfall if shortfall > ROUNDING else 0.0,
        )

    def score(self, figures: Figures) -> float:
        """One number by which models are ranked, smaller is better.

        Of admissible ones the aim, then accuracy; of the others, which all come after them, the shortfall, then the
        aim.
        """
        aim = figures.nfr if self.search.aim == "nfr" else figures.relative_nfr or 0.0
        if figures.admissible:
            return aim - TIE * figures.accuracy
        return BELOW_FLOOR + figures.shortfall + TIE * aim

    def _column(self, scores: Scores) -> FloatArray:
        return np.array([scores[item] for item in self._items], dtype=np.float64)

    def _interval(self, column: FloatArray) -> Interval:
        n = len(column)
        if not self.graded:
            found = wilson_interval(int(column.sum()), n)
            assert found is not None
            return found
        spread = normal_quantile((1 + CONFIDENCE) / 2) * float(column.std()) / math.sqrt(n)
        return float(column.mean()) - spread, float(column.mean()) + spread

    def _relative(self, column: FloatArray, flips: int) -> float | None:
        independent = float(self._old.sum()) * float((1 - column).sum())
        return flips * len(column) / independent if independent else None


class Watch:
    """Judges the model in training after its epochs, and remembers what it found, also when it is stopped.

    Args:
        judge: Who judges.
        scores: Those of a model on the held-out items.
        file: Where what was found is kept.
    """

    def __init__(self, judge: Judge, scores: Callable[[nn.Module], Scores], file: Path) -> None:
        self._judge, self._scores, self._file = judge, scores, file
        self._found: list[Figures] = msgspec.json.decode(file.read_bytes(), type=list[Figures]) if file.exists() else []

    def __call__(self, model: nn.Module) -> float:
        found = self._judge.figures(self._scores(model))
        if processes().is_main_process:
            self._found.append(found)
            self._file.parent.mkdir(parents=True, exist_ok=True)
            replace_whole(self._file, msgspec.json.encode(self._found))
        return self._judge.score(found)

    def figures(self, score: float) -> Figures:
        """What had that score."""
        return next(found for found in self._found if self._judge.score(found) == score)
