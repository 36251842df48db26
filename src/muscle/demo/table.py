"""The demo's table: what `compare` finds in the evaluation logs, one row per task and method."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from muscle.demo.plan import MODELS
from muscle.demo.stages import TASKS
from muscle.measure import Alignment, Update, compare
from muscle.measure.report.terminal import new_table, say

LABELS = {
    "old": "old model",
    "new": "new model",
    "muscle": "muscle",
    "auto": "auto",
    "cross_entropy": "plain CE",
    "old_teacher": "old teacher",
    "ensemble": "both models",
    "reseeded": "new, reseeded",
}
LEGEND = (
    "Percent of all test items; rel. NFR: of the flips that independent errors would give. fixed, made: negative flips "
    "gone and new, against the plain update. muscle: the paper's loss. auto: the mixture of teachers that a search "
    "on the validation items chose. plain CE: the same steps of cross-entropy from the same start as muscle. old "
    "teacher: distils the old model only. both models: together at inference."
)


@dataclass(frozen=True)
class Row:
    """What users of the old model meet when `method` takes its place. Shares are in [0, 1]; None is undefined."""

    task: str
    method: str
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    nfr: float | None = None
    nfr_low: float | None = None
    nfr_high: float | None = None
    relative_nfr: float | None = None
    nfr_mc: float | None = None
    nfr_change_percent: float | None = None
    """Against the plain update from old to new, in percent."""
    fixed: int | None = None
    """Negative flips of the plain update that this method does not make."""
    made: int | None = None
    """Negative flips that only this method makes."""
    mid_p: float | None = None
    """McNemar mid-p of fixed against made."""


def table_rows(logs: Path) -> list[Row]:
    """Compare the logs under `logs/<task>/<method>`."""
    return [row for task in TASKS for row in _task_rows(task, logs / task)]


def _task_rows(task: str, logs: Path) -> Iterator[Row]:
    update = compare(logs / "old", logs / "new").update
    accuracy = update.accuracy_old
    yield Row(task, "old", accuracy.value, accuracy.low, accuracy.high)
    yield _row(task, "new", update, None)
    for method in MODELS[2:]:
        yield _row(task, method, *compare_method(logs, method))


def _row(task: str, method: str, update: Update, alignment: Alignment | None) -> Row:
    return Row(
        task=task,
        method=method,
        accuracy=update.accuracy_new.value,
        accuracy_low=update.accuracy_new.low,
        accuracy_high=update.accuracy_new.high,
        nfr=update.nfr.value,
        nfr_low=update.nfr.low,
        nfr_high=update.nfr.high,
        relative_nfr=update.relative_nfr.value,
        nfr_mc=update.nfr_mc.value,
        nfr_change_percent=alignment.nfr_change_percent.value if alignment else None,
        fixed=alignment.fixed if alignment else None,
        made=alignment.made if alignment else None,
        mid_p=alignment.mid_p if alignment else None,
    )


def compare_method(logs: Path, method: str, baseline: str = "new") -> tuple[Update, Alignment]:
    """What users of the old model meet with `method`, and what that changes against `baseline`.

    Args:
        logs: Folder of one task's logs, one folder per method, `old` and `baseline` among them.
        method: Name of the method.
        baseline: The method whose flips `method` fixes, or adds to.
    """
    comparison = compare(logs / "old", logs / baseline, logs / method)
    assert comparison.compatible is not None
    assert comparison.alignment is not None
    return comparison.compatible, comparison.alignment


def write_rows(rows: list[Row], path: Path) -> None:
    """Write the rows as a JSON list."""
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


def print_rows(rows: list[Row], console: Console) -> None:
    """One table per task and a legend, 80 columns wide at most."""
    for task in TASKS:
        table = new_table(console)
        table.add_column(task, no_wrap=True)
        for header in ("accuracy", "NFR", "change", "rel. NFR", "NFR_mc", "fixed", "made"):
            table.add_column(header, justify="right")
        for row in rows:
            if row.task == task:
                table.add_row(LABELS[row.method], *_cells(row), style="bold" if row.method == "auto" else None)
        console.print(table)
    say(console, LEGEND, style="dim")


def _cells(row: Row) -> list[str]:
    shares = [row.accuracy, row.nfr, row.relative_nfr, row.nfr_mc]
    accuracy, nfr, relative_nfr, nfr_mc = ("" if share is None else f"{100 * share:.1f}" for share in shares)
    change = "" if row.nfr_change_percent is None else f"{row.nfr_change_percent:+.0f} %"
    fixed, made = ("" if count is None else str(count) for count in (row.fixed, row.made))
    return [accuracy, nfr, change, relative_nfr, nfr_mc, fixed, made]


def meaning(rows: list[Row], logs: Path) -> str:
    """One sentence: the method auto against the plain update, and against plain cross-entropy."""
    parts = []
    for task in TASKS:
        new, auto = (next(row for row in rows if (row.task, row.method) == (task, m)) for m in ("new", "auto"))
        _, control = compare_method(logs / task, "auto", baseline="cross_entropy")
        fewer = control.fixed - control.made
        parts.append(
            f"{task}: the update turns {_percent(new.nfr)} of all answers from right to wrong, with the compatibility "
            f"adapter of method auto {_percent(auto.nfr)} ({abs(fewer)} {'fewer' if fewer >= 0 else 'more'} than after "
            f"plain cross-entropy, p = {control.mid_p:.1g}), at {_percent(auto.accuracy)} accuracy instead "
            f"of {_percent(new.accuracy)}"
        )
    return "; ".join(parts) + "."


def _percent(share: float | None) -> str:
    return "an undefined share" if share is None else f"{100 * share:.1f} %"
