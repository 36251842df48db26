"""Where things lie in the pictures of the page: numbers for the SVG macros, in units of the picture."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muscle.measure.results import Measures, Update

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """A linear scale from `low` to `high`."""

    low: float
    high: float
    ticks: Sequence[float]

    def at(self, value: float) -> float:
        """Where the value lies, 0 to 1; what lies beyond the axis lies at its end."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    @classmethod
    def around(cls, values: Iterable[float | None], *, ticks: int = 4) -> "Axis":
        """The smallest axis with round ends that holds all values."""
        known = [value for value in values if value is not None]
        low, high = (min(known), max(known)) if known else (0.0, 1.0)
        if high - low < 1e-9:
            low, high = low - 0.05 * (low != 0), high + 0.05
        step = _round_step((high - low) / ticks)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        marks = [round(i * step, 12) for i in range(first, last + 1)]
        return cls(marks[0], marks[-1], marks)


SHARES = Axis(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))
"""All shares there are."""


@dataclass(frozen=True)
class Square:
    """One quadrant: a square that grows from the middle of the picture with the root of its count."""

    name: str
    x: float
    y: float
    side: float
    inner: float
    """Height of its hatched part, whose answers differ."""


def fourfold(update: Update, reach: float) -> list[Square]:
    """Four squares that meet in the middle, areas as the counts; right before is above, right after is left."""
    counts = {
        "both_right": (update.both_right, update.both_right_different),
        "negative_flip": (update.negative_flips, 0),
        "positive_flip": (update.positive_flips, 0),
        "both_wrong": (update.both_wrong, update.both_wrong_different),
    }
    most = max(1, *(count for count, _ in counts.values()))
    squares = []
    for name, (count, different) in counts.items():
        side = reach * math.sqrt(count / most)
        left, above = name in ("both_right", "positive_flip"), name in ("both_right", "negative_flip")
        x, y = (reach - side if left else reach), (reach - side if above else reach)
        squares.append(Square(name, x, y, side, side * different / count if count else 0.0))
    return squares


@dataclass(frozen=True)
class Bin:
    """One bar of a histogram; all between 0 and 1."""

    x: float
    width: float
    height: float
    sign: str
    count: int


@dataclass(frozen=True)
class Histogram:
    """How many answers were graded how much better or worse."""

    axis: Axis
    bins: Sequence[Bin]
    most: int
    """Count of the highest bar."""
    unchanged: int
    """Within the tolerance; in no bar, since they would dwarf the others."""


def histogram(changes: NDArray[np.float64], tolerance: float, reach: float, bins: int = 40) -> Histogram:
    """The distribution of D = S_new - S_old, around 0.

    Args:
        changes: (N,) D of the graded items.
        tolerance: Changes no larger than this are none.
        reach: The axis goes at least so far to both sides.
        bins: Number of bars, even.
    """
    moved = changes[np.abs(changes) > tolerance]
    axis = Axis.around((-reach, reach))
    reach = max(-axis.low, axis.high)
    axis = Axis(-reach, reach, axis.ticks)
    heights, edges = np.histogram(moved, bins=bins, range=(-reach, reach))
    most = max(1, int(heights.max()))
    bars = [
        Bin(i / bins, 1 / bins, height / most, "negative" if edges[i + 1] <= 1e-12 else "positive", height)
        for i, height in enumerate(heights.tolist())
        if height
    ]
    return Histogram(axis, bars, most, len(changes) - len(moved))


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(nice * power for nice in (1, 2, 2.5, 5, 10) if nice * power >= step * (1 - 1e-9))


def accuracy_axis(parts: Iterable[Measures]) -> Axis:
    """One axis for the accuracies of all tasks or slices."""
    return Axis.around(_accuracies(parts), ticks=4)


def _accuracies(parts: Iterable[Measures]) -> list[float | None]:
    values: list[float | None] = []
    for part in parts:
        values += [part.update.accuracy_old.value, part.update.accuracy_new.value]
        if part.compatible:
            values.append(part.compatible.accuracy_new.value)
    return values
