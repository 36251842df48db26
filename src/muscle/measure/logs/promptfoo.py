"""promptfoo results: `promptfoo eval -o results.json` or `results.jsonl`.

Read off promptfoo itself: `src/types/index.ts` (EvaluateResult, EvaluateSummaryV2 and V3, OutputFile),
`src/models/evalResult.ts` and `src/evaluator.ts`.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from muscle.errors import LogError, quoted
from muscle.measure.logs.documents import at, cells, content_hash, key_paths, read_document, shallow
from muscle.measure.logs.lines import json_rows
from muscle.measure.logs.rows import BadRowError, Row, Selection, Task, as_outcome, as_score, as_text
from muscle.measure.logs.source import LogFile
from muscle.measure.predictions import UNSCORED

FORMAT = "promptfoo"
EXPECTS = "promptfoo results (.json or .jsonl)"

_ERROR = 2  # failureReason: the provider or a grader failed, which says nothing of the answer
_REPEAT_REMEDY = "two evals lie in one file, or two providers have one name (give them labels); keep one"


class _Response(msgspec.Struct):
    output: Any = None
    metadata: Any = None


class _Grading(msgspec.Struct):
    reason: Any = None


class _Result(msgspec.Struct, rename="camel"):
    test_idx: int | None = None
    prompt_idx: int | None = None
    provider: Any = None
    prompt: Any = None
    vars: Any = None
    test_case: Any = None
    description: Any = None
    metadata: Any = None
    success: Any = None
    score: Any = None
    named_scores: dict[str, Any] | None = None
    failure_reason: int | None = None  # since late 2024
    error: Any = None
    grading_result: _Grading | None = None
    response: _Response | None = None


class _Cell(msgspec.Struct, rename="camel"):
    passed: Any = msgspec.field(name="pass", default=None)
    text: Any = None
    prompt: Any = None
    score: Any = None
    named_scores: dict[str, Any] | None = None
    failure_reason: int | None = None
    grading_result: _Grading | None = None


class _TableRow(msgspec.Struct):
    outputs: list[_Cell] = []
    test: Any = None


class _Head(msgspec.Struct):
    prompts: list[Any] = []


class _Table(msgspec.Struct):
    head: _Head
    body: list[_TableRow]


class _Summary(msgspec.Struct):
    results: list[_Result] = []
    table: _Table | None = None


class _Document(msgspec.Struct):
    results: _Summary | list[_Result]


class _Place(NamedTuple):
    """A result and where it stands."""

    number: int
    where: str
    result: _Result


def recognises(file: LogFile, selection: Selection) -> bool:
    """Whether the file holds results, as lines or in a document."""
    row = file.first_row
    if file.kind == "jsonl" and {"success", "score"} <= row.keys() and not selection.columns:
        return "correct" not in row and ("testIdx" in row or {"provider", "prompt"} <= row.keys())
    if file.kind not in ("json object", "jsonl"):
        return False
    paths = key_paths(file.head, depth=3)
    in_list = "results.[].prompt" in paths or "results.[].promptIdx" in paths
    return "results" in paths and ("evalId" in paths or "results.results" in paths or in_list)


def rows(files: Sequence[LogFile], selection: Selection, notes: list[str], *, texts: bool = False) -> Iterator[Row]:
    """Read results; of several providers in a file, one that the selection's filter names.

    Raises:
        LogError: A result cannot be read, or the log lacks what the selection names or holds several providers.
    """
    known: dict[str, None] = {}
    for file in files:
        with shallow(file.path):
            yield from _file_rows(file, selection, known, notes, texts=texts)
    for flag, wanted, own in (("metric", selection.metric, "success"), ("score", selection.score, "score")):
        if wanted is not None and wanted != own and wanted not in known:
            choices = ", ".join([own, *known])
            raise LogError(f"{files[0].path}: no score {quoted(wanted)}; choose with --{flag} among {choices}")


def _file_rows(
    file: LogFile, selection: Selection, known: dict[str, None], notes: list[str], *, texts: bool
) -> Iterator[Row]:
    """Yield the file's rows; put the names of the scores found into `known`."""
    places = _of_provider(file, list(_places(file)), selection.filter)
    tasks = _tasks(file, [place.result for place in places], selection)
    items = _items({place.result.test_idx: place.result for place in places if place.result.test_idx is not None})
    unasserted = 0
    hashes: dict[int, str] = {}  # by the identity of the vars, which the prompts of a table's row share
    for place in places:
        result = place.result
        try:
            row = _row(file, place, tasks[_column(result)], items, selection.labels)
            if result.vars:
                if id(result.vars) not in hashes:
                    hashes[id(result.vars)] = content_hash(result.vars)
                row.doc_hash = hashes[id(result.vars)]
        except BadRowError as fault:
            raise LogError(f"{place.where}: {fault}") from None
        if texts:
            row.input = as_text(at(result.prompt, "raw"))
        known |= dict.fromkeys(result.named_scores or ())
        unasserted += result.grading_result is not None and result.grading_result.reason == "No assertions"
        yield row
    if unasserted:
        notes.append(f"results without any assertion, which promptfoo counts as right: {unasserted}")
    if any(draw for _, draw in items.values()):
        notes.append("tests with the same vars and assertions are draws of one item (--repeat)")


def _places(file: LogFile) -> Iterator[_Place]:
    """All results of a file.

    Raises:
        LogError: It cannot be read.
    """
    if file.kind == "jsonl" and "results" not in file.first_row:
        for line, result in json_rows(file.path, msgspec.json.Decoder(_Result)):
            yield _Place(line, f"{file.path}:{line}", result)
        return
    document = read_document(file.path, msgspec.json.Decoder(_Document)).results
    results = document if isinstance(document, list) else document.results
    table = document.table if isinstance(document, _Summary) else None
    if table is not None and any(result.test_idx is None for result in results):
        results = list(_from_table(table))  # the results of those days stand in the order in which they were done
    for number, result in enumerate(results):
        yield _Place(number + 1, f"{file.path}: results[{number}]", result)


def _from_table(table: _Table) -> Iterator[_Result]:
    """The results of promptfoo before late 2024, whose places only the table tells."""
    heads = [(_provider(at(prompt, "provider")), as_text(at(prompt, "label"))) for prompt in table.head.prompts]
    for test_idx, row in enumerate(table.body):
        for prompt_idx, cell in enumerate(row.outputs):
            provider, label = heads[prompt_idx] if prompt_idx < len(heads) else (None, None)
            reason = cell.grading_result.reason if cell.grading_result is not None else None
            text = cell.text
            if not cell.passed and isinstance(text, str) and isinstance(reason, str):
                text = text.removeprefix(f"{reason}\n---\n")
            yield _Result(
                test_idx=test_idx,
                prompt_idx=prompt_idx,
                provider=provider,
                prompt={"raw": cell.prompt, "label": label},
                vars=at(row.test, "vars"),
                test_case=row.test,
                description=at(row.test, "description"),
                metadata=at(row.test, "metadata"),
                success=cell.passed,
                score=cell.score,
                named_scores=cell.named_scores,
                failure_reason=cell.failure_reason,
                error=None if cell.passed else text,
                grading_result=cell.grading_result,
                response=_Response(text),
            )


def _of_provider(file: LogFile, places: Sequence[_Place], wanted: str | None) -> list[_Place]:
    """The results of the provider that is wanted, by its label or id.

    Raises:
        LogError: There is no such provider, or there are several and none is named.
    """
    names = dict.fromkeys(_names(place.result)[0] for place in places)
    listed = ", ".join(names)
    if wanted is None:
        if len(names) > 1:
            raise LogError(f"{file.path}: results of several providers; choose one with --filter: {listed}")
        return list(places)
    chosen = [place for place in places if wanted == _names(place.result)[0]]
    chosen = chosen or [place for place in places if wanted in _names(place.result)]
    if not chosen:
        raise LogError(f"{file.path}: no provider {quoted(wanted)}; choose with --filter among {listed}")
    if len({_names(place.result)[0] for place in chosen}) > 1:
        raise LogError(f"{file.path}: several providers have the id {quoted(wanted)}; choose by label among {listed}")
    return chosen


def _provider(named: object) -> object:
    """The provider as it is named, in texts: results by the thousand share it."""
    return {key: as_text(named.get(key)) for key in ("label", "id")} if isinstance(named, dict) else as_text(named)


def _names(result: _Result) -> tuple[str, ...]:
    """What the result's provider is called: its label, where it has one, and its id."""
    if isinstance(result.provider, dict):
        names = (as_text(result.provider.get(key)) for key in ("label", "id"))
        return tuple(name for name in names if name) or ("?",)
    return (as_text(result.provider) or "?",)


def _column(result: _Result) -> tuple[int | None, str]:
    """The prompt that a result is of."""
    return result.prompt_idx, as_text(at(result.prompt, "label")) or ""


def _tasks(file: LogFile, results: Iterable[_Result], selection: Selection) -> Mapping[tuple[int | None, str], Task]:
    """A task for each prompt, named after it where there are several."""
    columns = list(dict.fromkeys(map(_column, results)))
    labels = Counter(label for _, label in columns)
    tasks = {}
    for prompt_idx, label in columns:
        name = label if label and labels[label] == 1 else f"{label} #{prompt_idx}".strip()
        name = "" if len(columns) == 1 else name
        whole = ": ".join(filter(None, (file.task, name)))
        metric = selection.metric or "success"
        tasks[prompt_idx, label] = Task(whole, metric, selection.filter, selection.score, _REPEAT_REMEDY)
    return tasks


def _items(results: Mapping[int, _Result]) -> Mapping[int, tuple[str, int]]:
    """Item and draw of each test by its index.

    A repeated test gets a new index each time; tests with the same content are draws of one, numbered as they would be
    without the repeats.
    """
    groups: dict[str, list[int]] = {}
    for index, result in sorted(results.items()):
        case = result.test_case
        content = [result.vars, at(case, "description"), at(case, "assert")]
        groups.setdefault(content_hash(content) if result.vars else str(index), []).append(index)
    if len(groups) == len(results):
        return {index: (str(index), 0) for index in results}
    return {index: (str(rank), draw) for rank, group in enumerate(groups.values()) for draw, index in enumerate(group)}


def _row(file: LogFile, place: _Place, task: Task, items: Mapping[int, tuple[str, int]], labels: Sequence[str]) -> Row:
    """The result as a row.

    Raises:
        BadRowError: It has no test index, or is neither right nor wrong.
    """
    result = place.result
    if result.test_idx is None:
        raise BadRowError("the result has no testIdx, by which results pair; export the eval again with promptfoo")
    item, draw = items[result.test_idx]
    errored = _errored(result)
    named = result.named_scores or {}
    value = result.success if task.metric == "success" else named.get(task.metric or "")
    graded = result.score if task.score == "score" else named.get(task.score or "")
    remedy = "choose another with --metric" if task.metric != "success" else "export the eval again with promptfoo"
    return Row(
        task,
        file.path,
        place.number,
        item,
        UNSCORED if errored else as_outcome(value, task.metric or "", remedy),
        None if errored or result.response is None else as_text(result.response.output),
        score=math.nan if errored or task.score is None else as_score(graded, task.score),
        draw=draw,
        labels=cells(result, labels),
    )


def _errored(result: _Result) -> bool:
    """Whether the model was not judged; before there was a failureReason, what failed was not graded."""
    if result.failure_reason is not None:
        return result.failure_reason == _ERROR
    return bool(result.error) and result.grading_result is None
