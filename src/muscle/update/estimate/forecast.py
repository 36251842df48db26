"""Time, memory and disk of a plan, stage by stage and in all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import psutil

from muscle.update import stages
from muscle.update.estimate.inputs import MODELS, Inputs, Items, Texts, is_taught
from muscle.update.estimate.memory import Bytes, pretraining_bytes, stage_bytes
from muscle.update.estimate.probe import Rates, key, pretraining_steps, probe, teachers
from muscle.update.pipeline import Stage

WHOLE = 4e7
"""Weights up to which a base is probed whole; a larger one with one and two layers."""
PACKAGE = Rates(setup=0.5, fixed_bytes=15e3)
"""Of stages.package, which reads what other stages write, so that nothing can stand in for it."""
TRAINING = (stages.adapt, stages.align)
EVALUATION = (stages.evaluate, stages.evaluate_ensemble)


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
    found = Forecast({}, float(psutil.Process().memory_info().rss), start_up)
    counted = replace(found, costs={stage.name: Cost(stage.name, None, bytes_of(stage, inputs)) for stage in missing})
    if counted.memory(jobs) > free:
        return replace(counted, remedies=remedies(counted, missing, inputs, jobs, free))
    measured, process = _measured(inputs, missing, each)
    rates |= measured
    costs = {
        stage.name: _cost(stage, rates.get(stage.name), counted.costs[stage.name].bytes, inputs) for stage in missing
    }
    return replace(found, costs=costs, process=max(found.process, process))


CHANGES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "gradient_checkpointing: true under training": {"training": {"gradient_checkpointing": True}},
    "batch_size: 1 under training, with as much more accumulation": {"training": {"batch_size": 1}},
    "a smaller batch_size under evaluation": {"evaluation": {"batch_size": 1}},
    "teacher_cache: disk under alignment": {"alignment": {"teacher_cache": "disk"}},
    "teacher_cache: off under alignment": {"alignment": {"teacher_cache": "off"}},
    "dtype: bfloat16 of the bases": {"base": {"dtype": "bfloat16"}},
    "quantization: 8bit of the bases": {"base": {"quantization": "8bit"}},
    "quantization: 4bit of the bases": {"base": {"quantization": "4bit"}},
}
"""What a recipe can say to take less memory, and the settings that it changes."""


def remedies(counted: Forecast, missing: Sequence[Stage], inputs: Inputs, jobs: int, free: float) -> tuple[str, ...]:
    """The changes each of which makes it fit, all of them together where none does alone; () where nothing helps."""

    def fits(changes: Iterable[str], jobs: int) -> bool:
        changed = [_changed(stage, changes) for stage in missing]
        costs = {stage.name: Cost(stage.name, None, bytes_of(stage, inputs)) for stage in changed}
        return replace(counted, costs=costs).memory(jobs) <= free

    alone = [words for words in CHANGES if fits([words], jobs)]
    alone += ["--jobs 1"] if jobs > 1 and fits([], 1) else []
    if alone:
        return tuple(alone)
    together = [words for words in CHANGES if "off" not in words and "8bit" not in words and "bfloat16" not in words]
    needed = [words for words in together if not fits([other for other in together if other != words], 1)]
    if not fits(together, 1):
        return ()
    return (" and ".join([*(needed if fits(needed, 1) else together), *(["--jobs 1"] if jobs > 1 else [])]),)


def _changed(stage: Stage, changes: Iterable[str]) -> Stage:
    settings = dict(stage.settings)
    for words in changes:
        for group, values in CHANGES[words].items():
            if group == "base":
                for side in MODELS:
                    if isinstance(settings.get(side), Mapping):
                        settings[side] = {**settings[side], "base": {**settings[side]["base"], **values}}
            elif settings.get(group):
                settings[group] = {**settings[group], **values}
    return replace(stage, settings=settings)


def _first(inputs: Inputs, missing: Sequence[Stage], each: Each) -> dict[str, Rates]:
    """Tasks, tokenizers and bases, in miniature: the other stages read them."""
    other = (*TRAINING, stages.teach, *EVALUATION, stages.package)
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
        for asked in [*_alike(stage, inputs), *([stage] if is_taught(stage) else [])]:
            tasks.setdefault(asked.settings["task"]["name"], {})[inputs.counts_key(asked)] = asked
    for found in each(partial(_counted, inputs), list(tasks.values()), "texts and items"):
        for name, counted in found.items():
            inputs.remember(name, counted)


def _counted(inputs: Inputs, asked: Mapping[str, Stage]) -> dict[str, Texts | Items]:
    return {name: inputs.count(stage) for name, stage in asked.items()}


def _measured(inputs: Inputs, missing: Sequence[Stage], each: Each) -> tuple[dict[str, Rates], float]:
    """Rates of stages, and the bytes that a process has had after its smallest miniature."""
    asked = {stage.name: _alike(stage, inputs) for stage in missing}
    groups: dict[str, list[Stage]] = {}
    for stage in (part for parts in asked.values() for part in parts):
        groups.setdefault(key(stage, inputs), []).append(stage)
    ends = {name: _ends(group, inputs) for name, group in groups.items()}
    probes = [(stage, depth) for pair in ends.values() for stage in pair for depth in _depths(stage, inputs)]
    results = list(each(partial(_probe, inputs), probes, "stages in miniature"))
    found = {(stage.name, depth): rate for (stage, depth), (rate, _) in zip(probes, results, strict=True)}

    def end(stage: Stage) -> Rates:
        depths: list[Rates] = [found[stage.name, depth] for depth in _depths(stage, inputs)]
        return depths[0].between(depths[-1], inputs.layers(stage) - 1)

    def rates_of(stage: Stage) -> Rates:
        short, *long = ends[key(stage, inputs)]
        if not long:
            return end(short)
        low, here, high = (inputs.texts(each).mean for each in (short, stage, long[0]))
        return end(short).between(end(long[0]), (here - low) / (high - low))

    rates = {name: _together([rates_of(part) for part in parts]) for name, parts in asked.items() if parts}
    return rates, min((process for _, process in results), default=0.0)


def _probe(inputs: Inputs, asked: tuple[Stage, int | None]) -> tuple[Rates, float]:
    return probe(asked[0], inputs, asked[1]), float(psutil.Process().memory_info().rss)


def _alike(stage: Stage, inputs: Inputs) -> list[Stage]:
    """The stages whose miniatures tell what a stage costs; () where it has none."""
    if stage.function in TRAINING:
        return [stage]
    if stage.function is stages.teach:  # a reader's own miniature reads the texts as well
        return [next(reader for reader in inputs.plan if stage.name in reader.inputs.values())]
    if stage.function not in EVALUATION or stage.settings["evaluation"]["backend"] != "hf":
        return []
    return [stage] if stage.function is stages.evaluate else _halves(stage)


def _halves(stage: Stage) -> list[Stage]:
    """An ensemble's two models, each as if it was evaluated alone."""
    common = {name: stage.settings[name] for name in ("task", "evaluation", "split")}
    halves = []
    for side in ("old", "new"):
        names = {f"{side}_base": "base", f"{side}_adapter": "adapter", "tasks_folder": "tasks_folder"}
        folders = {names[keyword]: name for keyword, name in stage.inputs.items() if keyword in names}
        settings = {**common, "name": side, "model": stage.settings[side]}
        halves.append(Stage(f"{stage.name}/{side}", stages.evaluate, settings, folders))
    return halves


def _together(parts: Sequence[Rates]) -> Rates:
    first = max(parts, key=lambda rates: rates.setup)
    return replace(first, per_text=sum(rates.per_text for rates in parts)) if len(parts) > 1 else first


def _ends(group: Sequence[Stage], inputs: Inputs) -> list[Stage]:
    """Of stages that are alike, those to probe: of trainings the one with the shortest and that with the longest texts.

    Among equals that with most teachers, which tells about both.
    """
    if group[0].function not in TRAINING:
        return [group[0]]
    ranked = sorted(group, key=lambda stage: -len(teachers(stage)))
    short, long = (choose(ranked, key=lambda stage: inputs.texts(stage).mean) for choose in (min, max))
    return [short, long] if inputs.texts(short).mean < inputs.texts(long).mean else [short]


def _depths(stage: Stage, inputs: Inputs) -> tuple[int | None, ...]:
    """Layers of the bases in miniatures; None leaves them whole."""
    return (None,) if inputs.parameters(stage, None) <= WHOLE else (1, 2)


def _cost(stage: Stage, rates: Rates | None, size: Bytes, inputs: Inputs) -> Cost:
    """Rates times counts."""
    if rates is None:
        if stage.function is not stages.package:
            return Cost(stage.name, None, size)
        rates = PACKAGE
    settings, left = stage.settings, size.left + rates.fixed_bytes
    if is_taught(stage):
        texts = inputs.texts(stage)
        asked = sum(f"{side}_states" not in stage.inputs for side in teachers(stage))
        seconds = rates.setup + texts.opening + texts.preparing + asked * texts.training * rates.per_text
        if stage.function in TRAINING:
            trained, updates = _training(settings["training"], texts, rates)
            seconds, left = seconds + trained, left + updates * rates.log_bytes
    elif stage.function in EVALUATION:
        items = inputs.items(stage).number * settings["evaluation"]["draws"]
        seconds, left = rates.setup + rates.per_text * items, left + rates.log_bytes * items
    else:
        steps = pretraining_steps(settings)
        seconds, left = rates.setup + steps * rates.per_step + rates.tail, left + steps * rates.log_bytes
    return Cost(stage.name, seconds, replace(size, left=left))


def _training(training: Mapping[str, Any], texts: Texts, rates: Rates) -> tuple[float, int]:
    """Seconds of all epochs, and updates."""
    epochs, batches = training["epochs"], -(-texts.training // training["batch_size"])
    updates = epochs * -(-batches // training["accumulation"])
    in_updates = training["batch_size"] * training["accumulation"]
    seconds = epochs * (texts.training / in_updates * rates.per_step + texts.held_out * rates.per_held_out)
    return seconds + (epochs - 1) * rates.boundary + rates.tail, updates


def bytes_of(stage: Stage, inputs: Inputs) -> Bytes:
    """What a stage takes, its texts and items counted."""
    if "scratch" in stage.settings:
        scratch = stage.settings["scratch"]
        config = inputs.written_config(stage.name)
        return pretraining_bytes(config, scratch["batch_size"], scratch["length"])
    known = is_taught(stage) or (stage.function in EVALUATION and stage.settings["evaluation"]["backend"] == "hf")
    return stage_bytes(stage, inputs, inputs.count(stage) if known else None)
