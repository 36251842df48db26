"""The stages of the demo. Functions import what they need when they run: planning a run loads no torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from muscle.demo.world import Scene, Sum, Version, World
from muscle.update.pipeline import Report
from muscle.update.recipe import AlignmentSettings, LoraSettings, Split, TrainingSettings

TASKS = ("scenes", "sums")
SPLITS = ("train", "validation", "test")


def write_tasks(destination: Path, report: Report, *, seed: int, items: Mapping[str, Mapping[str, int]]) -> None:
    """Two lm-eval task definitions with their data beside them, ready for `lm_eval --include_path`."""
    shutil.copytree(Path(__file__).parent / "tasks", destination, dirs_exist_ok=True)
    shutil.rmtree(destination / "__pycache__", ignore_errors=True)
    world = World(seed)
    samplers: dict[str, Callable[[np.random.Generator], Scene | Sum]] = {"scenes": world.scene, "sums": world.sum}
    for number, task in enumerate(TASKS):
        (destination / task).mkdir()
        for split, name in enumerate(SPLITS):
            rng = np.random.default_rng([seed, 2, number, split])
            rows = (json.dumps(asdict(samplers[task](rng))) + "\n" for _ in range(items[task][name]))
            (destination / task / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
        report((number + 1) / len(TASKS), task)


def pretrain_base(
    destination: Path, report: Report, *, seed: int, version: Version, documents: int, steps: int
) -> None:
    """One base, from scratch."""
    from muscle.demo.bases import pretrain

    number = int(version[1:])
    texts = World(seed).documents(version, documents, np.random.default_rng([seed, 1, number]))
    pretrain(texts, steps, seed=10 * seed + number, destination=destination, report=report)


def adapt(
    destination: Path,
    report: Report,
    *,
    task: str,
    training: Mapping[str, Any],
    lora: Mapping[str, int],
    base: Path,
    tasks: Path,
) -> None:
    """A task adapter."""
    from muscle.update.adapters import train_task_adapter
    from muscle.update.tasks import load_task

    train_task_adapter(
        base, load_task(task, tasks), LoraSettings(**lora), TrainingSettings(**training), destination, report
    )


def align(
    destination: Path,
    report: Report,
    *,
    task: str,
    alignment: Mapping[str, Any],
    training: Mapping[str, Any],
    old_base: Path,
    old: Path,
    new_base: Path,
    new: Path,
    tasks: Path,
) -> None:
    """A compatibility adapter, or one of its trained controls."""
    from muscle.update.adapters import train_compatibility_adapter
    from muscle.update.tasks import load_task

    train_compatibility_adapter(
        old_base,
        old,
        new_base,
        new,
        load_task(task, tasks),
        AlignmentSettings(**alignment),
        TrainingSettings(**training),
        destination,
        report,
    )


def evaluate(
    destination: Path, report: Report, *, task: str, method: str, split: Split, base: Path, adapter: Path, tasks: Path
) -> None:
    """The evaluation log of one task model."""
    from muscle.update import scoring
    from muscle.update.tasks import load_task

    scoring.evaluate(scoring.task_model_lm(base, adapter), method, load_task(task, tasks), split, destination)


def evaluate_ensemble(
    destination: Path,
    report: Report,
    *,
    task: str,
    split: Split,
    old_base: Path,
    old: Path,
    new_base: Path,
    new: Path,
    tasks: Path,
) -> None:
    """The evaluation log of old and new model together."""
    from muscle.update import scoring
    from muscle.update.tasks import load_task

    lm = scoring.Ensemble(scoring.task_model_lm(old_base, old), new_base, new)
    scoring.evaluate(lm, "ensemble", load_task(task, tasks), split, destination)
