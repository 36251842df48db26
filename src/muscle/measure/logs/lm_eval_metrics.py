"""Which metric of an lm-eval log says right or wrong and which one grades; for logs of every version."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from muscle.errors import LogError, quoted
from muscle.measure.logs.rows import OUTCOMES, BadRowError, Selection, as_outcome, as_score
from muscle.measure.logs.source import LogFile
from muscle.measure.predictions import UNSCORED

MOST_TRIED = 100
"""Metrics among which one that says right or wrong is looked for: each is read in every row."""


@dataclass(frozen=True)
class Measure:
    """What a task's rows are judged by."""

    metric: str | None
    """Says right or wrong; None where nothing does, and only grades or texts are compared."""
    score: str | None
    """Grades; None where nothing does."""
    others: tuple[str, ...]
    """Further metrics with one value per item."""

    def outcome(self, value: object) -> int:
        """RIGHT, WRONG or UNSCORED, by the metric's value in a row, or by None where there is no metric.

        Raises:
            BadRowError: The value says neither.
        """
        try:
            return OUTCOMES[value]
        except (KeyError, TypeError):  # TypeError: a list or mapping
            return as_outcome(value, self.metric or "", self._remedy(value))

    def outcomes(self, values: Sequence[object]) -> list[int]:
        """`outcome` of many values.

        Raises:
            BadRowError: As of `outcome`.
        """
        try:
            return [OUTCOMES[value] for value in values]
        except (KeyError, TypeError):
            return [self.outcome(value) for value in values]

    def remarks(self, selection: Selection) -> list[str]:
        """What a user should know of the choice."""
        remarks = []
        alternatives = ", ".join(name for name in self.others if name != self.score)
        if self.metric is None and selection.text_score != "exact_match":
            remarks.append("no metric is right or wrong in every row; only grades are compared")
        elif self.metric is not None and selection.metric not in (None, self.metric):
            remarks.append(f"no metric {selection.metric} here; {self.metric} is read")
        elif self.metric is not None and selection.metric is None and alternatives:
            remarks.append(f"metric {self.metric} is read; choose with --metric among it and {alternatives}")
        if selection.score is not None and self.score is None:
            remarks.append(f"no metric {selection.score} here; nothing grades the answers")
        return remarks

    def _remedy(self, value: object) -> str:
        among = ", ".join(self.others)
        other = f"choose another with --metric: {among}" if among else ""
        if not is_grade(value):
            return other or "only right/wrong can be compared"
        return f"it is a grade: compare it with --score {self.metric}" + (f", or {other}" if other else "")


def choose(
    files: Sequence[tuple[LogFile, Mapping[str, object]]],
    selection: Selection,
    judges: Callable[[Sequence[str]], str | None],
) -> Measure:
    """What to judge a task by: what the selection names, where the task has it, or the first metric that fits.

    Args:
        files: The task's, each with its metrics in its own order and their values in the first row.
        selection: What the user wants.
        judges: Finds among some metrics the first that is right or wrong in every row; asked only where a log without
            such a metric is still of use.

    Raises:
        LogError: No metric fits, or not every file has it.
    """
    file, metrics = files[0]
    single = [name for name, value in metrics.items() if not isinstance(value, list | dict)]
    score = selection.score if selection.score in metrics else None
    metric: str | None
    if selection.metric in metrics:
        metric = selection.metric
    elif selection.text_score == "exact_match":
        metric = None  # the texts decide
    elif score is not None or selection.text_score is not None:
        metric = judges([name for name in single if name != score][:MOST_TRIED])
    elif single:
        metric = single[0]
    else:
        found = ", ".join(metrics) or "none at all"
        raise LogError(f"{file.path}: no metric with one value per item (found: {found}); log one such as acc")
    for other, theirs in files[1:]:
        for name in (metric, score):
            if name is not None and name not in theirs:
                raise LogError(f"{other.path}: no metric {quoted(name)}, by which {file.path} is read; name one file")
    return Measure(metric, score, tuple(name for name in single if name != metric))


def check_named(files: Sequence[tuple[LogFile, Mapping[str, object]]], selection: Selection) -> None:
    """Make sure that the metrics which the selection names exist in a file at least; other tasks may have others.

    Raises:
        LogError: No file has one.
    """
    for flag, name in (("metric", selection.metric), ("score", selection.score)):
        if name is not None and not any(name in metrics for _, metrics in files):
            among = ", ".join(dict.fromkeys(metric for _, metrics in files for metric in metrics)) or "none at all"
            raise LogError(f"{files[0][0].path}: no metric {quoted(name)}; choose with --{flag} among {among}")


def first_that_judges(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str | None:
    """The first of some metrics that is right, wrong or unscored in every row, and not always unscored.

    Args:
        names: The metrics.
        rows: Their values, in this order.
    """
    left = set(range(len(names)))
    scored: set[int] = set()
    for values in rows:
        for i in list(left):
            try:
                if as_outcome(values[i], names[i]) != UNSCORED:
                    scored.add(i)
            except BadRowError:
                left.remove(i)
        if not left:
            return None
    return next((names[i] for i in sorted(left & scored)), None)


def is_grade(value: object) -> bool:
    """Whether a value that is neither right nor wrong is a number at least; 0.3 writes numbers as text."""
    try:
        as_score(value)
    except BadRowError:
        return False
    return value is not None


def notes_by_task(remarks: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
    """Each remark once, with the tasks that it is about.

    Args:
        remarks: By task, whose name is empty where the log does not say.
    """
    tasks_of: dict[str, list[str]] = {}
    for task, lines in remarks:
        for line in lines:
            tasks_of.setdefault(line, []).append(task)
    notes = []
    for line, tasks in tasks_of.items():
        about = f"task {tasks[0]}: " if tasks[0] else ""
        notes.append((f"{len(tasks)} tasks ({tasks[0]}, ...): " if len(tasks) > 1 else about) + line)
    return notes
