"""The synthetic world: honest answers, no leaks, everything from one seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muscle.demo.world import GOALS, ITEMS, MOODS, NAMES, PLACES, PRONOUN, TIMES, WEATHERS, World, vocabulary


def sample_scores(world: World, context: str, choices: tuple[str, ...]) -> list[float]:
    """The hidden score of each choice, read back from the texts."""
    words = context.split()
    scores = world._ending_scores(
        WEATHERS.index(words[2]),
        TIMES.index(words[4]),
        MOODS.index(words[8]),
        GOALS.index(words[12]),
        NAMES.index(words[6]),
    )
    endings = [choice.split() for choice in choices]
    return [scores[ITEMS.index(ending[3]) * len(PLACES) + PLACES.index(ending[6])] for ending in endings]


@given(seed=st.integers(0, 2**32 - 1))
def test_items_are_well_formed(seed: int) -> None:
    world, rng = World(seed), np.random.default_rng(seed)
    known = set(vocabulary())
    scene, item = world.scene(rng), world.sum(rng)
    assert len(set(scene.choices)) == 4
    assert 0 <= scene.gold < 4
    assert all(choice.startswith(PRONOUN[scene.context.split()[6]] + " takes the ") for choice in scene.choices)
    words = item.context.split()
    assert int(item.answer) == int(words[4]) + int(words[9])
    assert words[8] == "gets"
    assert {*scene.context.split(), *" ".join(scene.choices).split(), *words, item.answer} <= known


def test_the_best_possible_accuracy_is_about_72_percent() -> None:
    """So two models that both know the world well still disagree about many scenes."""
    right = []
    for seed in range(6):
        world, rng = World(seed), np.random.default_rng(seed)
        for _ in range(500):
            scene = world.scene(rng)
            right.append(np.argmax(sample_scores(world, scene.context, scene.choices)) == scene.gold)
    assert np.mean(right) == pytest.approx(0.72, abs=0.03)


def test_gold_position_is_no_hint() -> None:
    rng, world = np.random.default_rng(0), World(0)
    counts = np.bincount([world.scene(rng).gold for _ in range(4000)], minlength=4)
    assert np.abs(counts / 4000 - 0.25).max() < 0.03


def test_versions_saw_different_weather() -> None:
    def share_of_first_half(version: str) -> float:
        texts = World(0).documents(version, 2000, np.random.default_rng(0))  # type: ignore[arg-type]
        weathers = [text.split()[2] for text in texts if text.startswith("scene")]
        assert len(weathers) == 1000
        return float(np.mean([weather in WEATHERS[:3] for weather in weathers]))

    assert share_of_first_half("v1") == pytest.approx(0.8, abs=0.05)
    assert share_of_first_half("v2") == pytest.approx(0.2, abs=0.05)


def test_one_seed_one_world() -> None:
    def texts(seed: int) -> list[str]:
        return list(World(seed).documents("v1", 50, np.random.default_rng(1)))

    assert texts(5) == texts(5)
    assert texts(5) != texts(6)
    assert len(vocabulary()) == len(set(vocabulary()))
