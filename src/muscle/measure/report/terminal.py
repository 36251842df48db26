"""The Comparison as text for a terminal of 80 columns; plain ASCII without colours when piped into a file."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from muscle.errors import printable
from muscle.measure.comparison import Alignment, Comparison, Estimate, Input, TaskComparison, Update


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print what was read, the measures, the tasks, the notes, and what it means in a sentence."""
    console = console or Console(highlight=False, emoji=False, markup=False)
    width = max(len(role) for role in comparison.inputs)
    for role, source in comparison.inputs.items():
        say(console, f"{role:<{width}}  {source.path}")
        say(console, f"{'':<{width}}  {_describe(source)}")
    console.print(_measures(comparison, console))
    if len(comparison.tasks) > 1:
        console.print(_tasks(comparison, console))
    for note in comparison.notes:
        say(console, f"note: {note}")
    resampling = f"bootstrap ({comparison.resamples} resamples, seed {comparison.seed})"
    say(console, f"95 % intervals in brackets: Wilson, where marked * {resampling}.")
    say(console, _sentence(comparison))


def _describe(source: Input) -> str:
    parts = [source.format]
    if len(source.metric) > 1:
        parts.append(f"{len(source.metric)} tasks")
    parts.append(f"{source.rows} rows")
    for kind, chosen in (("metric", source.metric), ("filter", source.filter)):
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
    updates = [comparison.update, *([comparison.compatible] if comparison.compatible else [])]
    table = new_table(console)
    table.add_column("")
    for header in ("old -> new", "old -> compatible")[: len(updates)]:
        table.add_column(header, justify="right")

    for row in zip(*(_rows(update) for update in updates), strict=True):
        table.add_row(row[0][0], *(cell for _, cell in row))
    if comparison.alignment:
        table.add_section()
        for name, cell in _alignment_rows(comparison.alignment):
            table.add_row(name, "", cell)
    return table


def _rows(update: Update) -> list[tuple[str, str]]:
    return [
        ("N", str(update.n)),
        ("unscored", str(update.unscored)),
        ("accuracy before", _percent(update.accuracy_old)),
        ("accuracy after", _percent(update.accuracy_new)),
        ("both right", str(update.both_right)),
        ("positive flips", str(update.positive_flips)),
        ("negative flips", str(update.negative_flips)),
        ("both wrong", str(update.both_wrong)),
        ("  differently", str(update.both_wrong_different)),
        ("NFR", _percent(update.nfr)),
        ("PFR", _percent(update.pfr)),
        ("NFR_mc", _percent(update.nfr_mc)),
        ("relative NFR *", _percent(update.relative_nfr)),
        ("BTC", _percent(update.btc)),
        ("McNemar mid-p", _p_value(update.mcnemar_mid_p)),
    ]


def _alignment_rows(alignment: Alignment) -> list[tuple[str, str]]:
    return [
        ("compatible against new", ""),
        ("accuracy *", _change(alignment.delta_accuracy)),
        ("dNFR_c *", _change(alignment.delta_nfr)),
        ("d%NFR_c *", _change(alignment.nfr_change_percent, scale=1, unit="%")),
        ("flips fixed", str(alignment.fixed)),
        ("flips newly made", str(alignment.made)),
        ("McNemar mid-p", _p_value(alignment.mid_p)),
    ]


def _tasks(comparison: Comparison, console: Console) -> Table:
    table = new_table(console)
    table.title = "By task: N, accuracy of each log, flip rates; in percent"
    table.title_justify = "left"
    table.add_column("task", overflow="fold")
    headers = ("old", "new", "comp.", "NFR", "NFR_c") if comparison.compatible else ("old", "new", "NFR", "PFR")
    for header in ("N", *headers):
        table.add_column(header, justify="right")
    for name, task in comparison.tasks.items():
        before, after = task.update.accuracy_old, task.update.accuracy_new
        if task.compatible:
            rates = [before, after, task.compatible.accuracy_new, task.update.nfr, task.compatible.nfr]
        else:
            rates = [before, after, task.update.nfr, task.update.pfr]
        table.add_row(printable(name), str(task.update.n), *(_points(rate) for rate in rates))
    return table


def _percent(estimate: Estimate) -> str:
    return _with_interval(estimate, scale=100, unit="%")


def _change(estimate: Estimate, *, scale: float = 100, unit: str = "pp") -> str:
    """A difference, in percentage points unless said otherwise; always with its sign."""
    return _with_interval(estimate, scale=scale, unit=unit, sign="+")


def _with_interval(estimate: Estimate, *, scale: float, unit: str, sign: str = "") -> str:
    if estimate.value is None:
        return "undefined"
    value = f"{scale * estimate.value:{sign}.2f} {unit}"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value}  [{scale * estimate.low:{sign}.2f}, {scale * estimate.high:{sign}.2f}]"


def _points(estimate: Estimate) -> str:
    return "-" if estimate.value is None else f"{100 * estimate.value:.2f}"


def _p_value(p: float) -> str:
    return f"{p:.4f}" if p >= 0.0001 else f"{p:.1e}"


def _sentence(comparison: TaskComparison) -> str:
    """The result in plain words."""
    update = comparison.update
    if update.n == 0:
        return "No item is scored in every log, so nothing can be said."
    old_right = update.both_right + update.negative_flips
    if old_right:
        lost = f"{update.negative_flips} became wrong ({100 * update.negative_flips / old_right:.1f} %)"
        text = f"Of {old_right} answers that were right, {lost}; {update.positive_flips} wrong ones became right."
    else:
        text = f"No answer was right before; {update.positive_flips} wrong ones became right."
    if comparison.compatible and comparison.alignment:
        fixed, made = comparison.alignment.fixed, comparison.alignment.made
        text += (
            f" With the compatible model {comparison.compatible.negative_flips} became wrong:"
            f" {fixed} of the {update.negative_flips} are fixed, {made} newly made."
        )
    return text
