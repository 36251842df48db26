"""lm-eval 0.3 (`--write_out`) and the files of 0.4.0 to 0.4.2. A whole 0.3 log: test_public_pairs.py."""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muscle.errors import LogError
from muscle.measure.logs import OpenLog
from muscle.measure.logs.rows import Row, Selection
from muscle.measure.predictions import Log


def read(path: Path, **selection: Any) -> Log:
    return OpenLog(path, Selection(**selection)).read()


def rows_of(path: Path, **selection: Any) -> list[Row]:
    return list(OpenLog(path, Selection(**selection)).rows())


def write_list(file: Path, rows: list[dict[str, Any]], indent: int = 4) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows, indent=indent, ensure_ascii=False))
    return file


def item(doc_id: int, *logits: object, truth: object = 0, **metrics: object) -> dict[str, Any]:
    """A row as 0.3 writes it: prompts first, then what the requests gave, then every metric as text."""
    row: dict[str, Any] = {"doc_id": doc_id}
    row |= {f"prompt_{i}": f"Question: what?\nAnswer: it is {'abc'[i]}" for i in range(len(logits))}
    for i, logit in enumerate(logits):
        row |= {f"logit_{i}": logit, "truth": truth}
    return row | {name: str(value) for name, value in (metrics or {"acc": True}).items()}


# --- 0.3 ---


@pytest.mark.parametrize(
    ("logits", "answer"),
    [
        ((-2.5, -1.5, -3), "1"),
        ((-1.5, -1.5), "0"),
        ((-1.5, True), "True"),  # the two values of one log-likelihood, as LAMBADA asks for them
        (([-1.5, False],), "False"),
        (("generated text",), "generated text"),
        ((-1.5,), None),
    ],
)
def test_the_predicted_answer(tmp_path: Path, logits: tuple[object, ...], answer: str | None) -> None:
    file = write_list(tmp_path / "task_write_out_info.json", [item(0, *logits)])
    assert [(row.answer, row.correct) for row in rows_of(file)] == [(answer, 1)]


def test_task_outcomes_and_lines(tmp_path: Path) -> None:
    rows = [
        item(0, -1, -2, acc=True, acc_norm=False),
        item(1, -1, -2, truth=1, acc=False, acc_norm=False),
        item(2, -1, -2, acc="", acc_norm="0.0"),
    ]
    file = write_list(tmp_path / "run" / "arc_easy_write_out_info.json", rows)
    log = read(tmp_path / "run")
    assert (log.format, log.notes) == (
        "lm-eval-0.3",
        ("task arc_easy: metric acc is read; choose with --metric among it and acc_norm",),
    )
    assert log.tasks["arc_easy"].correct.tolist() == [1, 0, -1]
    assert list(read(file).tasks) == ["arc_easy"]  # a single file says its task too
    assert [(row.targets, row.answer, row.line) for row in rows_of(file)] == [
        (("0",), "0", 2),
        (("1",), "0", 12),
        (("0",), None, 22),
    ]


def test_lengths_are_not_in_the_log(tmp_path: Path) -> None:
    file = write_list(tmp_path / "arc_write_out_info.json", [item(0, -1, -2, acc=True, acc_norm=False)])
    log = read(file, metric="acc_norm")
    assert log.tasks["arc"].correct.tolist() == [0]
    assert log.tasks["arc"].answers.tolist() == [0]
    assert log.notes == (
        "task arc: lm-eval 0.3 logs no lengths of the choices, so the answers by this metric are missing; "
        "use --metric acc",
    )


def test_grades_are_texts_too(tmp_path: Path) -> None:
    rows = [item(0, "x", em="0.0", f1="0.25"), item(1, "y", em="1.0", f1="1.0")]
    file = write_list(tmp_path / "drop_write_out_info.json", rows)
    (task,) = read(file, score="f1").tasks.values()
    assert (task.metric, task.correct.tolist(), task.scores.tolist()) == ("em", [0, 1], [0.25, 1.0])
    with pytest.raises(LogError, match=r":2: f1 is '0.25', neither right nor wrong; .* --score f1, or .*--metric: em$"):
        read(file, metric="f1")


def test_texts_and_labels(tmp_path: Path) -> None:
    rows = [item(0, -1, -2, truth=1), item(1, "generated", truth=" yes")]
    log = OpenLog(write_list(tmp_path / "t_write_out_info.json", rows), Selection(labels=("truth",)))
    assert log.read().tasks["t"].labels["truth"] == ["1", " yes"]
    texts = log.texts({"t": {("0", 0), ("1", 0)}})
    assert texts["t", ("0", 0)] == ("Question: what?\nAnswer: it is ", "1: b", "0: a")
    assert texts["t", ("1", 0)] == ("Question: what?\nAnswer: it is a", " yes", "generated")


@pytest.mark.parametrize(
    ("row", "selection", "message"),
    [
        (item(1, math.nan, -1), {}, ":12: a log-likelihood is NaN; evaluate the item again"),
        (item(1, -1, -1, acc="maybe"), {}, ":12: acc is 'maybe', neither right nor wrong"),
        (item(1, -1, -1) | {"doc_id": None}, {}, ":12: the row has no id"),
        (item(1, -1, -1), {"filter": "none"}, r"json: lm-eval 0.3 has no filters; leave out --filter"),
        (item(1, -1, -1), {"metric": "f1"}, r"json: no metric 'f1'; choose with --metric among acc, acc_norm"),
        (item(0, -2, -1), {}, ":12: id '0' has another answer in line 2 than here .*two runs lie in one folder"),
    ],
)
def test_faults(tmp_path: Path, row: dict[str, Any], selection: dict[str, Any], message: str) -> None:
    rows = [item(0, -1, -2, acc=True, acc_norm=True), row]
    file = write_list(tmp_path / "t_write_out_info.json", rows)
    with pytest.raises(LogError, match=message):
        read(file, **selection)


def test_a_row_without_the_metric_is_unscored(tmp_path: Path) -> None:
    file = write_list(tmp_path / "t_write_out_info.json", [item(0, -1, -2), item(1, -1, -2, mcc=(0, 1))])
    assert read(file).tasks["t"].correct.tolist() == [1, -1]


@given(st.data())
def test_a_damaged_file_gives_rows_or_one_line(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = json.dumps([item(0, -1, -2), item(1, "x"), item(2, [-1, True])], indent=1).encode()
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 20)))
    file = tmp_path_factory.mktemp("log") / "t_write_out_info.json"
    file.write_bytes(content[:start] + data.draw(st.binary(max_size=8)) + content[end:])
    with suppress(LogError):
        log = OpenLog(file, Selection())
        log.read()
        log.texts({"t": {("1", 0)}})


# --- 0.4.0 to 0.4.2 ---


def sample(doc_id: int, responses: list[Any], **fields: Any) -> dict[str, Any]:
    """A row as 0.4.0 writes it: no hashes, no filter, requests as a list."""
    row = {
        "doc_id": doc_id,
        "doc": {"choices": ["cat", "snake"]},
        "target": 1,
        "arguments": [["Q", " a"], ["Q", " bb"]],
    }
    return row | {"resps": [responses], "filtered_resps": responses} | (fields or {"acc": 1.0, "acc_norm": 0.0})


def test_a_list_named_as_lines(tmp_path: Path) -> None:
    rows = [sample(0, [[-3.5, False], [-1.5, True]]), sample(1, [[-1.5, False], [-2.5, False]])]
    file = write_list(tmp_path / "pretrained__gpt2_piqa.jsonl", rows, indent=2)
    log = read(file)
    assert (log.format, list(log.tasks), log.tasks[""].filter) == ("lm-eval", [""], None)
    assert [(row.id, row.answer, row.targets) for row in rows_of(file)] == [("0", "1", ("1",)), ("1", "0", ("1",))]
    assert [row.answer for row in rows_of(file, metric="acc_norm")] == ["1", "1"]


def test_several_filters_repeat_an_id(tmp_path: Path) -> None:
    rows = [sample(0, ["12"], exact_match=1.0), sample(0, ["[invalid]"], exact_match=0.0)]
    file = write_list(tmp_path / "pretrained__gpt2_gsm8k.jsonl", rows, indent=2)
    with pytest.raises(LogError, match=r"jsonl:\d+: id '0' was right .*does not name its filters"):
        read(file)
    (task,) = read(file, duplicates="first").tasks.values()
    assert task.correct.tolist() == [1]


@pytest.mark.parametrize(
    ("stem", "task"),
    [
        ("pretrained__EleutherAI__pythia-160m,dtype__float_arc_easy", "arc_easy"),
        ("pretrained__gpt2_arc_easy", "arc_easy"),
        ("pretrained__my_model_arc_easy", "model_arc_easy"),  # nothing tells where the model ends
        ("no_model", "no_model"),
    ],
)
def test_tasks_by_the_name_alone(tmp_path: Path, stem: str, task: str) -> None:
    write_list(tmp_path / f"{stem}.jsonl", [sample(0, ["x"])])
    assert list(read(tmp_path).tasks) == [task]


@pytest.mark.parametrize(
    "results", [{"configs": {"arc": {}, "arc_easy": {}, "piqa": {}}}, {"results": {"arc_easy": {}}}]
)
def test_tasks_by_the_results_beside(tmp_path: Path, results: dict[str, Any]) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results, indent=2))
    (tmp_path / "other.json").write_text("[1]\n")
    file = write_list(tmp_path / "pretrained__my_model_arc_easy.jsonl", [sample(0, ["x"])])
    assert list(read(tmp_path).tasks) == ["arc_easy"]
    assert list(read(file).tasks) == ["arc_easy"]
