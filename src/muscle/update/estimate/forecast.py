"""Time, memory and disk of a plan, stage by stage and in all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import psutil

from muscle.update import stages
from muscle.update.estimate.inputs import Inputs, Items, Texts, is_taught, sides_of
from muscle.update.estimate.memory import SMALLER, Bytes, pretraining_bytes, stage_bytes
from muscle.update.estimate.probe import EVALUATION, TRAINING, Rates, key, pretraining_steps, probe, teachers
from muscle.update.pipeline import Stage

WHOLE = 4e7
"""Weights up to which a base is probed whole; a larger one with one and two layers."""
PACKAGE = Rates(setup=0.5, fixed_bytes=15e3)
"""Of stages.package, which reads what other stages write, so that nothing can stand in for it."""


@dataclass(frozen=True)
class Cost:
    """Of one stage."""

    name: str
    seconds: float | None
    """None where it is not measured."""
    bytes: Bytes


@dataclass(frozen=True)
class Forecast:
    """Of the stages that are missing."""

    costs: Mapping[str, Cost]
    process: float
    """Bytes of a worker with its libraries, before any model."""
    start_up: float
    """Seconds until a worker has loaded them."""
    remedies: tuple[str, ...] = ()
    """What would make it fit, where it does not."""
    unknown: tuple[str, ...] = ()
    """What is in none of the figures, in words."""

    def seconds(self, plan: Sequence[Stage], jobs: int) -> float:
        """Of the whole, scheduled as the pipeline does: next is the first stage of the plan whose inputs are there."""
        waiting = [stage for stage in plan if stage.name in self.costs]
        missing, running = {stage.name for stage in waiting}, dict[str, float]()
        now, workers = 0.0, 0
        while waiting or running:
            ready = [stage for stage in waiting if not missing & set(stage.inputs.values())]
            for stage in ready[: jobs - len(running)]:
                waiting.remove(stage)
                start_up = self.start_up if workers < jobs else 0.0
                workers += 1
                running[stage.name] = now + start_up + (self.costs[stage.name].seconds or 0.0)
            name = min(running, key=lambda name: running[name])
            now = running.pop(name)
            missing.remove(name)
        return now

    def memory(self, jobs: int) -> float:
        """Bytes at the peak: as many of the largest stage as run at a time."""
        largest = max((cost.bytes.memory + cost.bytes.host for cost in self.costs.values()), default=0.0)
        return min(jobs, len(self.costs)) * (self.process + largest)

    def disk(self, jobs: int) -> float:
        """Bytes at the peak: what all stages leave, and what the largest write on their way."""
        passing = sorted((cost.bytes.passing for cost in self.costs.values()), reverse=True)
        return sum(cost.bytes.left for cost in self.costs.values()) + sum(passing[:jobs])


Each = Callable[[Callable[[Any], Any], Sequence[Any], str], Iterable[Any]]
"""Calls a function with each of the arguments, in other processes perhaps, and returns what comes of them in order;
told in a few words what that is for."""


def one_by_one(function: Callable[[Any], Any], arguments: Sequence[Any], words: str) -> Iterable[Any]:
    """`Each` in this process."""
    return map(function, arguments)


def forecast(
    inputs: Inputs, missing: Sequence[Stage], jobs: int, free: float, start_up: float, each: Each = one_by_one
) -> Forecast:
    """Measure and count.

    Args:
        inputs: Of all stages of the plan.
        missing: Those to run.
        jobs: Stages at a time.
        free: Bytes of memory. What takes more is not probed; remedies are looked for instead.
        start_up: Seconds that a process takes to load what stages need.
        each: Where probes run: they are to have as many threads as stages have, and as many of them beside.

    Raises:
        MuscleError: A base or a task cannot be had.
    """
    rates = _first(inputs, missing, each)
    _count(inputs, missing, each)
    costs = {stage.name: Cost(stage.name, None, bytes_of(stage, inputs)) for stage in missing}
    found = Forecast(costs, float(psutil.Process().memory_info().rss), start_up, unknown=_unknown(missing))
    if found.memory(jobs) > free:
        return replace(found, remedies=remedies(found, missing, inputs, jobs, free))
    measured, process = _measured(inputs, missing, each)
    rates |= measured
    costs = {stage.name: _cost(stage, rates.get(stage.name), costs[stage.name].bytes, inputs) for stage in missing}
    return replace(found, costs=costs, process=max(found.process, process))


CHANGES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "gradient_checkpointing: true under training": {"training": {"gradient_checkpointing": True}},
    "batch_size: 1 under training, with as much more accumulation": {"training": {"batch_size": 1}},
    "a smaller batch_size under evaluation": {"evaluation": {"batch_size": 1}},
    "teacher_cache: disk under alignment": {"alignment": {"teacher_cache": "disk"}},
    "teacher_cache: off under alignment": {"alignment": {"teacher_cache": "off"}},
    **{f"{words} of the bases": {"base": change} for words, change in SMALLER.items()},
}
"""What a recipe can say to take less memory, and the settings that it changes."""


def remedies(counted: Forecast, missing: Sequence[Stage], inputs: Inputs, jobs: int, free: float) -> tuple[str, ...]:
    """The changes each of which makes it fit, or the needed ones together; () where nothing helps."""

    def fits(changes: Iterable[str], jobs: int = 1) -> bool:
        changed = [_changed(stage, changes) for stage in missing]
        costs = {stage.name: Cost(stage.name, None, bytes_of(stage, inputs)) for stage in changed}
        return replace(counted, costs=costs).memory(jobs) <= free

    one_job = ["--jobs 1"] if jobs > 1 else []
    alone = [words for words in CHANGES if fits([words], jobs)] + (one_job if fits([]) else [])
    if alone:
        return tuple(alone)
    needed = [words for words in CHANGES if "off" not in words and "8bit" not in words and "bfloat16" not in words]
    if not fits(needed):
        return ()
    for words in list(needed):
        without = [other for other in needed if other != words]
        needed = without if fits(without) else needed
    return (" and ".join([*needed, *one_job]),)


def _changed(stage: Stage, changes: Iterable[str]) -> Stage:
    settings = dict(stage.settings)
    for group, values in (item for words in changes for item in CHANGES[words].items()):
        if group == "base":
            settings |= {
                side: {**settings[side], "base": {**settings[side]["base"], **values}} for side in sides_of(stage)
            }
        elif settings.get(group):
            settings[group] = {**settings[group], **values}
    return replace(stage, settings=settings)


UNKNOWN = {
    "search": "what a search takes beside training for its budget on gold texts: evaluations, texts of all choices and "
    "of inputs without labels, and on disk the teachers' states over them and an adapter of each trial, until it ends",
    "unlabelled": "answers to inputs without labels, and the time that they take: their prompts alone are counted",
}
"""What nothing counts, by the key of an alignment that asks for it."""


def _unknown(missing: Sequence[Stage]) -> tuple[str, ...]:
    asked = {name for stage in missing for name, value in (stage.settings.get("alignment") or {}).items() if value}
    return tuple(words for name, words in UNKNOWN.items() if name in asked)


def _first(inputs: Inputs, missing: Sequence[Stage], each: Each) -> dict[str, Rates]:
    """Tasks, tokenizers and bases, in miniature: the other stages read them."""
    other = (*TRAINING, stages.answer, stages.teach, *EVALUATION, stages.package)
    waiting, rates = [stage for stage in missing if stage.function not in other], dict[str, Rates]()
    while waiting:
        names = {stage.name for stage in waiting}
        ready = [stage for stage in waiting if not names & set(stage.inputs.values())]
        found = each(partial(_probe, inputs), [(stage, None) for stage in ready], "tasks and bases")
        rates |= {stage.name: rate for stage, (rate, _) in zip(ready, found, strict=True)}
        waiting = [stage for stage in waiting if stage.name not in rates]
    return rates


def _count(inputs: Inputs, missing: Sequence[Stage], each: Each) -> None:
    """Texts and items, task by task, so that each task is read once."""
    tasks: dict[str, dict[str, Stage]] = {}
    for stage in missing:
        if _is_counted(stage):
            tasks.setdefault(stage.settings["task"]["name"], {})[inputs.counts_key(stage)] = stage
    for found in each(partial(_counted, inputs), list(tasks.values()), "texts and items"):
        for name, counted in found.items():
            inputs.remember(name, counted)


def _is_counted(stage: Stage) -> bool:
    """Whether it reads training texts, or items that are scored here."""
    return is_taught(stage) or (stage.function in EVALUATION and stage.settings["evaluation"]["backend"] == "hf")


def _counted(inputs: Inputs, asked: Mapping[str, Stage]) -> dict[str, Texts | Items]:
    return {name: inputs.count(stage) for name, stage in asked.items()}


def _measured(inputs: Inputs, missing: Sequence[Stage], each: Each) -> tuple[dict[str, Rates], float]:
    """Rates of stages, and the bytes that a process has had after its smallest miniature."""
    keys, chosen = {}, dict[str, Stage]()
    for stage in filter(_is_counted, missing):
        # a reader's own miniature reads the texts as a stage that keeps teachers' states does
        reads = (reader for reader in inputs.plan if stage.name in reader.inputs.values())
        stand_in = next(reads) if stage.function is stages.teach else stage
        keys[stage.name] = name = key(stand_in, inputs)
        if name not in chosen or len(teachers(stand_in, inputs)) > len(
            teachers(chosen[name], inputs)
        ):  # who reads most tells most
            chosen[name] = stand_in
    probes = [(stage, depth) for stage in chosen.values() for depth in _depths(stage, inputs)]
    results = list(each(partial(_probe, inputs), probes, "stages in miniature"))
    found = {(stage.name, depth): rate for (stage, depth), (rate, _) in zip(probes, results, strict=True)}

    def rates_of(stage: Stage) -> Rates:
        depths: list[Rates] = [found[stage.name, depth] for depth in _depths(stage, inputs)]
        return depths[0].between(depths[-1], inputs.layers(stage) - 1)

    rates = {name: rates_of(chosen[key]) for name, key in keys.items()}
    return rates, min((process for _, process in results), default=0.0)


def _probe(inputs: Inputs, asked: tuple[Stage, int | None]) -> tuple[Rates, float]:
    return probe(asked[0], inputs, asked[1]), float(psutil.Process().memory_info().rss)


def _depths(stage: Stage, inputs: Inputs) -> tuple[int | None, ...]:
    """Layers of the bases in miniatures; None leaves them whole."""
    return (None,) if inputs.parameters(stage, None) <= WHOLE else (1, 2)


def _cost(stage: Stage, rates: Rates | None, size: Bytes, inputs: Inputs) -> Cost:
    """Rates times counts."""
    if rates is None:
        if stage.function is not stages.package:
            return Cost(stage.name, None, size)
        rates = PACKAGE
    settings, seconds, rows = stage.settings, rates.setup, 0
    if is_taught(stage):
        texts = inputs.texts(stage)
        asked = sum(f"{side}_states" not in stage.inputs for side in teachers(stage, inputs))
        seconds += texts.opening + texts.preparing + asked * texts.training * rates.per_text
        if stage.function in TRAINING:
            trained, rows = _training(settings["training"], texts, rates)
            seconds += trained * ((settings.get("alignment") or {}).get("search") or {"budget": 1})["budget"]
    elif stage.function in EVALUATION:
        rows = inputs.items(stage).number * settings["evaluation"]["draws"]
        seconds += rates.per_text * rows
    else:
        rows = pretraining_steps(settings)
        seconds += rows * rates.per_step + rates.tail
    return Cost(stage.name, seconds, replace(size, left=size.left + rates.fixed_bytes + rows * rates.log_bytes))


def _training(training: Mapping[str, Any], texts: Texts, rates: Rates) -> tuple[float, int]:
    """Seconds of all epochs, and updates."""
    epochs, batches = training["epochs"], -(-texts.items // training["batch_size"])
    updates = epochs * -(-batches // training["accumulation"])
    in_updates = training["batch_size"] * training["accumulation"]
    seconds = epochs * (texts.items / in_updates * rates.per_step + texts.held_out * rates.per_held_out)
    return seconds + (epochs - 1) * rates.boundary + rates.tail, updates


def bytes_of(stage: Stage, inputs: Inputs) -> Bytes:
    """What a stage takes, its texts and items counted."""
    if "scratch" in stage.settings:
        scratch = stage.settings["scratch"]
        config = inputs.written_config(stage.name)
        return pretraining_bytes(config, scratch["batch_size"], scratch["length"])
    return stage_bytes(stage, inputs, inputs.count(stage) if _is_counted(stage) else None)
