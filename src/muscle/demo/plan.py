"""What the demo runs: its sizes, its settings, its methods, and the stages they make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from muscle.demo import stages
from muscle.demo.stages import TASKS
from muscle.update.alignment_settings import AlignmentSettings
from muscle.update.pipeline import Stage
from muscle.update.plan import Plan
from muscle.update.recipe import EvaluationSettings, LoraSettings, Recipe, Side, TaskSettings, TrainingSettings


@dataclass(frozen=True)
class Sizes:
    """How big the embedded update is."""

    documents: Mapping[str, int]
    """By version; likewise the steps."""
    pretraining_steps: Mapping[str, int]
    items: Mapping[str, Mapping[str, int]]
    """By task and split."""
    task_epochs: int
    alignment_epochs: Mapping[str, int]
    """By task; of the compatibility adapter and its trained controls."""


# World, sizes and the training of task adapters were frozen before the first adapter was aligned. On the seeds that had
# been looked at, 30 epochs reached the lowest validation cross-entropy; docs/experiments.md says where they do not.
FULL = Sizes(
    documents={"v1": 26_000, "v2": 36_000},
    pretraining_steps={"v1": 1100, "v2": 1250},
    items={
        "scenes": {"train": 2500, "validation": 500, "test": 2000, "unlabelled": 5000},
        "sums": {"train": 1000, "validation": 500, "test": 2000, "unlabelled": 5000},
    },
    task_epochs=30,
    alignment_epochs={"scenes": 12, "sums": 30},
)
QUICK = Sizes(
    documents={"v1": 4000, "v2": 5000},
    pretraining_steps={"v1": 150, "v2": 180},
    items={task: {"train": 400, "validation": 200, "test": 400, "unlabelled": 400} for task in TASKS},
    task_epochs=4,
    alignment_epochs=dict.fromkeys(TASKS, 2),
)

SEARCH = {"lengths": [0.5, 1.0]}
"""Of the method auto: fewer and longer trials than by default, so that the demo stays short."""
METHODS: Mapping[str, Mapping[str, Any]] = {"muscle": {}, "auto": {"search": SEARCH}}
"""The paper's loss with the settings chosen here, and the method that is recommended."""
MODELS = ("old", "new", *METHODS, "cross_entropy", "old_teacher", "ensemble", "reseeded")
"""Rows of the table: both task models, the methods, the controls."""

CHOSEN = AlignmentSettings(temperature=0.5)
"""By validation over seeds 0 to 2; so are the learning rate and the epochs (experiments/choose_settings.py)."""
ALIGNMENT_LEARNING_RATE = 2e-3


def demo_recipe(seed: int, sizes: Sizes, methods: Mapping[str, Mapping[str, Any]] = METHODS) -> Recipe:
    """The embedded update as a recipe, of which bases and tasks are made by stages of the demo."""
    return Recipe(
        old=Side(),
        new=Side(),
        tasks={
            task: TaskSettings(
                validation_share=None,  # the world makes a validation split
                unlabelled="unlabelled",
                alignment_training={"epochs": sizes.alignment_epochs[task], "learning_rate": ALIGNMENT_LEARNING_RATE},
            )
            for task in TASKS
        },
        methods=methods,
        controls=("cross_entropy", "old_teacher", "ensemble", "reseeded"),
        lora=LoraSettings(rank=32, alpha=64),
        training=TrainingSettings(
            epochs=sizes.task_epochs, learning_rate=3e-3, batch_size=64, accumulation=1, warmup_steps=0, seed=seed
        ),
        alignment=CHOSEN,
        evaluation=EvaluationSettings(batch_size=256),
    )


def full_plan(seed: int, sizes: Sizes) -> list[Stage]:
    """Every stage of the demo, ending with one test log per task and model."""
    return world_stages(seed, sizes) + demo_plan(demo_recipe(seed, sizes)).stages()


def demo_plan(recipe: Recipe) -> Plan:
    """The stages that a recipe of the demo adds to those of its world."""
    return Plan(recipe, {"old": "bases/v1", "new": "bases/v2", "tasks": "tasks"})


def world_stages(seed: int, sizes: Sizes) -> list[Stage]:
    """Task definitions, and the two bases."""
    items = {task: dict(sizes.items[task]) for task in TASKS}
    plan = [Stage("tasks", stages.write_tasks, {"seed": seed, "items": items})]
    for version in ("v1", "v2"):
        settings = {
            "seed": seed,
            "version": version,
            "documents": sizes.documents[version],
            "steps": sizes.pretraining_steps[version],
        }
        plan.append(Stage(f"bases/{version}", stages.pretrain_base, settings))
    return plan
