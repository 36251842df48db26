"""How the demo's alignment settings were chosen: on the validation split, over several seeds.

    python experiments/choose_settings.py --seeds 0 1 2 --root runs/choose

Every candidate aligns the same task models of each seed. The table shows, per task, means over the seeds; a candidate
is admissible where its accuracy is not below the new model's by more than one standard error of the paired difference,
and the admissible candidate with the largest mean fall of NFR over both tasks is the one to take. Finished stages are
kept, so candidates can be added.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from summarise import header, row

from muscle.demo.plan import FULL, demo_plan, demo_recipe, world_stages
from muscle.demo.stages import TASKS
from muscle.update.pipeline import Stage
from muscle.update.recipe import Recipe
from muscle.update.settings import merged
from muscle.update.workers import run_pipeline

REFERENCES = ("old", "new", "reseeded", "ensemble")
LOGS = "validation-logs"


@dataclass(frozen=True)
class Candidate:
    """One setting for both tasks."""

    alignment: Mapping[str, Any]
    learning_rate: float = 2e-3
    length: float = 1
    """In units of 12 epochs of scenes or 30 of sums, about 470 steps each."""

    def recipe(self, name: str, seed: int) -> Recipe:
        """The demo's with this one method; the same number of steps for both tasks."""
        recipe = demo_recipe(seed, FULL, {name: self.alignment})
        tasks = {
            task: merged(settings, {"alignment_training": self._training(task)})
            for task, settings in recipe.tasks.items()
        }
        return msgspec.structs.replace(recipe, tasks=tasks)

    def _training(self, task: str) -> dict[str, Any]:
        return {"epochs": round(FULL.alignment_epochs[task] * self.length), "learning_rate": self.learning_rate}


def _muscle(temperature: float, ce_share: float) -> dict[str, Any]:
    return {"weight": "student_wrong", "temperature": temperature, "ce_share": ce_share}


CANDIDATES = {
    "ce": Candidate({"weight": None}),
    "ce-lr1": Candidate({"weight": None}, learning_rate=1e-3),
    "old-t1": Candidate({"weight": "always_old", "temperature": 1.0}),
    "t1": Candidate(_muscle(1, 0)),
    "t1-ce.3": Candidate(_muscle(1, 0.3)),
    "t1-lr1": Candidate(_muscle(1, 0), learning_rate=1e-3),
    "t1-lr4": Candidate(_muscle(1, 0), learning_rate=4e-3),
    "t1-lr4-short": Candidate(_muscle(1, 0), learning_rate=4e-3, length=2 / 3),
    "t2": Candidate(_muscle(2, 0)),
    "t2-ce.3": Candidate(_muscle(2, 0.3)),
    "t.5": Candidate(_muscle(0.5, 0)),
    "t.5-lr.5": Candidate(_muscle(0.5, 0), learning_rate=5e-4),
    "t.5-lr1": Candidate(_muscle(0.5, 0), learning_rate=1e-3),
    "t.5-lr4-short": Candidate(_muscle(0.5, 0), learning_rate=4e-3, length=2 / 3),
}


def plan(seed: int) -> list[Stage]:
    """All candidates and references of one seed, evaluated on the validation split."""
    common = demo_plan(demo_recipe(seed, FULL))
    candidates = {name: demo_plan(candidate.recipe(name, seed)) for name, candidate in CANDIDATES.items()}
    stages = world_stages(seed, FULL)
    for task in TASKS:
        stages += common.task_adapter_stages(task)
        stages += [plan.alignment_stage(task, name) for name, plan in candidates.items()]
        stages += [common.evaluation_stage(task, name, "validation", LOGS) for name in (*REFERENCES, *CANDIDATES)]
    return stages


def table(root: Path, seeds: list[int]) -> list[str]:
    """Lines of Markdown."""
    lines = []
    for task in TASKS:
        logs = [root / str(seed) / LOGS / task for seed in seeds]
        lines += ["", *header(task), *(row(name, logs, name) for name in (*REFERENCES[1:], *CANDIDATES))]
    return lines


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--root", type=Path, default=Path("runs/choose"))
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    console = Console()
    for seed in arguments.seeds:
        run_pipeline(plan(seed), arguments.root / str(seed), arguments.jobs, console)
    print("\n".join(table(arguments.root, arguments.seeds)))


if __name__ == "__main__":
    main()
