"""The demo's table: what `compare` finds in the evaluation logs, one row per task and method."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from muscle.demo.plan import METHODS
from muscle.demo.stages import TASKS
from muscle.measure import Alignment, Comparison, Update, compare

LABELS = {
    "old": "old model",
    "new": "new model",
    "muscle": "muscle",
    "paper_t2": "muscle, T = 2",
    "ce_control": "plain CE",
    "old_only": "old teacher",
    "ensemble": "both models",
    "reseeded": "new, reseeded",
}
LEGEND = (
    "Percent of all test items; rel. NFR: of the flips that independent errors would give. fixed, made: negative flips "
    "gone and new, against the plain update. T = 2: the paper's temperature. plain CE: the same steps of cross-entropy "
    "from the same start. old teacher: distils the old model only. both models: together at inference."
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
    for method in METHODS[1:]:
        if method == "new":
            against_old, alignment = update, None
        else:
            comparison = compare(logs / "old", logs / "new", logs / method)
            against_old, alignment = _compatible(comparison)
        accuracy, nfr = against_old.accuracy_new, against_old.nfr
        yield Row(
            task,
            method,
            accuracy.value,
            accuracy.low,
            accuracy.high,
            nfr.value,
            nfr.low,
            nfr.high,
            against_old.relative_nfr.value,
            against_old.nfr_mc.value,
            alignment.nfr_change_percent.value if alignment else None,
            alignment.fixed if alignment else None,
            alignment.made if alignment else None,
            alignment.mid_p if alignment else None,
        )


def _compatible(comparison: Comparison) -> tuple[Update, Alignment]:
    assert comparison.compatible is not None
    assert comparison.alignment is not None
    return comparison.compatible, comparison.alignment


def write_rows(rows: list[Row], path: Path) -> None:
    """Write the rows as a JSON list."""
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


def print_rows(rows: list[Row], console: Console) -> None:
    """One table per task and a legend, 80 columns wide at most."""
    for task in TASKS:
        table = Table(box=box.SIMPLE_HEAD if console.is_terminal else box.MARKDOWN, pad_edge=not console.is_terminal)
        table.add_column(task, no_wrap=True)
        for header in ("accuracy", "NFR", "change", "rel. NFR", "NFR_mc", "fixed", "made"):
            table.add_column(header, justify="right")
        for row in rows:
            if row.task == task:
                table.add_row(LABELS[row.method], *_cells(row), style="bold" if row.method == "muscle" else None)
        console.print(table)
    console.print(Text(LEGEND, style="dim"), soft_wrap=not console.is_terminal)


def _cells(row: Row) -> list[str]:
    shares = [row.accuracy, row.nfr, row.relative_nfr, row.nfr_mc]
    accuracy, nfr, relative_nfr, nfr_mc = ("" if share is None else f"{100 * share:.1f}" for share in shares)
    change = "" if row.nfr_change_percent is None else f"{row.nfr_change_percent:+.0f} %"
    fixed, made = ("" if count is None else str(count) for count in (row.fixed, row.made))
    return [accuracy, nfr, change, relative_nfr, nfr_mc, fixed, made]


def meaning(rows: list[Row], logs: Path) -> str:
    """One sentence: the method against the plain update, and against the same steps of plain cross-entropy."""
    parts = []
    for task in TASKS:
        new, muscle = (next(row for row in rows if (row.task, row.method) == (task, m)) for m in ("new", "muscle"))
        _, control = _compatible(compare(logs / task / "old", logs / task / "ce_control", logs / task / "muscle"))
        fewer = control.fixed - control.made
        parts.append(
            f"{task}: the update turns {_percent(new.nfr)} of all answers from right to wrong, with the compatibility "
            f"adapter {_percent(muscle.nfr)} ({abs(fewer)} {'fewer' if fewer >= 0 else 'more'} than after the same "
            f"steps of plain cross-entropy, p = {control.mid_p:.1g}), at {_percent(muscle.accuracy)} accuracy instead "
            f"of {_percent(new.accuracy)}"
        )
    return "; ".join(parts) + "."


def _percent(share: float | None) -> str:
    return "an undefined share" if share is None else f"{100 * share:.1f} %"
