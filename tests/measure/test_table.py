"""Tables: which columns are read, under which names, and what their cells become."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from muscle.errors import LogError
from muscle.measure import compare
from muscle.measure.logs import OpenLog
from muscle.measure.logs.rows import Row, Selection
from muscle.measure.predictions import Log, Predictions

from ..command import muscle
from .conftest import WriteRows


def read(source: object, **selection: Any) -> Log:
    return OpenLog(source, Selection(**selection)).read()


def only_task(source: object, **selection: Any) -> Predictions:
    (predictions,) = read(source, **selection).tasks.values()
    return predictions


def rows_of(source: object, **selection: Any) -> list[Row]:
    return list(OpenLog(source, Selection(**selection)).rows())


def same_answers(source: object, **selection: Any) -> list[list[int]]:
    """The rows grouped by equal answers."""
    keys = only_task(source, **selection).answers.tolist()
    return [[i for i, other in enumerate(keys) if other == key] for key in dict.fromkeys(keys)]


# --- columns under their own names ---


def test_what_a_table_s_cells_become(write_rows: WriteRows) -> None:
    file = write_rows(
        "log.jsonl",
        [
            {"id": 1, "correct": True, "answer": 18.0, "target": "18", "score": 0.5, "draw": 0, "doc_hash": "0a"},
            {"id": "b", "correct": 0, "answer": None, "draw": None},
            {"id": "b", "correct": 1, "answer": "x", "draw": 1},
            {"id": 2.0, "correct": None, "answer": True, "target": None, "task": "t"},
        ],
    )
    first, second, third, fourth = rows_of(file)
    assert (first.id, first.correct, first.answer, first.targets) == ("1", 1, "18", ("18",))
    assert (first.score, first.draw, first.doc_hash, first.line) == (0.5, 0, "0a", 1)
    assert (second.id, second.correct, second.answer, second.targets, second.draw) == ("b", 0, None, (), 0)
    assert math.isnan(second.score)
    assert (third.draw, third.task.name, third.task.metric, third.task.score) == (1, "", None, "score")
    assert (fourth.id, fourth.correct, fourth.answer, fourth.task.name) == ("2", -1, "True", "t")


def test_an_unscored_table_names_no_score(write_rows: WriteRows) -> None:
    file = write_rows("log.jsonl", [{"id": 1, "correct": 1}])
    assert only_task(file).score is None


def test_texts_of_csv(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_bytes(
        b'\xef\xbb\xbfanswer,id,correct,score,x,x\r\n"two\r\nlines, ""quoted""",1,True,,a,b\r\n\r\n,2,0.0,0.25,a,b\r\n'
    )
    first, second = rows_of(file)
    assert (first.id, first.correct, first.answer) == ("1", 1, 'two\r\nlines, "quoted"')
    assert (second.id, second.correct, second.answer, second.score) == ("2", 0, None, 0.25)


def test_tasks_by_file_and_by_column(tmp_path: Path, write_rows: WriteRows) -> None:
    write_rows("run/piqa.jsonl", [{"id": 1, "correct": 1}])
    write_rows("run/sub/gsm8k.jsonl", [{"id": 1, "correct": 0}, {"id": 2, "correct": 0, "task": "other"}])
    tasks = read(tmp_path / "run").tasks
    assert {name: task.ids for name, task in tasks.items()} == {"piqa": ["1"], "gsm8k": ["1"], "other": ["2"]}


@pytest.mark.parametrize("value", ["x", -1, 1.5, [1], 2**31, 1e99, "nan"])
def test_a_draw_is_a_number(value: object) -> None:
    with pytest.raises(LogError, match=r"<list>:1: draw is .*; number the draws of an item 0, 1, 2"):
        read([{"id": 1, "correct": 1, "draw": value}])


@pytest.mark.parametrize("name", ["answer", "target", "task", "doc_hash", "subject"])
def test_nan_is_no_text(write_rows: WriteRows, name: str) -> None:
    file = write_rows("log.jsonl", [{"id": 1, "correct": 1, name: 1}, {"id": 2, "correct": 1, name: math.nan}])
    with pytest.raises(LogError, match=r"log.jsonl:2: .* is NaN; remove it, or write null"):
        read(file, labels=("subject",))


def test_cells_that_cannot_be() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for answer in (10**5000, deep):
        with pytest.raises(LogError, match=r"<list>.*(too large or too deep|cannot be read)"):
            read([{"id": 1, "correct": 1, "answer": answer}])


# --- columns under other names ---

NESTED: list[dict[str, Any]] = [
    {"qid": "a", "old.1": {"ok": 1, "said": "x"}, "gold": {"answer": "y", "by": {"name": "z"}}, "q": "?"},
    {"qid": "b", "old.1": {"ok": 0, "said": None}, "gold": None, "q": "!"},
]
MAPPED = {"id": "qid", "correct": "old.1.ok", "answer": "old.1.said", "target": "gold.answer", "input": "q"}


def test_columns_by_their_own_names(write_rows: WriteRows) -> None:
    file = write_rows("log.jsonl", NESTED)
    first, second = rows_of(file, columns=MAPPED, labels=("gold.by.name", "q"))
    assert (first.id, first.correct, first.answer, first.targets) == ("a", 1, "x", ("y",))
    assert (first.labels, second.labels) == (("z", "?"), (None, "!"))
    assert (second.id, second.correct, second.answer, second.targets) == ("b", 0, None, ())


def test_the_question_by_its_own_name(write_rows: WriteRows) -> None:
    log = OpenLog(write_rows("log.jsonl", NESTED), Selection(columns=MAPPED))
    assert log.texts({"": {("b", 0)}}) == {("", ("b", 0)): ("!", None, None)}


def test_a_mapped_column_replaces_ours() -> None:
    (row,) = rows_of([{"id": 1, "correct": 0, "answer": "a", "said": "b"}], columns={"answer": "said"})
    assert row.answer == "b"


def test_row_numbers_as_ids(tmp_path: Path, write_rows: WriteRows) -> None:
    (tmp_path / "log.jsonl").write_text('\n{"correct": 1}\n\n{"correct": 0}\n')
    log = read(tmp_path / "log.jsonl", columns={"id": "#"})
    assert log.tasks[""].ids == ["1", "2"]
    assert log.notes == ("ids are the numbers of the rows; the logs must hold the same items in the same order",)
    for shard in (0, 1):
        write_rows(f"run/data-{shard:05}-of-00002.jsonl", [{"correct": 1}, {"correct": 0}])
    assert read(tmp_path / "run", columns={"id": "#"}).tasks[""].ids == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"correct": "old.1.ko"}, r"no column 'old.1.ko' for correct; did you mean 'old.1.ok'\?"),
        ({"answer": "ANSWER"}, r"no column 'ANSWER' for answer; did you mean 'gold.answer'\?"),
        ({"answer": "zzz"}, r"no column 'zzz' for answer; choose among 'qid, old.1, old.1.ok, old.1.said, gold, "),
        ({"answr": "q"}, r"--column answr=... maps 'answr', which is not read; did you mean 'answer'\?"),
        ({"zzz": "q"}, r"maps 'zzz', which is not read; choose among id, correct, answer, "),
    ],
)
def test_columns_that_are_not_there(write_rows: WriteRows, columns: dict[str, str], message: str) -> None:
    file = write_rows("log.jsonl", NESTED)
    with pytest.raises(LogError, match=r"log.jsonl: .*" + message):
        read(file, columns=MAPPED | columns)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"correct": 1}], r"no column 'id'; name it with --column id=NAME, or take the row's number with"),
        ([{"id": 1, "answer": 1}], r"no column 'correct' or 'score'; name one with --column correct=NAME; choose"),
    ],
)
def test_columns_that_are_needed(rows: Iterable[Any], message: str) -> None:
    with pytest.raises(LogError, match=message):
        read(rows, format="table")


def test_a_label_that_only_another_log_has_is_noted() -> None:
    log = read([{"id": 1, "correct": 1, "subject": "x"}], labels=("subjct",))
    assert log.tasks[""].labels == {"subjct": [None]}
    assert log.notes == ("no column 'subjct' to slice or cluster by; did you mean 'subject'?",)


def test_a_nested_field_in_what_is_no_object(write_rows: WriteRows) -> None:
    file = write_rows("log.jsonl", [*NESTED, {"qid": "c", "old.1": "x"}])
    with pytest.raises(LogError, match=r"log.jsonl:3: old.1 is 'x', which has no 'ok'; correct the row"):
        read(file, columns=MAPPED)
    file = write_rows("log.jsonl", [*NESTED, {"qid": "c", "old.1": {"said": "x"}}])
    with pytest.raises(LogError, match=r"log.jsonl:3: the row has no 'old.1.ok'; complete it, or leave it out"):
        read(file, columns=MAPPED)


# --- what grades the answers ---


def test_a_column_as_score() -> None:
    rows = [{"id": 1, "correct": 1, "judge": {"grade": 0.5}}, {"id": 2, "correct": 1}]
    for choice in ({"score": "judge.grade"}, {"columns": {"score": "judge.grade"}}):
        task = only_task(rows, **choice)
        assert task.score == "judge.grade"
        assert task.scores[0] == 0.5
        assert math.isnan(task.scores[1])
    with pytest.raises(LogError, match=r"two columns are named for the score, 'id' and 'judge.grade'; leave out"):
        read(rows, score="judge.grade", columns={"score": "id"})


def test_scores_alone() -> None:
    task = only_task([{"id": 1, "score": 0.5}, {"id": 2, "score": None}])
    assert (task.metric, task.score, task.correct.tolist()) == (None, "score", [-1, -1])
    with pytest.raises(LogError, match=r"<list>:2: the row has no 'score'"):
        read([{"id": 1, "score": 0.5}, {"id": 2}])


def test_texts_alone() -> None:
    rows = [
        {"id": 1, "answer": "a cat", "target": ["a cat", "the cat"]},
        {"id": 2, "answer": "a dog", "target": "a cat"},
        {"id": 3, "answer": None, "target": "a cat"},
    ]
    task = only_task(rows, text_score="exact_match")
    assert (task.metric, task.score, task.correct.tolist()) == ("exact_match", None, [1, 0, 0])
    task = only_task(rows, text_score="rouge1")
    assert (task.metric, task.score, task.scores.tolist()[:2]) == (None, "rouge1", [1.0, 0.5])
    with pytest.raises(LogError, match=r"no column 'correct' or 'score'; grade the answers with --text-score exact"):
        read(rows)
    with pytest.raises(LogError, match=r"no column 'target' for --text-score; name it with --column target=NAME"):
        read([{"id": 1, "answer": "a"}], text_score="rouge1", format="table")


def test_texts_decide_over_a_column() -> None:
    rows = [{"id": 1, "correct": "maybe", "answer": "a", "target": "a"}]
    assert only_task(rows, text_score="exact_match").correct.tolist() == [1]


def test_a_score_that_comes_late(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    first = '{"id": 1, "correct": 1}\n'
    file.write_text(first * 5000 + '{"id": 1, "correct": 1, "score": 0.5}\n')
    with pytest.raises(LogError, match=r"log.jsonl:5001: 'score' is here but not in the first rows; write null"):
        read(file)
    file.write_text(first + '{"id": 2, "correct": 1, "score": 0.5}\n')
    assert only_task(file).score == "score"


@pytest.mark.parametrize("choice", [{"metric": "acc"}, {"filter": "strict"}])
def test_a_table_has_no_metrics(choice: dict[str, str]) -> None:
    with pytest.raises(LogError, match=r"<list>: a table has neither metrics nor filters; leave out --metric"):
        read([{"id": 1, "correct": 1}], **choice)


# --- answers ---


def test_which_answers_are_the_same() -> None:
    answers = [18, 18.0, "18", "18.0", "$18", "1,800", None, 1800.0]
    rows = [{"id": i, "correct": 0, "answer": answer} for i, answer in enumerate(answers)]
    assert same_answers(rows) == [[0, 1, 2], [3], [4], [5], [6], [7]]
    numbers = only_task(rows).numbers.tolist()
    assert len({numbers[i] for i in (0, 1, 2, 3, 4)}) == len({numbers[i] for i in (5, 7)}) == 1


def test_sets_of_labels_have_no_order() -> None:
    answers: list[object] = [["a", "b"], ["b", "a"], ["b", "a", "b"], ["a"], [], None, [1, 2.0], ["2", "1"]]
    rows = [{"id": i, "correct": 0, "answer": answer, "target": ["b", "a"]} for i, answer in enumerate(answers)]
    assert same_answers(rows) == [[0, 1, 2], [3], [4], [5], [6, 7]]
    assert len(set(only_task(rows).targets.tolist())) == 1
    assert only_task(rows, text_score="exact_match").correct.tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


def test_several_targets_of_one_answer_are_acceptable_ones() -> None:
    (row,) = rows_of([{"id": 1, "correct": 1, "answer": "a", "target": ["a", None, 2.0]}])
    assert row.targets == ("a", "2")


def test_texts_for_showing_are_as_they_are() -> None:
    log = OpenLog([{"id": 1, "correct": 1, "answer": ["b", "a"], "target": ["b", "a"], "prompt": "?"}], Selection())
    (texts,) = log.texts({"": {("1", 0)}}).values()
    assert (texts.input, texts.target, texts.answer) == ("?", "b | a", '["b", "a"]')


@pytest.mark.parametrize(
    ("fields", "question"),
    [
        ({"prompt": "p", "question": "q", "input": "i"}, "i"),
        ({"prompt": "p", "question": "q"}, "q"),
        ({"prompt": "p"}, "p"),
        ({}, None),
    ],
)
def test_where_the_question_stands(fields: dict[str, str], question: str | None) -> None:
    (row,) = OpenLog([{"id": 1, "correct": 1, **fields}], Selection()).texts({"": {("1", 0)}}).values()
    assert row.input == question


# --- a real file without ids, with four systems side by side ---

PAIRS = [
    ("6b_finetuning", "175b_finetuning"),
    ("6b_verification", "175b_verification"),
    ("6b_finetuning", "6b_verification"),
    ("175b_finetuning", "175b_verification"),
    ("175b_verification", "6b_finetuning"),
]


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_openai_s_solutions_as_lists_of_dicts(data: Path, old: str, new: str) -> None:
    """What no mapping says, such as that the answer is what follows the last "A:", is three lines of Python."""
    folder = data / "logs" / "gsm8k_openai_solutions"
    problems = [json.loads(line) for line in (folder / "example_model_solutions.jsonl").read_text().splitlines()]

    def answer(solution: str) -> str | None:
        return solution.rpartition("A:")[2].strip().replace(",", "") if "A:" in solution else None

    logs = [
        [
            {"id": number, "correct": problem[system]["is_correct"], "answer": answer(problem[system]["solution"])}
            for number, problem in enumerate(problems)
        ]
        for system in (old, new)
    ]
    update = compare(*logs).update
    want = json.loads((folder / "expected.json").read_text())[f"{old} -> {new}"]
    counts = ("both_right", "positive_flips", "negative_flips", "both_wrong", "both_wrong_different")
    assert {name: getattr(update, name) for name in counts} == {name: want[name] for name in counts}
    assert (update.missing_answers_old, update.missing_answers_new) == (
        want["pred_missing_v1"],
        want["pred_missing_v2"],
    )


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_openai_s_solutions_by_mapping_alone(data: Path, old: str, new: str) -> None:
    folder = data / "logs" / "gsm8k_openai_solutions"
    want = json.loads((folder / "expected.json").read_text())[f"{old} -> {new}"]
    right = {}
    for system in (old, new):
        columns = {"id": "#", "correct": f"{system}.is_correct", "answer": f"{system}.solution"}
        task = only_task(folder / "example_model_solutions.jsonl", columns=columns)
        assert task.ids == [str(number) for number in range(1, want["N"] + 1)]
        right[system] = task.correct == 1
    assert (right[old] & right[new]).sum() == want["both_right"]
    assert (right[old] & ~right[new]).sum() == want["negative_flips"]
    assert (~right[old] & right[new]).sum() == want["positive_flips"]
    assert (~right[old] & ~right[new]).sum() == want["both_wrong"]


def test_the_flags_of_the_command(tmp_path: Path, write_rows: WriteRows) -> None:
    for name, right in (("old", [1, 0, 1]), ("new", [1, 1, 0])):
        rows = [{"doc": {"n": i, "by": i % 2}, "eval": {"ok": ok}} for i, ok in enumerate(right)]
        write_rows(f"{name}.jsonl", rows)
    columns = ("--column", "id=doc.n", "--column", "correct=eval.ok")
    run = muscle("compare", "old.jsonl", "new.jsonl", *columns, "--slice", "doc.by", "--json", "out.json", cwd=tmp_path)
    assert (run.returncode, run.stderr) == (0, "")
    document = json.loads((tmp_path / "out.json").read_text())
    assert [document[name] for name in ("both_right", "positive_flips", "negative_flips")] == [1, 1, 1]
    run = muscle(
        "compare", "old.jsonl", "new.jsonl", "--column", "id=doc.m", "--column", "correct=eval.ok", cwd=tmp_path
    )
    assert (run.returncode, run.stderr) == (
        2,
        "error: old.jsonl: no column 'doc.m' for id; did you mean 'doc.n'?\n",
    )
