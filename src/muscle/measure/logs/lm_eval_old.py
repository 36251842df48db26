"""lm-evaluation-harness 0.3, `--write_out`: `<task>_write_out_info.json`, one JSON list of one object per item.

Also what 0.4.0 to 0.4.2 share with it: files whose names say the task in another way.

Read off the harness (0.3.0 `evaluator.py`, 0.4.2 `__main__.py`): every metric is written as text ("True", "0.37"), and
`logit_<i>` is whatever the i-th request gave, a log-likelihood, an `is_greedy` or a generated text.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from muscle.errors import LogError
from muscle.measure.logs.lines import list_rows
from muscle.measure.logs.lm_eval_answers import LENGTHS, LONGEST_INDEX, targets_of, unlike_parts
from muscle.measure.logs.lm_eval_metrics import Measure, check_named, choose, first_that_judges, notes_by_task
from muscle.measure.logs.rows import BadRowError, Row, Selection, Task, as_id, as_score, as_text, inside, located
from muscle.measure.logs.source import LogFile
from muscle.measure.predictions import UNSCORED

FORMAT = "lm-eval-0.3"
EXPECTS = "lm-eval 0.3 write_out (rows with doc_id and logit_0)"

_WRITE_OUT_NAME = re.compile(r"(?P<task>.+)_write_out_info")
_OWN_FIELD = re.compile(r"doc_id|truth|(prompt|logit)_[0-9]+")
_DECODER: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])
_NO_LENGTHS = "lm-eval 0.3 logs no lengths of the choices, so the answers by this metric are missing; use --metric acc"
_REPEAT_REMEDY = "two runs lie in one folder; name one run's file, or choose with --duplicates"
_LARGEST_RESULTS = 1 << 24  # bytes; a file of results holds a few numbers per task


def task_of(file: LogFile, beside: dict[Path, set[str]]) -> str:
    """The task in the name of a file that the harness wrote; empty where it is not said.

    0.4.0 to 0.4.2 write `<model_args>_<task>.jsonl`, where nothing tells the one from the other but the results file
    beside it, which lists the tasks. Without one the task is taken to begin at the first "_" after the last "__" (which
    stands for the "=" or "/" before the model's name).

    Args:
        file: The file.
        beside: By folder, the tasks that results files in it list; filled as folders are looked into.
    """
    stem = file.path.stem
    if named := _WRITE_OUT_NAME.fullmatch(stem):
        return named["task"]
    if file.kind != "json list" or file.task not in ("", stem) or not file.path.name.endswith((".json", ".jsonl")):
        return file.task
    folder = file.path.parent
    if folder not in beside:
        beside[folder] = _tasks_in(folder)
    if fitting := [task for task in beside[folder] if stem.endswith(f"_{task}")]:
        return max(fitting, key=len)
    before, is_after_model, model_and_task = stem.rpartition("__")
    task = model_and_task.partition("_")[2]
    return task if before and is_after_model and task and file.task else file.task


class _Results(msgspec.Struct):
    configs: dict[str, msgspec.Raw] = {}
    results: dict[str, msgspec.Raw] = {}


def _tasks_in(folder: Path) -> set[str]:
    """The tasks that results files in the folder list."""
    tasks: set[str] = set()
    for file in folder.glob("*.json"):
        if file.is_file() and file.stat().st_size <= _LARGEST_RESULTS:
            try:
                found = msgspec.json.decode(file.read_bytes(), type=_Results)
            except (ValueError, RecursionError):  # not one of the harness
                continue
            tasks |= (found.configs or found.results).keys()
    return tasks


def recognises(file: LogFile, selection: Selection) -> bool:
    """Whether the file's rows have these fields; columns that a user names make it a table."""
    return {"doc_id", "logit_0"} <= file.first_row.keys() and not selection.columns


def rows(files: Sequence[LogFile], selection: Selection, notes: list[str], *, texts: bool = False) -> Iterator[Row]:
    """Read write_out files.

    Raises:
        LogError: A row cannot be read, or no file has the metric.
    """
    if selection.filter is not None:
        raise LogError(f"{files[0].path}: lm-eval 0.3 has no filters; leave out --filter")
    metrics = [(file, _metric_values(file.first_row)) for file in files]
    check_named(metrics, selection)
    tasks: dict[str, list[tuple[LogFile, Mapping[str, object]]]] = {}
    beside: dict[Path, set[str]] = {}
    for part in metrics:
        tasks.setdefault(task_of(part[0], beside), []).append(part)
    remarks = []
    for name, parts in tasks.items():
        measure = choose(parts, selection, _judges([file for file, _ in parts]))
        task = Task(name, measure.metric, None, measure.score, _REPEAT_REMEDY)
        for file, _ in parts:
            yield from _file_rows(file, task, measure, selection, texts=texts)
        unknown = [_NO_LENGTHS] if measure.metric in LENGTHS else []
        remarks.append((name, measure.remarks(selection) + unknown))
    notes += notes_by_task(remarks)


def _judges(files: Sequence[LogFile]) -> Callable[[Sequence[str]], str | None]:
    def first(names: Sequence[str]) -> str | None:
        every_row = (row for file in files for _, row in list_rows(file.path, _DECODER))
        return first_that_judges(names, ([row.get(name) for name in names] for row in every_row))

    return first


def _file_rows(file: LogFile, task: Task, measure: Measure, selection: Selection, *, texts: bool) -> Iterator[Row]:
    paths = [label.split(".") for label in selection.labels]
    for line, row in list_rows(file.path, _DECODER):
        try:
            correct = measure.outcome(row.get(task.metric or ""))
            answer, prompt, targets = None, None, targets_of(row.get("truth"))
            if (
                task.metric is None or correct != UNSCORED
            ):  # only a row that is meant to be unscored may lack the answer
                answer = _answer(row, task.metric)
            if texts:
                prompt, answer, targets = _in_words(row, answer, targets)
            yield Row(
                task,
                file.path,
                line,
                as_id(row.get("doc_id")),
                correct,
                answer,
                targets,
                math.nan if task.score is None else as_score(row.get(task.score), task.score),
                labels=tuple(as_text(inside(row, path)) for path in paths),
                input=prompt,
            )
        except BadRowError as fault:
            raise located(file.path, line, fault) from None


def _metric_values(row: Mapping[str, Any]) -> dict[str, object]:
    return {name: value for name, value in row.items() if not _OWN_FIELD.fullmatch(name)}


def _numbered(row: Mapping[str, Any], name: str) -> list[Any]:
    """The values of `<name>_0`, `<name>_1` and so on."""
    return [row[key] for key in map(f"{name}_{{}}".format, range(len(row))) if key in row]


def _log_likelihoods(row: Mapping[str, Any]) -> list[float] | None:
    """One for each choice; None where the row is not multiple choice."""
    responses = _numbered(row, "logit")
    if len(responses) < 2 or not all(type(response) in (int, float) for response in responses):
        return None
    try:
        return [float(response) for response in responses]
    except OverflowError:  # a whole number of hundreds of digits
        raise BadRowError("a log-likelihood is out of range; evaluate the item again") from None


def _answer(row: Mapping[str, Any], metric: str | None) -> str | None:
    """The index of the likeliest choice, `is_greedy` (in "logit_1", or beside the only log-likelihood), or the text."""
    scores = _log_likelihoods(row)
    if scores is None:
        last = _numbered(row, "logit")[-1:]
        if last and isinstance(last[0], list) and len(last[0]) == 2:
            last = last[0][1:]
        return as_text(last[0]) if last and isinstance(last[0], bool | str) else None
    if any(map(math.isnan, scores)):
        raise BadRowError("a log-likelihood is NaN; evaluate the item again")
    return None if metric in LENGTHS else str(scores.index(max(scores)))


def _in_words(
    row: Mapping[str, Any], answer: str | None, targets: tuple[str, ...]
) -> tuple[str | None, str | None, tuple[str, ...]]:
    """The prompt, the answer and the targets as a person reads them; every prompt ends with its choice."""
    prompts = [str(prompt) for prompt in _numbered(row, "prompt")]
    if len(prompts) < 2 or _log_likelihoods(row) is None:
        return prompts[0] if prompts else None, answer, targets
    prompt, choices = unlike_parts(prompts)

    def named(index: str) -> str:
        is_index = index.isascii() and index.isdecimal() and len(index) <= LONGEST_INDEX and int(index) < len(choices)
        return f"{index}: {choices[int(index)]}" if is_index else index

    return prompt, None if answer is None else named(answer), tuple(map(named, dict.fromkeys(targets)))
