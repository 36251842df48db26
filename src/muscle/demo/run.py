"""The demo from start to table."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from muscle.demo.plan import FULL, QUICK, demo_plan, demo_recipe, full_plan, world_stages
from muscle.demo.stages import TASKS
from muscle.demo.table import meaning, print_rows, table_rows, write_rows
from muscle.errors import MuscleError
from muscle.measure.report.terminal import say
from muscle.update.estimate import print_estimate
from muscle.update.report.frontier import Run
from muscle.update.report.search import SEARCH
from muscle.update.workers import run_pipeline

RECORD = "demo.json"
"""File of a run's folder that says what is run there."""


def run_demo(seed: int, quick: bool, out: Path | None, jobs: int, console: Console) -> None:
    """Run what is missing of the embedded update and show its table.

    Args:
        seed: Decides the world, the data, and every initial weight.
        quick: A tenth of the size: every stage, no meaningful figures.
        out: Folder of the run; None names one after the seed below `muscle-demo`.
        jobs: Number of worker processes.
        console: Where progress and table are shown.

    Raises:
        MuscleError: `out` cannot be used, or a stage failed.
    """
    root = _root(seed, quick, out)
    _claim(root, {"seed": seed, "quick": quick})
    say(console, f"One model update in a world of its own, from pretraining to table, in {root}")
    run_pipeline(full_plan(seed, QUICK if quick else FULL), root, jobs, console)
    rows = table_rows(root / "logs")
    write_rows(rows, root / "table.json")
    print_rows(rows, console)
    say(console, meaning(rows, root / "logs"))
    for task in TASKS:
        search = json.loads((root / "adapters" / task / "auto" / SEARCH).read_text())
        say(console, f"auto, {task}: {search['why']}")
    if quick:
        say(console, "This was --quick: every stage is real, but such small models make the figures mean little.")
    say(console, f"table     {root / 'table.json'}")
    for kind in ("logs", "adapters", "bases", "tasks"):
        say(console, f"{kind:<9} {root / kind}")
    scenes = root / "logs" / "scenes"
    say(console, f"Look closer: muscle compare {scenes / 'old'} {scenes / 'new'} --compatible {scenes / 'auto'}")


def is_demo(root: Path) -> bool:
    """Whether a folder is a run of the demo."""
    return (root / RECORD).is_file()


def demo_frontier(root: Path) -> Run:
    """A run of the demo, to train a frontier in.

    Raises:
        MuscleError: Its record is damaged.
    """
    what = _read(root / RECORD)
    if not isinstance(what, dict) or not isinstance(what.get("seed"), int):
        raise MuscleError(f"{root / RECORD} is damaged: run the demo again in another folder")
    seed, sizes = what["seed"], QUICK if what.get("quick") else FULL
    return Run(root, demo_recipe(seed, sizes), demo_plan, world_stages(seed, sizes))


def print_demo_estimate(seed: int, quick: bool, out: Path | None, jobs: int, console: Console) -> bool:
    """Print what the missing stages of `run_demo` will take; nothing is written.

    Returns:
        Whether it fits into memory and disk.
    """
    return print_estimate(full_plan(seed, QUICK if quick else FULL), _root(seed, quick, out), jobs, console)


def _root(seed: int, quick: bool, out: Path | None) -> Path:
    return out or Path("muscle-demo") / f"{'quick-' if quick else ''}seed-{seed}"


def _claim(root: Path, what: dict[str, object]) -> None:
    """Make the folder of a run, or check that it is this run's; its table is stale until the run is through."""
    record = root / RECORD
    try:
        root.mkdir(parents=True, exist_ok=True)
        if record.exists():
            if (there := _read(record)) != what:
                raise MuscleError(f"{root} holds another demo ({there}): choose another folder with --out")
        elif any(root.iterdir()):
            raise MuscleError(f"{root} holds something else: choose a new or empty folder with --out")
        record.write_text(json.dumps(what) + "\n")
        (root / "table.json").unlink(missing_ok=True)
    except OSError as error:
        raise MuscleError(f"{root} cannot be used ({error.strerror}): choose another folder with --out") from None


def _read(record: Path) -> object:
    try:
        return json.loads(record.read_text())
    except ValueError:
        raise MuscleError(f"{record} is damaged: choose another folder with --out") from None
