"""What a reader of the numbers should be told about them: lines under the tables."""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from muscle.measure.metrics import BoolArray
from muscle.measure.pairing import PairedTask
from muscle.measure.predictions import MISSING, UNSCORED
from muscle.measure.repeats import ADVISED_DRAWS, Repeats

FEW_CLUSTERS = 40
_ABOUT_TASK = re.compile(r"(?P<role>[^:]*: )?task (?P<task>[^:]*): (?P<rest>.*)", re.DOTALL)


def on_unknowns(tasks: Sequence[PairedTask]) -> list[str]:
    """Which logs lack outcomes, and what missing answers do to the measures that look at answers (NFR_mc and churn)."""
    scored = [np.logical_and.reduce([column != UNSCORED for column in task.correct.values()]) for task in tasks]
    n = sum(int(np.count_nonzero(rows)) for rows in scored)

    def counted(masks: Callable[[PairedTask, BoolArray, str], BoolArray]) -> dict[str, int]:
        return {
            role: sum(int(np.count_nonzero(masks(task, rows, role))) for task, rows in zip(tasks, scored, strict=True))
            for role in tasks[0].correct
        }

    unscored = counted(lambda task, _, role: task.correct[role] == UNSCORED)
    missing = counted(lambda task, rows, role: (task.answers[role] == MISSING) & rows)
    notes = []
    if any(unscored.values()) and (n or len(set(unscored.values())) > 1):  # where all are, the logs only grade
        notes.append(f"unscored: {_by_log(unscored)}; items that a log does not score are in no rate")
    if n and all(count == n for count in missing.values()):
        notes.append("the logs hold no answers, so wrong answers count as the same: NFR_mc equals NFR and churn is 0")
    elif any(missing.values()):
        notes.append(f"missing answers: {_by_log(missing)}; missing counts as an answer of its own")
    return notes


def _by_log(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} in {role}" for role, count in counts.items())


def merged(notes: Sequence[str]) -> tuple[str, ...]:
    """The notes with those that say the same of several tasks made into one."""
    tasks_of: dict[tuple[str, str], list[str]] = {}
    for note in notes:
        found = _ABOUT_TASK.fullmatch(note)
        role, task, rest = found.group("role", "task", "rest") if found else ("", "", note)
        tasks_of.setdefault((role or "", rest), []).append(task)
    lines = []
    for (role, rest), tasks in tasks_of.items():
        about = f"task {tasks[0]}: " if len(tasks) == 1 else f"{len(tasks)} tasks ({tasks[0]}, ...): "
        lines.append(f"{role}{about if tasks[0] else ''}{rest}")
    return tuple(lines)


def on_noise(clusters: int | None, repeats: Repeats | None) -> list[str]:
    """Where clusters or draws are too few for what is printed of them."""
    notes = []
    if clusters is not None and clusters < FEW_CLUSTERS:
        count = "1 cluster" if clusters == 1 else f"{clusters} clusters"
        notes.append(f"WARNING: only {count}: do not rely on intervals and tests by cluster below {FEW_CLUSTERS}")
    if repeats is not None and repeats.fewest_draws < ADVISED_DRAWS:
        notes.append(
            f"only {repeats.fewest_draws} draws of some items: reliable changes are hard to find below {ADVISED_DRAWS}"
        )
    return notes
