"""What an update with a changed tokenizer costs: ways to hear the old model, side by side, in the demo's world.

    python experiments/across_tokenizers.py --seeds 0 --split validation --arms choose --length 0.5
    python experiments/across_tokenizers.py --seeds 30 31 32 --split test --arms proof

The new base reads pieces of words, digits in groups; the old one whole words ("changed"), or pieces with single digits
("digits"), and in the twin of each update the new one's pieces: the same new base, documents, items and steps without a
change of tokenizer. Finished stages are kept.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from summarise import against, header, row

from muscle.demo.stages import TASKS
from muscle.recipes.prepare_world import prepare
from muscle.update.pipeline import Stage
from muscle.update.plan import Plan
from muscle.update.recipe import Recipe
from muscle.update.recipe_file import read_recipe
from muscle.update.settings import merged
from muscle.update.workers import run_pipeline

RECIPE = Path(__file__).parent.parent / "src/muscle/recipes/tokenizers_demo.yaml"
KINDS = {"changed": "words", "digits": "bytes", "twin": "grouped"}
"""The old base's tokenizer, by the kind of update; the new one's is grouped."""
SHARED = (
    *("bases/tokenizer", "bases/new"),
    *(f"adapters/{task}/{name}" for task in TASKS for name in ("new", "reseeded")),
)
"""Stages that all kinds of a seed have in common."""
REFERENCES = {"choose": ("old", "new"), "proof": ("old", "new", "reseeded", "gated")}


@dataclass(frozen=True)
class Arm:
    """One way to align."""

    alignment: Mapping[str, Any]
    training: Mapping[str, Any] = field(default_factory=dict)
    kinds: tuple[str, ...] = ("changed",)
    tasks: tuple[str, ...] = TASKS

    def is_of(self, kind: str) -> bool:
        """Whether it is trained in that kind of update; digits have all that whole words have."""
        return ("changed" if kind == "digits" else kind) in self.kinds

    def recipe(self, name: str, recipe: Recipe, length: float) -> Recipe:
        """The update with this one method."""
        tasks = {
            task: merged(settings, {"alignment_training": self._training(settings.alignment_training, length)})
            for task, settings in recipe.tasks.items()
        }
        return msgspec.structs.replace(recipe, tasks=tasks, methods={name: self.alignment})

    def _training(self, own: Mapping[str, Any], length: float) -> dict[str, Any]:
        return {**own, "epochs": max(1, round(own["epochs"] * length)), **self.training}


ANSWER = {"tokens": "answer"}
MIX = {"weight": "mixture", "old_share": 0.8, "temperature": 1.0}
CHOICES = {"texts": "choices"}
BOTH = ("changed", "twin")
INPUTS, FEWER = {"unlabelled": True}, {**ANSWER, "epochs": 3}
LIKELY = {"across": "likelihood"}
TAU_1 = {"chunk_temperature": 1.0}
CHOOSE = {
    "ce": Arm({"weight": None}, kinds=BOTH),
    "muscle": Arm({}, kinds=BOTH),  # combined, and in the twin token by token
    "muscle, likelihood, tau 100": Arm(LIKELY),
    "muscle, likelihood": Arm({**LIKELY, **TAU_1}, kinds=BOTH),
    "mixture": Arm(MIX, ANSWER, BOTH),
    "mixture, likelihood, tau 100": Arm({**MIX, **LIKELY}, ANSWER),
    "mixture, likelihood": Arm({**MIX, **LIKELY, **TAU_1}, ANSWER, BOTH),
    "mixture, likelihood, every boundary": Arm({**MIX, **LIKELY, **TAU_1, "boundary_threshold": 0.0}, ANSWER),
    "mixture, texts": Arm({**MIX, "across": "texts", **TAU_1}, ANSWER),
    "mixture, shared": Arm({**MIX, "across": "shared"}, ANSWER),
    "mixture, projected": Arm({**MIX, "across": "projected"}, ANSWER),
    "mixture, ranks": Arm({**MIX, "across": "ranks"}, ANSWER),
    "all choices": Arm({**MIX, **CHOICES}, ANSWER, BOTH, ("scenes",)),
    "all choices, likelihood": Arm({**MIX, **CHOICES, **LIKELY, **TAU_1}, ANSWER, tasks=("scenes",)),
    "all choices, shared": Arm({**MIX, **CHOICES, "across": "shared"}, ANSWER, tasks=("scenes",)),
    "all choices, level choice": Arm({**MIX, **CHOICES, "level": "choice"}, ANSWER, BOTH, ("scenes",)),
    "unlabelled": Arm({**MIX, **INPUTS}, FEWER, BOTH, ("sums",)),
    "unlabelled, likelihood": Arm({**MIX, **INPUTS, **LIKELY, **TAU_1}, FEWER, tasks=("sums",)),
    "unlabelled, projected": Arm({**MIX, **INPUTS, "across": "projected"}, FEWER, tasks=("sums",)),
}
PROOF = {
    "ce": Arm({"weight": None}, kinds=BOTH),
    "muscle": Arm({}, kinds=BOTH),
    "auto": Arm({"search": {"lengths": [0.5, 1.0], "floor": 0.0}}, kinds=BOTH),
    "old teacher": Arm({"weight": "always_old"}),
}
ARMS = {"choose": CHOOSE, "proof": PROOF}
PAIRS = (("auto", "ce"), ("auto", "muscle"), ("muscle", "ce"), ("old teacher", "ce"))
"""Whose flips are held against whose."""


def plan(seed: int, kind: str, arms: str, split: Any, data: Path, length: float) -> list[Stage]:
    """All arms and references of one update."""
    overrides = [f"data={data}", f"old.scratch.tokenizer={KINDS[kind]}", f"training.seed={seed}"]
    overrides += [f"{side}.scratch.seed={2 * seed + number}" for number, side in enumerate(("old", "new"), start=1)]
    recipe = read_recipe(RECIPE, overrides)
    common = Plan(recipe)
    plans = {name: Plan(arm.recipe(name, recipe, length)) for name, arm in ARMS[arms].items() if arm.is_of(kind)}
    stages = common.base_stages()
    for task in TASKS:
        stages += common.task_adapter_stages(task)
        chosen = {name: plans[name] for name in plans if task in ARMS[arms][name].tasks}
        stages += [each.alignment_stage(task, name) for name, each in chosen.items()]
        logs = f"logs-{split}"
        stages += [common.evaluation_stage(task, name, split, logs) for name in REFERENCES[arms]]
        stages += [each.evaluation_stage(task, name, split, logs) for name, each in chosen.items()]
    return stages


def run(
    root: Path, seed: int, kinds: Sequence[str], arms: str, split: str, length: float, jobs: int, console: Console
) -> None:
    """Updates of one seed."""
    data = root / str(seed) / "world"
    if not (data / "v2.txt").exists():
        prepare(data, seed)
    for kind in kinds:
        folder = root / str(seed) / kind
        for stage in SHARED:
            if not (folder / stage).exists() and (root / str(seed) / "changed" / stage).exists():
                shutil.copytree(root / str(seed) / "changed" / stage, folder / stage)
        run_pipeline(plan(seed, kind, arms, split, data.resolve(), length), folder, jobs, console, "keep")


def table(root: Path, seeds: list[int], kinds: Sequence[str], arms: str, split: str) -> list[str]:
    """Lines of Markdown."""
    lines = []
    for task in TASKS:
        for kind in kinds:
            logs = [root / str(seed) / kind / f"logs-{split}" / task for seed in seeds]
            names = [*REFERENCES[arms][1:]]
            names += [name for name, arm in ARMS[arms].items() if arm.is_of(kind) and task in arm.tasks]
            lines += ["", *header(f"{task}, {kind}"), *(row(name, logs, name) for name in names), ""]
            pairs = [(name, other) for name, other in PAIRS if name in names and other in names]
            lines += [against(f"{task}, {kind}", name, other, logs) for name, other in pairs]
    return lines


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--kinds", choices=[*KINDS], nargs="+", default=["changed", "twin"])
    parser.add_argument("--arms", choices=[*ARMS], default="choose")
    parser.add_argument("--split", choices=["validation", "test"], default="validation")
    parser.add_argument("--length", type=float, default=1.0, help="of the trainings, in parts of the recipe's epochs")
    parser.add_argument("--root", type=Path, default=Path("runs/across"))
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    console = Console()
    for seed in arguments.seeds:
        choice = arguments.kinds, arguments.arms, arguments.split, arguments.length, arguments.jobs
        run(arguments.root, seed, *choice, console)
    print("\n".join(table(arguments.root, arguments.seeds, arguments.kinds, arguments.arms, arguments.split)))


if __name__ == "__main__":
    main()
