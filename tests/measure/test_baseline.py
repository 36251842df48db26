"""Baselines: what was blessed compares like the log it came from, and what no longer fits is refused."""

import datetime
import json
import re
from pathlib import Path
from typing import Any

import pytest

from muscle.errors import LogError, MuscleError, PairingError
from muscle.measure import Comparison, compare, logs
from muscle.measure.baseline import bless, check_fresh
from muscle.measure.logs import baseline as reader
from muscle.measure.logs.rows import Selection

from .conftest import WriteRows

DAY = datetime.date(2026, 1, 31)
OLD = [
    {"id": 1, "correct": True, "answer": "a", "target": "a", "score": 0.5, "task": "x"},
    {"id": "2", "correct": False, "answer": None, "target": "b", "task": "x"},
    {"id": 1, "correct": None, "answer": "c | \n \u2028", "task": "y"},
    {"id": 2, "correct": 1, "score": 0.25, "task": "y"},
]
NEW = [{**row, "correct": True, "answer": "z"} for row in OLD]


@pytest.fixture(autouse=True)
def _listed(monkeypatch: pytest.MonkeyPatch) -> None:
    if reader not in logs.READERS:
        monkeypatch.setattr(logs, "READERS", (reader, *logs.READERS))


@pytest.fixture
def blessed(write_rows: WriteRows, tmp_path: Path) -> Path:
    file = tmp_path / "base.jsonl"
    bless(write_rows("old.jsonl", OLD), file, today=DAY)
    return file


def assert_same_numbers(ours: Comparison, theirs: Comparison) -> None:
    assert (ours.total, ours.tasks) == (theirs.total, theirs.tasks)


def test_a_baseline_compares_like_its_log(blessed: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    new = write_rows("new.jsonl", NEW)
    comparison = compare(blessed, new)
    assert_same_numbers(comparison, compare(tmp_path / "old.jsonl", new))
    assert comparison.inputs["old"].format == "baseline"
    assert comparison.inputs["old"].score == {"x": "score", "y": "score"}
    assert comparison.notes[0].startswith(f"old: baseline blessed on 2026-01-31 from {tmp_path}/old.jsonl (sha256 ")
    check_fresh(comparison, None)


def test_real_logs_of_two_kinds(data: Path, tmp_path: Path) -> None:
    """Multiple choice with log-likelihoods, and generated answers."""
    mmlu = data / "logs" / "lmeval_0.4.12_mmlu_qwen2.5_0shot_vs_5shot"
    gemma = data / "logs" / "lmeval_0.4.9_gemma3_base_vs_tuned" / "gsm8k"
    for old, new in (
        (mmlu / "0shot", mmlu / "5shot"),
        (gemma / "base_gemma3-12b-it-q4_K_M", gemma / "tuned_gemma3-12b-u1"),
    ):
        header = bless(old, tmp_path / "base.jsonl")
        comparison = compare(tmp_path / "base.jsonl", new)
        assert_same_numbers(comparison, compare(old, new))
        assert header.rows == comparison.inputs["old"].rows
        check_fresh(comparison, 1)
        size = sum(file.stat().st_size for file in old.rglob("samples_*"))
        assert (tmp_path / "base.jsonl").stat().st_size < size / 2


def test_the_layout(blessed: Path, tmp_path: Path) -> None:
    header, *lines = [json.loads(line) for line in blessed.read_text().split("\n")[:-1]]
    assert re.fullmatch("[0-9a-f]{64}", header.pop("sha256"))
    assert header.pop("muscle")
    assert header == {
        "muscle_baseline": 1,
        "blessed": "2026-01-31",
        "source": str(tmp_path / "old.jsonl"),
        "format": "table",
        "rows": 4,
        "tasks": [{"name": "x", "score": "score"}, {"name": "y", "score": "score"}],
    }
    assert lines == [
        {"task": "x", "id": "1", "correct": 1, "answer": "a", "targets": ["a"], "score": 0.5},
        {"task": "x", "id": "2", "correct": 0, "targets": ["b"]},
        {"task": "y", "id": "1", "answer": "c | \n \u2028"},
        {"task": "y", "id": "2", "correct": 1, "score": 0.25},
    ]


def test_labels_come_from_the_new_log(blessed: Path, write_rows: WriteRows) -> None:
    new = write_rows("new.jsonl", [{**row, "group": row["task"]} for row in NEW])
    comparison = compare(blessed, new, slices=["group"])
    assert [(part.value, part.measures.update.n) for part in comparison.slices] == [("x", 2), ("y", 1)]


DRAWS = [{"id": 1, "correct": 1}, {"id": 1, "correct": 0}, {"id": 1, "correct": 1}]


@pytest.mark.parametrize("duplicates", ["first", "last", "draws"])
def test_repeated_rows_are_settled_as_in_a_log(write_rows: WriteRows, tmp_path: Path, duplicates: Any) -> None:
    old, new = write_rows("old.jsonl", DRAWS), write_rows("new.jsonl", DRAWS[::-1])
    header = bless(old, tmp_path / "base.jsonl", Selection(duplicates=duplicates))
    assert header.rows == (3 if duplicates == "draws" else 1)
    assert_same_numbers(
        compare(tmp_path / "base.jsonl", new, duplicates=duplicates), compare(old, new, duplicates=duplicates)
    )


def test_repeated_rows_without_a_choice_are_not_blessed(write_rows: WriteRows, tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"old.jsonl:2: id '1' was right in line 1 and is wrong here"):
        bless(write_rows("old.jsonl", DRAWS), tmp_path / "base.jsonl")
    assert not (tmp_path / "base.jsonl").exists()


def test_half_a_surrogate_pair_survives(tmp_path: Path) -> None:
    rows = [{"id": "\ud800", "correct": 1, "answer": "\udcff"}]
    bless(rows, tmp_path / "base.jsonl")
    assert compare(tmp_path / "base.jsonl", rows).update.churn.value == 0


def test_blessing_again_replaces_a_baseline_and_nothing_else(
    blessed: Path, write_rows: WriteRows, tmp_path: Path
) -> None:
    log = tmp_path / "old.jsonl"
    assert bless(write_rows("new.jsonl", NEW), blessed, today=DAY).source.endswith("new.jsonl")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    for file, message in (
        (log, "belongs to the log itself; write the baseline to another file"),
        (tmp_path / "new.jsonl", "is there already and is no baseline; name another file"),
        (tmp_path / "no" / "base.jsonl", r"cannot be written \(No such file or directory\); check the folder"),
    ):
        with pytest.raises(MuscleError, match=message):
            bless(log, file)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": 1, "correct": None}], "no row says right or wrong or has a score; bless a log that does"),
        (None, "is a baseline already; bless an evaluation log"),
    ],
)
def test_what_is_not_blessed(
    blessed: Path, write_rows: WriteRows, rows: list[dict[str, Any]] | None, message: str
) -> None:
    log = blessed if rows is None else write_rows("log.jsonl", rows)
    with pytest.raises(MuscleError, match=message):
        bless(log, blessed.with_name("other.jsonl"))


def test_changed_content_makes_it_stale(blessed: Path, write_rows: WriteRows) -> None:
    new = write_rows("new.jsonl", [{**row, "target": "q"} for row in NEW])
    with pytest.raises(
        MuscleError, match=r"base.jsonl: the baseline is stale \(task x: 2 items have another target or doc_hash\)"
    ) as error:
        check_fresh(compare(blessed, new), None)
    assert str(error.value).endswith("; bless the log again with muscle gate --bless LOG --baseline FILE")


def test_a_changed_doc_hash_makes_it_stale(data: Path, tmp_path: Path) -> None:
    folder = data / "logs" / "lmeval_0.4.12_mmlu_qwen2.5_0shot_vs_5shot"
    bless(folder / "0shot", tmp_path / "base.jsonl")
    text = (tmp_path / "base.jsonl").read_text()
    (tmp_path / "base.jsonl").write_text(re.sub('"doc_hash":"....', '"doc_hash":"0000', text, count=1))
    with pytest.raises(MuscleError, match=r"stale \(task mmlu_abstract_algebra: 1 item has another"):
        check_fresh(compare(tmp_path / "base.jsonl", folder / "5shot"), None)


def test_other_logs_and_fewer_items_are_no_reason(blessed: Path, write_rows: WriteRows, tmp_path: Path) -> None:
    new = write_rows("new.jsonl", [{**row, "target": "q"} for row in NEW])
    check_fresh(compare(tmp_path / "old.jsonl", new), 1)
    comparison = compare(blessed, write_rows("fewer.jsonl", NEW[1:]))
    assert comparison.update.only_old == 1
    check_fresh(comparison, None)


def test_only_the_new_log_makes_it_stale(blessed: Path, write_rows: WriteRows) -> None:
    """No name of a task, and no other log."""
    name = "WARNING: target differs between old and y"
    log = write_rows("log.jsonl", [{**row, "task": name if row["task"] == "x" else "y"} for row in OLD])
    bless(log, blessed, today=DAY)
    changed = write_rows("changed.jsonl", [{**json.loads(row), "target": "q"} for row in log.read_text().splitlines()])
    comparison = compare(blessed, log, changed)
    assert any("target differs between old and compatible" in note for note in comparison.notes)
    check_fresh(comparison, None)


def test_texts_are_blessed_with_the_outcome_that_they_were_given(write_rows: WriteRows, tmp_path: Path) -> None:
    old = write_rows("old.jsonl", [{"id": i, "answer": "a" if i < 7 else "b", "target": "a"} for i in range(10)])
    new = write_rows("new.jsonl", [{"id": i, "answer": "a" if i < 5 else "b", "target": "a"} for i in range(10)])
    bless(old, tmp_path / "base.jsonl", Selection(text_score="exact_match"))
    stored = [json.loads(line) for line in (tmp_path / "base.jsonl").read_text().splitlines()]
    assert stored[0]["tasks"] == [{"name": "", "metric": "exact_match"}]
    assert [row.get("correct") for row in stored[1:]] == [1] * 7 + [0] * 3
    judged = write_rows("judged.jsonl", [{"id": i, "correct": i < 5} for i in range(10)])
    assert compare(tmp_path / "base.jsonl", judged).update.negative_flips == 2
    assert_same_numbers(
        compare(tmp_path / "base.jsonl", new, text_score="exact_match"), compare(old, new, text_score="exact_match")
    )


def test_age(blessed: Path, write_rows: WriteRows) -> None:
    comparison = compare(blessed, write_rows("new.jsonl", NEW))
    check_fresh(comparison, 30, today=DAY + datetime.timedelta(30))
    with pytest.raises(
        MuscleError, match=r"stale \(blessed on 2026-01-31, 31 days ago, of at most 30\); bless the log"
    ):
        check_fresh(comparison, 30, today=DAY + datetime.timedelta(31))


def test_another_metric_or_filter_is_refused(data: Path, tmp_path: Path) -> None:
    folder = data / "logs" / "lmeval_0.4.12_mmlu_qwen2.5_0shot_vs_5shot"
    base = tmp_path / "base.jsonl"
    bless(folder / "0shot", base, Selection(metric="acc"))
    assert compare(base, folder / "5shot", metric="acc", filter="none").update.n == 400
    with pytest.raises(
        LogError, match=r"task mmlu_abstract_algebra: blessed by metric 'acc'; leave out --metric, or bless"
    ):
        compare(base, folder / "5shot", metric="acc_norm")
    base.write_text(base.read_text().replace('"metric":"acc"', '"metric":"acc_norm"'))
    with pytest.raises(PairingError, match="different metrics"):
        compare(base, folder / "5shot")


# What is wrong -> (what to replace in the file, by what, start of what follows the file's name).
DAMAGED = {
    "a newer layout": (
        '"muscle_baseline":1',
        '"muscle_baseline":2',
        ": a baseline of version 2, and this program reads 1;",
    ),
    "a header without a date": (
        '"blessed":"2026-01-31",',
        "",
        ":1: the header is damaged (Object missing required field",
    ),
    "a date that is none": ("2026-01-31", "2026-02-31", ":1: the header is damaged (Invalid"),
    "a row deleted": ('{"task":"y","id":"2","correct":1,"score":0.25}\n', "", ": 3 rows where the header promises 4;"),
    "a row cut off": ('"score":0.25}\n', '"sco', ":5: the last line is cut off"),
    "a row of no task": ('{"task":"y","id":"2"', '{"task":"z","id":"2"', ":5: the header has no task 'z'; bless"),
    "a row without an id": ('"id":"2","correct":0', '"correct":0', ":3: the row has no id"),
    "neither right nor wrong": ('"correct":0', '"correct":7', ":3: correct is 7, neither right nor wrong"),
    "a number for an answer": ('"answer":"a"', '"answer":1', ":2: Expected `str | null`, got `int`"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_baseline_is_an_error(blessed: Path, write_rows: WriteRows, case: str) -> None:
    before, after, message = DAMAGED[case]
    text = blessed.read_text()
    assert before in text
    blessed.write_text(text.replace(before, after))
    with pytest.raises(LogError) as error:
        compare(blessed, write_rows("new.jsonl", NEW))
    assert str(error.value).startswith(f"{blessed}{message}")
