"""One Markdown table from the demos of several seeds, with the tests that pool them.

    python experiments/summarise.py muscle-demo/seed-10 muscle-demo/seed-11 muscle-demo/seed-12

Rates are means over the runs. Fixed and newly made flips are sums over the runs, whose items are all different, and so
are those of the paired test against the same steps of plain cross-entropy. `kept` is the epoch whose weights were kept.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

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
        lines += ["", *(_against_control(task, method, logs) for method in ("muscle", "paper_t2"))]
    return lines


def _kept(runs: list[Path], task: str, method: str) -> str:
    files = [run / "adapters" / task / method / "training.json" for run in runs]
    if not all(file.exists() for file in files):
        return ""
    return ", ".join(str(json.loads(file.read_text())["result"]["best_epoch"]) for file in files)


def _against_control(task: str, method: str, logs: list[Path]) -> str:
    alignments = [compare_method(log, method, baseline="cross_entropy")[1] for log in logs]
    fixed, made = sum(alignment.fixed for alignment in alignments), sum(alignment.made for alignment in alignments)
    p = mcnemar_mid_p(fixed, made)
    return f"- {task}: of the flips of plain CE, {LABELS[method]} fixes {fixed} and makes {made} new; mid-p {p:.2g}."


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    print("\n".join(_summarise(parser.parse_args().runs)))
