"""Alignment settings that make no sense together are refused before anything is trained, by file, line and key."""

from pathlib import Path
from typing import Any

import pytest

from muscle.errors import MuscleError
from muscle.update.alignment_settings import AlignmentSettings, check_alignment
from muscle.update.recipe_file import make_recipe, read_recipe

RECIPE = """\
old: {base: old/base}
new: {base: new/base}
tasks:
  piqa:
  gsm8k:
"""
CHOICE = {"weight": "mixture", "level": "choice", "texts": "choices"}


@pytest.mark.parametrize(
    ("settings", "key", "remedy"),
    [
        ({**CHOICE, "texts": "gold"}, "level", "set texts to choices"),
        ({**CHOICE, "emphasis": "focal"}, "emphasis", "leave one of them out"),
        ({**CHOICE, "distance": "logits"}, "distance", "leave one of them out"),
        ({"distance": "logits", "squared_temperature": True}, "squared_temperature", "leave one out"),
        ({"weight": None, "emphasis": "constrained"}, "emphasis", "name a weight, or leave emphasis out"),
        ({"weight": None, "level": "choice"}, "level", "name a weight, or leave level out"),
        ({"weight": None, "distance": "logits"}, "distance", "name a weight, or leave distance out"),
        ({"weight": "old_right", "texts": "choices"}, "weight", "set texts to gold and unlabelled to false"),
        (
            {"weight": "mixture", "emphasis": "constrained", "unlabelled": True},
            "emphasis",
            "set texts to gold and unlabelled to false",
        ),
        (
            {"weight": "likelier", "texts": "choices"},
            "weight",
            "set tokens of alignment_training to answer",
        ),
    ],
)
def test_what_makes_no_sense_together_is_said_with_the_remedy(
    settings: dict[str, Any], key: str, remedy: str, tmp_path: Path
) -> None:
    problem = check_alignment(AlignmentSettings(**settings), "all")
    assert problem
    assert problem.startswith((f"{key} ", f"{key}:"))
    assert problem.endswith(f"; {remedy}")

    recipe = tmp_path / "recipe.yaml"
    keys = [f"    {name}: {'null' if value is None else str(value).lower()}\n" for name, value in settings.items()]
    recipe.write_text(f"{RECIPE}methods:\n  mine:\n{''.join(keys)}")
    line = 8 + list(settings).index(key)
    with pytest.raises(MuscleError) as error:
        read_recipe(recipe)
    assert str(error.value) == f"{recipe}:{line}: methods.mine.{problem}"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight": None, "ce_share": 0.5, "texts": "choices"},
        CHOICE,
        {**CHOICE, "squared_temperature": True, "ce_share": 0.3},
        {"weight": "mixture", "emphasis": "focal", "distance": "logits"},
        {"weight": "always_old", "emphasis": "old_likelihood", "texts": "choices", "unlabelled": True},
        {"weight": "likelier", "unlabelled": True},
    ],
)
def test_what_makes_sense_is_let_through(settings: dict[str, Any]) -> None:
    assert check_alignment(AlignmentSettings(**settings), "all") is None


def test_answers_alone_may_be_ruled_text_by_text() -> None:
    assert check_alignment(AlignmentSettings(weight="likelier", texts="choices"), "answer") is None


@pytest.mark.parametrize(
    ("written", "place"),
    [
        ("alignment: {level: choice}\n", "6: alignment.level:"),
        ("alignment: {texts: gold}\nmethods: {mine: {level: choice}}\n", "7: methods.mine.level:"),
        ("alignment: {level: choice, texts: choices}\nmethods: {mine: {texts: gold}}\n", "6: alignment.level:"),
        ("    alignment: {level: choice}\n", "6: tasks.gsm8k.alignment.level:"),
    ],
)
def test_the_place_is_where_the_key_is_written(written: str, place: str, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE + written)
    with pytest.raises(MuscleError) as error:
        read_recipe(recipe)
    assert str(error.value).startswith(f"{recipe}:{place} choice compares")


def test_plain_cross_entropy_as_a_control_takes_what_methods_have() -> None:
    content = {"old": {"base": "a"}, "new": {"base": "b"}, "tasks": {"piqa": {}}, "controls": ["cross_entropy"]}
    assert make_recipe({**content, "alignment": CHOICE}).alignment_of("piqa", "cross_entropy").weight is None
    with pytest.raises(MuscleError, match=r"--set alignment.emphasis=focal: alignment.emphasis is of tokens"):
        make_recipe({**content, "alignment": CHOICE}, ["alignment.emphasis=focal"])
