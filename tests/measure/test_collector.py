"""Rows gathered into columns: nothing lost, nothing mixed up, and repeated items settled as the user chose."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muscle.errors import LogError
from muscle.measure.logs import collector
from muscle.measure.logs.collector import gather
from muscle.measure.logs.rows import Duplicates, Row, Rows, Selection, Task
from muscle.measure.predictions import MISSING, Predictions

TASK = Task("t")
FILE = Path("log.jsonl")


def only_task(rows: Sequence[Row], duplicates: Duplicates = "error", labels: tuple[str, ...] = ()) -> Predictions:
    (predictions,) = gather(rows, Selection(duplicates=duplicates, labels=labels)).values()
    return predictions


ROW = st.builds(
    Row,
    st.just(TASK),
    st.sampled_from([FILE, Path("other.jsonl")]),
    st.integers(1, 9),
    st.integers(-3, 12).map(str) | st.sampled_from(["a", "b", "01"]),
    st.sampled_from([1, 0, -1]),
    st.sampled_from([None, "a", "18", "18.0", "x" * 50]),
    st.sampled_from([(), ("a",), ("a", "b")]),
    st.sampled_from([0.5, 1.0, math.nan]),
    st.sampled_from([0, 0, 0, 2]),
    st.sampled_from([None, "ff" * 32, "0a" * 32]),
    st.sampled_from([("l",), (None,)]),
)


def naively(rows: Sequence[Row], duplicates: Duplicates) -> tuple[dict[tuple[str, int], Row], int, int]:
    """By (id, draw), the row that counts; and how many repeated and conflicting ones there were."""
    kept: dict[tuple[str, int], Row] = {}
    repeated = conflicting = 0
    for row in rows:
        draw = row.draw
        if duplicates == "draws":
            draw = sum(item == row.id for item, _ in kept)
        if (row.id, draw) not in kept:
            kept[row.id, draw] = row
            continue
        earlier = kept[row.id, draw]
        same_score = row.score == earlier.score or (math.isnan(row.score) and math.isnan(earlier.score))
        if (row.correct, row.answer, row.doc_hash) == (
            earlier.correct,
            earlier.answer,
            earlier.doc_hash,
        ) and same_score:
            repeated += 1
        else:
            conflicting += 1
            if duplicates == "last":
                kept[row.id, draw] = row
    return kept, repeated, conflicting


@given(st.lists(ROW, min_size=1, max_size=30), st.sampled_from(["error", "first", "last", "draws"]), st.integers(1, 7))
def test_the_columns_are_those_of_a_naive_reading(rows: list[Row], duplicates: Duplicates, together: int) -> None:
    kept, repeated, conflicting = naively(rows, duplicates)
    copies = [Row(*[getattr(row, name) for name in Row.__struct_fields__]) for row in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collector, "TOGETHER", together)
        if duplicates == "error" and conflicting:
            with pytest.raises(LogError):
                only_task(copies, duplicates, ("l",))
            return
        found = only_task(copies, duplicates, ("l",))
    numbers = sorted({draw for _, draw in kept})
    assert list(zip(found.ids, found.draws.tolist(), strict=True)) == [(i, numbers.index(draw)) for i, draw in kept]
    assert (found.repeated, found.conflicting) == (repeated, conflicting)
    expected = list(kept.values())
    assert found.correct.tolist() == [row.correct for row in expected]
    assert np.array_equal(found.scores, [row.score for row in expected], equal_nan=True)
    assert found.doc_hashes.tolist() == [int((row.doc_hash or "0")[:16], 16) for row in expected]
    for keys, texts in (
        (found.answers, [row.answer for row in expected]),
        (found.numbers, ["18" if row.answer == "18.0" else row.answer for row in expected]),
    ):
        assert [key == MISSING for key in keys] == [text is None for text in texts]
        assert [[a == b for b in keys] for a in keys] == [[a == b for b in texts] for a in texts]


def numbered(*ids: object) -> list[Row]:
    return [Row(TASK, FILE, line, str(item), 1, "a") for line, item in enumerate(ids, 1)]


def test_ascending_ids_need_no_index() -> None:
    """The index takes more memory than all columns; a log of the harness is in the order of its ids."""
    in_order = collector.Collector(TASK, Selection())
    in_order.add(Rows.of(numbered(*range(0, 40, 2))))
    assert not in_order._row_of
    in_order.add(Rows.of(numbered(3, 38, "x")))
    assert in_order.predictions().ids == [*map(str, range(0, 40, 2)), "3", "x"]


@pytest.mark.parametrize("ids", [["1", "01", "1"], ["7", "7"], ["a", "b", "a"], ["1", "2", "3", "2"], ["9", "1", "9"]])
def test_a_repeated_id_is_found_in_any_order(ids: list[str]) -> None:
    assert only_task(numbered(*ids)).repeated == 1


def test_tasks_may_be_mixed() -> None:
    tasks = [Task("a"), Task("b")]
    rows = [Row(tasks[i % 2], FILE, i, str(i), i % 2) for i in range(6)]
    found = gather(rows, Selection())
    assert {name: (task.ids, task.correct.tolist()) for name, task in found.items()} == {
        "a": (["0", "2", "4"], [0, 0, 0]),
        "b": (["1", "3", "5"], [1, 1, 1]),
    }


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"correct": 0}, "was right in line 1 and is wrong here"),
        ({"correct": -1}, "was right in line 1 and is unscored here"),
        ({"answer": "b"}, r"has another answer in line 1 than here \('b'\)"),
        ({"doc_hash": "0b"}, "has another doc_hash in line 1"),
        ({"score": 0.25}, "was graded nan in line 1 and is graded 0.25 here"),
        ({"correct": 0, "file": Path("x.jsonl")}, "was right in log.jsonl:1 and is wrong here"),
    ],
)
def test_what_a_conflict_is_about(second: dict[str, object], message: str) -> None:
    first = {"task": TASK, "file": FILE, "line": 1, "id": "7", "correct": 1, "answer": "a", "doc_hash": "0a"}
    rows = [Row(**first), Row(**first | {"line": 5} | second)]  # type: ignore[arg-type]
    with pytest.raises(LogError, match=rf":5: id '7' {message}; keep one row per id, or choose with --duplicates"):
        only_task(rows)


def test_draws_are_numbered_from_zero_and_equal_ones_are_one() -> None:
    rows = [Row(TASK, FILE, 1, "a", 1, draw=1), Row(TASK, FILE, 2, "b", 1, draw=1)]
    assert only_task(rows).draws.tolist() == [0, 0]
    rows = [Row(TASK, FILE, 1, "a", 1, draw=3), Row(TASK, FILE, 2, "a", 1, draw=1)]
    assert only_task(rows).draws.tolist() == [1, 0]


def test_nothing_at_all() -> None:
    assert gather([], Selection()) == {}
