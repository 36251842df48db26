"""A synthetic world with something to know and something to compute, for models small enough to train in a minute.

*Scenes* (multiple choice): weather, time, mood, goal and name of a person decide, through hidden tables, which item is
taken to which place. The gold ending is *sampled* from that distribution, so no model can be always right and two
models that learnt from different documents disagree the way real ones do. *Sums* (generated answer): one addition of
two whole numbers in words. Everything follows from one seed: the tables, the documents, and the task items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Version = Literal["v1", "v2"]

WEATHERS = ("sun", "wind", "rain", "snow", "fog", "storm")
TIMES = ("dawn", "noon", "dusk", "night")
MOODS = ("happy", "sad", "angry", "calm", "tired", "proud")
GOALS = ("shop", "rest", "play", "learn", "cook", "swim", "trade", "sing")
PRONOUN = {
    **dict.fromkeys(("lea", "ann", "eva", "ida", "kim", "mia", "una", "zoe"), "she"),
    **dict.fromkeys(("ned", "bob", "dan", "gus", "ian", "leo", "max", "tom"), "he"),
}
NAMES = tuple(PRONOUN)
ITEMS = ("bag", "book", "rope", "lamp", "ball", "coin", "cake", "drum", "coat", "map")
PLACES = ("school", "market", "river", "park", "house", "tower", "farm", "beach", "forest", "bridge")
FRUITS = ("apples", "pears", "plums", "nuts")
FRAME = (
    *("scene", "question", "answer", ":", ".", "?", "at", "is", "and", "wants", "to", "then", "takes", "the"),
    *("has", "gets", "how", "many"),
)
LARGEST_OPERAND = 39

SHARPNESS = 1.5
"""Inverse temperature of the gold ending."""
DISTRACTOR_TEMPERATURE = 3.0
CHOICES = 4
FAVOURED_WEATHER_SHARE = 0.8
"""Share of a base's pretraining scenes that play in its favoured half of the weathers."""


def vocabulary() -> tuple[str, ...]:
    """Every word that any text of the world can hold, in a fixed order."""
    numbers = tuple(str(n) for n in range(1, 2 * LARGEST_OPERAND + 1))
    words = (*FRAME, *WEATHERS, *TIMES, *MOODS, *GOALS, *NAMES, *sorted(set(PRONOUN.values())), *ITEMS, *PLACES)
    return (*words, *FRUITS, *numbers)


@dataclass(frozen=True)
class Scene:
    """One multiple-choice item: a context, its choices, and the index of the gold one."""

    context: str
    choices: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class Sum:
    """One item with a generated answer."""

    context: str
    answer: str


class World:
    """The hidden tables and everything that is sampled from them.

    Args:
        seed: decides the tables. The samplers take their own generator, so that different splits are independent.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])

        def table(*shape: int) -> FloatArray:
            return rng.standard_normal(shape)

        weathers, times, moods, goals = len(WEATHERS), len(TIMES), len(MOODS), len(GOALS)
        names, items, places = len(NAMES), len(ITEMS), len(PLACES)
        self._weather_item, self._goal_item = table(weathers, items), table(goals, items)
        self._weather_goal_item, self._name_item = table(weathers, goals, items), 0.7 * table(names, items)
        self._time_place, self._mood_place = table(times, places), table(moods, places)
        self._mood_time_place, self._name_place = table(moods, times, places), 0.7 * table(names, places)
        self._item_place = 0.7 * table(items, places)

    def _ending_scores(self, weather: int, time: int, mood: int, goal: int, name: int) -> FloatArray:
        item = (
            self._weather_item[weather]
            + self._goal_item[goal]
            + self._name_item[name]
            + self._weather_goal_item[weather, goal]
        )
        place = self._time_place[time] + self._mood_place[mood] + self._name_place[name]
        place = place + self._mood_time_place[mood, time]
        return np.asarray(item[:, None] + place[None, :] + self._item_place).ravel()  # (items * places,)

    def scene(self, rng: np.random.Generator, weather: int | None = None) -> Scene:
        """Sample one scene; `weather` fixes the weather's index."""
        if weather is None:
            weather = int(rng.integers(len(WEATHERS)))
        time, mood = int(rng.integers(len(TIMES))), int(rng.integers(len(MOODS)))
        goal, name = int(rng.integers(len(GOALS))), int(rng.integers(len(NAMES)))
        scores = SHARPNESS * self._ending_scores(weather, time, mood, goal, name)
        gold_ending = int(rng.choice(scores.size, p=_softmax(scores)))
        # Gumbel noise turns sampling without replacement into one sort.
        noisy = scores / DISTRACTOR_TEMPERATURE + rng.gumbel(size=scores.size)
        noisy[gold_ending] = -np.inf
        endings = [gold_ending, *np.argsort(-noisy)[: CHOICES - 1].tolist()]
        order = rng.permutation(CHOICES)
        person = NAMES[name]
        return Scene(
            context=f"scene : {WEATHERS[weather]} at {TIMES[time]} . {person} is {MOODS[mood]} "
            f"and wants to {GOALS[goal]} . then",
            choices=tuple(_ending(person, endings[i]) for i in order),
            gold=int(np.flatnonzero(order == 0)[0]),
        )

    def sum(self, rng: np.random.Generator) -> Sum:
        """Sample one addition."""
        person, fruit = NAMES[rng.integers(len(NAMES))], FRUITS[rng.integers(len(FRUITS))]
        a, b = (int(n) for n in rng.integers(1, LARGEST_OPERAND + 1, size=2))
        context = f"question : {person} has {a} {fruit} . {PRONOUN[person]} gets {b} . how many ? answer"
        return Sum(context, str(a + b))

    def documents(self, version: Version, count: int, rng: np.random.Generator) -> Iterator[str]:
        """Pretraining text: half scenes with their gold ending, half sums.

        The two versions saw different weather: v1 mostly the first half of `WEATHERS`, v2 mostly the second.
        """
        half = len(WEATHERS) // 2
        favoured, other = (
            (range(half), range(half, 2 * half)) if version == "v1" else (range(half, 2 * half), range(half))
        )
        for i in range(count):
            if i % 2:
                item = self.sum(rng)
                yield f"{item.context} {item.answer}"
            else:
                weathers = favoured if rng.random() < FAVOURED_WEATHER_SHARE else other
                scene = self.scene(rng, weather=int(rng.choice(weathers)))
                yield f"{scene.context} {scene.choices[scene.gold]}"


def _ending(person: str, ending: int) -> str:
    item, place = divmod(ending, len(PLACES))
    return f"{PRONOUN[person]} takes the {ITEMS[item]} to the {PLACES[place]} ."


def _softmax(scores: FloatArray) -> FloatArray:
    exp = np.exp(scores - scores.max())
    probabilities: FloatArray = exp / exp.sum()
    return probabilities
