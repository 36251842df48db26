"""The paper's tables 4 to 7 and 9 and figures 4 and 5 from run folders, its own figures beside ours."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

from muscle.errors import MuscleError, printable
from muscle.measure import Estimate
from muscle.measure.report.files import replace_whole
from muscle.measure.report.terminal import new_table, say
from muscle.update.report import paper
from muscle.update.report.figures import ESTIMATES, Figures, Kind
from muscle.update.report.study import TaskResult


@dataclass(frozen=True)
class Column:
    """One figure in a table."""

    name: str
    """The field of `Figures`."""
    header: str
    signed: bool = False


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    run: str
    task: str
    update: str
    model: str
    """A method or control, or the paper's name of a loss."""
    source: Literal["ours", "paper"]
    figures: Figures


@dataclass(frozen=True)
class Table:
    """One table or figure of the paper."""

    name: str
    title: str
    by: Literal["model", "update"]
    """What a row stands for; the rest of task, update and run is what a group of rows has in common."""
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


_UPDATE = (
    *(Column("score_old", "old"), Column("score_new", "new"), Column("score_compatible", "comp.")),
    *(Column("score_change", "change", signed=True), Column("nfr", "NFR"), Column("nfr_change", "dNFR_c", signed=True)),
    Column("nfr_change_percent", "d%NFR_c", signed=True),
)
_SMOOTH = (
    Column("mean_gain_change", "d m_g", signed=True),
    Column("mean_regression_change", "d m_r", signed=True),
)
_ABLATION = (
    *(Column("nfr_change", "dNFR_c", signed=True), Column("nfr_change_percent", "d%NFR_c", signed=True)),
    *(Column("pfr_change", "dPFR_c", signed=True), Column("score_change", "change", signed=True)),
)
_PAIRS = (
    *(Column("score_old", "old"), Column("score_new", "new"), Column("score_gap", "gap", signed=True)),
    *(Column("nfr", "NFR"), Column("pfr", "PFR"), Column("nfr_mc", "NFR_mc")),
)
_GAP = (Column("score_gap", "gap", signed=True), Column("nfr", "NFR"))
_INCONSISTENCY = (
    *(Column("nfr", "NFR"), Column("nfr_compatible", "NFR_c")),
    *(Column("nfr_mc", "NFR_mc"), Column("nfr_mc_compatible", "NFR_mc_c")),
)
_BY_KIND: tuple[tuple[Kind, str, str], ...] = (
    ("choices", "table 4", "multiple choice, accuracy"),
    ("exact", "table 5", "exact match"),
    ("graded", "table 6", "graded texts, mean grade"),
)
_MARKUP = re.compile(r"[^\w\s.,()/+>:-]|(?<!-)>|:(?! )|(?<=www)\.|(?<![^\W_])_|_(?![^\W_])", re.IGNORECASE)
"""Punctuation that may have a meaning in Markdown where it stands: not the _ in cross_entropy or the > in 1->2."""
_LABELS = {"reranked": "re-ranked (both models)", "gated": "gated (both models)"}
"""What readers see in place of names that say too little."""
LEGEND = (
    "Percent of all test items, changes in points; comp. and _c: the model named takes the place of new; change: comp. "
    "minus new; gap: new minus old; graded: flips are grades that rose or fell; - is unknown; paper: what it published."
)


def tables(results: Sequence[TaskResult]) -> list[Table]:
    """Every table that has a row; of several runs, the rows of one task stand together."""
    order = {task: place for place, task in enumerate(dict.fromkeys(result.task for result in results))}
    results = sorted(results, key=lambda result: order[result.task])
    made = [
        Table(name, title, "model", _UPDATE + (_SMOOTH if kind == "graded" else ()), tuple(_methods(results, kind)))
        for kind, name, title in _BY_KIND
    ]
    measured = tuple(row for result in results for row in _pair(result))
    made += [
        Table("table 7", "ablation of the loss", "model", _ABLATION, tuple(_losses(results))),
        Table("table 9", "measured pairs", "update", _PAIRS, measured),
        Table("figure 4", "negative flips against the gap between the models", "update", _GAP, measured),
        Table("figure 5", "negative and inconsistency flips", "model", _INCONSISTENCY, tuple(_inconsistency(results))),
    ]
    return [table for table in made if table.rows]


def _row(result: TaskResult, model: str, figures: Figures) -> Row:
    return Row(result.run, result.task, result.update, model, "ours", figures)


def _methods(results: Sequence[TaskResult], kind: Kind) -> Iterator[Row]:
    for result in results:
        if result.figures.kind == kind and result.figures.models:
            yield from (_row(result, name, figures) for name, figures in result.figures.models.items())
            yield from _published(result)


def _published(result: TaskResult) -> Iterator[Row]:
    published = paper.row_of(result.task, result.paper_update)
    if published:
        values = {name: value for name, value in vars(published).items() if name not in ("task", "update")}
        figures = _bare({**values, "score_gap": round(published.score_new - published.score_old, 2)})
        yield replace(_row(result, "paper", figures), source="paper")


def _bare(values: Mapping[str, float | None]) -> Figures:
    """Figures without intervals."""
    known = {name: Estimate(value, None, None) for name, value in values.items() if value is not None}
    return replace(Figures(), **known)  # type: ignore[arg-type]


def _losses(results: Sequence[TaskResult]) -> Iterator[Row]:
    """Runs that compare methods; the control that distils the old model only is a loss of the ablation as well."""
    for result in results:
        if len(result.losses.keys() - set(result.controls)) < 2:
            continue
        for name, figures in result.figures.models.items():
            yield _row(result, name, figures)
            loss = result.losses.get(name)
            published = loss and paper.ablation_of(result.task, result.paper_update, loss.weight, loss.ce_share)
            if published:
                values = {column.name: getattr(published, column.name) for column in _ABLATION}
                yield replace(_row(result, f"paper, {published.loss}", _bare(values)), source="paper")


def _pair(result: TaskResult) -> Iterator[Row]:
    if result.figures.kind is not None:
        yield _row(result, "", result.figures.new)
        yield from _published(result)


def _inconsistency(results: Sequence[TaskResult]) -> Iterator[Row]:
    for result in results:
        if result.figures.kind == "choices":
            yield from (_row(result, name, figures) for name, figures in result.figures.models.items())


def print_tables(results: Sequence[TaskResult], console: Console) -> None:
    """Print every table, at most 100 columns wide, and what is missing."""
    made = tables(results)
    for table in made:
        say(console, f"{table.name}: {table.title}", style="bold")
        for group, rows in _groups(table):
            drawn = new_table(console)
            drawn.add_column(Text(printable(group)), min_width=16, max_width=28, overflow="fold")
            for column in table.columns:
                drawn.add_column(column.header, justify="right", no_wrap=True)
            for label, row in rows:
                cells = [_cell(row.figures, column) for column in table.columns]
                drawn.add_row(Text(printable(label)), *cells, style="dim" if row.source == "paper" else None)
            console.print(drawn)
    if made:
        say(console, LEGEND, style="dim")
    for line in _missing(results):
        say(console, line)


def _groups(table: Table) -> Iterator[tuple[str, list[tuple[str, Row]]]]:
    """Rows with their labels, under what they have in common."""
    several = len({row.run for row in table.rows}) > 1

    def heading(row: Row) -> str:
        parts = [row.task] if table.by == "update" else [row.task, row.update, *([row.run] if several else [])]
        return ", ".join(parts)

    for group, rows in groupby(table.rows, key=heading):
        yield group, [(_label(table, row, several), row) for row in rows]


def _label(table: Table, row: Row, several: bool) -> str:
    if table.by == "model" or row.source == "paper":
        return model_label(row.model)
    return f"{row.update}, {row.run}" if several else row.update


def model_label(model: str) -> str:
    """What readers see of a model, by its name in a run."""
    return _LABELS.get(model, model)


def _cell(figures: Figures, column: Column) -> str:
    value = getattr(figures, column.name).value
    return "-" if value is None else f"{value:{'+' if column.signed else ''}.2f}"


def _missing(results: Sequence[TaskResult]) -> Iterator[str]:
    for result in results:
        if result.figures.missing:
            yield f"not evaluated yet: {result.run}, {result.task}: {', '.join(result.figures.missing)}"


def write_markdown(results: Sequence[TaskResult], file: Path) -> None:
    """Write every table as GitHub's Markdown, whole or not at all.

    Raises:
        MuscleError: The file cannot be written.
    """
    lines = ["# The paper's tables", ""]
    for table in tables(results):
        headers = ["task", "update", "run", *(["model"] if table.by == "model" else ["source"])]
        lines += [
            f"## {table.name.capitalize()}: {table.title}",
            "",
            _line([*headers, *(c.header for c in table.columns)]),
        ]
        lines.append(_line(["---"] * len(headers) + ["--:"] * len(table.columns)))
        for row in table.rows:
            names = [row.task, row.update, row.run, model_label(row.model) if table.by == "model" else row.source]
            lines.append(_line([*map(inert, names), *(_cell(row.figures, column) for column in table.columns)]))
        lines.append("")
    lines += [LEGEND, "", *(f"- {inert(line)}" for line in _missing(results))]
    _write(file, "\n".join(lines).rstrip() + "\n")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def inert(text: str) -> str:
    """Any text as Markdown that shows it, within a line, and does nothing else: no markup, no HTML, no link."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", printable(text))


def write_csv(results: Sequence[TaskResult], file: Path) -> None:
    """Write every row of every table with all of its figures and their intervals, whole or not at all.

    An unknown value is an empty cell.

    Raises:
        MuscleError: The file cannot be written.
    """
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    bounds = [f"{name}{bound}" for name in ESTIMATES for bound in ("", "_low", "_high")]
    writer.writerow(["table", "run", "task", "update", "model", "source", "items", *bounds])
    for table in tables(results):
        for row in table.rows:
            estimates = [getattr(row.figures, name) for name in ESTIMATES]
            values = [value for each in estimates for value in (each.value, each.low, each.high)]
            rounded = ["" if value is None else round(value, 6) for value in values]
            names = [table.name, row.run, row.task, row.update, row.model, row.source]
            writer.writerow([*names, row.figures.items, *rounded])
    _write(file, content.getvalue())


def _write(file: Path, text: str) -> None:
    try:
        replace_whole(file, text.encode(errors="backslashreplace"))
    except OSError as error:
        raise MuscleError(f"{file}: cannot be written ({error.strerror}); check the folder") from None
