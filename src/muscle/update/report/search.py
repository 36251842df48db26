"""What `--method auto` tried, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console

from muscle.errors import MuscleError
from muscle.measure.report.terminal import new_table, say

if TYPE_CHECKING:
    from muscle.update.judging import Figures, Judge
    from muscle.update.trials import SearchRecord, Trial

SEARCH = "search.json"
"""What was tried and why one was chosen, beside the adapter."""
TRIALS, TRIAL = "trials", "trial.json"
"""Below its checkpoints the folder of what is tried; in the folder of a trial its record, when it is done."""


def search_record(judge: Judge, trials: Sequence[Trial], chosen: int | None, unit: int) -> SearchRecord:
    """The record of a search.

    Args:
        judge: By whom the trials are judged.
        trials: In the order in which they were trained.
        chosen: Number of the one that is kept, which did not fail; None: the new task adapter as it is.
        unit: Tokens of one alignment.
    """
    from muscle.update.trials import SearchRecord  # it loads torch, which the names above do without

    winner = None if chosen is None else trials[chosen]
    return SearchRecord(
        search=judge.search,
        unit_tokens=unit,
        budget_used=sum(trial.cost for trial in trials),
        graded=judge.graded,
        old=judge.old,
        new=judge.new,
        trials=list(trials),
        chosen=chosen,
        why=_why(judge, trials, winner),
        warning=_warning(winner),
    )


def _warning(winner: Trial | None) -> str | None:
    if winner is None:
        return (
            "what is saved is the new task adapter, not aligned: align on more data, or raise search.floor, which "
            "allows a lower accuracy"
        )
    assert winner.figures
    if winner.admissible:
        return None
    return (
        "no trial kept the accuracy above the floor: what is saved falls short of it by least, "
        f"{100 * winner.figures.shortfall:.2g} points"
    )


def _why(judge: Judge, trials: Sequence[Trial], winner: Trial | None) -> str:
    """One sentence."""
    relative = judge.search.aim == "relative_nfr"
    named = "relative NFR" if relative else "NFR"
    if winner is None:
        return (
            f"the new task adapter as it is: none of the {len(trials)} trials has a lower {named} on {judge.new.items} "
            "held-out items and an accuracy that is not below the floor"
        )
    assert winner.figures
    found, before = (
        figures.relative_nfr or 0.0 if relative else figures.nfr for figures in (winner.figures, judge.new)
    )
    value = f"{100 * found:.3g} %, the new model's {100 * before:.3g} %"
    if relative:
        value = f"{found:.3g}, the new model's {before:.3g}"
    n, admissible = winner.figures.items, sum(trial.admissible for trial in trials)
    if not winner.admissible:
        return (
            f"{winner.words}: its accuracy falls short of the floor by least, since none of the {len(trials)} trials "
            f"reached it; {named} on {n} held-out items {value}"
        )
    return (
        f"{winner.words}: lowest {named} on {n} held-out items ({value}) of the {admissible} of {len(trials)} trials "
        "whose accuracy is not below the floor"
    )


def print_search(file: Path, console: Console) -> None:
    """Print the trials of a search, on the held-out items with 95 % intervals, and why one of them was chosen.

    Args:
        file: `search.json` beside the adapter.
        console: Where to.

    Raises:
        MuscleError: It cannot be read.
    """
    from muscle.update.trials import SearchRecord

    try:
        record = msgspec.json.decode(file.read_bytes(), type=SearchRecord)
    except (OSError, ValueError) as error:
        raise MuscleError(f"{file}: cannot be read ({error}): search again") from None
    table, relative = new_table(console), record.search.aim == "relative_nfr"
    measured = ("accuracy %", "NFR %", *(["rel. NFR"] if relative else []), "fixed/made")
    for place, name in enumerate(("", "held-out items", "length", *measured, "cost")):
        table.add_column(name, justify="left" if place == 1 else "right", no_wrap=place != 1)
    for name, model in (("old", record.old), ("new", record.new)):
        table.add_row("", f"{name} task model", "", *_cells(model, relative), "")
    table.add_section()
    for number, trial in enumerate(record.trials):
        mark = "*" if number == record.chosen else "" if trial.admissible or trial.failed else "-"
        found = _cells(trial.figures, relative) if trial.figures else ["failed", *[""] * (len(measured) - 1)]
        table.add_row(mark, trial.name, f"{trial.length:g}", *found, f"{trial.cost:.2f}")
    if not console.is_terminal:
        console.width = max(console.width, 160)  # whole rows, to search in
    console.print(table)
    say(
        console,
        f"{len(record.trials)} trials, {record.budget_used:.2f} of {record.search.budget:g} times the cost of training "
        f"of one alignment, {sum(trial.seconds for trial in record.trials):.0f} s with their evaluations",
    )
    for trial in record.trials:
        if trial.failed:
            say(console, f"{trial.name}, failed: {trial.failed}")
    if not all(trial.admissible or trial.failed for trial in record.trials):
        say(console, "-: accuracy below the floor")
    say(console, f"*: {record.why}")
    say(
        console,
        "It was chosen on these items, so that its own figures are a little too good: judge it on the test items.",
    )
    if record.warning:
        say(console, f"warning: {record.warning}", "yellow")


def _cells(found: Figures, relative: bool) -> tuple[str, ...]:
    """What was measured of a model."""
    ratio = found.relative_nfr
    return (
        _share(found.accuracy, found.accuracy_interval),
        _share(found.nfr, found.nfr_interval),
        *(["" if ratio is None else f"{ratio:.2f}"] if relative else []),
        f"{found.fixed}/{found.made}",
    )


def _share(value: float, interval: tuple[float, float]) -> str:
    return f"{100 * value:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
