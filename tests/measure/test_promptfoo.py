"""promptfoo results. No real file is in the data: these are written after promptfoo's own types and test fixtures

(`src/types/index.ts`, `test/server/v3evalToShare.json`, which is the layout before late 2024).
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from muscle.errors import LogError
from muscle.measure import compare
from muscle.measure.logs import OpenLog
from muscle.measure.logs.rows import Row, Selection
from muscle.measure.predictions import Log

from .conftest import WriteRows

GPT = {"id": "openai:gpt-4o-mini", "label": ""}
LABEL = "Translate to {{language}}: {{body}}"


def read(path: Path, **choices: Any) -> Log:
    return OpenLog(path, Selection(**choices)).read()


def rows(path: Path, **choices: Any) -> list[Row]:
    return list(OpenLog(path, Selection(**choices)).rows())


def result(test: int = 0, *, success: bool = True, **fields: Any) -> dict[str, Any]:
    """An EvaluateResult as promptfoo 0.120 exports it."""
    variables = {"language": "French", "body": f"text {test}"}
    case = {"vars": variables, "assert": [{"type": "contains", "value": "x"}], "options": {}, "metadata": {}}
    reason = "All assertions passed" if success else "Expected output to contain x"
    return (
        {
            "cost": 0.1,
            "gradingResult": {"pass": success, "score": int(success), "reason": reason, "componentResults": []},
            "id": f"uuid-{test}",
            "latencyMs": 3,
            "namedScores": {"tone": 0.25},
            "prompt": {"raw": f"Translate to French: text {test}", "label": LABEL},
            "promptId": "0ce",
            "promptIdx": 0,
            "provider": GPT,
            "response": {"output": f"texte {test}", "tokenUsage": {"total": 19}, "cached": True},
            "score": 1 if success else 0.5,
            "success": success,
            "testCase": case,
            "testIdx": test,
            "vars": variables,
            "metadata": {"category": "easy"},
            "failureReason": 0 if success else 1,
        }
        | ({} if success else {"error": reason})
        | fields
    )


def document(results: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    summary = {"version": 3, "timestamp": "2026-01-01T00:00:00.000Z", "prompts": [], "results": results, "stats": {}}
    return {"evalId": "eval-abc", "results": summary, "config": {}, "shareableUrl": None} | fields


def write(file: Path, content: Any, indent: int | None = 2) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=indent))
    return file


RESULTS = [result(1, success=False), result(0), result(2, response={"output": {"b": 1, "a": 2.0}})]


@pytest.mark.parametrize(
    "content",
    [
        document(RESULTS),
        document(RESULTS)["results"],  # what promptfoo.evaluate() returns
        {"version": 3, "timestamp": "", "results": RESULTS},
        {"id": "eval-abc", "config": {}, "results": RESULTS, "prompts": []},
    ],
)
@pytest.mark.parametrize("indent", [2, None])
def test_a_document(tmp_path: Path, content: dict[str, Any], indent: int | None) -> None:
    log = read(write(tmp_path / "results.json", content, indent))
    (task,) = log.tasks.values()
    assert (log.format, task.task, task.metric, task.filter, log.notes) == ("promptfoo", "", "success", None, ())
    found = rows(tmp_path / "results.json", score="score", labels=("vars.language", "metadata.category", "provider.id"))
    assert [(row.id, row.correct, row.answer, row.score) for row in found] == [
        ("1", 0, "texte 1", 0.5),
        ("0", 1, "texte 0", 1.0),
        ("2", 1, '{"a": 2.0, "b": 1}', 1.0),
    ]
    assert found[0].labels == ("French", "easy", "openai:gpt-4o-mini")


def test_lines_say_the_same(tmp_path: Path, write_rows: WriteRows) -> None:
    lines = rows(write_rows("results.jsonl", RESULTS))
    whole = rows(write(tmp_path / "results.json", document(RESULTS)))
    assert [(row.id, row.correct, row.answer, row.doc_hash) for row in lines] == [
        (row.id, row.correct, row.answer, row.doc_hash) for row in whole
    ]
    assert [row.line for row in lines] == [1, 2, 3]


def test_the_lines_of_the_documentation(write_rows: WriteRows) -> None:
    """https://www.promptfoo.dev/docs/configuration/outputs"""
    documented = [
        {"testIdx": 0, "promptIdx": 0, "success": True, "score": 1.0, "response": {"output": "Response 1"}},
        {"testIdx": 1, "promptIdx": 0, "success": False, "score": 0.0, "response": {"output": "Response 2"}},
    ]
    documented[1]["gradingResult"] = None
    found = rows(write_rows("results.jsonl", documented))
    assert [(row.id, row.correct, row.answer) for row in found] == [("0", 1, "Response 1"), ("1", 0, "Response 2")]


def test_texts(tmp_path: Path) -> None:
    log = OpenLog(write(tmp_path / "results.json", document(RESULTS)), Selection())
    log.read()
    assert log.texts({"": {("1", 0)}})["", ("1", 0)] == ("Translate to French: text 1", None, "texte 1")


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({"failureReason": 2, "error": "429", "response": {"error": "429"}}, -1),
        ({"failureReason": 2, "error": "grader failed"}, -1),
        ({"failureReason": 1, "error": "Expected output to contain x"}, 0),
        ({"failureReason": None, "error": "429", "gradingResult": None}, -1),  # before late 2024
        ({"failureReason": None}, 0),
        ({"success": None, "failureReason": 0}, -1),
    ],
)
def test_an_error_of_the_provider_is_unscored(tmp_path: Path, fields: dict[str, Any], outcome: int) -> None:
    log = write(tmp_path / "results.json", document([result(success=False) | fields]))
    (row,) = rows(log, score="score")
    assert row.correct == outcome
    assert math.isnan(row.score) == (outcome == -1 and fields["failureReason"] != 0)


def test_named_scores(tmp_path: Path) -> None:
    log = write(tmp_path / "results.json", document([result(0, namedScores={"tone": 0.25, "safe": 1}), result(1)]))
    assert [row.score for row in rows(log, score="tone")] == [0.25, 0.25]
    assert [row.correct for row in rows(log, metric="safe")] == [1, -1]
    with pytest.raises(LogError, match="no score 'kind'; choose with --metric among success, tone, safe"):
        rows(log, metric="kind")
    with pytest.raises(LogError, match="no score 'kind'; choose with --score among score, tone, safe"):
        rows(log, score="kind")
    with pytest.raises(LogError, match=r"results\[0\]: tone is 0.25, neither right nor wrong; choose another with --m"):
        rows(log, metric="tone")


# --- providers, prompts, repeats ---


def of(provider: Any, column: int, **fields: Any) -> dict[str, Any]:
    return result(promptIdx=column, provider=provider, **fields)


def test_one_provider_is_a_log(tmp_path: Path) -> None:
    tuned = {"id": "openai:gpt-4o", "label": "tuned"}
    log = write(tmp_path / "results.json", document([of(GPT, 0), of(tuned, 1, success=False), of("echo", 2)]))
    with pytest.raises(LogError, match="several providers; choose one with --filter: openai:gpt-4o-mini, tuned, echo"):
        rows(log)
    for name, outcome in (("openai:gpt-4o-mini", 1), ("tuned", 0), ("openai:gpt-4o", 0), ("echo", 1)):
        assert [row.correct for row in rows(log, filter=name)] == [outcome]
    with pytest.raises(LogError, match="no provider 'gpt'; choose with --filter among openai:gpt-4o-mini, tuned, echo"):
        rows(log, filter="gpt")


def test_providers_with_one_id_are_told_by_their_labels(tmp_path: Path) -> None:
    cold, hot = ({"id": "openai:gpt-4o", "label": label} for label in ("cold", "hot"))
    log = write(tmp_path / "results.json", document([of(cold, 0), of(hot, 1, success=False)]))
    assert [row.correct for row in rows(log, filter="hot")] == [0]
    with pytest.raises(
        LogError, match="several providers have the id 'openai:gpt-4o'; choose by label among cold, hot"
    ):
        rows(log, filter="openai:gpt-4o")


def test_prompts_are_tasks(tmp_path: Path) -> None:
    labels = ["Translate: {{body}}", "Rephrase: {{body}}", "same", "same"]
    results = [of(GPT, i, prompt={"raw": "x", "label": label}) for i, label in enumerate(labels)]
    log = write(tmp_path / "run" / "results.json", document(results))
    assert list(read(log).tasks) == ["Translate: {{body}}", "Rephrase: {{body}}", "same #2", "same #3"]
    assert next(iter(read(log.parent).tasks)) == "results: Translate: {{body}}"


def test_repeated_tests_are_draws(tmp_path: Path) -> None:
    """promptfoo numbers the runs of a test through: here 2 tests with --repeat 2."""
    same = {"vars": {"q": "a"}, "assert": []}, {"vars": {"q": "b"}, "assert": []}
    results = [result(i, testCase=same[i // 2], vars=same[i // 2]["vars"], success=i != 2) for i in (3, 0, 2, 1)]
    log = read(write(tmp_path / "results.json", document(results)))
    (task,) = log.tasks.values()
    assert list(zip(task.ids, task.draws.tolist(), task.correct.tolist(), strict=True)) == [
        ("1", 1, 1),
        ("0", 0, 1),
        ("1", 0, 0),
        ("0", 1, 1),
    ]
    assert log.notes == ("tests with the same vars and assertions are draws of one item (--repeat)",)


def test_tests_whose_vars_were_stripped_are_no_repeats(tmp_path: Path) -> None:
    stripped = [result(i, testCase={"assert": []}, vars={}) for i in range(2)]
    assert [row.id for row in rows(write(tmp_path / "results.json", document(stripped)))] == ["0", "1"]


def test_other_vars_under_one_index_are_told(tmp_path: Path) -> None:
    old = write(tmp_path / "old.json", document([result(0)]))
    new = write(tmp_path / "new.json", document([result(0, vars={"language": "Pirate"})]))
    assert any("doc_hash differs between old and new for 1 of 1" in note for note in compare(old, new).notes)


def test_results_without_assertions_are_told(tmp_path: Path) -> None:
    log = write(tmp_path / "results.json", document([result(gradingResult={"pass": True, "reason": "No assertions"})]))
    assert read(log).notes == ("results without any assertion, which promptfoo counts as right: 1",)


# --- before late 2024 ---


def table_cell(text: str, *, success: bool = True, graded: bool = True, **fields: Any) -> dict[str, Any]:
    reason = "No assertions" if success else "Expected x"
    grading = {"pass": success, "score": int(success), "reason": reason} if graded else None
    cell = {"pass": success, "score": int(success), "namedScores": {}, "text": text, "prompt": "Say it in French"}
    return cell | {"provider": GPT["id"], "gradingResult": grading, "cost": 0} | fields


def old_document() -> dict[str, Any]:
    """The results stand in the order in which they were done and have no index; the table has the order."""
    done = result(1)
    for name in ("testIdx", "promptIdx", "failureReason", "testCase", "promptId"):
        del done[name]
    prompts = [
        {"raw": "Say", "label": "say", "provider": "openai:gpt-4o-mini"},
        {"raw": "Say", "label": "say", "provider": "echo"},
    ]
    tests = [{"vars": {"body": text}, "assert": [], "metadata": {"k": text}} for text in ("a", "b", "c")]
    body = [
        {"outputs": [table_cell("A"), table_cell("a")], "test": tests[0], "vars": ["a"], "description": "Row #1"},
        {
            "outputs": [table_cell("Expected x\n---\nB", success=False), table_cell("b")],
            "test": tests[1],
            "vars": ["b"],
        },
        {"outputs": [table_cell("429", success=False, graded=False), table_cell("c")], "test": tests[2], "vars": ["c"]},
    ]
    table = {"head": {"prompts": prompts, "vars": ["body"]}, "body": body}
    summary = {"version": 2, "timestamp": "", "results": [done], "stats": {}, "table": table}
    return {"results": summary, "config": {}, "shareableUrl": None}


def test_the_table_of_an_old_document(tmp_path: Path) -> None:
    found = rows(write(tmp_path / "results.json", old_document()), filter="openai:gpt-4o-mini", labels=("metadata.k",))
    assert [(row.id, row.correct, row.answer, row.labels) for row in found] == [
        ("0", 1, "A", ("a",)),
        ("1", 0, "B", ("b",)),
        ("2", -1, None, ("c",)),
    ]


# --- damage ---


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"testIdx": None}, r"results\[0\]: the result has no testIdx"),
        ({"testIdx": "x"}, r"Expected `int . null`, got `str` - at `\$.results.results\[0\].testIdx`|Expected `int"),
        ({"success": "maybe"}, r"results\[0\]: success is 'maybe', neither right nor wrong; export the eval again"),
        ({"success": [1]}, r"success is \[1\]"),
        ({"score": "x"}, "score is 'x'; write a number"),
        ({"namedScores": 3}, "Expected `object . null`"),
        ({"response": "x"}, "Expected `object . null`"),
    ],
)
def test_results_of_the_wrong_kind(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    log = write(tmp_path / "results.json", document([result() | fields]))
    with pytest.raises(LogError, match=f"results.json: .*({message})"):
        rows(log, score="score")


@pytest.mark.parametrize("fields", [{"provider": 3}, {"provider": []}, {"prompt": None}, {"prompt": "x"}, {"vars": 3}])
def test_fields_that_may_be_anything(tmp_path: Path, fields: dict[str, Any]) -> None:
    log = OpenLog(write(tmp_path / "results.json", document([result() | fields])), Selection())
    log.read()
    assert len(log.texts({"": {("0", 0)}})) == 1


@pytest.mark.parametrize("field", ["vars", "provider", "prompt", "testCase", "success"])
def test_deep_nesting_is_refused(tmp_path: Path, field: str) -> None:
    text = json.dumps(document([result() | {field: "DEEP"}]), indent=2)
    log = tmp_path / "results.json"
    for depth in (*range(880, 1001, 8), 100_000):
        log.write_text(text.replace('"DEEP"', '{"raw":' * depth + "1" + "}" * depth))
        try:
            rows(log, labels=("vars",))
        except LogError as error:
            assert "nested too deeply" in str(error) or "neither right nor wrong" in str(error)  # noqa: PT017


def test_a_document_that_is_cut_off(tmp_path: Path) -> None:
    whole = json.dumps(document(RESULTS), indent=2)
    log = tmp_path / "results.json"
    for end in range(200, len(whole) - 1, 101):
        log.write_text(whole[:end])
        with pytest.raises(LogError, match=r"not JSON, or cut off|unknown format"):
            rows(log)
