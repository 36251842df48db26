"""The stages that make the demo's world. Functions import what they need when they run: planning loads no torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from muscle.demo.world import Scene, Sum, Version, World
from muscle.update.pipeline import Report

TASKS = ("scenes", "sums")
SPLITS = ("train", "validation", "test", "unlabelled")
LABELS = {"gold", "answer"}
"""Fields that items of the last split lack."""


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
            rows = (asdict(samplers[task](rng)) for _ in range(items[task][name]))
            hidden = LABELS if name == "unlabelled" else set()
            lines = (json.dumps({key: row[key] for key in row.keys() - hidden}, sort_keys=True) for row in rows)
            (destination / task / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        report((number + 1) / len(TASKS), task)


def pretrain_base(
    destination: Path, report: Report, *, seed: int, version: Version, documents: int, steps: int
) -> None:
    """One base, from scratch."""
    from muscle.demo.bases import pretrain_in_world

    number = int(version[1:])
    texts = World(seed).documents(version, documents, np.random.default_rng([seed, 1, number]))
    pretrain_in_world(texts, steps, seed=10 * seed + number, destination=destination, report=report)
