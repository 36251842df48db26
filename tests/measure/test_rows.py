"""Cells as values: what is an id, what is right, what is a score."""

import math
from pathlib import Path

import numpy as np
import pytest

from muscle.measure.logs.rows import BadRowError, Row, Rows, Task, as_id, as_outcome, as_score, as_text, inside


@pytest.mark.parametrize(
    ("value", "item"),
    [
        *((1, "1"), (1.0, "1"), ("1", "1"), ("1.0", "1"), (-2.0, "-2"), (0, "0"), (10**30, str(10**30))),
        *((1.5, "1.5"), ("1.50", "1.50"), (" a ", " a "), ("01", "01"), ("01.0", "01"), ("x.0", "x.0")),
    ],
)
def test_one_item_has_one_id(value: object, item: str) -> None:
    assert as_id(value) == item


@pytest.mark.parametrize("value", [None, "", math.nan])
def test_no_id(value: object) -> None:
    with pytest.raises(BadRowError, match="the row has no id; give every row the id of its item"):
        as_id(value)


@pytest.mark.parametrize("value", [True, [1], {"a": 1}])
def test_what_is_no_id(value: object) -> None:
    with pytest.raises(BadRowError, match="an id must be a text or a number"):
        as_id(value)


RIGHT = [True, 1, 1.0, "True", "true", "1", "1.0", " TRUE ", np.True_, np.float32(1)]
WRONG = [False, 0, 0.0, -0.0, "False", "0", "0.0", np.int8(0)]


@pytest.mark.parametrize(("cells", "outcome"), [(RIGHT, 1), (WRONG, 0), ([None, "", "  "], -1)])
def test_what_counts_as_right(cells: list[object], outcome: int) -> None:
    assert [as_outcome(cell, "correct") for cell in cells] == [outcome] * len(cells)


@pytest.mark.parametrize("cell", [0.37, 2, -1, "yes", "C", [1], {}, (), math.inf])
def test_what_counts_as_neither(cell: object) -> None:
    with pytest.raises(BadRowError, match=r"^acc is .*, neither right nor wrong; look again$"):
        as_outcome(cell, "acc", "look again")


@pytest.mark.parametrize("cell", [math.nan, "NaN", " nan "])
def test_nan_is_no_outcome(cell: object) -> None:
    with pytest.raises(BadRowError, match="acc is NaN; remove it, or write null to mark the item as unscored"):
        as_outcome(cell, "acc")


@pytest.mark.parametrize(("cell", "score"), [(1, 1.0), ("0.25", 0.25), (-3.5, -3.5), (True, 1.0), (" 2 ", 2.0)])
def test_scores(cell: object, score: float) -> None:
    assert as_score(cell) == score


@pytest.mark.parametrize("cell", [None, ""])
def test_no_score(cell: object) -> None:
    assert math.isnan(as_score(cell))


@pytest.mark.parametrize("cell", ["high", [1], {}, math.nan, "nan", math.inf, "-inf", 10**400])
def test_what_is_no_score(cell: object) -> None:
    with pytest.raises(BadRowError, match=r"^f1 is .*null where there is no score$"):
        as_score(cell, "f1")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        ("18.0", "18.0"),
        (18.0, "18"),
        (0.5, "0.5"),
        (True, "True"),
        ({"b": 1, "a": "é"}, '{"a": "é", "b": 1}'),
    ],
)
def test_texts(value: object, text: str | None) -> None:
    assert as_text(value) == text


def test_paths_into_objects() -> None:
    row = {"doc": {"meta": {"level": 3}, "tags": [1]}}
    assert [inside(row, path.split(".")) for path in ("doc.meta.level", "doc.tags.0", "doc.no.level", "x")] == [3] + [
        None
    ] * 3


def test_rows_as_columns_and_back() -> None:
    task, file = Task("t"), Path("log.jsonl")
    rows = [
        Row(task, file, 1, "a", 1, "x", ("y",), 0.5, 2, "0a", ("l",), "?"),
        Row(task, file, 2, "b", score=0.25),
    ]
    assert Rows._fields == Row.__struct_fields__
    assert list(Rows.of(rows).each()) == rows
