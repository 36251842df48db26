"""One Markdown table from the demos of several seeds, with the tests that pool them.

    python experiments/summarise.py muscle-demo/seed-10 muscle-demo/seed-11 muscle-demo/seed-12

Rates are means over the runs. Fixed and newly made flips are sums over the runs, whose items are all different, and so
are those of the paired test against the same steps of plain cross-entropy.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from muscle.demo.plan import METHODS
from muscle.demo.stages import TASKS
from muscle.demo.table import LABELS
from muscle.measure import compare
from muscle.measure.statistics import mcnemar_mid_p

HEADER = "| {task} | accuracy | against new | NFR | change (by seed) | rel. NFR | NFR_mc | fixed / made |"


def summarise(runs: list[Path]) -> list[str]:
    """Lines of Markdown."""
    lines = []
    for task in TASKS:
        lines += ["", HEADER.format(task=task), "|---|---|---|---|---|---|---|---|"]
        lines += [_row(task, method, runs) for method in METHODS]
        lines += ["", *(_against_control(task, method, runs) for method in ("muscle", "paper_t2"))]
    return lines


def _row(task: str, method: str, runs: list[Path]) -> str:
    rows = [_table_row(run, task, method) for run in runs]
    cells = [LABELS[method], _percent(rows, "accuracy")]
    if method == "old":
        return f"| {' | '.join([*cells, *[''] * 6])} |"
    cells.append("" if method == "new" else _accuracy_difference(task, method, runs))
    change = ""
    if method != "new":
        by_seed = [row["nfr_change_percent"] for row in rows]
        change = f"{mean(by_seed):+.1f} % ({', '.join(f'{c:+.0f}' for c in by_seed)})"
    cells += [_percent(rows, "nfr"), change, _percent(rows, "relative_nfr"), _percent(rows, "nfr_mc")]
    cells.append("" if method == "new" else f"{sum(r['fixed'] for r in rows)} / {sum(r['made'] for r in rows)}")
    return f"| {' | '.join(cells)} |"


def _table_row(run: Path, task: str, method: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = json.loads((run / "table.json").read_text())
    (row,) = (row for row in rows if (row["task"], row["method"]) == (task, method))
    return row


def _percent(rows: list[dict[str, Any]], name: str) -> str:
    return f"{100 * mean(row[name] for row in rows):.1f}"


def _accuracy_difference(task: str, method: str, runs: list[Path]) -> str:
    """Accuracy minus the new model's in percentage points, with the standard error of the paired difference."""
    updates = [compare(run / "logs" / task / "new", run / "logs" / task / method).update for run in runs]
    gained, lost = sum(u.positive_flips for u in updates), sum(u.negative_flips for u in updates)
    n = sum(u.n for u in updates)
    difference = (gained - lost) / n
    error = (((gained + lost) / n - difference**2) / n) ** 0.5
    return f"{100 * difference:+.1f} ± {100 * error:.1f}"


def _against_control(task: str, method: str, runs: list[Path]) -> str:
    fixed = made = 0
    for run in runs:
        logs = run / "logs" / task
        alignment = compare(logs / "old", logs / "ce_control", logs / method).alignment
        assert alignment is not None
        fixed, made = fixed + alignment.fixed, made + alignment.made
    p = mcnemar_mid_p(fixed, made)
    return f"- {task}, {LABELS[method]} against plain CE: {fixed} flips fewer, {made} newly made, mid-p {p:.2g}."


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    print("\n".join(summarise(parser.parse_args().runs)))
