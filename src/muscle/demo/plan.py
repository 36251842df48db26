"""What the demo runs: its sizes, its settings, its methods, and the stages they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from muscle.demo import stages
from muscle.demo.stages import TASKS
from muscle.update.pipeline import Stage
from muscle.update.recipe import AlignmentSettings, LoraSettings, Split, TrainingSettings


@dataclass(frozen=True)
class Sizes:
    """How big the embedded update is."""

    documents: Mapping[str, int]
    """By version; likewise the steps."""
    pretraining_steps: Mapping[str, int]
    items: Mapping[str, Mapping[str, int]]
    """By task and split."""
    task_training: TrainingSettings
    alignment_training: Mapping[str, TrainingSettings]
    """By task; of the compatibility adapter and its trained controls."""
    lora: LoraSettings = field(default_factory=lambda: LoraSettings(rank=32, alpha=64))


# World, sizes and the training of task adapters were frozen before the first adapter was aligned. On the seeds that had
# been looked at, 30 epochs reached the lowest validation cross-entropy; docs/experiments.md says where they do not.
FULL = Sizes(
    documents={"v1": 26_000, "v2": 36_000},
    pretraining_steps={"v1": 1100, "v2": 1250},
    items={
        "scenes": {"train": 2500, "validation": 500, "test": 2000},
        "sums": {"train": 1000, "validation": 500, "test": 2000},
    },
    task_training=TrainingSettings(epochs=30, learning_rate=3e-3),
    alignment_training={
        "scenes": TrainingSettings(epochs=12, learning_rate=2e-3),
        "sums": TrainingSettings(epochs=30, learning_rate=2e-3),
    },
)
QUICK = Sizes(
    documents={"v1": 4000, "v2": 5000},
    pretraining_steps={"v1": 150, "v2": 180},
    items={task: {"train": 400, "validation": 200, "test": 400} for task in TASKS},
    task_training=TrainingSettings(epochs=4, learning_rate=3e-3),
    alignment_training={task: TrainingSettings(epochs=2, learning_rate=2e-3) for task in TASKS},
)

METHODS = ("old", "new", "muscle", "paper_t2", "ce_control", "old_only", "ensemble", "reseeded")
"""Rows of the table: both task models, the compatibility adapter as chosen here and as in the paper, controls."""

CHOSEN = AlignmentSettings("student_wrong", temperature=0.5)
"""By validation over seeds 0 to 2; so are the learning rate and the epochs (experiments/choose_settings.py)."""
TRAINED = {
    "muscle": CHOSEN,
    "paper_t2": AlignmentSettings("student_wrong", temperature=2.0),
    "ce_control": AlignmentSettings(None),
    "old_only": replace(CHOSEN, weight="always_old"),
}
"""Methods that train an adapter from the new task adapter on, for the same number of steps."""

RESEED = 1000
"""Added to the seed of the retrained v2 adapter: the flips that nothing but chance makes."""


def full_plan(seed: int, sizes: Sizes) -> list[Stage]:
    """Every stage of the demo, ending with one test log per task and method."""
    plan = base_stages(seed, sizes)
    for task in TASKS:
        for method, alignment in TRAINED.items():
            plan.append(alignment_stage(task, method, alignment, sizes.alignment_training[task], seed))
        plan += [evaluation_stage(task, method, "test") for method in METHODS]
    return plan


def base_stages(seed: int, sizes: Sizes) -> list[Stage]:
    """Task definitions, two bases, and the task adapters of both, trained alike."""
    plan = [
        Stage("tasks", stages.write_tasks, {"seed": seed, "items": {task: dict(sizes.items[task]) for task in TASKS}})
    ]
    for version in ("v1", "v2"):
        settings = {
            "seed": seed,
            "version": version,
            "documents": sizes.documents[version],
            "steps": sizes.pretraining_steps[version],
        }
        plan.append(Stage(f"bases/{version}", stages.pretrain_base, settings))
    for task in TASKS:
        for model, version, model_seed in (("old", "v1", seed), ("new", "v2", seed), ("reseeded", "v2", seed + RESEED)):
            training = asdict(replace(sizes.task_training, seed=model_seed))
            plan.append(
                Stage(
                    f"adapters/{task}/{model}",
                    stages.adapt,
                    {"task": task, "training": training, "lora": asdict(sizes.lora)},
                    {"base": f"bases/{version}", "tasks": "tasks"},
                )
            )
    return plan


def _update_inputs(task: str) -> dict[str, str]:
    return {
        "old_base": "bases/v1",
        "old": f"adapters/{task}/old",
        "new_base": "bases/v2",
        "new": f"adapters/{task}/new",
        "tasks": "tasks",
    }


def alignment_stage(
    task: str, method: str, alignment: AlignmentSettings, training: TrainingSettings, seed: int
) -> Stage:
    """A compatibility adapter or a trained control, from the same start."""
    settings: dict[str, Any] = {
        "task": task,
        "alignment": asdict(alignment),
        "training": asdict(replace(training, seed=seed)),
    }
    return Stage(f"adapters/{task}/{method}", stages.align, settings, _update_inputs(task))


def evaluation_stage(task: str, method: str, split: Split, folder: str = "logs") -> Stage:
    """The evaluation log of one task model, or of the ensemble."""
    settings = {"task": task, "split": split}
    if method == "ensemble":
        return Stage(f"{folder}/{task}/{method}", stages.evaluate_ensemble, settings, _update_inputs(task))
    base = "bases/v1" if method == "old" else "bases/v2"
    inputs = {"base": base, "adapter": f"adapters/{task}/{method}", "tasks": "tasks"}
    return Stage(f"{folder}/{task}/{method}", stages.evaluate, {**settings, "method": method}, inputs)
