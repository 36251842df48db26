"""Run the benchmarks one after the other, gather their bars, and write the table of ratios into the READMEs.

    make bench                    # all of them: 50 minutes on two quiet cores
    make bench QUICK=1            # small sizes, to see that everything runs
    python benchmarks/run.py --only reading --only startup

Bars go to benchmarks/results/latest.json: those of scripts that were run replace their earlier ones. Quick figures say
nothing: they go to benchmarks/results/quick/ alone, and no README is written.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from common import REPOSITORY, RESULTS, Bar, Results
from rich.console import Console

from muscle.measure.report.terminal import new_table, say

FOLDER = Path(__file__).parent
SCRIPTS = (
    *("scoring", "generation", "training", "text_scores", "startup", "reading", "across", "chunking", "growth", "gpu"),
)
READMES = {REPOSITORY / "README.md": False, FOLDER / "README.md": True}
"""Which of them has every bar; the other has those with a goal."""
BEGIN, END = "<!-- benchmarks: written by make bench -->", "<!-- end of benchmarks -->"


class Entry(Bar, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A bar, and where it comes from."""

    script: str
    date: str


class Latest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All bars, as they were last measured."""

    machine: dict[str, object]
    versions: dict[str, str | None]
    bars: list[Entry]


def run(script: str, quick: bool) -> bool:
    """Run a script in a process of its own; whether it succeeded."""
    command = [sys.executable, str(FOLDER / f"{script}.py"), *(["--quick"] if quick else [])]
    print(f"== {script}", flush=True)
    start = time.perf_counter()
    code = subprocess.run(command, check=False).returncode
    print(
        f"== {script}: {'done' if code == 0 else f'failed with {code}'}, {time.perf_counter() - start:.0f} s",
        flush=True,
    )
    return code == 0


def gather(folder: Path) -> Latest:
    """The bars of all results in a folder, script by script; machine and versions are those of the last run."""
    found: dict[str, Results] = {}
    for script in SCRIPTS:
        file = folder / f"{script}.json"
        if file.exists():
            found[script] = msgspec.json.decode(file.read_bytes(), type=Results)
    versions: dict[str, str | None] = {}
    for results in found.values():
        versions |= results.versions
    last = max(found.values(), key=lambda results: results.date)
    return Latest(
        machine=last.machine,
        versions=dict(sorted(versions.items())),
        bars=[
            Entry(**msgspec.structs.asdict(bar), script=script, date=results.date)
            for script, results in found.items()
            for bar in results.bars
        ],
    )


def figure(value: float, unit: str) -> str:
    """With its unit: megabytes and thousands whole, others to three digits."""
    return f"{value:,.0f} {unit}" if unit == "MB" or value >= 1000 else f"{value:.3g} {unit}"


HEADER = ("what", "ours", "peer", "ratio", "goal", "")


def cells(bar: Bar) -> tuple[str, ...]:
    """A bar as a row under `HEADER`."""
    if bar.ours is None:
        return (bar.name, "", bar.peer_name, "", bar.goal or "", bar.note)
    peer = "" if bar.peer is None else f"{figure(bar.peer, bar.unit)}: "
    ratio = "" if bar.ratio is None else f"{bar.ratio:.3g}"
    judged = {True: "met", False: "missed", None: ""}[bar.met]
    verdict = "; ".join(part for part in (judged, bar.note) if part)
    return (bar.name, figure(bar.ours, bar.unit), f"{peer}{bar.peer_name}", ratio, bar.goal or "", verdict)


def print_table(bars: Sequence[Bar]) -> None:
    """Print all bars."""
    console = Console(highlight=False, emoji=False, markup=False)
    table = new_table(console)
    for header in HEADER:
        table.add_column(header, justify="right" if header in ("ours", "ratio") else "left", overflow="fold")
    for bar in bars:
        table.add_row(*cells(bar))
    console.print(table)
    missed, idle = sum(bar.met is False for bar in bars), sum(bar.ours is None for bar in bars)
    say(console, f"{len(bars)} bars: {missed} missed, {idle} not run")


def markdown(latest: Latest, whole: bool) -> str:
    """The table for a README, of all bars or those with a goal, with the machine under it."""
    bars = [bar for bar in latest.bars if whole or bar.goal]
    rows = [HEADER, ("---", "---:", "---", "---:", "---", "---"), *map(cells, bars)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    packages = ("torch", "transformers", "lm-eval", "trl")
    stack = ", ".join(f"{name} {latest.versions[name]}" for name in packages if latest.versions.get(name))
    machine = f"{latest.machine['processor']}, {latest.machine['cpus']} cores"
    runs = f"Medians; time: peer / ours, memory: ours / peer. Measured on {machine}, {stack}."
    return "\n".join([*lines, "", runs])


def written(readme: str, table: str) -> str:
    """A README with the table between its markers.

    Raises:
        SystemExit: It has no markers.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"a README lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, results apart")
    parser.add_argument("--only", action="append", choices=SCRIPTS, help="this script; may be repeated")
    arguments = parser.parse_args()
    failed = [script for script in arguments.only or SCRIPTS if not run(script, arguments.quick)]
    folder = RESULTS / "quick" if arguments.quick else RESULTS
    latest = gather(folder)
    (folder / "latest.json").write_bytes(msgspec.json.format(msgspec.json.encode(latest), indent=2) + b"\n")
    if not arguments.quick:
        for path, whole in READMES.items():
            path.write_text(written(path.read_text(encoding="utf-8"), markdown(latest, whole)), encoding="utf-8")
    print_table(latest.bars)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; their bars are those of an earlier run")


if __name__ == "__main__":
    main()
