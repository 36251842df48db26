"""Where things lie in the picture of the plane: the NFR to the right, accuracy upwards, in units of the picture."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from muscle.measure.plane import Model, Plane
from muscle.measure.report.page.pictures import Axis, Point

_LETTER = 0.48  # width of a letter, by the height of a line
_LONGEST = 24  # letters of a name; longer ones are cut
_EDGE = 2.0  # between a name and the edge
_CLEAR = 8.0  # half the side of the square around a mark that names keep out of


@dataclass(frozen=True)
class Label:
    """A model's name."""

    text: str
    """Empty where there is no room for it."""
    x: float
    y: float
    """Of its middle."""
    anchor: str
    far: bool
    """So far from its mark that a line leads there."""


@dataclass(frozen=True)
class Dot:
    """One model."""

    model: Model
    x: float
    y: float
    ellipse: tuple[float, float, float] | None
    """Half axes, and degrees clockwise from the right."""
    bars: Sequence[tuple[Point, Point]]
    """The intervals of both measures, where an ellipse cannot be told."""
    label: Label


@dataclass(frozen=True)
class Picture:
    """The plane as drawn; a good model lies high and to the left."""

    plane: Plane
    x: Axis
    y: Axis
    dots: Sequence[Dot]
    chain: Sequence[Point]
    """The points of the frontier, in the order of a."""
    old: float | None
    """Height of the old model's line; None where it lies far outside."""
    chance: tuple[Point, Point] | None
    """Where models would lie were their errors independent of the old one's."""
    least: Sequence[Point]
    """The corner where no model can be, since what accuracy loses are flips."""
    floor: float | None
    """Where the old model, drawn again, lies between left and right."""
    width: float
    height: float


def picture_of(plane: Plane, width: float, height: float, line: float) -> Picture | None:
    """The picture of a plane; None where no model has both measures.

    Args:
        plane: Its models.
        width: Of the plotting area.
        height: Of the plotting area.
        line: Height of a line of text.
    """
    models = [model for model in plane.models if model.accuracy.value is not None and model.nfr.value is not None]
    if not models or plane.old.value is None:
        return None
    before, floor = plane.old.value, plane.floor
    ends = [_ends(model, plane.confidence) for model in models]
    x = _axis([*([] if floor is None else [floor]), *(end for reach, _ in ends for end in reach)], width)
    heights = [end for _, reach in ends for end in reach]
    y = _axis([*heights, *([before] if _is_near(before, heights) else [])], height)

    def at(nfr: float, quality: float) -> Point:
        return width * x.at(nfr), height * (1 - y.at(quality))

    places = [at(model.nfr.value or 0.0, model.accuracy.value or 0.0) for model in models]
    mixtures = sorted((model.share, *at_) for model, at_ in zip(models, places, strict=True) if model.share is not None)
    chain = [(across, down) for _, across, down in mixtures]
    old = at(0.0, before)[1] if y.low <= before <= y.high else None
    taken = [_Place(width - _LETTER * line * 3, width, old - line / 2)] if old is not None else []
    room = _Room(width, height, line, places, _along(chain), taken)
    downwards = sorted(range(len(models)), key=lambda i: places[i][1])
    labels = {i: room.label(i, _name(models[i])) for i in downwards}
    units = width / (x.high - x.low), height / (y.high - y.low)
    dots = [
        Dot(model, *place, *_interval(model, plane.confidence, units, at), labels[i])
        for i, (model, place) in enumerate(zip(models, places, strict=True))
    ]
    chance, least = None, list[Point]()
    if not plane.graded:
        chance = _line(lambda nfr: 1 - nfr / before, x, y, at) if before else None
        least = [at(*corner) for corner in _below(before, x, y)]
    across = None if floor is None else at(floor, before)[0]
    return Picture(plane, x, y, dots, chain, old, chance, least, across, width, height)


def _axis(values: Sequence[float], length: float) -> Axis:
    """An axis with a tick every 70 units of the picture or so; shares end at 0 and at 1."""
    return Axis.around(values, ticks=max(3, round(length / 70)))


def _is_near(value: float, others: Sequence[float]) -> bool:
    """Whether the old model's line would leave the other models at least half of the picture."""
    low, high = min(others), max(others)
    return value <= high + (high - low) and value >= low - (high - low)


def _name(model: Model) -> str:
    if model.share is not None:
        return f"a = {model.share:g}"
    return model.name if len(model.name) <= _LONGEST else model.name[: _LONGEST - 1] + "…"


def _ends(model: Model, confidence: float) -> tuple[list[float], list[float]]:
    """How far the intervals of a model go, of NFR and of accuracy."""
    found = []
    spread = model.spread
    variances = (spread.nfr, spread.accuracy) if spread else (0.0, 0.0)
    for estimate, variance in zip((model.nfr, model.accuracy), variances, strict=True):
        value, reach = estimate.value or 0.0, (spread.reach(confidence) if spread else 0.0) * math.sqrt(variance)
        ends = (max(0.0, value - reach), value + reach) if spread else (estimate.low, estimate.high)
        found.append([value, *(end for end in ends if end is not None)])
    return found[0], found[1]


def _interval(
    model: Model, confidence: float, units: tuple[float, float], at: Callable[[float, float], Point]
) -> tuple[tuple[float, float, float] | None, list[tuple[Point, Point]]]:
    if model.spread:
        long, short, angle = model.spread.ellipse(confidence, *units)
        return (long, short, -angle), []  # pictures count downwards
    nfr, quality = model.nfr.value or 0.0, model.accuracy.value or 0.0
    bars = []
    if model.nfr.low is not None and model.nfr.high is not None:
        bars.append((at(model.nfr.low, quality), at(model.nfr.high, quality)))
    if model.accuracy.low is not None and model.accuracy.high is not None:
        bars.append((at(nfr, model.accuracy.low), at(nfr, model.accuracy.high)))
    return None, bars


def _line(
    quality: Callable[[float], float], x: Axis, y: Axis, at: Callable[[float, float], Point]
) -> tuple[Point, Point] | None:
    """The part of a falling straight line inside the axes."""
    start, slope = quality(0.0), quality(1.0) - quality(0.0)
    left, right = max(x.low, (y.high - start) / slope), min(x.high, (y.low - start) / slope)
    return (at(left, quality(left)), at(right, quality(right))) if left < right else None


def _below(before: float, x: Axis, y: Axis) -> list[Point]:
    """The corner below accuracy = accuracy of old - NFR, as (NFR, accuracy) inside the axes."""
    left, right = max(x.low, before - y.high), min(x.high, before - y.low)
    if left >= right:
        return []
    corner = [(x.low, y.low), (right, y.low), (right, before - right), (left, before - left)]
    return [*corner, (x.low, before - left)]


def _along(chain: Sequence[Point], step: float = 6.0) -> list[Point]:
    """Points all along a chain, for names to keep off it."""
    found = []
    for (x1, y1), (x2, y2) in pairwise(chain):
        count = max(1, int(math.hypot(x2 - x1, y2 - y1) / step))
        found += [(x1 + (x2 - x1) * i / count, y1 + (y2 - y1) * i / count) for i in range(count + 1)]
    return found


@dataclass(frozen=True)
class _Place:
    """Where a name may stand."""

    left: float
    right: float
    middle: float
    """Of its height."""
    anchor: str = "start"
    distance: float = 0.0
    """From its mark."""

    def covers(self, point: Point, line: float, clear: float) -> bool:
        x, y = point
        return self.left - clear < x < self.right + clear and abs(y - self.middle) < line / 2 + clear / 2

    def label(self, text: str) -> Label:
        x = {"start": self.left, "middle": (self.left + self.right) / 2, "end": self.right}[self.anchor]
        return Label(text, x, self.middle, self.anchor, self.distance >= 30)


@dataclass(frozen=True)
class _Room:
    """The plotting area, and what is in it."""

    width: float
    height: float
    line: float
    """Height of a line."""
    marks: Sequence[Point]
    chain: Sequence[Point]
    """Points that names should not cover, but may."""
    taken: list[_Place]
    """By names."""

    def label(self, number: int, name: str) -> Label:
        """Place the name of a mark: as near to it as can be, on no other name, and if possible on no mark and no chain.

        Where its surroundings are full it goes to the nearest place anywhere, and is left out where there is none.
        """
        mark, length = self.marks[number], _LETTER * self.line * len(name)
        others = [*self.marks[:number], *self.marks[number + 1 :]]
        for places, kept_off in (
            (self._around(mark, length), others),
            (self._anywhere(mark, length), self.marks),
            (self._anywhere(mark, length), []),
        ):
            free = [place for place in places if self._is_free(place, kept_off)]
            if free:
                best = min(free, key=self._cost)
                self.taken.append(best)
                return best.label(name)
        return Label("", *mark, "start", False)

    def _around(self, mark: Point, length: float) -> Iterator[_Place]:
        """Places on rings around a mark, the nearest first."""
        x, y = mark
        for radius, angle in product((11, 19, 30, 44, 60, 80, 105), range(0, 360, 30)):
            to_right, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            anchor = "middle" if abs(to_right) < 0.3 else "start" if to_right > 0 else "end"
            left = x + radius * to_right - length * {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor]
            middle = y - max(radius, 0.9 * self.line if anchor == "middle" else 0) * up
            yield _Place(left, left + length, middle, anchor, radius)

    def _anywhere(self, mark: Point, length: float) -> Iterator[_Place]:
        """Places all over the area: in rows of text, a letter apart."""
        x, y = mark
        step = _LETTER * self.line
        for row, column in product(range(int(self.height / self.line)), range(int(self.width / step))):
            left, middle = _EDGE + column * step, (row + 0.5) * self.line
            right = left + length
            anchor = "start" if x < left else "end" if x > right else "middle"
            yield _Place(left, right, middle, anchor, math.hypot(max(left - x, 0.0, x - right), y - middle))

    def _is_free(self, place: _Place, marks: Sequence[Point]) -> bool:
        """Whether a place lies inside, and keeps off all names and these marks."""
        line = self.line
        return (
            place.left >= _EDGE
            and place.right <= self.width - _EDGE
            and line / 2 <= place.middle <= self.height - line / 2
            and not any(
                abs(place.middle - other.middle) < line - 1e-9  # rows next to each other are free
                and place.left < other.right + 4
                and place.right > other.left - 4
                for other in self.taken
            )
            and not any(place.covers(mark, line, _CLEAR) for mark in marks)
        )

    def _cost(self, place: _Place) -> float:
        return place.distance + 4 * sum(place.covers(point, self.line, 1.0) for point in self.chain)
