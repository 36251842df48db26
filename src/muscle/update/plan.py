"""From a recipe to the stages of its run, and the folders that they write.

checks/<task>               how many items a task has
bases/old, bases/new        where they are pretrained from scratch, with bases/tokenizer; the old one's own, if it has
                            another, is bases/old_tokenizer
teachers/<task>/answers     what old and new together answer to inputs without labels, where gold texts are learnt from
teachers/<task>/<model>     what old and new say of the training texts, where that is kept on disk
adapters/<task>/<model>     old, new, reseeded, and each method and trained control
logs/<task>/<model>         lm-eval's samples logs, of the same models and of both together
models/<task>/<method>      what is handed on: the compatibility adapter with its model card
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from muscle.recipes import PROJECT_TASKS
from muscle.update import groundwork, stages
from muscle.update.alignment_settings import AlignmentSettings
from muscle.update.pipeline import Stage
from muscle.update.provenance import digest, files_digest
from muscle.update.recipe import (
    ANSWERING,
    TASK_GROUPS,
    Recipe,
    Reference,
    Scratch,
    Side,
    Split,
    TokenizerKind,
    split_revision,
)
from muscle.update.settings import SideName, merged
from muscle.update.teacher_folders import answers_folder, kept_across, reads_answers, states_folder

RESEED = 1000
"""Added to the seed of the new adapter that is trained again: the flips that nothing but chance makes."""


class Plan:
    """The stages of a recipe.

    Args:
        recipe: The update.
        produced: Names of stages that write the "old" or the "new" base, or the "tasks" folder with lm-eval's YAML
            files, in place of what the recipe names.
        commits: The hub's commit of each base and adapter that the recipe names, so that all stages read the same.
    """

    def __init__(
        self,
        recipe: Recipe,
        produced: Mapping[str, str] | None = None,
        commits: Mapping[str, str] | None = None,
    ) -> None:
        self._recipe = recipe
        self._commits = commits or {}
        self._sides: dict[SideName, Side] = {"old": recipe.old, "new": recipe.new}
        self._produced = dict(produced or {})
        self._produced |= {name: f"bases/{name}" for name, side in self._sides.items() if side.scratch}
        self._tasks = {name: self._task(name) for name in recipe.tasks}

    def stages(self) -> list[Stage]:
        """All of them, each after those that it reads."""
        recipe, plan = self._recipe, [*self._check_stages(), *self.base_stages()]
        for task in recipe.tasks:
            plan += self.task_adapter_stages(task)
            plan += self._teacher_stages(task)
            plan += [self._taught(task, method) for method in recipe.aligned]
            plan += [self.evaluation_stage(task, model) for model in recipe.models]
            plan += [self._package_stage(task, method) for method in recipe.methods]
        return plan

    def _check_stages(self) -> list[Stage]:
        """What finds a mistake in a task before hours of training do."""
        plan = []
        for task in self._recipe.tasks:
            chosen = self._tasks[task]
            settings: dict[str, Any] = {"backend": self._recipe.evaluation_of(task).backend}
            settings |= self._one_tokenizer(task)
            for alignment in self._learning(task):
                chosen = self._with_inputs(chosen, alignment)
                searched = alignment.search and self._recipe.tasks[task].unlabelled
                settings |= {"unlabelled": True} if alignment.unlabelled or searched else {}
                settings |= {"choices": True} if alignment.texts == "choices" else {}
            plan.append(
                Stage(f"checks/{task}", groundwork.check_task, {"task": chosen, **settings}, self._tasks_folder())
            )
        return plan

    def _one_tokenizer(self, task: str) -> dict[str, Any]:
        """What needs old and new model to have one tokenizer, as far as it is not known yet that they have."""
        needs = ["ensemble"] if "ensemble" in self._recipe.controls else []
        if any(each.distance == "logits" and not each.across for each in self._learning(task)):
            needs.append("logits")
        made = [(side.scratch.tokenizer, side.scratch.vocabulary) for side in self._sides.values() if side.scratch]
        if not needs or (len(made) == 2 and made[0] == made[1]):
            return {}
        if made:
            return {"one_tokenizer": needs}
        there = all(side.base for side in self._sides.values())
        return {"one_tokenizer": needs, "models": [self._model(name) for name in self._sides]} if there else {}

    def _learning(self, task: str) -> list[AlignmentSettings]:
        """What the methods and controls that read teachers learn from."""
        found = (self._recipe.alignment_of(task, method) for method in self._recipe.aligned)
        return [alignment for alignment in found if alignment.weight]

    def base_stages(self) -> list[Stage]:
        """The bases that are pretrained from scratch, after the tokenizer of both or of each."""
        schooled = {name: side.scratch for name, side in self._sides.items() if side.scratch}
        inputs, common = self._tasks_folder(), {"tasks": {name: self._without_shots(name) for name in self._tasks}}
        read = {name: self._documents(scratch) for name, scratch in schooled.items()}
        every = list({file["file"]: file for files in read.values() for file in files}.values())
        tokenizers: dict[tuple[TokenizerKind, int], Stage] = {}
        bases: list[Stage] = []
        for name in sorted(schooled):  # new before old: its tokenizer is the same, whatever the old one's
            scratch = schooled[name]
            wanted = scratch.tokenizer, scratch.vocabulary
            if wanted not in tokenizers:
                kind = _named(kind=scratch.tokenizer if scratch.tokenizer != "bytes" else None)
                named = "bases/old_tokenizer" if tokenizers else "bases/tokenizer"
                settings = {"vocabulary": scratch.vocabulary, **kind, **common, **_named(documents=every)}
                tokenizers[wanted] = Stage(named, groundwork.train_tokenizer, settings, inputs)
            reads = {"tokenizer": tokenizers[wanted].name, **inputs}
            settings = {"scratch": scratch.as_dict(), **common, **_named(documents=read[name])}
            bases.append(Stage(f"bases/{name}", groundwork.pretrain_base, settings, reads))
        return [*tokenizers.values(), *reversed(bases)]

    def _documents(self, scratch: Scratch) -> list[dict[str, str]]:
        """The file that a base reads in place of the tasks' texts, if there is one, with its hash."""
        if scratch.documents is None:
            return []
        file = Path(self._recipe.data or "", scratch.documents)
        content = file.read_bytes() if file.is_file() else b""
        return [{"file": str(file), "sha256": hashlib.sha256(content).hexdigest()}]

    def task_adapter_stages(self, task: str) -> list[Stage]:
        """The task adapters that are not there yet, and the retrained one where it is asked for."""
        models = [name for name, side in self._sides.items() if task not in side.adapters]
        again = ["reseeded"] if "reseeded" in self._recipe.controls else []
        return [self.task_adapter_stage(task, model) for model in (*models, *again)]

    def task_adapter_stage(self, task: str, model: str) -> Stage:
        """The task adapter "old", "new", or "reseeded"."""
        side: SideName = "old" if model == "old" else "new"
        training = self._recipe.training_of(task)
        if model == "reseeded":
            training = merged(training, {"seed": training.seed + RESEED})
        settings = {
            "task": self._without_shots(task),
            "model": self._model(side),
            "lora": self._recipe.lora_of(task).as_dict(),
            "training": training.as_dict(),
        }
        inputs = self._produced_as("base", side) | self._tasks_folder()
        return Stage(f"adapters/{task}/{model}", stages.adapt, settings, inputs)

    def alignment_stage(self, task: str, method: str) -> Stage:
        """A compatibility adapter or a trained control."""
        alignment, training = self._recipe.alignment_of(task, method), self._recipe.alignment_training_of(task)
        flips = training.select_by == "flips" or alignment.search is not None
        fresh = self._sides["new"].adapters.get(task, "") is None
        reads_old = "old" in alignment.teachers or reads_answers(alignment) or flips
        sides: tuple[SideName, ...] = ("old", "new") if reads_old else ("new",)
        settings: dict[str, Any] = {side: self._model(side, task) for side in sides}
        settings |= {  # what this method does not read is left out, so that it can change
            "task": self._with_inputs(self._tasks[task] if reads_old else self._without_shots(task), alignment),
            "alignment": alignment.as_dict() if alignment.weight else {"weight": None},
            "lora": self._recipe.lora_of(task).as_dict() if fresh else {},
            "training": training.as_dict(),
            "evaluation": self._recipe.evaluation_of(task).as_dict() if flips else self._answering(task, alignment),
        }
        return Stage(f"adapters/{task}/{method}", stages.align, settings, self._inputs(task, sides))

    def _taught(self, task: str, method: str) -> Stage:
        """An alignment stage that reads its teachers' states and answers from the stages that keep them."""
        stage, alignment = self.alignment_stage(task, method), self._recipe.alignment_of(task, method)
        if alignment.search:  # which reads several texts
            return stage
        kept = answers_folder(task, alignment)
        if alignment.teacher_cache == "disk":
            kept |= {f"{side}_states": states_folder(task, side, alignment) for side in alignment.teachers}
        return replace(stage, inputs={**stage.inputs, **kept})

    def _teacher_stages(self, task: str) -> list[Stage]:
        """Answers, and each teacher that is kept on disk, once for all methods and controls that read them."""
        found: dict[str, Stage] = {}
        for alignment in self._learning(task):
            if alignment.search:
                continue
            needed = [self._answers_stage(task, alignment)] if reads_answers(alignment) else []
            sides = alignment.teachers if alignment.teacher_cache == "disk" else ()
            needed += [self._teacher_stage(task, side, alignment) for side in sides]
            found |= {stage.name: stage for stage in needed}
        return list(found.values())

    def _answers_stage(self, task: str, alignment: AlignmentSettings) -> Stage:
        """What both task models together answer to inputs without labels."""
        both: tuple[SideName, ...] = ("old", "new")
        settings: dict[str, Any] = {
            "task": self._with_inputs(self._tasks[task], alignment),  # shots, too, must be tokenized alike
            "evaluation": self._answering(task, alignment),
            **{side: self._model(side, task) for side in both},
        }
        (name,) = answers_folder(task, alignment).values()
        return Stage(name, stages.answer, settings, self._inputs(task, both))

    def _teacher_stage(self, task: str, side: SideName, alignment: AlignmentSettings) -> Stage:
        """What the old or the new task model says of the training texts, which are in the new one's tokens."""
        settings: dict[str, Any] = {
            "task": self._with_inputs(self._without_shots(task), alignment),
            "tokens": self._recipe.alignment_training_of(task).tokens,
            "kept": alignment.cache_dtype,
            "new": self._model("new", task if side == "new" else None),
        }
        if side == "old":
            settings["old"] = self._model("old", task)
            settings |= _named(across=kept_across(alignment))
            if not alignment.across and alignment.level != "token":
                settings["level"] = alignment.level
        if alignment.texts != "gold":
            settings["texts"] = alignment.texts
        if alignment.unlabelled:
            settings["unlabelled"] = True
        inputs = self._inputs(task, (side,)) | self._produced_as("new_base", "new") | answers_folder(task, alignment)
        return Stage(states_folder(task, side, alignment), stages.teach, settings, inputs)

    def evaluation_stage(self, task: str, model: str, split: Split = "test", folder: str = "logs") -> Stage:
        """The evaluation log of one task model, or of both together."""
        name, evaluation = f"{folder}/{task}/{model}", self._recipe.evaluation_of(task).as_dict()
        settings: dict[str, Any] = {"task": self._tasks[task], "evaluation": evaluation, "split": split}
        if model in get_args(Reference):
            both: tuple[SideName, ...] = ("old", "new")
            settings |= {side: self._model(side, task) for side in both}
            if model != "ensemble":  # whose record names no model
                settings["name"] = model
            return Stage(name, stages.evaluate_ensemble, settings, self._inputs(task, both))
        side: SideName = "old" if model == "old" else "new"
        inputs = self._produced_as("base", side) | self._tasks_folder()
        there = model == side and task in self._sides[side].adapters
        if not there:
            inputs["adapter"] = f"adapters/{task}/{model}"
        settings |= {"name": model, "model": self._model(side, task if there else None)}
        return Stage(name, stages.evaluate, settings, inputs)

    def _package_stage(self, task: str, method: str) -> Stage:
        recipe = self._recipe
        settings = {
            "task": task,
            "method": method,
            "description": recipe.description,
            "old": recipe.old.base or f"./{self._produced['old']}",
            "new": recipe.new.base or f"./{self._produced['new']}",
            "several_draws": recipe.evaluation_of(task).draws > 1,
        }
        models = ("old", "new", method, *recipe.controls)
        logs = {f"log_{model}": f"logs/{task}/{model}" for model in models}
        return Stage(
            f"models/{task}/{method}", stages.package, settings, {"adapter": f"adapters/{task}/{method}", **logs}
        )

    def _task(self, name: str) -> dict[str, Any]:
        """What decides the texts of a task: its settings without those of training and evaluation, and its files."""
        settings = self._recipe.tasks[name].as_dict()
        for group in (*TASK_GROUPS, "unlabelled"):
            del settings[group]
        definitions = [PROJECT_TASKS, *([Path(settings["include_path"])] if settings["include_path"] else [])]
        data = Path(self._recipe.data) / name if self._recipe.data else None
        files = files_digest(definitions, data if data and data.is_dir() else None)
        return {"name": name, "settings": settings, "data": self._recipe.data, "files": files}

    def _without_shots(self, task: str) -> dict[str, Any]:
        """A task as it is trained on: its texts have no shots, so other shots train nothing again."""
        whole = self._tasks[task]
        return {**whole, "settings": {**whole["settings"], "num_fewshot": 0}}

    def _with_inputs(self, task: dict[str, Any], alignment: AlignmentSettings) -> dict[str, Any]:
        """A task with the name of its inputs without labels, where these are learnt from, or may be by a search."""
        name = self._recipe.tasks[task["name"]].unlabelled
        if not (alignment.unlabelled or (alignment.search and name)) or not alignment.weight:
            return task
        return {**task, "settings": {**task["settings"], "unlabelled": name}}

    def _answering(self, task: str, alignment: AlignmentSettings) -> dict[str, Any]:
        """What decides how both models together answer inputs without labels."""
        evaluation = self._recipe.evaluation_of(task).as_dict()
        return {name: evaluation[name] for name in ANSWERING} if reads_answers(alignment) else {}

    def _model(self, side: SideName, task: str | None = None) -> dict[str, Any]:
        """A side's base, and its adapter for the task if that is there already; None is what a stage writes."""
        chosen = self._sides[side]
        adapter = chosen.adapters.get(task) if task else None
        local = [path for path in (chosen.base, adapter) if path and Path(path).is_dir()]
        return {
            "base": chosen.loaded_from(self._pinned(chosen.base or "")).as_dict(),
            "adapter": self._pinned(adapter) if adapter else None,
            "files": [digest(path) for path in local],
        }

    def _pinned(self, model: str) -> str:
        """A hub id with the commit that it is read at."""
        return f"{split_revision(model)[0]}@{self._commits[model]}" if model in self._commits else model

    def _inputs(self, task: str, sides: Iterable[SideName]) -> dict[str, str]:
        """What stages write of the task models of some sides."""
        inputs = self._tasks_folder()
        for side in sides:
            inputs |= self._produced_as(f"{side}_base", side)
            if task not in self._sides[side].adapters:
                inputs[f"{side}_adapter"] = f"adapters/{task}/{side}"
        return inputs

    def _tasks_folder(self) -> dict[str, str]:
        return self._produced_as("tasks_folder", "tasks")

    def _produced_as(self, keyword: str, what: str) -> dict[str, str]:
        return {keyword: self._produced[what]} if what in self._produced else {}


def _named(**settings: object) -> dict[str, Any]:
    """Those that are not empty: what a stage has by default is left out of its record."""
    return {name: value for name, value in settings.items() if value}
