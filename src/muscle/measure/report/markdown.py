"""The Comparison as Markdown for a comment on a pull request: the verdict first, everything long folded away.

What comes from logs could hold anything, so it stands in `<code>` with all its punctuation as character references: no
Markdown or HTML is left in it, and GitHub links no @name, #number or address inside of code.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from muscle.errors import printable
from muscle.measure.gate import Check, Verdict
from muscle.measure.predictions import RIGHT, UNSCORED, WRONG
from muscle.measure.report.files import write_whole
from muscle.measure.report.text import change, number, p_value, percent, points, sentence, signature
from muscle.measure.results import Comparison, Estimate, Measures, Update

LIMIT = 65_000
"""GitHub takes comments of 65,536 characters; what posts them adds a mark of its own."""

_LONGEST_NAME = 80
_LONGEST_NOTE = 500
_FOLDED = 10
"""Longer tables are folded."""
_PUNCTUATION = re.compile(r"[!-,./:-@\[-`{-~]")
"""ASCII's, but for the hyphen."""
_RATES_HEADER = ("", "N", "old", "new", "NFR", "PFR")
_SCORES_HEADER = ("", "N graded", "mean before", "mean after", "m_g", "m_r")


def to_markdown(comparison: Comparison, verdict: Verdict | None = None, *, max_items: int = 50) -> str:
    """Render as GitHub's Markdown, in at most LIMIT characters: what is too much is left out, and said.

    Args:
        comparison: What to show.
        verdict: Of the gate, where it was asked.
        max_items: How many negative flips to name.
    """
    foot = f"\n<sub>{_intervals(comparison)} {_code(signature(comparison), _LONGEST_NOTE)}</sub>\n"
    page = _Page(_headline(verdict), LIMIT - len(foot))
    if verdict:
        by_status = sorted(verdict.checks, key=lambda check: ("fail", "inconclusive", "pass").index(check.status))
        rows = [_check(check) for check in by_status]
        page.table("Checks", ("limit", "items", "measured", "result"), rows, align="---")
    page.add(f"\n{sentence(comparison.total)}\n")
    page.table("", *_rates(comparison), fold=False)
    warnings = [note for note in comparison.notes if "WARNING" in note]
    page.list("Warnings", [_code(note, _LONGEST_NOTE) for note in warnings], fold=False)
    if len(comparison.tasks) > 1:
        _add_parts(page, "By task", [(name, measures, ()) for name, measures in comparison.tasks.items()], ())
    for column in dict.fromkeys(part.column for part in comparison.slices):
        parts = [part for part in comparison.slices if part.column == column]
        lines = [(part.value, part.measures, (p_value(part.q_value),)) for part in parts]
        _add_parts(page, f"By {_code(column)}", lines, ("q",))
    model = "new" if verdict is None else verdict.model
    count, flips = _flips(comparison, model, max_items)
    page.list(f"Negative flips of the {model} model: {count}", flips, count - len(flips))
    page.list("Notes", [_code(note, _LONGEST_NOTE) for note in comparison.notes if note not in warnings])
    return page.text + foot


def write_markdown(comparison: Comparison, file: Path, verdict: Verdict | None = None, *, max_items: int = 50) -> None:
    """Write `to_markdown` to a file, whole or not at all.

    Raises:
        MuscleError: The file cannot be written, or one of the logs is read from it.
    """
    write_whole(comparison, file, to_markdown(comparison, verdict, max_items=max_items).encode())


class _Page:
    """Markdown that never grows beyond its room."""

    def __init__(self, text: str, room: int) -> None:
        self.text, self._room = text, room

    def add(self, text: str) -> bool:
        """Append it whole, or not at all."""
        fits = len(self.text) + len(text) <= self._room
        if fits:
            self.text += text
        return fits

    def table(
        self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, align: str = "--:", fold: bool = True
    ) -> None:
        """A table; folded if it is long, where that is allowed."""
        head = f"{_row(header)}\n{_row(['---', *[align] * (len(header) - 1)])}\n"
        self._block(title, head, [_row(row) for row in rows], 0, fold=fold and len(rows) > _FOLDED)

    def list(self, title: str, entries: Sequence[str], beyond: int = 0, *, fold: bool = True) -> None:
        """A list, and how many more there would be."""
        self._block(title, "", [f"- {entry}" for entry in entries], beyond, fold=fold)

    def _block(self, title: str, head: str, lines: Sequence[str], beyond: int, *, fold: bool) -> None:
        if not lines:
            return
        opening = f"\n<details><summary>{title}</summary>\n\n" if fold else f"\n**{title}**\n\n" if title else "\n"
        closing = "\n</details>\n" if fold else ""
        remark = "\n{} more are not shown here.\n"
        room = self._room - len(self.text) - len(opening + head + closing + remark.format(len(lines) + beyond))
        shown = 0
        while shown < len(lines) and len(lines[shown]) < room:
            room -= len(lines[shown]) + 1
            shown += 1
        more = len(lines) - shown + beyond
        body = "".join(f"{line}\n" for line in lines[:shown])
        self.add(opening + (head + body if shown else "") + (remark.format(more) if more else "") + closing)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _headline(verdict: Verdict | None) -> str:
    if verdict is None:
        return "### muscle compare\n"
    counts = {status: sum(check.status == status for check in verdict.checks) for status in ("fail", "inconclusive")}
    checks = f"{len(verdict.checks)} check{'s' if len(verdict.checks) > 1 else ''}"
    judged = f"the {verdict.model} model against the old one"
    if verdict.status == "pass":
        found = "all hold"
    else:
        found = ", ".join(
            f"{count} {word}"
            for count, word in ((counts["fail"], "failed"), (counts["inconclusive"], "undecided with these items"))
            if count
        )
    return f"### muscle gate: **{verdict.status.upper()}**\n\n{checks} of {judged}: {found}.\n"


def _check(check: Check) -> tuple[str, ...]:
    limit = measured = ""
    if check.limit is not None:
        if check.measure == "accuracy_change":
            limit = f" > {100 * check.limit:+.2f} pp"
        elif check.measure == "n":
            limit = f" ≥ {check.limit:.0f}"
        elif check.measure == "mean_regression":
            limit = f" ≤ {check.limit:.4f}"
        else:
            limit = f" ≤ {100 * check.limit:.2f} %"
    if check.estimate is not None:
        if check.measure == "accuracy_change":
            measured = change(check.estimate)
        elif check.measure == "n":
            measured = f"{check.estimate.value:.0f}"
        else:
            measured = (number if check.measure == "mean_regression" else percent)(check.estimate)
    word = "pass" if check.status == "pass" else f"**{check.status}**"
    return f"{_code(check.measure)}{limit}", _code(check.where), measured, f"{word}: {check.reason}"


def _rates(comparison: Comparison) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of the main table, a column for each model."""
    total = comparison.total
    columns = {"old → new": _figures(total.update)}
    columns |= {"old → compatible": _figures(total.compatible)} if total.compatible else {}
    labels = dict.fromkeys(label for column in columns.values() for label in column)
    return ("", *columns), [(label, *(column.get(label, "") for column in columns.values())) for label in labels]


def _figures(update: Update) -> dict[str, str]:
    figures = {
        "items": f"{update.n}" + (f" ({update.unscored} unscored)" if update.unscored else ""),
        "accuracy": f"{points(update.accuracy_old)} → {percent(update.accuracy_new)}",
        "change of accuracy": change(update.accuracy_change),
        "negative, positive flips": f"{update.negative_flips}, {update.positive_flips}",
        "NFR": percent(update.nfr),
        "NFR of old right answers": percent(update.nfr_given_old_right),
        "relative NFR": percent(update.relative_nfr),
        "NFR_mc": percent(update.nfr_mc),
        "p": p_value(update.mcnemar_mid_p if update.clustered_p is None else update.clustered_p),
    }
    if smooth := update.smooth:
        figures = figures if update.n else {"items": f"{smooth.n}"}  # a log that only grades
        figures |= {
            "mean score": f"{number(smooth.mean_old)} → {number(smooth.mean_new)}",
            "better, worse": f"{smooth.gains}, {smooth.regressions}",
            "mean gain": number(smooth.mean_gain),
            "mean regression": number(smooth.mean_regression),
        }
    return figures


def _add_parts(
    page: _Page, title: str, parts: Sequence[tuple[str | None, Measures, tuple[str, ...]]], beyond: tuple[str, ...]
) -> None:
    """Tables of tasks or slices, each with its further cells; with a compatible model, of old to compatible.

    Those that are only graded have a table of their own, since scores are in no percent.
    """
    rates, scores = list[tuple[str, ...]](), list[tuple[str, ...]]()
    for name, measures, further in parts:
        shown = "none" if name is None else _code(name)
        update = measures.compatible or measures.update
        if update.n == 0 and (smooth := update.smooth):
            means = (smooth.mean_old, smooth.mean_new, smooth.mean_gain, smooth.mean_regression)
            scores.append((shown, str(smooth.n), *(_bare(mean) for mean in means), *further))
        else:
            shares = (update.accuracy_old, update.accuracy_new, update.nfr, update.pfr)
            rates.append((shown, str(update.n), *(points(share) for share in shares), *further))
    page.table(f"{title}, in percent", (*_RATES_HEADER, *beyond), rates)
    page.table(f"{title}, scores", (*_SCORES_HEADER, *beyond), scores)


def _bare(estimate: Estimate) -> str:
    """A score without its interval."""
    return "-" if estimate.value is None else f"{estimate.value:.4f}"


def _flips(comparison: Comparison, model: str, wanted: int) -> tuple[int, list[str]]:
    """How many negative flips there are on items that all logs score, and the first of them by name."""
    count, named = 0, list[str]()
    for task in comparison.items:
        scored = np.logical_and.reduce([column != UNSCORED for column in task.correct.values()])
        rows = np.flatnonzero(scored & (task.correct["old"] == RIGHT) & (task.correct[model] == WRONG))
        for item, draw in task.items(rows[: max(0, wanted - count)]):
            name = f"{task.task}/{item}" if task.task else item
            named.append(_code(name) + (f", draw {draw}" if task.draws.any() else ""))
        count += len(rows)
    return count, named


def _intervals(comparison: Comparison) -> str:
    level = f"{100 * comparison.confidence:g} % intervals in brackets"
    one_sided = f"; each bound alone is one-sided at {50 * (1 + comparison.confidence):g} %"
    return level + one_sided + (f"; by clusters of {_code(comparison.cluster)}." if comparison.cluster else ".")


def _code(text: str, limit: int = _LONGEST_NAME) -> str:
    """Any text as inert code."""
    shown = printable(text)
    shown = shown if len(shown) <= limit else shown[: limit - 1] + "…"
    return f"<code>{_PUNCTUATION.sub(lambda found: f'&#{ord(found[0])};', shown) or '(empty)'}</code>"
