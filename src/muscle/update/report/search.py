"""What `--method auto` tried, as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from muscle.errors import MuscleError
from muscle.measure.report.terminal import new_table, say

SEARCH = "search.json"
"""What was tried and why one was chosen, beside the adapter."""


def print_search(file: Path, console: Console) -> None:
    """Print the trials of a search, on the held-out items with 95 % intervals, and why one of them was chosen.

    Args:
        file: `search.json` beside the adapter.
        console: Where to.

    Raises:
        MuscleError: It cannot be read.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MuscleError(f"{file}: cannot be read ({error}): search again") from None
    table, relative = new_table(console), record["search"]["aim"] == "relative_nfr"
    measured = ("accuracy %", "NFR %", *(["rel. NFR"] if relative else []), "fixed/made")
    for place, name in enumerate(("", "held-out items", "length", *measured, "cost")):
        table.add_column(name, justify="left" if place == 1 else "right", no_wrap=place != 1)
    for name in ("old", "new"):
        table.add_row("", f"{name} task model", "", *_figures(record[name], relative), "")
    table.add_section()
    for number, trial in enumerate(record["trials"]):
        mark = "*" if number == record["chosen"] else "" if trial["admissible"] else "-"
        found = _figures(trial["figures"], relative)
        table.add_row(mark, trial["name"], f"{trial['length']:g}", *found, f"{trial['cost']:.2f}")
    if not console.is_terminal:
        console.width = max(console.width, 160)  # whole rows, to search in
    console.print(table)
    used, allowed = record["budget_used"], record["search"]["budget"]
    say(console, f"{len(record['trials'])} trials, {used:.2f} of {allowed:g} times the cost of one alignment")
    if not all(trial["admissible"] for trial in record["trials"]):
        say(console, "-: accuracy below the floor")
    say(console, f"*: {record['why']}")
    if record["warning"]:
        say(console, f"warning: {record['warning']}", "yellow")


def _figures(found: Mapping[str, Any], relative: bool) -> tuple[str, ...]:
    """Cells of what was measured of a model."""
    ratio = found["relative_nfr"]
    return (
        *(_share(found[name], found[f"{name}_interval"]) for name in ("accuracy", "nfr")),
        *(["" if ratio is None else f"{ratio:.2f}"] if relative else []),
        f"{found['fixed']}/{found['made']}",
    )


def _share(value: float, interval: tuple[float, float]) -> str:
    return f"{100 * value:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
