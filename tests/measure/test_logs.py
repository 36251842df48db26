"""Readers: what each format's rows become. Their errors are tested through the real command in tests/test_cli.py."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from muscle.errors import LogError
from muscle.measure import logs
from muscle.measure.predictions import Predictions

from .conftest import WriteRows

DATE = "2026-01-02T03-04-05.678901"


def only_task(path: Path, **choices: Any) -> Predictions:
    (predictions,) = logs.read(path, **choices).tasks.values()
    return predictions


def sample(doc_id: int, *, responses: list[Any], **fields: Any) -> dict[str, Any]:
    """A row as lm-eval 0.4.7 and later write it."""
    row = {"doc_id": doc_id, "doc": {"question": "?"}, "target": "0", "filtered_resps": responses, "filter": "none"}
    return row | {"metrics": ["acc"], "acc": 1.0, "doc_hash": f"{doc_id:064x}"} | fields


def choices(*log_likelihoods: float) -> list[list[str]]:
    return [[str(value), "False"] for value in log_likelihoods]


def arguments(*continuations: str) -> dict[str, Any]:
    return {f"gen_args_{i}": {"arg_0": "a prompt", "arg_1": text} for i, text in enumerate(continuations)}


# --- tables ---


def test_jsonl_table(write_rows: WriteRows) -> None:
    file = write_rows(
        "log.jsonl",
        [
            {"id": 1, "correct": True, "answer": 18.0, "target": "18", "score": 0.5, "prompt": "ignored"},
            {"id": "b", "correct": 0, "answer": None},
            {"id": "c", "correct": None, "answer": ["x", 1]},
        ],
    )
    table = only_task(file)
    assert table.ids == ["1", "b", "c"]
    assert table.correct.tolist() == [1, 0, -1]
    assert table.answers == ["18.0", None, '["x", 1]']
    assert table.targets == ["18", None, None]
    assert table.scores[0] == 0.5
    assert math.isnan(table.scores[1])
    assert table.task == ""


def test_csv_table_says_the_same_as_jsonl(tmp_path: Path, write_rows: WriteRows) -> None:
    csv = tmp_path / "log.csv"
    csv.write_bytes(
        b'\xef\xbb\xbfanswer,id,correct,score\r\n"two\r\nlines, ""quoted""",1,True,\r\n\r\n,2,0.0,0.25\r\nx,3,,\r\n'
    )
    jsonl = write_rows(
        "log.jsonl",
        [
            {"id": 1, "correct": True, "answer": 'two\r\nlines, "quoted"'},
            {"id": 2, "correct": False, "score": 0.25},
            {"id": 3, "correct": None, "answer": "x"},
        ],
    )
    ours, theirs = only_task(csv), only_task(jsonl)
    assert (ours.ids, ours.answers) == (theirs.ids, theirs.answers)
    assert ours.correct.tolist() == theirs.correct.tolist() == [1, 0, -1]
    assert ours.scores.tolist()[1] == theirs.scores.tolist()[1] == 0.25


@pytest.mark.parametrize(
    ("cell", "outcome"),
    [(True, 1), (False, 0), (1, 1), (0.0, 0), ("True", 1), ("false", 0), ("1.0", 1), ("0", 0), (None, -1), ("", -1)],
)
def test_what_counts_as_right(write_rows: WriteRows, cell: object, outcome: int) -> None:
    assert only_task(write_rows("log.jsonl", [{"id": 1, "correct": cell}])).correct.tolist() == [outcome]


@pytest.mark.parametrize("cell", [0.37, 2, "yes", "C", [1], {}])
def test_what_counts_as_neither(write_rows: WriteRows, cell: object) -> None:
    with pytest.raises(LogError, match=r"log\.jsonl:2: correct is .*neither right nor wrong"):
        logs.read(write_rows("log.jsonl", [{"id": 1, "correct": 1}, {"id": 2, "correct": cell}]))


def test_tasks_of_tables(tmp_path: Path, write_rows: WriteRows) -> None:
    write_rows("run/piqa.jsonl", [{"id": 1, "correct": 1}])
    write_rows("run/sub/gsm8k.jsonl", [{"id": 1, "correct": 0}, {"id": 2, "correct": 0, "task": "other"}])
    tasks = logs.read(tmp_path / "run").tasks
    assert {name: predictions.ids for name, predictions in tasks.items()} == {
        "piqa": ["1"],
        "gsm8k": ["1"],
        "other": ["2"],
    }


def test_a_repeated_row_is_counted_once(write_rows: WriteRows) -> None:
    row = {"id": 1, "correct": 1, "answer": "a"}
    log = logs.read(write_rows("log.jsonl", [row, {"id": 2, "correct": 0}, row]))
    assert log.rows == 2
    assert log.notes == ("repeated rows with the same outcome, counted once: 1",)


def test_a_repeated_row_with_another_answer_is_an_error(write_rows: WriteRows) -> None:
    rows = [{"id": 1, "correct": 0, "answer": "a"}, {"id": 1, "correct": 0, "answer": "b"}]
    with pytest.raises(LogError, match=r"log\.jsonl:2: id '1' was answered 'a' in line 1 and 'b' here"):
        logs.read(write_rows("log.jsonl", rows))


def test_ignored_columns_may_have_one_name(tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    file.write_text("x,x,id,correct\na,b,1,1\n")
    assert only_task(file).correct.tolist() == [1]


# --- lm-eval ---


def test_the_task_is_in_the_file_name(write_rows: WriteRows) -> None:
    file = write_rows(f"samples_mmlu_abstract_algebra_{DATE}.jsonl", [sample(0, responses=["x"])])
    assert only_task(file).task == "mmlu_abstract_algebra"


@pytest.mark.parametrize(
    ("responses", "answer"),
    [
        (choices(-3.5, -1.25, -10), "1"),
        (choices(-2, -2), "0"),
        ([[-1.0, False], [float("-inf"), False]], "0"),
        ([["-0.1", "True"]], "True"),
        ([" 42 "], " 42 "),
        ([["a", "b"]], '["a", "b"]'),
        ([], None),
    ],
)
def test_the_predicted_answer(write_rows: WriteRows, responses: list[Any], answer: str | None) -> None:
    assert only_task(write_rows("log.jsonl", [sample(0, responses=responses)])).answers == [answer]


@pytest.mark.parametrize(
    ("metric", "answer"),
    [("acc", "0"), ("acc_norm", "1"), ("acc_bytes", "2")],
)
def test_length_normalised_answers(write_rows: WriteRows, metric: str, answer: str) -> None:
    # per choice:     1 character       5 characters    4 characters, 8 bytes
    row = sample(
        0,
        responses=choices(-2.0, -9.0, -8.0),  # the blank before a choice must not count, or acc_norm takes the first
        arguments=arguments(" a", " abcde", " \u00e9\u00e9\u00e9\u00e9"),
        metrics=["acc", "acc_norm", "acc_bytes"],
        acc_norm=0.0,
        acc_bytes=0.0,
    )
    assert only_task(write_rows("log.jsonl", [row]), metric=metric).answers == [answer]


@pytest.mark.parametrize(("metric", "answer"), [("acc", "0"), ("acc_mutual_info", "1")])
def test_mutual_information_doubles_the_list(write_rows: WriteRows, metric: str, answer: str) -> None:
    row = sample(0, responses=choices(-1.0, -2.0, -0.5, -9.0), metrics=["acc", "acc_mutual_info"], acc_mutual_info=1)
    assert only_task(write_rows("log.jsonl", [row]), metric=metric).answers == [answer]


def test_mutual_information_beside_lengths(write_rows: WriteRows) -> None:
    """The arguments are doubled too; only the first half's lengths count."""
    row = sample(
        0,
        responses=choices(-2.0, -9.0, -0.5, -9.0),
        arguments=arguments(" a", " abcde", "a", "abcde"),
        metrics=["acc", "acc_norm", "acc_mutual_info"],
        acc_norm=0.0,
    )
    assert only_task(write_rows("log.jsonl", [row]), metric="acc_norm").answers == ["1"]


@pytest.mark.parametrize(
    ("metric", "fields", "message"),
    [
        ("acc", {"filtered_resps": [["-1", "False"], ["-2"]]}, r"\['-2'\] stands among the log-likelihoods"),
        ("acc", {"filtered_resps": [["-1", "False"], [None, "False"]]}, r"\[None, 'False'\] stands among the log-like"),
        ("acc", {"filtered_resps": [["-1", "False"], [10**400, "False"]]}, "stands among the log-likelihoods"),
        ("acc_mutual_info", {"filtered_resps": choices(-1, -2, -3)}, "3 log-likelihoods are not two per choice"),
        ("acc_mutual_info", {"filtered_resps": choices(-math.inf, -2, -math.inf, -3)}, "a log-likelihood is NaN"),
        ("acc_norm", {}, "arguments holds 0 choices for 2 log-likelihoods"),
        ("acc_norm", {"arguments": arguments(" a")}, "arguments holds 1 choices for 2 log-likelihoods"),
        ("acc_norm", {"arguments": {"a": {"arg_1": "x"}, "b": {}}}, r"arguments has None where a choice's text"),
    ],
)
def test_responses_that_give_no_answer(
    write_rows: WriteRows, metric: str, fields: dict[str, Any], message: str
) -> None:
    row = sample(0, responses=choices(-1, -2), metrics=["acc"]) | fields
    row |= {"metrics": sorted({"acc", metric}), metric: 1}
    with pytest.raises(LogError, match=f"log.jsonl:1: .*{message}.*; evaluate the item again, or set {metric} to null"):
        logs.read(write_rows("log.jsonl", [row]), metric=metric)


@pytest.mark.parametrize("name", ["target", "doc_id", "filter"])
def test_the_log_s_own_fields_are_no_metrics(write_rows: WriteRows, name: str) -> None:
    file = write_rows("log.jsonl", [sample(0, responses=["x"], metrics=[name, "acc"])])
    assert only_task(file).metric == "acc"
    with pytest.raises(LogError, match=f"no metric '{name}'; choose with --metric among acc$"):
        logs.read(file, metric=name)


@pytest.mark.parametrize("value", ["-1", "xyz"])
def test_a_doc_hash_is_hexadecimal(write_rows: WriteRows, value: str) -> None:
    with pytest.raises(LogError, match=f"log.jsonl:1: doc_hash is '{value}'; expected hexadecimal digits"):
        logs.read(write_rows("log.jsonl", [sample(0, responses=["x"], doc_hash=value)]))


def test_doc_ids_that_pandas_made_floats(write_rows: WriteRows) -> None:
    row = sample(0, responses=["x"]) | {"doc_id": 7.0}
    assert only_task(write_rows("log.jsonl", [row])).ids == ["7"]


def test_a_filter_where_the_log_names_none(write_rows: WriteRows) -> None:
    row = sample(0, responses=["x"])
    del row["filter"]
    with pytest.raises(LogError, match="this log names no filters; leave out --filter"):
        logs.read(write_rows("log.jsonl", [row]), filter_name="strict")


def test_first_metric_and_filter_are_the_default_and_said(write_rows: WriteRows) -> None:
    fields = {"metrics": ["lists", "exact_match", "f1"], "lists": [1], "exact_match": 1.0, "f1": 0.5}
    file = write_rows(
        f"samples_gsm8k_{DATE}.jsonl",
        [
            sample(0, responses=["12"], filter="strict-match", **fields),
            sample(0, responses=["[invalid]"], filter="flexible-extract", **fields | {"exact_match": 0.0}),
        ],
    )
    log = logs.read(file)
    strict = log.tasks["gsm8k"]
    assert (strict.metric, strict.filter, strict.answers) == ("exact_match", "strict-match", ["12"])
    assert log.notes == (
        "task gsm8k: filter strict-match is read; choose with --filter among it and flexible-extract",
        "task gsm8k: metric exact_match is read; choose with --metric among it and f1",
    )
    flexible = only_task(file, filter_name="flexible-extract")
    assert (flexible.answers, flexible.correct.tolist()) == (["[invalid]"], [0])


def test_metrics_of_a_log_that_does_not_name_them(write_rows: WriteRows) -> None:
    row = sample(0, responses=["x"], exact_match=0)
    del row["metrics"], row["filter"], row["acc"]
    predictions = only_task(write_rows("log.jsonl", [row]))
    assert (predictions.metric, predictions.filter, predictions.correct.tolist()) == ("exact_match", None, [0])


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"metric": "bleu"}, "no metric 'bleu'; choose with --metric among acc"),
        ({"filter_name": "strict"}, "no filter 'strict'; choose with --filter among none"),
    ],
)
def test_unknown_choices_name_those_present(write_rows: WriteRows, choice: dict[str, str], message: str) -> None:
    with pytest.raises(LogError, match=message):
        logs.read(write_rows("log.jsonl", [sample(0, responses=["x"])]), **choice)


def test_a_graded_metric_is_refused_with_alternatives(write_rows: WriteRows) -> None:
    row = sample(0, responses=["x"], metrics=["f1", "exact_match"], f1=0.37, exact_match=0)
    with pytest.raises(LogError, match=r":1: f1 is 0.37, neither right nor wrong; .*--metric: exact_match"):
        logs.read(write_rows("log.jsonl", [row]))


def test_unnamed_filters_that_disagree_are_an_error(write_rows: WriteRows) -> None:
    rows = [sample(7, responses=["a"], acc=1), sample(7, responses=["b"], acc=0)]
    for row in rows:
        del row["filter"], row["metrics"]
    with pytest.raises(
        LogError, match=r":2: id '7' was right in line 1 and is wrong here; .*does not name its filters"
    ):
        logs.read(write_rows("log.jsonl", rows))


def test_nan_elsewhere_in_a_row_does_no_harm(write_rows: WriteRows) -> None:
    row = sample(0, responses=choices(-1, -2), metrics=["acc", "perplexity"], perplexity=float("nan"))
    assert only_task(write_rows("log.jsonl", [row])).correct.tolist() == [1]


def test_a_nan_log_likelihood_is_an_error(write_rows: WriteRows) -> None:
    with pytest.raises(LogError, match=":1: a log-likelihood is NaN; evaluate the item again"):
        logs.read(write_rows("log.jsonl", [sample(0, responses=choices(math.nan, -2))]))


def test_two_runs_in_one_folder(tmp_path: Path, write_rows: WriteRows) -> None:
    write_rows("m/samples_piqa_2026-01-01T00-00-00.0.jsonl", [sample(0, responses=["x"], acc=1)])
    write_rows("m/samples_piqa_2026-01-02T00-00-00.0.jsonl", [sample(0, responses=["x"], acc=0)])
    with pytest.raises(LogError, match=r"01-02T.*:1: id '0' was right in .*01-01T.*:1 and is wrong here; .*two runs"):
        logs.read(tmp_path / "m")


def test_a_folder_is_read_for_its_samples_alone(tmp_path: Path, write_rows: WriteRows) -> None:
    write_rows(f"run/model/samples_piqa_{DATE}.jsonl", [sample(0, responses=["x"])])
    write_rows("run/notes.jsonl", [{"anything": 1}])
    (tmp_path / "run" / f"results_{DATE}.json").write_text("{}")
    assert list(logs.read(tmp_path / "run").tasks) == ["piqa"]


def test_the_hash_of_a_folder_follows_names_and_contents(tmp_path: Path, write_rows: WriteRows) -> None:
    for folder in ("a", "b"):
        write_rows(f"{folder}/x.jsonl", [{"id": 1, "correct": 1}])
    before = logs.read(tmp_path / "a").sha256
    assert logs.read(tmp_path / "b").sha256 == before
    (tmp_path / "b" / "x.jsonl").rename(tmp_path / "b" / "y.jsonl")
    assert logs.read(tmp_path / "b").sha256 != before
    write_rows("a/x.jsonl", [{"id": 1, "correct": 0}])
    assert logs.read(tmp_path / "a").sha256 != before


def test_a_subfolder_that_cannot_be_read_is_an_error(
    tmp_path: Path, write_rows: WriteRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows("run/x.jsonl", [{"id": 1, "correct": 1}])
    locked = write_rows("run/locked/y.jsonl", [{"id": 1, "correct": 1}]).parent
    scandir = os.scandir

    def refuse(folder: Any) -> Any:  # the tests may run as root, whom no permission stops
        if Path(folder) == locked:
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(LogError, match=r"run/locked: cannot be read \(Permission denied\); check its permissions"):
        logs.read(tmp_path / "run")


CUT = '{"id": "a\\u12ab\\"b", "correct": true, "x": [null, NaN, -1.5e-3, false, {"y": -Infinity}], "z": "\u00e9"}'


def test_a_row_cut_off_anywhere_is_told_as_such(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    whole = CUT.encode()
    for end in range(1, len(whole)):
        file.write_bytes(whole + b"\n" + whole[:end])
        with pytest.raises(LogError, match=r"log\.jsonl:2: the last line is cut off"):
            logs.read(file)


def test_rows_after_a_bad_byte_are_not_blamed(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_bytes(json.dumps({"id": 1, "correct": 1}).encode() + b'\n{"id": "\xff", "correct": 1}\n{"id": 3}\n')
    with pytest.raises(LogError, match=r"log\.jsonl:2: not valid UTF-8"):
        logs.read(file)
