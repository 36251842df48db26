"""One Markdown table from the demos of several seeds, with the tests that pool them.

    python experiments/summarise.py muscle-demo/seed-10 muscle-demo/seed-11 muscle-demo/seed-12

Rates are means over the runs. Fixed and newly made flips are sums over the runs, whose items are all different, and so
are those of the paired tests. `kept` is the epoch whose weights were kept; of the method auto, what its search chose.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from muscle.demo.plan import MODELS
from muscle.demo.stages import TASKS
from muscle.demo.table import LABELS, compare_method
from muscle.measure import Estimate, compare
from muscle.measure.statistics import mcnemar_mid_p, paired_difference_error

COLUMNS = ("accuracy", "against new", "NFR", "change (by seed)", "rel. NFR", "NFR_mc", "fixed / made")


def header(first: str, *more: str) -> list[str]:
    """Two lines of Markdown that `row` fits under."""
    columns = (first, *COLUMNS, *more)
    return [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]


def row(label: str, logs: Sequence[Path], method: str) -> str:
    """What `method` does to users of the old model, over the log folders of several runs (each with old and new)."""
    updates, alignments = zip(*(compare_method(log, method) for log in logs), strict=True)
    cells = [
        _mean([update.accuracy_new for update in updates]),
        _accuracy_difference(logs, method),
        _mean([update.nfr for update in updates]),
        "",
        _mean([update.relative_nfr for update in updates]),
        _mean([update.nfr_mc for update in updates]),
        "",
    ]
    if method != "new":
        changes = [_value(alignment.nfr_change_percent) for alignment in alignments]
        cells[3] = f"{mean(changes):+.1f} % ({', '.join(f'{change:+.0f}' for change in changes)})"
        cells[6] = f"{sum(alignment.fixed for alignment in alignments)} / {sum(a.made for a in alignments)}"
    return f"| {' | '.join([label, *cells])} |"


def _value(estimate: Estimate) -> float:
    return float("nan") if estimate.value is None else estimate.value


def _mean(estimates: Sequence[Estimate]) -> str:
    return f"{100 * mean(map(_value, estimates)):.1f}"


def _accuracy_difference(logs: Sequence[Path], method: str) -> str:
    """Accuracy minus the new model's in percentage points, with the standard error of the paired difference."""
    if method == "new":
        return ""
    updates = [compare(log / "new", log / method).update for log in logs]
    gained, lost = sum(u.positive_flips for u in updates), sum(u.negative_flips for u in updates)
    n = sum(u.n for u in updates)
    return f"{100 * (gained - lost) / n:+.1f} ± {100 * paired_difference_error(gained, lost, n):.1f}"


def _summarise(runs: list[Path]) -> list[str]:
    lines = []
    for task in TASKS:
        logs = [run / "logs" / task for run in runs]
        old = mean(_value(compare(log / "old", log / "new").update.accuracy_old) for log in logs)
        lines += ["", *header(task, "kept"), f"| {LABELS['old']} | {100 * old:.1f} |{' |' * len(COLUMNS)}"]
        lines += [f"{row(LABELS[method], logs, method)} {_kept(runs, task, method)} |" for method in MODELS[1:]]
        pairs = (("muscle", "cross_entropy"), ("auto", "cross_entropy"), ("auto", "muscle"), ("auto", "ensemble"))
        lines += ["", *(against(task, method, other, logs) for method, other in pairs)]
        lines += [_medians(task, method, logs) for method in ("muscle", "auto", "ensemble")]
    return lines


def _kept(runs: list[Path], task: str, method: str) -> str:
    files = [run / "adapters" / task / method / "training.json" for run in runs]
    searches = [file.with_name("search.json") for file in files]
    if all(search.exists() for search in searches):
        return "; ".join(_chosen(json.loads(search.read_text())) for search in searches)
    if not all(file.exists() for file in files):
        return ""
    return ", ".join(str(json.loads(file.read_text())["result"]["best_epoch"]) for file in files)


def _chosen(search: dict[str, Any]) -> str:
    if search["chosen"] is None:
        return "new as it is"
    trial = search["trials"][search["chosen"]]
    return f"{trial['name'].removeprefix('mixture ')} ({trial['best_epoch']} of {trial['epochs']})"


def against(task: str, method: str, other: str, logs: Sequence[Path]) -> str:
    """The paired test of two methods' flips, over the log folders of several runs."""
    alignments = [compare_method(log, method, baseline=other)[1] for log in logs]
    fixed, made = sum(alignment.fixed for alignment in alignments), sum(alignment.made for alignment in alignments)
    p = mcnemar_mid_p(fixed, made)
    seeds = ", ".join(f"{alignment.fixed}/{alignment.made}" for alignment in alignments)
    names = [LABELS.get(name, name) for name in (other, method)]
    return (
        f"- {task}: of the flips of {names[0]}, {names[1]} fixes {fixed} and makes {made} new "
        f"(by seed {seeds}); mid-p {p:.2g}."
    )


def _medians(task: str, method: str, logs: list[Path]) -> str:
    updates, alignments = zip(*(compare_method(log, method) for log in logs), strict=True)
    news = [compare(log / "old", log / "new").update for log in logs]
    pairs = list(zip(updates, news, strict=True))
    gains = [_value(update.accuracy_new) - _value(new.accuracy_new) for update, new in pairs]
    relative = median(100 * (_value(update.relative_nfr) / _value(new.relative_nfr) - 1) for update, new in pairs)
    change = median(_value(alignment.nfr_change_percent) for alignment in alignments)
    return (
        f"- {task}, {LABELS[method]}, medians over seeds: NFR {change:+.1f} %, relative NFR {relative:+.1f} %, "
        f"accuracy {100 * median(gains):+.1f} points against new "
        f"({', '.join(f'{100 * gain:+.1f}' for gain in gains)})."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    print("\n".join(_summarise(parser.parse_args().runs)))
