"""lm-evaluation-harness samples logs, 0.4.3 and later: `samples_<task>_<date>.jsonl`, one row per item and filter.

Read off the harness itself (0.4.13): `loggers/evaluation_tracker.py` writes the rows, `api/task.py` process_results
computes the metrics whose predicted answer is rebuilt here.
"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

import msgspec

from muscle.errors import LogError, quoted
from muscle.measure.logs.lines import json_rows
from muscle.measure.logs.rows import BadRowError, Collector, as_id, as_outcome, as_text, located
from muscle.measure.logs.source import LogFile
from muscle.measure.predictions import UNSCORED

FORMAT = "lm-eval samples"
EXPECTS = "lm-eval samples (JSON lines with doc_id and filtered_resps)"

# What the harness writes into every row; each remaining field is a metric.
_OWN_FIELDS = {
    *("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"),
    *("doc_hash", "prompt_hash", "target_hash"),
}
# Metrics that divide a choice's log-likelihood by the choice's length before taking the best.
_LENGTHS: dict[str, Callable[[str], int]] = {"acc_norm": len, "acc_bytes": lambda choice: len(choice.encode())}


class _Row(msgspec.Struct, gc=False):
    doc_id: int | str | float
    filtered_resps: list[Any]
    target: Any = None
    filter: str | None = None
    doc_hash: str | None = None
    value: Any = None  # the chosen metric: _decoder gives this field the metric's name


class _Continuation(msgspec.Struct, gc=False):
    arg_1: Any = None  # arg_0, the long prompt, is skipped


class _RowWithChoices(_Row, gc=False):
    arguments: dict[str, _Continuation] = {}


def recognises(fields: Collection[str]) -> bool:
    """Whether a row with these fields is one of this format."""
    return {"doc_id", "filtered_resps"} <= set(fields)


def read(files: Sequence[LogFile], metric: str | None, filter_name: str | None) -> tuple[list[Collector], list[str]]:
    """Read samples files, several of one task (reruns) included.

    Args:
        files: The files, all of this format.
        metric: The metric that says right or wrong; None takes each task's first that is one value per item.
        filter_name: The filter whose rows to read; None takes each task's first.

    Returns:
        One collector per task, and notes on choices made for the user.

    Raises:
        LogError: A row cannot be read, or a log lacks the metric or filter.
    """
    collectors: dict[str, Collector] = {}
    notes = []
    for file in files:
        task = collectors.get(file.task)
        chosen = _choose_metric(file, task.metric if task else metric)
        if task is None:
            which = filter_name or file.first_row.get("filter")
            task = collectors[file.task] = Collector(file.task, chosen, which, _repeat_remedy(which))
        others = _read_file(file, chosen, task)
        about = f"task {file.task}: " if file.task else ""
        if others and filter_name is None:
            notes.append(f"{about}filter {task.filter} is read; choose with --filter among it and {', '.join(others)}")
        if metric is None and (alternatives := _alternatives(file, chosen)):
            notes.append(f"{about}metric {chosen} is read; choose with --metric among it and {alternatives}")
    return list(collectors.values()), notes


def _read_file(file: LogFile, metric: str, task: Collector) -> list[str]:
    """Add the file's rows of the task's filter; return the names of the filters left out, in order of appearance."""
    alternatives = _alternatives(file, metric)
    remedy = f"choose another with --metric: {alternatives}" if alternatives else "only right/wrong can be compared"
    answer_of = _answer_rule(metric, doubled="acc_mutual_info" in _metric_values(file))
    others: dict[str | None, None] = {}
    found = False
    for line, row in json_rows(file.path, _decoder(file, metric)):
        if row.filter != task.filter:
            others[row.filter] = None
            continue
        found = True
        try:
            correct = as_outcome(row.value, metric, remedy)
            task.add(
                file.path,
                line,
                as_id(row.doc_id),
                correct=correct,
                answer=answer_of(row) if correct != UNSCORED else None,
                target=as_text(row.target),
                doc_hash=row.doc_hash,
            )
        except BadRowError as fault:
            raise located(file.path, line, fault) from None
    named = [name for name in others if name is not None]
    if not found and not named:
        raise LogError(f"{file.path}: this log names no filters; leave out --filter")
    if not found:
        raise LogError(f"{file.path}: no filter {quoted(task.filter)}; choose with --filter among {', '.join(named)}")
    return named


def _metric_values(file: LogFile) -> dict[str, object]:
    """The metrics of the log in its own order, each with its value in the first row."""
    row = file.first_row
    named = row.get("metrics")  # since 0.4.7
    names = map(str, named if isinstance(named, list) else row)
    return {name: row.get(name) for name in names if name not in _OWN_FIELDS}


def _choose_metric(file: LogFile, wanted: str | None) -> str:
    metrics = _metric_values(file)
    if wanted is not None:
        if wanted not in metrics:
            raise LogError(f"{file.path}: no metric {quoted(wanted)}; choose with --metric among {', '.join(metrics)}")
        return wanted
    for name, value in metrics.items():
        if not isinstance(value, list | dict):
            return name
    found = ", ".join(metrics) or "none at all"
    raise LogError(f"{file.path}: no metric with one value per item (found: {found}); log one such as acc")


def _alternatives(file: LogFile, chosen: str) -> str:
    names = [
        name for name, value in _metric_values(file).items() if name != chosen and not isinstance(value, list | dict)
    ]
    return ", ".join(names)


def _repeat_remedy(filter_name: str | None) -> str:
    if filter_name is None:
        return (
            "this log does not name its filters (lm-eval before 0.4.7), and several filters or a rerun repeat an id; "
            "evaluate again with 0.4.7 or later, or keep one row per doc_id"
        )
    return "a rerun was appended or two runs lie in one folder; name one run's file, or delete the rows of the other"


def _decoder(file: LogFile, metric: str) -> msgspec.json.Decoder[_Row]:
    base = _RowWithChoices if metric in _LENGTHS else _Row
    value = ("value", Any, msgspec.field(name=metric, default=None))
    try:
        row = msgspec.defstruct("Row", [value], bases=(base,), gc=False)
    except ValueError:  # a control character, a quote, half a surrogate pair
        raise LogError(f"{file.path}: no metric can have the name {quoted(metric)}; rename it in the log") from None
    return msgspec.json.Decoder(cast("type[_Row]", row))


def _answer_rule(metric: str, *, doubled: bool) -> Callable[[_Row], str | None]:
    """How the metric gets the predicted answer from a row.

    A choice's index by the highest log-likelihood (multiple choice), `is_greedy` (a single log-likelihood), or the
    filtered text (generation).

    Args:
        metric: The metric that decides right or wrong.
        doubled: With acc_mutual_info the unconditional log-likelihoods of all choices follow the conditional ones.
    """

    def answer(row: _Row) -> str | None:
        responses = row.filtered_resps
        if not responses:
            return None
        if not any(map(_is_log_likelihood, responses)):
            return as_text(responses[0])
        try:
            return _likeliest(row, metric, doubled=doubled)
        except BadRowError as fault:
            raise BadRowError(f"{fault}; evaluate the item again, or set {metric} to null (unscored)") from None

    return answer


def _likeliest(row: _Row, metric: str, *, doubled: bool) -> str | None:
    """The answer by log-likelihoods; a fault is raised without the way out, which is the same for all."""
    responses = row.filtered_resps
    for response in responses:
        if not _is_log_likelihood(response):
            raise BadRowError(f"{quoted(response)} stands among the log-likelihoods")
    if len(responses) == 1:
        return as_text(responses[0][1])
    scores = [float(log_likelihood) for log_likelihood, _ in responses]
    choices, odd = divmod(len(scores), 2) if doubled else (len(scores), 0)
    if odd:
        raise BadRowError(f"{len(scores)} log-likelihoods are not two per choice, which acc_mutual_info needs")
    scores, unconditional = scores[:choices], scores[choices:]
    if metric == "acc_mutual_info":
        scores = [score - prior for score, prior in zip(scores, unconditional, strict=True)]
    if isinstance(row, _RowWithChoices):
        if len(row.arguments) != len(responses):
            raise BadRowError(f"arguments holds {len(row.arguments)} choices for {len(responses)} log-likelihoods")
        lengths = _choice_lengths(list(row.arguments.values())[:choices], _LENGTHS[metric])
        scores = [score / length for score, length in zip(scores, lengths, strict=True)]
    if any(math.isnan(score) for score in scores):
        raise BadRowError("a log-likelihood is NaN")
    return str(max(range(choices), key=scores.__getitem__))


def _is_log_likelihood(response: object) -> bool:
    """Whether a response is [log-likelihood, is_greedy]; both are texts in most versions."""
    if not isinstance(response, list) or len(response) != 2 or str(response[1]) not in {"True", "False"}:
        return False
    try:
        float(response[0])
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _choice_lengths(continuations: Sequence[_Continuation], length: Callable[[str], int]) -> list[int]:
    """Length of each choice, without the one blank that the harness puts before every choice by default."""
    choices = [continuation.arg_1 for continuation in continuations]
    for choice in choices:
        if not isinstance(choice, str):
            raise BadRowError(f"arguments has {quoted(choice)} where a choice's text (arg_1) should be")
    if all(choice.startswith(" ") for choice in choices):
        choices = [choice[1:] for choice in choices]
    return [max(length(choice), 1) for choice in choices]
