"""docs/paper_map.md names code and tests that are there."""

import re
from collections.abc import Iterator
from importlib import import_module

import pytest

from .conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "paper_map.md").read_text()
NAMES = sorted(set(re.findall(r"`([^`\s]+)`", PAGE)))
CODE = [name for name in NAMES if re.fullmatch(r"[a-z_]+(\.\w+)+", name) and "/" not in name]
FILES = [name for name in NAMES if name.startswith("recipes/")]
TESTS = [name for name in NAMES if "::" in name]


def rows() -> Iterator[list[str]]:
    """Cells of the tables, without headings."""
    for line in PAGE.splitlines():
        if line.startswith("| ") and not line.startswith(("| paper |", "| open question |")):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def resolve(name: str) -> object:
    """A module below muscle, or what one holds; of a class also a field without a default."""
    module, attributes = f"muscle.{name}", list[str]()
    while True:
        try:
            found: object = import_module(module)
            break
        except ModuleNotFoundError as error:
            if not module.startswith(error.name or "?"):
                raise
            module, _, last = module.rpartition(".")
            attributes.insert(0, last)
    for attribute in attributes:
        if attribute not in getattr(found, "__annotations__", {}) or hasattr(found, attribute):
            found = getattr(found, attribute)
    return found


@pytest.mark.parametrize("name", CODE)
def test_code_is_there(name: str) -> None:
    resolve(name)


def test_what_is_not_there_is_noticed() -> None:
    for name in ("measure.metrics.nrf", "measure.metric.nfr", "update.recipe.LoraSettings.r"):
        with pytest.raises(AttributeError):
            resolve(name)


@pytest.mark.parametrize("name", TESTS)
def test_tests_are_there(name: str) -> None:
    file, _, function = name.partition("::")
    assert re.search(rf"^def {function}\(", (REPOSITORY / "tests" / file).read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", FILES)
def test_files_are_there(name: str) -> None:
    assert (REPOSITORY / "src" / "muscle" / name).exists()


def test_every_row_names_code_and_a_test_or_says_that_there_is_none() -> None:
    found = list(rows())
    assert len(found) > 60
    for paper, code, test in found:
        built = not re.match(r"not built|never spent", code)
        assert bool(test) == built, paper
        assert not test or "::" in test or "the same" in test, paper


def test_the_page_lists_the_measures_masks_and_published_tables() -> None:
    masks = import_module("muscle.update.weights").WEIGHTS
    published = [name for name in vars(import_module("muscle.update.report.paper")) if re.fullmatch(r"TABLE_\d", name)]
    assert {f"update.weights.{name}" for name in masks} <= set(CODE)
    assert {f"update.report.paper.{name}" for name in published} <= set(CODE)
