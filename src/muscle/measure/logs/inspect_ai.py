"""inspect_ai logs: `.json`, one document, or `.eval`, a zip with one member per sample; inspect_ai is not needed.

Read off inspect_ai itself: `log/_log.py` EvalLog and `log/_recorders`, which write the logs.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec

from muscle.errors import LogError, quoted
from muscle.measure.logs import inspect_samples as samples
from muscle.measure.logs.documents import (
    as_draw,
    cells,
    check_model,
    decode_document,
    key_paths,
    read_document,
    shallow,
)
from muscle.measure.logs.inspect_samples import Sample
from muscle.measure.logs.lm_eval_metrics import MOST_TRIED, first_that_judges
from muscle.measure.logs.rows import BadRowError, Row, Selection, Task, as_id, as_score, as_text
from muscle.measure.logs.source import LogFile
from muscle.measure.predictions import UNSCORED

if TYPE_CHECKING:
    from muscle.measure.logs.zips import Archive

FORMAT = "inspect_ai"
EXPECTS = "an inspect_ai log (.eval, or .json with eval and samples)"

_NEWEST_VERSION = 2  # of the layout; the next one spreads a sample over several members
_MOST_SHOWN = 100  # targets of a sample, each of which may name a long choice
_HEADER, _START = "header.json", "_journal/start.json"
_REPEAT_REMEDY = "two runs of the task lie in one folder: name one run's file, or choose with --duplicates"


class _Eval(msgspec.Struct):
    task: str
    task_id: str = ""
    task_args: dict[str, Any] = {}
    model: str = ""


class _Header(msgspec.Struct):
    eval: _Eval
    version: int = 1
    status: str = "started"


@dataclass(frozen=True)
class _Log:
    """One file and what its header says."""

    file: LogFile
    header: _Header
    name: str
    """Of the task."""

    @property
    def finished(self) -> bool:
        return self.header.status == "success"

    @property
    def arguments(self) -> str:
        return ", ".join(f"{name}={as_text(value)}" for name, value in sorted(self.header.eval.task_args.items()))


class _Place(NamedTuple):
    """A sample and where it stands."""

    number: int
    where: str
    sample: Sample


def recognises(file: LogFile, selection: Selection) -> bool:
    """Whether the file is a zip of samples, or a document that starts as inspect_ai's do."""
    if file.kind == "zip":
        try:
            with _archive(file.path) as archive:
                return not {_HEADER, _START}.isdisjoint(archive.names)
        except LogError:
            return file.path.suffix == ".eval"  # so that the reader says what is wrong with it
    if file.kind not in ("json object", "jsonl") or selection.columns:
        return False
    return {"eval", "eval.task"} <= key_paths(file.head, depth=2)


def rows(files: Sequence[LogFile], selection: Selection, notes: list[str], *, texts: bool = False) -> Iterator[Row]:
    """Read logs; several files are several tasks of one model, or several runs of one task.

    A task that lacks the scorer which the selection names is read by its first, and a note says so.

    Raises:
        LogError: A sample cannot be read, or no log has the scorer.
    """
    if selection.filter is not None:
        raise LogError(f"{files[0].path}: inspect_ai logs have no filters; leave out --filter")
    unfound = {"metric": selection.metric, "score": selection.score}
    known: dict[str, None] = {}
    for log in _distinct(_not_retried([_open(file) for file in files], notes)):
        reading = _Reading(log, selection)
        with shallow(log.file.path):
            yield from reading.rows(texts=texts)
        notes += reading.notes()
        known |= dict.fromkeys(reading.measures)
        unfound = {flag: name for flag, name in unfound.items() if name not in reading.found}
    for flag, name in unfound.items():
        if name is not None and known:
            choices = ", ".join(known)
            raise LogError(f"{files[0].path}: no score {quoted(name)}; choose with --{flag} among {choices}")


def _open(file: LogFile) -> _Log:
    """Read the header.

    Raises:
        LogError: There is none, or the log's layout is not known.
    """
    with shallow(file.path):
        header = _header(file)
    if header.version > _NEWEST_VERSION:
        known = f"the log's layout is version {header.version}, known are those up to {_NEWEST_VERSION}"
        raise LogError(f"{file.path}: {known}; write it as .json with inspect log convert")
    return _Log(file, header, header.eval.task)


def _header(file: LogFile) -> _Header:
    decoder = msgspec.json.Decoder(_Header)
    if file.kind != "zip":
        return read_document(file.path, decoder)
    with _archive(file.path) as archive:
        if _HEADER not in archive.names:
            raise LogError(f"{file.path}: no {_HEADER}, the run did not finish; finish it with inspect eval-retry")
        return decode_document(archive.read(_HEADER), decoder, f"{file.path}: {_HEADER}")


def _archive(path: Path) -> "Archive":
    from muscle.measure.logs.zips import Archive  # 20 ms that only who has a zip should pay

    return Archive(path)


def _not_retried(logs: Sequence[_Log], notes: list[str]) -> list[_Log]:
    """The logs without the failed attempts of runs that a later one, which has the same task_id, finished."""
    finished = {log.header.eval.task_id for log in logs if log.finished and log.header.eval.task_id}
    kept = [log for log in logs if log.finished or log.header.eval.task_id not in finished]
    if len(kept) < len(logs):
        notes.append(f"logs of failed attempts left out, because a retry finished: {len(logs) - len(kept)}")
    return kept


def _distinct(logs: Sequence[_Log]) -> list[_Log]:
    """The logs, with a task's arguments in its name where it was run with different ones.

    Raises:
        LogError: A task was run with several models.
    """
    variants: dict[str, set[str]] = {}
    for log in logs:
        variants.setdefault(log.name, set()).add(log.arguments)
    named = [replace(log, name=f"{log.name}({log.arguments})") if len(variants[log.name]) > 1 else log for log in logs]
    first: dict[str, _Log] = {}
    for log in named:
        check_model(log.file.path, log.name, log.header.eval.model, first.setdefault(log.name, log).header.eval.model)
    return named


class _Reading:
    """One log being read: what its samples are judged by, and what was found."""

    def __init__(self, log: _Log, selection: Selection) -> None:
        self._log = log
        self._selection = selection
        self._task = Task(log.name)
        self._remedy = ""
        self.measures: list[str] = []
        """Of the first scored sample."""
        self.found: set[str | None] = set()
        """What samples have been scored by, at least until what is read was among it."""

    def rows(self, *, texts: bool) -> Iterator[Row]:
        sample_type = samples.with_fields(samples.SampleWithTexts if texts else Sample, self._selection.labels)
        places = _places(self._log.file, sample_type)
        held: list[_Place] = []
        while not self.measures and (place := next(places, None)):
            held.append(place)
            self.measures = samples.measures(place.sample)
        self._choose(held[-1].sample if held else Sample())
        for place in chain(held, places):
            try:
                row = self._row(place.number, place.sample)
                if texts:
                    _add_texts(row, place.sample)
            except BadRowError as fault:
                raise LogError(f"{place.where}: {fault}") from None
            yield row

    def _choose(self, first: Sample) -> None:
        """Decide on what is read, by the first scored sample."""

        def named(wanted: str | None) -> str | None:
            return wanted if not self.measures or samples.find(first, wanted)[0] is not None else None

        selection = self._selection
        metric, score = named(selection.metric), named(selection.score)
        if metric is None and selection.text_score != "exact_match":  # by which the texts themselves say right or wrong
            if score is None and selection.text_score is None:
                metric = next(iter(self.measures), None)
            else:
                metric = self._judge(score)
        self._task = Task(self._log.name, metric, None, score, _REPEAT_REMEDY)
        others = self._others()
        self._remedy = f"read it as a grade with --score {metric}"
        self._remedy += f", or choose another with --metric: {others}" if others else ""

    def _judge(self, score: str | None) -> str | None:
        """The first measure that is right or wrong in every sample, the one that grades last; there may be none."""
        names = sorted(self.measures[:MOST_TRIED], key=lambda name: name == score)
        found = (place.sample for place in _places(self._log.file, Sample))
        return first_that_judges(
            names, ([samples.worth(samples.find(one, name)[1]) for name in names] for one in found)
        )

    def _row(self, number: int, sample: Sample) -> Row:
        """The sample as a row.

        Raises:
            BadRowError: It has no id, or a score that is neither right nor wrong.
        """
        task = self._task
        if not self.found >= {task.metric, task.score}:
            self.found |= {None, *samples.measures(sample)}
        correct, score = UNSCORED, math.nan
        if self._log.finished and sample.error is None:
            value, graded = samples.find(sample, task.metric)[1], samples.find(sample, task.score)[1]
            correct = samples.outcome(value, task.metric or "", self._remedy, graded=task.metric == task.score)
            score = as_score(samples.worth(graded), task.score or "")
        return Row(
            task,
            self._log.file.path,
            number,
            as_id(sample.id),
            correct,
            samples.answer(sample, task.metric) if sample.error is None else None,
            samples.targets(sample),
            score,
            as_draw(sample.epoch, "epoch"),
            samples.item_hash(sample),
            cells(sample, self._selection.labels),
        )

    def notes(self) -> list[str]:
        task, others = self._task, self._others()
        about = f"task {task.name}: "
        notes = []
        if task.metric is not None and others and self._selection.metric != task.metric:
            lacks = f"has no score {self._selection.metric}; " if self._selection.metric else ""
            notes.append(f"{about}{lacks}score {task.metric} is read; choose with --metric among it and {others}")
        if task.score is not None and task.score == task.metric:
            notes.append(f"{about}what {task.score} grades between 0 and 1 is neither right nor wrong (unscored)")
        if not self._log.finished:
            status = f"the run's status is {self._log.header.status}"
            notes.append(f"{about}{status}, so its samples are unscored; finish it with inspect eval-retry")
        return notes

    def _others(self) -> str:
        return ", ".join(name for name in self.measures if name != self._task.metric)


def _add_texts(row: Row, sample: Sample) -> None:
    row.input = samples.question(sample)
    row.answer = samples.in_words(samples.resolved(row.answer, sample), sample)
    shown = islice(dict.fromkeys(row.targets), _MOST_SHOWN)
    row.targets = tuple(samples.in_words(target, sample) or "" for target in shown)


def _places(file: LogFile, sample_type: type[Sample]) -> Iterator[_Place]:
    """The samples in the order of the log; of a zip, one member at a time."""
    if file.kind != "zip":
        field = ("samples", list[sample_type] | None, None)  # type: ignore[valid-type]
        document = read_document(file.path, msgspec.json.Decoder(msgspec.defstruct("Document", [field])))
        for number, sample in enumerate(cast("Any", document).samples or ()):
            yield _Place(number + 1, f"{file.path}: samples[{number}]", sample)
        return
    decoder = msgspec.json.Decoder(sample_type)
    with _archive(file.path) as archive:
        names = [name for name in archive.names if name.startswith("samples/") and name.endswith(".json")]
        for number, name in enumerate(names, 1):
            where = f"{file.path}: {name}"
            yield _Place(number, where, decode_document(archive.read(name), decoder, where))
