"""lm-eval samples, 0.4.0 and later: metric, filter and answer of each row. Whole files: test_public_pairs.py."""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muscle.errors import LogError
from muscle.measure.logs import OpenLog, lm_eval
from muscle.measure.logs.collector import gather
from muscle.measure.logs.rows import Row, Selection
from muscle.measure.predictions import Log

from .conftest import WriteRows

DATE = "2026-01-02T03-04-05.678901"


def read(path: Path, **selection: Any) -> Log:
    return OpenLog(path, Selection(**selection)).read()


def rows_of(path: Path, **selection: Any) -> list[Row]:
    return list(OpenLog(path, Selection(**selection)).rows())


def answers_of(path: Path, **selection: Any) -> list[str | None]:
    return [row.answer for row in rows_of(path, **selection)]


def sample(doc_id: int, *, responses: list[Any], **fields: Any) -> dict[str, Any]:
    """A row as lm-eval 0.4.7 and later write it."""
    row = {"doc_id": doc_id, "doc": {"question": "?"}, "target": "0", "filtered_resps": responses, "filter": "none"}
    return row | {"metrics": ["acc"], "acc": 1.0, "doc_hash": f"{doc_id:064x}"} | fields


def choices(*log_likelihoods: float) -> list[list[str]]:
    return [[str(value), "False"] for value in log_likelihoods]


def arguments(*continuations: str) -> dict[str, Any]:
    return {f"gen_args_{i}": {"arg_0": "a prompt", "arg_1": text} for i, text in enumerate(continuations)}


# --- the predicted answer ---


@pytest.mark.parametrize(
    ("responses", "answer"),
    [
        (choices(-3.5, -1.25, -10), "1"),
        (choices(-2, -2), "0"),
        ([[-1.0, False], [float("-inf"), False]], "0"),
        ([["-1e999", "False"], ["-3.5", "True"]], "1"),
        ([["-0.1", "True"]], "True"),
        ([[-0.1, True]], "True"),
        ([" 42 "], " 42 "),
        (["17", "18"], "17"),
        ([["a", "b"]], '["a", "b"]'),
        ([["1", "2"], ["3", "4"]], '["1", "2"]'),
        ([7], "7"),
        ([], None),
    ],
)
def test_the_predicted_answer(write_rows: WriteRows, responses: list[Any], answer: str | None) -> None:
    assert answers_of(write_rows("log.jsonl", [sample(0, responses=responses)])) == [answer]


def test_kinds_of_rows_may_change_within_a_file(write_rows: WriteRows) -> None:
    """The log-likelihoods are decoded by a type taken from the first row, which later rows need not have."""
    kinds: list[list[Any]] = [choices(-2, -1), [" text "], [["-0.1", "True"]], [["a", "b"]], [], choices(-1, -2, -3)]
    rows = [sample(i, responses=kind) for i, kind in enumerate(kinds)]
    assert answers_of(write_rows("log.jsonl", rows)) == ["1", " text ", "True", '["a", "b"]', None, "0"]


def softmax_free_reference(log_likelihoods: list[float]) -> str:
    best = 0
    for i, value in enumerate(log_likelihoods):
        if value > log_likelihoods[best]:
            best = i
    return str(best)


@given(st.lists(st.floats(allow_nan=False, max_value=0), min_size=2, max_size=8), st.booleans())
def test_the_likeliest_choice_wins(tmp_path_factory: pytest.TempPathFactory, values: list[float], texts: bool) -> None:
    file = tmp_path_factory.mktemp("log") / "log.jsonl"
    responses: list[Any] = choices(*values) if texts else [[value, False] for value in values]
    file.write_text(json.dumps(sample(0, responses=responses)))
    assert answers_of(file) == [softmax_free_reference(values)]


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
    assert answers_of(write_rows("log.jsonl", [row]), metric=metric) == [answer]


@pytest.mark.parametrize(("metric", "answer"), [("acc", "0"), ("acc_mutual_info", "1")])
def test_mutual_information_doubles_the_list(write_rows: WriteRows, metric: str, answer: str) -> None:
    row = sample(0, responses=choices(-1.0, -2.0, -0.5, -9.0), metrics=["acc", "acc_mutual_info"], acc_mutual_info=1)
    assert answers_of(write_rows("log.jsonl", [row]), metric=metric) == [answer]


def test_mutual_information_beside_lengths(write_rows: WriteRows) -> None:
    """The arguments are doubled too; only the first half's lengths count."""
    row = sample(
        0,
        responses=choices(-2.0, -9.0, -0.5, -9.0),
        arguments=arguments(" a", " abcde", "a", "abcde"),
        metrics=["acc", "acc_norm", "acc_mutual_info"],
        acc_norm=0.0,
    )
    assert answers_of(write_rows("log.jsonl", [row]), metric="acc_norm") == ["1"]


@pytest.mark.parametrize(
    ("metric", "fields", "message"),
    [
        ("acc", {"filtered_resps": [["-1", "False"], ["-2"]]}, r"\['-2'\] stands among the log-likelihoods"),
        ("acc", {"filtered_resps": [["-1", "False"], [None, "False"]]}, r"\[None, 'False'\] stands among the log-like"),
        ("acc", {"filtered_resps": [["-1", "False"], [10**400, "False"]]}, "stands among the log-likelihoods"),
        ("acc", {"filtered_resps": choices(math.nan, -2)}, "a log-likelihood is NaN"),
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
        read(write_rows("log.jsonl", [row]), metric=metric)


def test_an_unscored_row_may_lack_the_rest(write_rows: WriteRows) -> None:
    row = sample(0, responses=choices(math.nan, -2), acc=None)
    assert [(row.correct, row.answer) for row in rows_of(write_rows("log.jsonl", [row]))] == [(-1, None)]


# --- the other fields ---


def test_the_task_is_in_the_file_name(write_rows: WriteRows) -> None:
    file = write_rows(f"samples_mmlu_abstract_algebra_{DATE}.jsonl", [sample(0, responses=["x"])])
    assert list(read(file).tasks) == ["mmlu_abstract_algebra"]


@pytest.mark.parametrize("name", ["target", "doc_id", "filter"])
def test_the_log_s_own_fields_are_no_metrics(write_rows: WriteRows, name: str) -> None:
    file = write_rows("log.jsonl", [sample(0, responses=["x"], metrics=[name, "acc"])])
    assert rows_of(file)[0].task.metric == "acc"
    with pytest.raises(LogError, match=f"no metric '{name}'; choose with --metric among acc$"):
        read(file, metric=name)


@pytest.mark.parametrize("value", ["-1", "xyz"])
def test_a_doc_hash_is_hexadecimal(write_rows: WriteRows, value: str) -> None:
    with pytest.raises(LogError, match=f"log.jsonl:1: doc_hash is '{value}'; expected hexadecimal digits"):
        read(write_rows("log.jsonl", [sample(0, responses=["x"], doc_hash=value)]))


@pytest.mark.parametrize("field", ["doc_id", "filtered_resps"])
def test_a_row_that_lacks_a_field(write_rows: WriteRows, field: str) -> None:
    rows = [sample(0, responses=choices(-1, -2)), sample(1, responses=choices(-1, -2))]
    del rows[1][field]
    with pytest.raises(LogError, match=f"log.jsonl:2: .*missing required field `{field}`; correct the row, or delete"):
        read(write_rows("log.jsonl", rows))


def test_doc_ids_that_pandas_made_floats(write_rows: WriteRows) -> None:
    row = sample(0, responses=["x"]) | {"doc_id": 7.0}
    assert rows_of(write_rows("log.jsonl", [row]))[0].id == "7"


@pytest.mark.parametrize(
    ("target", "targets"),
    [("3", ("3",)), (3, ("3",)), (None, ()), (["a", "b"], ("a", "b")), ("['a', \"it's\"]", ("a", "it's"))]
    + [(text, (text,)) for text in ("[1, 2]", "['a'", "[a]", "")],
)
def test_targets(write_rows: WriteRows, target: object, targets: tuple[str, ...]) -> None:
    """Several true answers are a list, which the harness writes as Python prints it since 0.4.3."""
    assert rows_of(write_rows("log.jsonl", [sample(0, responses=["x"], target=target)]))[0].targets == targets


def test_nan_elsewhere_in_a_row_does_no_harm(write_rows: WriteRows) -> None:
    row = sample(0, responses=choices(-1, -2), metrics=["acc", "perplexity"], perplexity=float("nan"))
    assert answers_of(write_rows("log.jsonl", [row])) == ["0"]


def test_columns_of_the_user_s_own_make_it_a_table(write_rows: WriteRows) -> None:
    log = read(write_rows("log.jsonl", [sample(3, responses=["x"])]), columns={"id": "doc_id", "correct": "acc"})
    assert (log.format, log.rows) == ("table", 1)


# --- which metric ---


def test_first_metric_and_filter_are_the_default_and_said(write_rows: WriteRows) -> None:
    fields = {"metrics": ["lists", "exact_match", "f1"], "lists": [1], "exact_match": 1.0, "f1": 0.5}
    file = write_rows(
        f"samples_gsm8k_{DATE}.jsonl",
        [
            sample(0, responses=["12"], filter="strict-match", **fields),
            sample(0, responses=["[invalid]"], filter="flexible-extract", **fields | {"exact_match": 0.0}),
        ],
    )
    log = read(file)
    assert (log.tasks["gsm8k"].metric, log.tasks["gsm8k"].filter) == ("exact_match", "strict-match")
    assert log.notes == (
        "task gsm8k: filter strict-match is read; choose with --filter among it and flexible-extract",
        "task gsm8k: metric exact_match is read; choose with --metric among it and f1",
    )
    assert answers_of(file) == ["12"]
    (flexible,) = rows_of(file, filter="flexible-extract")
    assert (flexible.answer, flexible.correct, flexible.task.filter) == ("[invalid]", 0, "flexible-extract")


def test_notes_are_said_once_for_many_tasks(tmp_path: Path, write_rows: WriteRows) -> None:
    for task in ("a", "b", "c"):
        row = sample(0, responses=["x"], metrics=["acc", "acc_norm"], acc_norm=1)
        write_rows(f"run/samples_{task}_{DATE}.jsonl", [row])
    notes = read(tmp_path / "run").notes
    assert notes == ("3 tasks (a, ...): metric acc is read; choose with --metric among it and acc_norm",)


def test_metrics_of_a_log_that_does_not_name_them(write_rows: WriteRows) -> None:
    row = sample(0, responses=["x"], exact_match=0)
    del row["metrics"], row["filter"], row["acc"]
    (found,) = rows_of(write_rows("log.jsonl", [row]))
    assert (found.task.metric, found.task.filter, found.correct) == ("exact_match", None, 0)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"metric": "bleu"}, "no metric 'bleu'; choose with --metric among acc"),
        ({"score": "bleu"}, "no metric 'bleu'; choose with --score among acc"),
        ({"filter": "strict"}, "no filter 'strict'; choose with --filter among none"),
    ],
)
def test_unknown_choices_name_those_present(write_rows: WriteRows, choice: dict[str, str], message: str) -> None:
    with pytest.raises(LogError, match=message):
        read(write_rows("log.jsonl", [sample(0, responses=["x"])]), **choice)


def test_no_metric_with_one_value_per_item(write_rows: WriteRows) -> None:
    row = sample(0, responses=["x"], metrics=["micro_f1"], micro_f1=[["a"], ["b"]])
    with pytest.raises(LogError, match=r"log\.jsonl: no metric with one value per item \(found: micro_f1\)"):
        read(write_rows("log.jsonl", [row]))


def test_a_metric_that_cannot_be_a_name(write_rows: WriteRows) -> None:
    with pytest.raises(LogError, match=r"log\.jsonl: no field can have such a name: 'a\"b'"):
        read(write_rows("log.jsonl", [sample(0, responses=["x"], metrics=['a"b'])]))


def test_tasks_without_the_metric_or_filter_are_read_by_their_first(tmp_path: Path, write_rows: WriteRows) -> None:
    """One folder often holds tasks of several kinds."""
    write_rows(f"run/samples_arc_{DATE}.jsonl", [sample(0, responses=["x"], metrics=["acc", "acc_norm"], acc_norm=0)])
    fields = {"metrics": ["exact_match"], "exact_match": 1}
    both = [sample(0, responses=[name], filter=name, **fields) for name in ("strict", "flexible")]
    write_rows(f"run/samples_gsm8k_{DATE}.jsonl", both)
    by_norm = read(tmp_path / "run", metric="acc_norm")
    assert {name: task.metric for name, task in by_norm.tasks.items()} == {"arc": "acc_norm", "gsm8k": "exact_match"}
    assert by_norm.notes == (
        "task gsm8k: filter strict is read; choose with --filter among it and flexible",
        "task gsm8k: no metric acc_norm here; exact_match is read",
    )
    flexible = read(tmp_path / "run", filter="flexible", metric="acc_norm")
    assert {name: task.filter for name, task in flexible.tasks.items()} == {"arc": "none", "gsm8k": "flexible"}
    assert "task arc: no filter flexible here; none is read" in flexible.notes
    with pytest.raises(LogError, match=r"no filter 'loose'; choose with --filter among none, strict, flexible$"):
        read(tmp_path / "run", filter="loose")


def test_a_filter_where_the_log_names_none(write_rows: WriteRows) -> None:
    row = sample(0, responses=["x"])
    del row["filter"]
    with pytest.raises(LogError, match="this log names no filters; leave out --filter"):
        read(write_rows("log.jsonl", [row]), filter="strict")


# --- grades ---


def test_a_graded_metric_is_refused_with_the_ways_out(write_rows: WriteRows) -> None:
    row = sample(0, responses=["x"], metrics=["f1", "exact_match"], f1=0.37, exact_match=0)
    message = r":1: f1 is 0.37, neither right nor wrong; it is a grade: compare it with --score f1, or choose another "
    with pytest.raises(LogError, match=message + r"with --metric: exact_match$"):
        read(write_rows("log.jsonl", [row]))
    with pytest.raises(LogError, match=r"compare it with --score f1$"):
        read(write_rows("log.jsonl", [sample(0, responses=["x"], metrics=["f1"], f1=0.37)]))


def test_what_is_no_grade_either(write_rows: WriteRows) -> None:
    rows = [sample(0, responses=["x"]), sample(1, responses=["x"], acc="C")]
    with pytest.raises(LogError, match=r":2: acc is 'C', neither right nor wrong; only right/wrong can be compared$"):
        read(write_rows("log.jsonl", rows))


def graded(doc_id: int, *, rouge1: object, rouge2: object, exact_match: object) -> dict[str, Any]:
    values = {"rouge1": rouge1, "rouge2": rouge2, "exact_match": exact_match}
    return sample(doc_id, responses=["x"], metrics=list(values), **values)


def test_a_grade_beside_the_first_metric_that_judges(write_rows: WriteRows) -> None:
    """Whether a metric judges or grades is decided by all its values: rouge2 is 0 in the first row."""
    file = write_rows(
        "log.jsonl",
        [
            graded(0, rouge1=0.5, rouge2=0.0, exact_match=0),
            graded(1, rouge1=None, rouge2=0.25, exact_match=1),
        ],
    )
    log = read(file, score="rouge1")
    (task,) = log.tasks.values()
    assert (task.metric, task.score, task.correct.tolist()) == ("exact_match", "rouge1", [0, 1])
    assert task.scores[0] == 0.5
    assert math.isnan(task.scores[1])
    assert log.notes == ("metric exact_match is read; choose with --metric among it and rouge2",)


def test_grades_alone(write_rows: WriteRows) -> None:
    file = write_rows("log.jsonl", [graded(0, rouge1=0.5, rouge2=0.1, exact_match=None)])
    log = read(file, score="rouge1")
    (task,) = log.tasks.values()
    assert (task.metric, task.correct.tolist(), task.scores.tolist()) == (None, [-1], [0.5])
    assert answers_of(file, score="rouge1") == ["x"]
    assert log.notes == ("no metric is right or wrong in every row; only grades are compared",)


def test_a_metric_may_judge_and_grade(write_rows: WriteRows) -> None:
    (row,) = rows_of(write_rows("log.jsonl", [sample(0, responses=["x"])]), metric="acc", score="acc")
    assert (row.correct, row.score) == (1, 1.0)


@pytest.mark.parametrize("value", ["high", [1], math.nan, math.inf])
def test_a_grade_that_is_no_number(write_rows: WriteRows, value: object) -> None:
    row = sample(0, responses=["x"], metrics=["acc", "f1"], f1=value)
    with pytest.raises(LogError, match=r":1: f1 is .*write (a number, or )?null where there is no score"):
        read(write_rows("log.jsonl", [row]), score="f1")


def test_texts_decide_where_they_are_asked_to(write_rows: WriteRows) -> None:
    row = sample(0, responses=["42"], target="42", metrics=["f1"], f1=0.37)
    (task,) = read(write_rows("log.jsonl", [row]), text_score="exact_match").tasks.values()
    assert (task.metric, task.correct.tolist()) == ("exact_match", [1])
    (task,) = read(write_rows("log.jsonl", [row]), text_score="rouge1").tasks.values()
    assert (task.metric, task.score, task.scores.tolist()) == (None, "rouge1", [1.0])


# --- reruns and unnamed filters ---


def test_an_appended_rerun_is_counted_once(write_rows: WriteRows) -> None:
    rows = [sample(i, responses=["x"]) for i in range(3)]
    log = read(write_rows("log.jsonl", [*rows, *rows]))
    assert log.rows == 3
    assert log.notes == ("repeated rows with the same outcome, counted once: 3",)


def test_an_appended_rerun_with_other_outcomes(write_rows: WriteRows) -> None:
    file = write_rows("log.jsonl", [sample(7, responses=["a"], acc=1), sample(7, responses=["b"], acc=0)])
    with pytest.raises(LogError, match=r":2: id '7' was right in line 1 and is wrong here; a rerun .*--duplicates"):
        read(file)
    for duplicates, correct in (("first", [1]), ("last", [0]), ("draws", [1, 0])):
        (task,) = read(file, duplicates=duplicates).tasks.values()
        assert task.correct.tolist() == correct


def test_unnamed_filters_that_disagree_are_an_error(write_rows: WriteRows) -> None:
    rows = [sample(7, responses=["a"], acc=1), sample(7, responses=["b"], acc=0)]
    for row in rows:
        del row["filter"], row["metrics"]
    message = r":2: id '7' was right in line 1 and is wrong here; .*does not name its filters.*--duplicates first"
    with pytest.raises(LogError, match=message):
        read(write_rows("log.jsonl", rows))


def test_two_runs_in_one_folder(tmp_path: Path, write_rows: WriteRows) -> None:
    write_rows("m/samples_piqa_2026-01-01T00-00-00.0.jsonl", [sample(0, responses=["x"], acc=1)])
    write_rows("m/samples_piqa_2026-01-02T00-00-00.0.jsonl", [sample(0, responses=["x"], acc=0)])
    with pytest.raises(LogError, match=r"01-02T.*:1: id '0' was right in .*01-01T.*:1 and is wrong here; .*two runs"):
        read(tmp_path / "m")


def test_two_runs_by_different_metrics(tmp_path: Path, write_rows: WriteRows) -> None:
    write_rows("m/samples_piqa_2026-01-01T00-00-00.0.jsonl", [sample(0, responses=["x"])])
    write_rows("m/samples_piqa_2026-01-02T00-00-00.0.jsonl", [sample(0, responses=["x"], metrics=["em"], em=1)])
    with pytest.raises(LogError, match=r"01-02T.*: no metric 'acc', by which .*01-01T.* is read; name one file"):
        read(tmp_path / "m")


# --- labels and texts ---


def test_labels_by_path(write_rows: WriteRows) -> None:
    docs = [{"subject": "algebra", "meta": {"level": 2.0}}, {"subject": None}, "no object"]
    rows = [sample(i, responses=["x"], doc=doc) for i, doc in enumerate(docs)]
    labels = ("doc.subject", "doc.meta.level", "doc_id", "acc", "nowhere")
    file = write_rows("log.jsonl", [*rows[:1], *rows[1:]])
    assert [row.labels for row in rows_of(file, labels=labels)] == [
        ("algebra", "2", "0", "1", None),
        (None, None, "1", "1", None),
        (None, None, "2", "1", None),
    ]
    (task,) = read(file, labels=labels).tasks.values()
    assert task.labels["doc.subject"] == ["algebra", None, None]


def in_words(file: Path, **selection: Any) -> tuple[str | None, str | None, str | None]:
    log = OpenLog(file, Selection(**selection))
    (task,) = log.read().tasks
    (texts,) = log.texts({task: {("0", 0)}}).values()
    return texts


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"arguments": arguments(" gravity", " glue")}, ("a prompt", "0: gravity", "1: glue")),
        (
            {"arguments": arguments(" A", " B"), "doc": {"choices": ["gravity", "glue"]}},
            ("a prompt", "B: glue", "A: gravity"),
        ),
        (
            {"arguments": arguments(" A", " B"), "doc": {"choices": {"text": ["gravity", "glue"], "label": [1, 2]}}},
            ("a prompt", "B: glue", "A: gravity"),
        ),
        ({"arguments": arguments("A", "B"), "doc": {"choices": ["one"]}}, ("a prompt", "1: B", "0: A")),
        (
            {
                "arguments": {
                    "gen_args_0": {"arg_0": "He hit Sam because Sam", "arg_1": "ran"},
                    "gen_args_1": {"arg_0": "He hit Sam because Sal", "arg_1": "ran"},
                },
            },
            ("He hit Sam because Sam", "1: Sal", "0: Sam"),
        ),
        ({"arguments": [["old style", " gravity"], ["old style", " glue"]]}, ("old style", "1: glue", "0: gravity")),
        ({}, (None, "1", "0")),
    ],
)
def test_choices_in_words(
    write_rows: WriteRows, fields: dict[str, Any], words: tuple[str | None, str | None, str | None]
) -> None:
    best = int((words[1] or "").startswith(("1", "B")))
    row = sample(0, responses=choices(-1 - best, best - 2), target=str(1 - best), **fields)
    prompt, answer, target = words
    assert in_words(write_rows("log.jsonl", [row])) == (prompt, target, answer)


def test_choices_in_words_with_mutual_information(write_rows: WriteRows) -> None:
    row = sample(0, responses=choices(-2, -1, -3, -3), arguments=arguments(" a", " b", "a", "b"))
    row |= {"metrics": ["acc", "acc_mutual_info"], "acc_mutual_info": 1}
    assert in_words(write_rows("log.jsonl", [row])) == ("a prompt", "0: a", "1: b")


CHAT = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": [{"type": "text"}]}]


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ("plain", "plain"),
        (json.dumps(CHAT), 'user: 1 + 1?\n\nassistant: [{"type": "text"}]'),
        ([json.dumps(CHAT)], 'user: 1 + 1?\n\nassistant: [{"type": "text"}]'),
        ('[{"a": 1}]', '[{"a": 1}]'),
        ('[{"looks": like', '[{"looks": like'),
        (None, None),
    ],
)
def test_prompts_in_words(write_rows: WriteRows, prompt: object, shown: str | None) -> None:
    row = sample(0, responses=["2"], target="two", arguments={"gen_args_0": {"arg_0": prompt, "arg_1": {"until": []}}})
    assert in_words(write_rows("log.jsonl", [row])) == (shown, "two", "2")


# --- more rows than are taken at a time ---


def test_long_files(write_rows: WriteRows) -> None:
    rows = [sample(i, responses=choices(-1, -2), filter="a" if i < 400 else "b", acc=i % 2) for i in range(800)]
    file = write_rows("log.jsonl", rows)
    for name, numbers in (("a", range(400)), ("b", range(400, 800))):
        found = rows_of(file, filter=name)
        assert [(row.id, row.line, row.correct) for row in found] == [(str(i), i + 1, i % 2) for i in numbers]
    log = read(file)
    assert log.tasks[""].ids == [str(i) for i in range(400)]
    assert log.notes == ("filter a is read; choose with --filter among it and b",)


@pytest.mark.parametrize("bad", [{"acc": "C"}, {"filtered_resps": choices(math.nan, -1)}, {"doc_id": ""}])
def test_a_fault_far_down_is_found(write_rows: WriteRows, bad: dict[str, Any]) -> None:
    rows = [sample(i, responses=choices(-1, -2)) for i in range(700)]
    rows[501] |= bad
    with pytest.raises(LogError, match=r"log\.jsonl:502: "):
        read(write_rows("log.jsonl", rows))


def test_blocks_are_the_rows_in_columns(write_rows: WriteRows) -> None:
    rows = [sample(i, responses=choices(-1, -2), acc=None if i % 3 else 1) for i in range(300)]
    log = OpenLog(write_rows("log.jsonl", rows), Selection())
    blocks = list(lm_eval.blocks(log._files, Selection(), []))
    assert len(blocks) == 2
    assert [repr(row) for block in blocks for row in block.each()] == [repr(row) for row in log.rows()]
    whole = [gather(kind, Selection())[""] for kind in (blocks, log.rows())]
    assert whole[0].ids == whole[1].ids
    for name in ("draws", "correct", "answers", "numbers", "targets", "doc_hashes"):
        assert getattr(whole[0], name).tolist() == getattr(whole[1], name).tolist()


# --- broken files ---


@given(st.data())
def test_a_damaged_file_gives_rows_or_one_line(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Bytes changed, cut out or put in at any place: read, or refused by a LogError, and nothing else."""
    rows = [sample(i, responses=choices(-1, -2) if i % 2 else ["x"], arguments=arguments("a", "b")) for i in range(3)]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 20)))
    file = tmp_path_factory.mktemp("log") / "log.jsonl"
    file.write_bytes(content[:start] + data.draw(st.binary(max_size=8)) + content[end:])
    with suppress(LogError):
        log = OpenLog(file, Selection(labels=("doc.question",)))
        log.read()
        log.texts({"": {("1", 0)}})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.sampled_from(["doc_id", "doc", "target", "arguments", "filtered_resps", "filter", "metrics", "doc_hash", "acc"]),
    VALUES,
    st.booleans(),
)
def test_any_value_in_any_field(
    tmp_path_factory: pytest.TempPathFactory, field: str, value: Any, is_first: bool
) -> None:
    rows = [sample(i, responses=choices(-1, -2), arguments=arguments("a", "b")) for i in range(2)]
    rows[0 if is_first else 1][field] = value
    file = tmp_path_factory.mktemp("log") / "log.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with suppress(LogError):
        log = OpenLog(file, Selection(labels=("doc.question",)))
        log.read()
        log.texts({"": {("1", 0)}})
