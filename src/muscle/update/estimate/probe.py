"""What stages cost on this machine: each kind of stage run in miniature by its own function, and timed.

A miniature is the stage itself with fewer texts, epochs, steps or items, on bases of the same architecture with random
weights. So the time is that of the very code that the run will use, and nothing has to be kept in step with it:

    training    set-up + reading of the texts by each teacher + epochs * (updates * u + held-out texts * v)
                + boundaries between epochs * b + tail
    evaluation  set-up + items * e, a line through two miniatures
    pretraining set-up + steps * u + tail

A training tells when it has made an update, and when a teacher has read a batch, which parts the time of its one
miniature. Large bases are cut to one and two layers at full width: time is linear in layers, and two points give the
rest.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from muscle.update import stages
from muscle.update.estimate.inputs import Inputs, Texts, across_of, alignment_of, is_taught, sides_of, student
from muscle.update.pipeline import CHECKPOINTS, Stage
from muscle.update.settings import SideName

TRAINING = (stages.adapt, stages.align)
EVALUATION = (stages.evaluate, stages.evaluate_ensemble)
UPDATES = 4
"""Per epoch of a training's miniature, which has two epochs."""
PRETRAINING_STEPS = 12
ITEMS = (2, 40)
"""Items in the two miniatures of an evaluation; a whole batch in the second where answers are generated, since one text
of a batch takes as long as all."""
TRAINING_FLOPS, EVALUATION_FLOPS = 2e11, 1e12
"""About what one update of a miniature may take, and an evaluation: some seconds of one thread."""
FORWARD = 1 / 3
"""Share of an update that its forward pass takes, where it is not measured."""
CHANGES_NO_RATE = ("seed", "epochs", "learning_rate", "warmup_steps", "schedule", "early_stopping", "report_to")
"""Settings of a training."""


@dataclass(frozen=True)
class Rates:
    """Seconds, as the module's formulas name them; bytes of a line of the training log and of an item's log row."""

    setup: float
    """Without the texts of a training, which are as many seconds as its task takes."""
    per_text: float = 0.0
    """A training text read by one teacher; an evaluated item."""
    per_step: float = 0.0
    per_held_out: float = 0.0
    boundary: float = 0.0
    """Between two epochs, but the held-out texts."""
    tail: float = 0.0
    """After the last update or its held-out texts."""
    log_bytes: float = 0.0
    """Per update or item."""
    fixed_bytes: float = 0.0
    """What a stage's folder holds besides weights and log."""

    def between(self, other: Rates, place: float) -> Rates:
        """On the line through this, at 0, and the other, at 1; nothing costs less than nothing."""
        pairs = ((getattr(self, each.name), getattr(other, each.name)) for each in fields(self))
        return Rates(*(max(0.0, a + place * (b - a)) for a, b in pairs))


def probe(stage: Stage, inputs: Inputs, layers: int | None = None) -> Rates:
    """The rates of a stage, from its miniatures.

    Args:
        stage: Which of a plan.
        inputs: What it reads.
        layers: Of the bases, where they are cut; None leaves them whole.
    """
    if stage.function in TRAINING:
        return _training(stage, inputs, layers)
    if stage.function in EVALUATION:
        return _evaluation(stage, inputs, layers)
    return _other(stage, inputs)


def _training(stage: Stage, inputs: Inputs, layers: int | None) -> Rates:
    """One miniature of two epochs, its time divided by what it reports after each update and each teacher's batch."""
    texts, training = inputs.texts(stage), dict(stage.settings["training"])
    training |= {"epochs": 2, "warmup_steps": 0, "early_stopping": None, "report_to": [], "deepspeed": None}
    real = training["batch_size"] * training["accumulation"]  # items of an update
    flops = 6 * inputs.parameters(stage, layers) * texts.mean * texts.per_item
    batch = max(1, min(real, int(TRAINING_FLOPS / flops)))
    if batch < real:  # then an item's share of an update is what a miniature can afford to measure
        training |= {"batch_size": batch, "accumulation": 1}
    items = min((UPDATES if batch == real else 2) * batch, texts.items)
    count = round(items * texts.per_item)
    task = inputs.with_texts(stage.settings["task"], items)
    changes: dict[str, Any] = {"task": task, "training": training}
    if stage.settings.get("alignment"):
        changes["alignment"] = alignment_of(stage).as_dict() | {"unlabelled": False}
    ran = _timed(stage, inputs, changes, layers)
    log = (ran.folder / "log.jsonl").read_bytes()
    updates = sum(b'"loss"' in line for line in log.splitlines())
    before, told = ran.told[:-updates], ran.told[-updates:]
    intervals = [b - a for a, b in pairwise(told)]
    last = updates // 2 - 1  # of the first epoch
    within = intervals[:last] + intervals[last + 1 :]
    each = statistics.median(within) if within else intervals[0] / 2
    reading = [b - a for a, b in pairwise(before)]  # of batches, and once the new teacher's set-up
    read = count * len(teachers(stage, inputs)) if before else 0
    per_held_out = FORWARD * each / (batch * texts.per_item)
    per_read = statistics.median(reading) * len(before) / read if len(reading) > 1 else per_held_out
    held_out = inputs.held_out(stage, task) * per_held_out
    return Rates(
        setup=max(0.0, told[0] - ran.started - each - read * per_read - _preparing(texts, count)),
        per_text=per_read,
        per_step=each * real / batch,
        per_held_out=per_held_out,
        boundary=max(0.0, intervals[last] - each - held_out),
        tail=max(0.0, ran.ended - told[-1] - held_out),
        log_bytes=len(log) / updates,
        fixed_bytes=_size(ran.folder, without=(".safetensors", "log.jsonl")),
    )


def teachers(stage: Stage, inputs: Inputs) -> tuple[SideName, ...]:
    """The task models that read the training texts once, for a stage that keeps or asks for what they say."""
    if stage.function is stages.teach:
        return ("old",) if "old" in stage.settings else ("new",)
    alignment = alignment_of(stage)
    if alignment.teacher_cache == "off":
        return ("old",) if across_of(stage, inputs.texts(stage)) else ()
    return alignment.teachers


def _preparing(texts: Texts, count: int) -> float:
    """Seconds until so many of a task's texts are ready."""
    return texts.opening + texts.preparing * count / max(1, texts.training)


def _evaluation(stage: Stage, inputs: Inputs, layers: int | None) -> Rates:
    seconds, sizes, items = [], [], inputs.items(stage)
    flops = 2 * inputs.parameters(stage, layers) * items.longest
    most = max(ITEMS[1], stage.settings["evaluation"]["batch_size"] if items.answer else 0)
    limits = [min(items.number, limit) for limit in (ITEMS[0], max(4, min(most, int(EVALUATION_FLOPS / flops))))]
    for limit in limits:
        evaluation = dict(stage.settings["evaluation"]) | {"limit": limit, "draws": 1}
        with _answers_of(items.answer):
            ran = _timed(stage, inputs, {"evaluation": evaluation}, layers)
        seconds.append(ran.ended - ran.started)
        sizes.append(_size(ran.folder, without=()))
    per_item, setup = _line(limits[0], seconds[0], limits[1], seconds[1])
    log_bytes, fixed = _line(limits[0], sizes[0], limits[1], sizes[1])
    return Rates(setup=setup, per_text=per_item, log_bytes=log_bytes, fixed_bytes=fixed)


def _other(stage: Stage, inputs: Inputs) -> Rates:
    """Pretraining with few steps; whatever has none is run whole. What it writes stands for the stage's output."""
    steps, changes = min(PRETRAINING_STEPS, pretraining_steps(stage.settings)), dict[str, Any]()
    if steps:
        scratch = stage.settings.get("scratch")
        changes = {"scratch": {**scratch, "steps": steps}} if scratch else {"steps": steps}
    ran = _timed(stage, inputs, changes, None, inputs.folder(stage.name))
    if not changes:
        return Rates(setup=ran.ended - ran.started, fixed_bytes=_size(ran.folder, without=()))
    each = statistics.median(b - a for a, b in pairwise(ran.told)) if len(ran.told) > 1 else 0.0
    return Rates(
        setup=max(0.0, ran.told[0] - ran.started - each),
        per_step=each,
        tail=ran.ended - ran.told[-1],
        log_bytes=(ran.folder / "log.jsonl").stat().st_size / len(ran.told),
        fixed_bytes=_size(ran.folder, without=("log.jsonl",)),
    )


def pretraining_steps(settings: Mapping[str, Any]) -> int:
    """How many a stage has; 0 where it pretrains nothing."""
    return int(settings.get("steps") or settings.get("scratch", {}).get("steps") or 0)


@dataclass(frozen=True)
class _Ran:
    folder: Path
    started: float
    told: list[float]
    """When it reported."""
    ended: float


def _timed(
    stage: Stage, inputs: Inputs, changes: Mapping[str, Any], layers: int | None, destination: Path | None = None
) -> _Ran:
    """Run a stage's function."""
    settings, folders = inputs.of(stage, changes, layers)
    destination = destination or inputs.scratch_folder()
    destination.mkdir(parents=True, exist_ok=True)
    told: list[float] = []
    started = time.perf_counter()
    stage.function(destination, lambda *_: told.append(time.perf_counter()), **settings, **folders)
    ended = time.perf_counter()
    shutil.rmtree(destination / CHECKPOINTS, ignore_errors=True)  # as the pipeline does
    return _Ran(destination, started, told, ended)


@contextmanager
def _answers_of(length: int | None) -> Iterator[None]:
    """Let models with random weights, which never come to an end, generate as many tokens as right answers have."""
    from muscle.update.tasks import Task

    whole = Task.for_evaluation

    def for_evaluation(self: Task, split: Any) -> Any:
        task = whole(self, split)
        if length is not None:
            task.set_config("generation_kwargs", {**(task.config.generation_kwargs or {}), "max_gen_toks": length})
        return task

    Task.for_evaluation = for_evaluation  # type: ignore[method-assign]
    try:
        yield
    finally:
        Task.for_evaluation = whole  # type: ignore[method-assign]


def _line(x0: float, y0: float, x1: float, y1: float) -> tuple[float, float]:
    """Slope and value at 0 of the line through two points, neither below zero."""
    if x1 <= x0:
        return 0.0, (y0 + y1) / 2
    slope = max(0.0, (y1 - y0) / (x1 - x0))
    return slope, max(0.0, y0 - slope * x0)


def _size(folder: Path, without: tuple[str, ...]) -> float:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(without or ("\0",)))
    return float(sum(path.stat().st_size for path in files))


def key(stage: Stage, inputs: Inputs) -> str:
    """Equal for stages of equal rates: what decides no cost, or little, is left out.

    Plain cross-entropy costs the same from a fresh adapter and from one that is there; two teachers, of which each
    target has one, the same however they are weighed.
    """
    settings = stage.settings
    models = {side: (inputs.architecture(stage, side), _shape(stage, inputs, side)) for side in sides_of(stage)}
    if not is_taught(stage):
        return json.dumps([settings["task"], settings["evaluation"], models], sort_keys=True)
    training = {name: value for name, value in settings["training"].items() if name not in CHANGES_NO_RATE}
    alignment = alignment_of(stage)
    read = [alignment.teacher_cache, alignment.cache_dtype, alignment.level, across_of(stage, inputs.texts(stage))]
    kept = read if alignment.weight else []
    flips = [settings["task"], settings["evaluation"]] if settings.get("evaluation") else []
    base, shape = models.pop(student(stage))
    rest = [settings["lora"] or shape, models if kept else {}, training, kept, flips]
    return json.dumps([inputs.counts_key(stage), base, *rest], sort_keys=True)


def _shape(stage: Stage, inputs: Inputs, side: str) -> dict[str, Any] | None:
    lora = inputs.lora(stage, side)
    return lora.as_dict() if lora else None
