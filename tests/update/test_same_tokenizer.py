"""When two bases count as sharing a tokenizer without a look at the texts, and when the texts decide."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from transformers import ByT5Tokenizer

from muscle.errors import MuscleError
from muscle.update.across.same_tokenizer import BLOCK, tokenizer_difference
from muscle.update.models import load_tokenizer
from muscle.update.prompts import Example
from muscle.update.recipe import Base

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Unread:
    """A task whose texts must not be asked for."""

    def examples(self, *_: object) -> NoReturn:
        raise AssertionError("the texts were rendered")

    evaluation_texts = examples


class Read:
    """A task of one text, which counts how often it is asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def examples(self, split: str, _: object) -> list[Example]:
        self.asked += 1
        return [Example("a red", " cube")]

    def evaluation_texts(self, _: object) -> list[str]:
        return ["a red cube"]


def check(old: Path, new: Path, task: Any) -> None:
    bases = Base(base=str(old)), Base(base=str(new))
    if difference := tokenizer_difference(*bases, load_tokenizer(bases[1]), task):
        raise MuscleError(difference)


def test_equal_definitions_need_no_texts(world: Path) -> None:
    check(world / "v1", world / "v2", Unread())


def test_another_definition_needs_the_texts(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "v1", tmp_path / "v1")
    tokenizer = load_tokenizer(Base(base=str(world / "v1")))
    tokenizer.add_tokens(["a word that no text has"])
    tokenizer.save_pretrained(tmp_path / "v1")
    task = Read()
    check(tmp_path / "v1", world / "v2", task)
    assert task.asked == 2


class Endless:
    """A task with more texts than anybody wants to read."""

    def examples(self, split: str, _: object) -> Iterator[Example]:
        for number in range(BLOCK + 1):
            assert number < BLOCK, "read on after a difference"
            yield Example("a red", f" cube {number}")

    evaluation_texts = examples


def test_no_more_texts_are_read_after_a_difference(tmp_path: Path) -> None:
    with pytest.raises(MuscleError, match="tokenize 'a red cube 0' differently"):
        check(of_bytes(tmp_path / "a"), of_bytes(tmp_path / "b", "red"), Endless())


class Long(Read):
    """A task whose last text alone holds a certain word."""

    def examples(self, split: str, _: object) -> list[Example]:
        return [Example("a cube", "")] * BLOCK


def test_texts_are_compared_to_the_last(tmp_path: Path) -> None:
    with pytest.raises(MuscleError, match="tokenize 'a red cube' differently"):
        check(of_bytes(tmp_path / "a"), of_bytes(tmp_path / "b", "red"), Long())


def of_bytes(folder: Path, *words: str) -> Path:
    """A tokenizer that is written in Python throughout, and so has no back end to look into."""
    tokenizer = ByT5Tokenizer()
    tokenizer.add_tokens(list(words))
    tokenizer.save_pretrained(folder)
    assert not hasattr(load_tokenizer(Base(base=str(folder))), "backend_tokenizer")
    return folder


def test_tokenizers_that_cannot_be_looked_into_are_compared_by_texts(tmp_path: Path) -> None:
    task = Read()
    old, same, other = of_bytes(tmp_path / "a"), of_bytes(tmp_path / "b"), of_bytes(tmp_path / "c", "red")
    check(old, same, task)
    assert task.asked == 2
    with pytest.raises(MuscleError, match="tokenize 'a red cube' differently"):
        check(old, other, task)
