"""Where things lie in the pictures of the page: numbers for the SVG macros, in units of the picture."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muscle.measure.results import Estimate, Measures, Update

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


@dataclass(frozen=True)
class Model:
    """One point of the plane."""

    name: str
    kind: str
    """old, new, compatible or control."""
    accuracy: Estimate
    nfr: Estimate
    label: Point
    """Where its name stands."""
    anchor: str


@dataclass(frozen=True)
class Plane:
    """Accuracy to the right, NFR upwards; a good update lies low and to the right."""

    x: Axis
    y: Axis
    models: Sequence[Model]
    chance: tuple[Point, Point] | None
    """Where flips would be were errors independent: a line in units of the axes."""
    least: Sequence[Point]
    """The corner where no model can be, since NFR >= accuracy lost."""
    floor: float | None
    """NFR of the old model against itself."""
    width: float
    height: float


def plane(measures: Measures, width: float, height: float, line: float) -> Plane | None:
    """The plane of all models; None where no accuracy is defined.

    Args:
        measures: Of all items.
        width: Of the plotting area.
        height: Of the plotting area.
        line: Height of a line of text.
    """
    update = measures.update
    before = update.accuracy_old.value
    if before is None:
        return None
    nothing = Estimate(0.0, None, None)
    found = [("old", "old", update.accuracy_old, nothing), ("new", "new", update.accuracy_new, update.nfr)]
    if measures.compatible:
        found.append(("compatible", "compatible", measures.compatible.accuracy_new, measures.compatible.nfr))
    found += [(name, "control", control.accuracy_new, control.nfr) for name, control in measures.controls.items()]
    found = [model for model in found if model[2].value is not None and model[3].value is not None]
    floor = measures.floor.nfr.value if measures.floor else None
    x = Axis.around(_ends(accuracy for _, _, accuracy, _ in found), ticks=5)
    y = Axis.around([0.0, floor, *_ends(nfr for _, _, _, nfr in found)])
    labels = _labels([(x.at(a.value or 0) * width, (1 - y.at(n.value or 0)) * height) for _, _, a, n in found],
                     [name for name, *_ in found], width, height, line)  # fmt: skip
    models = [Model(*model, *label) for model, label in zip(found, labels, strict=True)]
    chance = _clipped(lambda accuracy: before * (1 - accuracy), x, y)
    corner = _clipped(lambda accuracy: before - accuracy, x, y)
    least = [corner[0], corner[1], (x.low, y.low)] if corner and x.low < before else []
    if least and before - x.low > y.high:  # the line leaves through the top
        least = [(x.low, y.high), *least]
    return Plane(x, y, models, chance, least, floor, width, height)


def _ends(estimates: Iterable[Estimate]) -> list[float | None]:
    return [end for estimate in estimates for end in (estimate.low, estimate.value, estimate.high)]


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(nice * power for nice in (1, 2, 2.5, 5, 10) if nice * power >= step * (1 - 1e-9))


def _clipped(line: Callable[[float], float], x: Axis, y: Axis) -> tuple[Point, Point] | None:
    """The part of a falling straight line inside the axes."""
    slope = line(1.0) - line(0.0)
    if slope == 0:
        return None
    left = max(x.low, (y.high - line(0.0)) / slope)
    right = min(x.high, (y.low - line(0.0)) / slope)
    return ((left, line(left)), (right, line(right))) if left < right else None


def _labels(
    points: Sequence[Point], names: Sequence[str], width: float, height: float, line: float
) -> list[tuple[Point, str]]:
    """A place and an anchor for each name: beside its point, moved up or down where others stand."""
    placed: dict[int, tuple[Point, str]] = {}
    boxes: list[tuple[float, float, float]] = []  # left, right, middle
    for i in sorted(range(len(points)), key=lambda i: points[i][1]):
        x, y = points[i]
        length = 0.56 * line * min(len(names[i]), 24)
        anchor, left = ("start", x + 10) if x + 10 + length <= width else ("end", x - 10 - length)
        choices = sorted((y + k * line / 2 for k in range(-16, 17)), key=lambda at: abs(at - (y - 0.7 * line)))
        free = (
            at
            for at in choices
            if line / 2 <= at <= height - line / 2
            and all(abs(at - middle) >= line or left > b or left + length < a for a, b, middle in boxes)
        )
        at = next(free, y)
        boxes.append((left, left + length, at))
        placed[i] = ((x + 10 if anchor == "start" else x - 10, at), anchor)
    return [placed[i] for i in range(len(points))]


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
