"""HELM run folders: per_instance_stats.json with scenario_state.json and run_spec.json beside it.

Read off HELM itself (`benchmark/runner.py`, which writes the files; `benchmark/presentation/run_display.py`, which
joins them by instance, perturbation and training set as is done here).
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from muscle.errors import LogError, quoted
from muscle.measure.logs import helm_requests
from muscle.measure.logs.documents import as_draw, cells, check_model, read_document, shallow
from muscle.measure.logs.helm_requests import Key, Request, perturbation_key
from muscle.measure.logs.lines import list_rows
from muscle.measure.logs.rows import BadRowError, Row, Selection, Task, as_id, as_outcome, as_score, located
from muscle.measure.logs.source import LogFile

FORMAT = "helm"
EXPECTS = "a HELM run folder (per_instance_stats.json)"

_STATS, _STATE, _SPEC = "per_instance_stats.json", "scenario_state.json", "run_spec.json"
_REMEDY = "choose another with --metric, or take the stat out of the entry to leave the item unscored"
_REPEAT_REMEDY = "two runs of the task lie in one folder: name one run's folder, or choose with --duplicates"
# The stats that say right or wrong; of those in a log the first is read.
_JUDGES = {
    *("exact_match", "quasi_exact_match", "quasi_leave_articles_exact_match", "prefix_exact_match"),
    *("quasi_prefix_exact_match", "exact_match_indicator", "final_number_exact_match", "exact_set_match"),
    *("math_equiv", "math_equiv_chain_of_thought", "chain_of_thought_correctness", "cleva_math_result_match"),
    *("code_eval_acc", "pass"),
}
# What HELM counts of every run, which says nothing of the answers.
_COUNTS = ("num_", "finish_reason_", "training_", "inference_", "batch_size", "prompt_truncated", "predicted_index")


_MODEL = re.compile(r"(?<=[:,])model(?:_deployment)?=[^,]*(?:,|$)")


class _Name(msgspec.Struct):
    name: str


class _Stat(msgspec.Struct):
    name: _Name
    mean: float | None = None  # none where nothing was counted


class _Entry(msgspec.Struct):
    instance_id: str
    stats: list[_Stat]
    train_trial_index: int = 0
    perturbation: dict[str, Any] | None = None


class _AdapterSpec(msgspec.Struct, frozen=True):
    model: str = ""


class _RunSpec(msgspec.Struct):
    name: str = ""
    adapter_spec: _AdapterSpec = _AdapterSpec()


@dataclass
class _Item:
    """All stats of an item, and the line of its first entry."""

    line: int
    stats: dict[str, float | None]


@dataclass(frozen=True)
class _Run:
    """One run folder."""

    stats: Path
    task: str
    model: str


def recognises(file: LogFile, selection: Selection) -> bool:
    """Whether the file holds stats per instance, or belongs to those that do."""
    if selection.columns:
        return False
    row = file.first_row
    if file.kind == "json list" and isinstance(row.get("stats"), list):
        return {"instance_id", "train_trial_index"} <= row.keys()
    return file.path.name in (_STATE, _SPEC) and file.path.with_name(_STATS).is_file()


def rows(files: Sequence[LogFile], selection: Selection, notes: list[str], *, texts: bool = False) -> Iterator[Row]:
    """Read run folders; several are several tasks of one model.

    A task that lacks the stat which the selection names is read by its first, and a note says so.

    Raises:
        LogError: A file cannot be read, or no run has the stat or the perturbation.
    """
    stats: dict[str, None] = {}
    perturbations: dict[str, None] = {}
    for run in _runs(files):
        with shallow(run.stats):
            items = _items(run.stats)
            if not items:
                continue
            names = list(dict.fromkeys(name for item in items.values() for name in item.stats))
            stats |= dict.fromkeys(names)
            perturbations |= dict.fromkeys(kind for key in items if (kind := _kind(key)))
            task = _task(run, names, selection, notes)
            yield from _run_rows(run, task, items, selection.labels, notes, texts=texts)
    path = files[0].path
    _check(path, "stat", "metric", selection.metric, stats)
    _check(path, "stat", "score", selection.score, stats)
    _check(path, "perturbation", "filter", selection.filter, perturbations)


def _check(path: Path, what: str, flag: str, wanted: str | None, known: Mapping[str, None]) -> None:
    if wanted is not None and wanted not in known:
        choices = ", ".join(name for name in known if not name.startswith(_COUNTS))
        way_out = f"choose with --{flag} among {choices}" if choices else f"leave out --{flag}"
        raise LogError(f"{path}: no {what} {quoted(wanted)}; {way_out}")


def _runs(files: Sequence[LogFile]) -> list[_Run]:
    """The runs that the files belong to.

    Raises:
        LogError: A task was run with several models.
    """
    beside = (_STATE, _SPEC)
    stats = sorted({file.path.with_name(_STATS) if file.path.name in beside else file.path for file in files})
    runs = []
    for path in stats:
        spec_file = path.with_name(_SPEC)
        with shallow(spec_file):
            spec = read_document(spec_file, msgspec.json.Decoder(_RunSpec)) if spec_file.is_file() else _RunSpec()
        name = spec.name or path.absolute().parent.name
        if len(stats) == 1 and "=" not in name and not spec.name:
            name = ""  # not HELM's name for the folder, but the user's
        runs.append(_Run(path, _MODEL.sub("", name).rstrip(",:"), spec.adapter_spec.model))
    first: dict[str, _Run] = {}
    for run in runs:
        check_model(run.stats, run.task, run.model, first.setdefault(run.task, run).model)
    return runs


def _items(path: Path) -> dict[Key, _Item]:
    """The stats of each item; the file has an entry of an item for each of the run's metrics.

    Raises:
        LogError: An entry cannot be read.
    """
    items: dict[Key, _Item] = {}
    for line, entry in list_rows(path, msgspec.json.Decoder(_Entry)):
        key = entry.instance_id, perturbation_key(entry.perturbation), entry.train_trial_index
        item = items.setdefault(key, _Item(line, {}))
        for stat in entry.stats:
            item.stats.setdefault(stat.name.name, stat.mean)
    return items


def _kind(key: Key) -> str:
    """The name of an item's perturbation."""
    return key[1].partition("(")[0]


def _task(run: _Run, names: Sequence[str], selection: Selection, notes: list[str]) -> Task:
    """Decide which stat says right or wrong.

    Raises:
        LogError: None of them is known to, and nothing else is read.
    """
    usable = [name for name in names if not name.startswith(_COUNTS)]
    score = selection.score if selection.score in names else None
    metric = next((name for name in names if name in _JUDGES), None)
    if selection.metric in names:
        metric = selection.metric
    elif selection.text_score == "exact_match":  # by which the texts themselves say right or wrong
        metric = None
    elif metric is None and score is None and selection.text_score is None:
        found = ", ".join(usable) or "none"
        raise LogError(f"{run.stats}: no stat known to say right or wrong; choose with --metric among {found}")
    others = ", ".join(name for name in usable if name in _JUDGES and name != metric)
    if metric is not None and selection.metric != metric and others:
        about = f"task {run.task}: " if run.task else ""
        lacks = f"has no stat {selection.metric}; " if selection.metric else ""
        notes.append(f"{about}{lacks}stat {metric} is read; choose with --metric among it and {others}")
    return Task(run.task, metric, selection.filter, score, _REPEAT_REMEDY)


def _run_rows(
    run: _Run, task: Task, items: Mapping[Key, _Item], labels: Sequence[str], notes: list[str], *, texts: bool
) -> Iterator[Row]:
    state = run.stats.with_name(_STATE)
    requests = helm_requests.read_requests(state) if state.is_file() else {}
    left_out: Counter[str] = Counter()
    untold = 0
    for key, item in items.items():
        if _kind(key) != (task.filter or ""):
            left_out[_kind(key) or "unperturbed"] += 1
            continue
        asked = requests.get(key, [])
        try:
            row = _row(run, task, key, item, asked, labels)
        except BadRowError as fault:
            raise located(run.stats, item.line, fault) from None
        untold += bool(asked) and row.answer is None
        if texts and asked:
            row.input = helm_requests.question(asked[0])
        yield row
    about = f"task {run.task}: " if run.task else ""
    if left_out and task.filter is None:
        kinds = ", ".join(f"{count} {kind}" for kind, count in left_out.items())
        notes.append(f"{about}perturbed instances left out ({kinds}); read one kind with --filter")
    if not requests:
        notes.append(f"{about}no requests in {_STATE}, so the answers are not known")
    elif untold:
        notes.append(f"{about}predicted answers that cannot be told from the requests: {untold}")


def _row(run: _Run, task: Task, key: Key, item: _Item, asked: Sequence[Request], labels: Sequence[str]) -> Row:
    """The item as a row.

    Raises:
        BadRowError: Its stat is neither right nor wrong.
    """
    instance_id, perturbation, trial = key
    row = Row(
        task,
        run.stats,
        item.line,
        as_id(instance_id) + perturbation.removeprefix(_kind(key)),
        as_outcome(item.stats.get(task.metric or ""), task.metric or "", _REMEDY),
        score=as_score(item.stats.get(task.score or ""), task.score or ""),
        draw=as_draw(trial, "train_trial_index"),
        labels=cells(asked[0] if asked else None, labels),
    )
    if asked:
        row.answer = helm_requests.answer(asked, item.stats)
        row.targets = helm_requests.targets(asked[0])
        row.doc_hash = helm_requests.item_hash(asked[0])
    return row
