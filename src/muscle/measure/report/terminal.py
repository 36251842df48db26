"""The Comparison as text for a terminal of 80 columns; plain ASCII without colours when piped into a file."""

import math
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from muscle.errors import printable
from muscle.measure.gate import Status, Verdict
from muscle.measure.repeats import Repeats
from muscle.measure.report.text import change, number, p_value, percent, points, sentence, signature
from muscle.measure.results import Alignment, Comparison, Input, Measures, Slice, Update

_COLOURS: Mapping[Status, str] = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print what was read, the measures, the tasks and slices, the notes, and what it means in a sentence."""
    console = console or Console(highlight=False, emoji=False, markup=False)
    width = max(len(role) for role in comparison.inputs)
    for role, source in comparison.inputs.items():
        say(console, f"{role:<{width}}  {source.path}")
        say(console, f"{'':<{width}}  {_describe(source)}")
    console.print(_measures(comparison, console))
    if comparison.repeats:
        console.print(_repeats(comparison.repeats, console))
    if len(comparison.tasks) > 1:
        console.print(_tasks(comparison, console))
    for column in dict.fromkeys(part.column for part in comparison.slices):
        console.print(_slices(column, comparison.slices, console))
    for note in comparison.notes:
        say(console, f"note: {note}")
    say(console, _intervals(comparison))
    say(console, f"signature: {signature(comparison)}")
    say(console, sentence(comparison.total))


def print_verdict(verdict: Verdict, console: Console | None = None) -> None:
    """Print what the gate says: every check that does not pass, how many pass, and the verdict last."""
    console = console or Console(highlight=False, emoji=False, markup=False)
    for check in verdict.checks:
        if check.status != "pass":
            say(console, f"{check.status}: {check.measure} of {check.where}: {check.reason}", _COLOURS[check.status])
    passed = sum(check.status == "pass" for check in verdict.checks)
    judged = "" if verdict.model == "new" else ", the compatible model judged"
    summary = f"verdict: {verdict.status.upper()} ({passed} of {len(verdict.checks)} checks pass{judged})"
    say(console, summary, f"bold {_COLOURS[verdict.status]}")


def _intervals(comparison: Comparison) -> str:
    level = f"{100 * comparison.confidence:g} %"
    resampling = f"bootstrap ({comparison.resamples} resamples, seed {comparison.seed})"
    if comparison.clusters is None:
        kinds = "Wilson; of changes Tango; of mean scores Student"
        return f"{level} intervals in brackets: {kinds}; where marked * {resampling}."
    clusters = f"{comparison.clusters} clusters by {printable(comparison.cluster or '')}"
    return f"{level} intervals in brackets, over {clusters}: {resampling}; of changes and mean scores Student."


def _describe(source: Input) -> str:
    parts = [source.format]
    if len(source.metric) > 1:
        parts.append(f"{len(source.metric)} tasks")
    parts.append(f"{source.rows} rows")
    for kind, chosen in (("metric", source.metric), ("filter", source.filter), ("score", source.score)):
        if names := dict.fromkeys(name for name in chosen.values() if name):
            parts.append(f"{kind} {', '.join(names)}")
    return ", ".join([*parts, f"sha {source.sha256[:8]}"])


def say(console: Console, line: str, style: str = "") -> None:
    """Print a line of any text safely: wrapped on a terminal, whole in a pipe, to search in."""
    console.print(Text(printable(line), style=style), soft_wrap=not console.is_terminal)


def new_table(console: Console) -> Table:
    """An empty table: rules on a terminal, Markdown's ASCII in a pipe."""
    return Table(box=box.SIMPLE_HEAD if console.is_terminal else box.MARKDOWN, pad_edge=not console.is_terminal)


def _measures(comparison: Comparison, console: Console) -> Table:
    total = comparison.total
    updates = {"old -> new": total.update}
    updates |= {"old -> compatible": total.compatible} if total.compatible else {}
    table = new_table(console)
    table.add_column("")
    for header in updates:
        table.add_column(header, justify="right")
    rows = [_rows(update) for update in updates.values()]
    for label in dict.fromkeys(label for column in rows for label in column):
        table.add_row(label, *(column.get(label, "") for column in rows))
    if total.alignment:
        table.add_section()
        for name, cell in _alignment_rows(total.alignment):
            table.add_row(name, "", cell)
    others = {f"control {printable(name)}": update for name, update in total.controls.items()}
    others |= {"old -> old again (A/A)": total.floor} if total.floor else {}
    if others:
        table.add_section()
    for name, update in others.items():
        table.add_row(name, f"accuracy {points(update.accuracy_new)} %, NFR {points(update.nfr)} %")
    return table


def _rows(update: Update) -> dict[str, str]:
    rows = {
        "N": str(update.n),
        "unscored": str(update.unscored),
        "accuracy before": percent(update.accuracy_old),
        "accuracy after": percent(update.accuracy_new),
        "  change": change(update.accuracy_change),
        "both right": str(update.both_right),
        "positive flips": str(update.positive_flips),
        "negative flips": str(update.negative_flips),
        "both wrong": str(update.both_wrong),
        "  differently": str(update.both_wrong_different),
        "NFR": percent(update.nfr),
        "  of old right": percent(update.nfr_given_old_right),
        "PFR": percent(update.pfr),
        "NFR_mc": percent(update.nfr_mc),
        "relative NFR *": percent(update.relative_nfr),
        "BTC": percent(update.btc),
        "churn": percent(update.churn),
    }
    if update.both_right_different:
        rows["inconsistency"] = percent(update.inconsistency)
    if update.unscored and update.nfr_bounds:
        low, high = update.nfr_bounds
        rows["  with unscored"] = f"{100 * low:.2f} to {100 * high:.2f} %"
    if update.clustered_p is None:
        rows["McNemar mid-p"] = p_value(update.mcnemar_mid_p)
    else:
        rows["p by cluster"] = p_value(update.clustered_p)
    if update.n == 0 and update.smooth:  # a log that only grades has nothing to say on right and wrong
        rows = {}
    if smooth := update.smooth:
        rows |= {
            "graded": str(smooth.n),
            "ungraded": str(smooth.ungraded),
            "score before": number(smooth.mean_old),
            "score after": number(smooth.mean_new),
            "  change *": number(smooth.mean_change),
            "gains": f"{smooth.gains}  {percent(smooth.pfr)}",
            "regressions": f"{smooth.regressions}  {percent(smooth.nfr)}",
            "mean gain *": number(smooth.mean_gain),
            "mean regression *": number(smooth.mean_regression),
            "p of the change": p_value(smooth.p_value),
        }
    return rows


def _alignment_rows(alignment: Alignment) -> list[tuple[str, str]]:
    rows = [
        ("compatible against new", ""),
        ("accuracy", change(alignment.delta_accuracy)),
        ("dNFR_c", change(alignment.delta_nfr)),
        ("d%NFR_c *", change(alignment.nfr_change_percent, scale=1, unit=" %")),
        ("flips fixed", str(alignment.fixed)),
        ("flips newly made", str(alignment.made)),
        ("learnt", str(alignment.learnt)),
        ("forgotten", str(alignment.forgotten)),
        ("  inherited from old", "unknown" if alignment.inherited is None else str(alignment.inherited)),
        ("NFR of new -> comp.", percent(alignment.update.nfr)),
    ]
    if alignment.clustered_p is None:
        return [*rows, ("McNemar mid-p", p_value(alignment.mid_p))]
    return [*rows, ("p by cluster", p_value(alignment.clustered_p))]


def _repeats(repeats: Repeats, console: Console) -> Table:
    table = new_table(console)
    table.title = "Several draws per item"
    table.title_justify = "left"
    table.add_column("")
    table.add_column("old -> new", justify="right")
    smallest = repeats.smallest_detectable
    for label, cell in (
        ("items", str(repeats.items)),
        ("fewest draws of an item", str(repeats.fewest_draws)),
        ("flips expected of one draw each", f"{_share(repeats.nfr)} worse, {_share(repeats.pfr)} better"),
        ("flips of old against itself", _share(repeats.floor_old)),
        ("flips of new against itself", _share(repeats.floor_new)),
        ("reliable regressions", str(repeats.reliable_regressions)),
        ("reliable gains", str(repeats.reliable_gains)),
        ("smallest change to be found", "none can be" if smallest is None else _share(smallest)),
    ):
        table.add_row(label, cell)
    return table


def _share(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{100 * value:.2f} %"


def _tasks(comparison: Comparison, console: Console) -> Table:
    table = _breakdown("task", comparison.total, console)
    table.title = f"By task{_unit(comparison.total)}"
    for name, task in comparison.tasks.items():
        table.add_row(printable(name), *_breakdown_cells(task))
    return table


def _slices(column: str, parts: Sequence[Slice], console: Console) -> Table:
    named = [part for part in parts if part.column == column]
    table = _breakdown(printable(column), named[0].measures, console)
    adjusted = f"q is p adjusted for {len(parts)} slices (Benjamini-Hochberg)"
    table.title = f"By {printable(column)}{_unit(named[0].measures)}; {adjusted}"
    table.add_column("q", justify="right")
    for part in named:
        value = "(none)" if part.value is None else printable(part.value)
        table.add_row(value, *_breakdown_cells(part.measures), p_value(part.q_value))
    return table


def _breakdown(name: str, measures: Measures, console: Console) -> Table:
    table = new_table(console)
    table.title_justify = "left"
    table.add_column(name, overflow="fold")
    if _only_graded(measures):
        headers = ("N", "before", "after", "m_g", "m_r")
    else:
        headers = ("N", "old", "new", *(("comp.", "NFR", "NFR_c") if measures.compatible else ("NFR", "PFR")))
    for header in headers:
        table.add_column(header, justify="right")
    return table


def _breakdown_cells(measures: Measures) -> list[str]:
    update, compatible, smooth = measures.update, measures.compatible, measures.update.smooth
    if smooth and _only_graded(measures):
        means = (smooth.mean_old, smooth.mean_new, smooth.mean_gain, smooth.mean_regression)
        return [str(smooth.n), *("-" if mean.value is None else f"{mean.value:.4f}" for mean in means)]
    rates = [update.accuracy_old, update.accuracy_new]
    rates += [compatible.accuracy_new, update.nfr, compatible.nfr] if compatible else [update.nfr, update.pfr]
    return [str(update.n), *(points(rate) for rate in rates)]


def _unit(measures: Measures) -> str:
    return ": mean scores" if _only_graded(measures) else ": accuracy of each log and flip rates in percent"


def _only_graded(measures: Measures) -> bool:
    return measures.update.n == 0 and measures.update.smooth is not None
