"""What stages read, as far as it can be had before they run: real tasks and tokenizers, and stand-ins of the models.

A stand-in has the architecture of a base, from its configuration alone, and random weights. No weights are downloaded.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from msgspec import convert
from peft import PeftConfig
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from muscle.update import stages
from muscle.update.alignment_settings import Across, AlignmentSettings, default_across
from muscle.update.answers import all_choices
from muscle.update.estimate.shapes import build, config_of, countable, cut, on_meta
from muscle.update.load_errors import explained
from muscle.update.lora import add_adapter
from muscle.update.models import load_tokenizer
from muscle.update.pipeline import Stage
from muscle.update.recipe import Base, LoraSettings, split_revision
from muscle.update.settings import merged
from muscle.update.tasks import Task
from muscle.update.tokenized import TokenizedExamples

MODELS = {"model": ("base", "adapter"), "old": ("old_base", "old_adapter"), "new": ("new_base", "new_adapter")}
"""Key of a stage's settings that holds a task model -> keywords of the folders that stand for its parts."""


@dataclass(frozen=True)
class Texts:
    """The training and held-out texts of a task in a base's tokens, closed by the end-of-text token."""

    training: int
    items: int
    """That the training texts are made of: fewer, where a text is made of each choice."""
    held_out: int
    tokens: int
    """Of all training texts, without padding."""
    targets: int
    """Those of them that are learnt from."""
    longest: int
    """Of a text, in tokens."""
    opening: float
    """Seconds until the task is there."""
    preparing: float
    """Seconds until its texts are rendered and tokenized."""
    old_targets: int | None = None
    """Targets in the tokens of an old teacher that is heard across tokenizers; None where none is."""

    @property
    def mean(self) -> float:
        """Tokens of a training text."""
        return self.tokens / max(1, self.training)

    @property
    def per_item(self) -> float:
        """Training texts of an item."""
        return self.training / max(1, self.items)


@dataclass(frozen=True)
class Items:
    """What an evaluation scores."""

    number: int
    """Scored once."""
    longest: int
    """Tokens of a prompt with its shots and its answer, by training texts."""
    answer: int | None
    """Tokens of the longest right answer and the end of text; None where nothing is generated."""


SAMPLE = 200
"""Training texts by which the length of prompts and answers is judged."""


class Inputs:
    """The inputs of a plan's stages.

    Args:
        plan: All stages.
        root: Folder of the run; of what is done there the bases and tasks are read.
        done: Names of the stages that are done there.
        work: An empty folder for stand-ins.
    """

    def __init__(self, plan: Sequence[Stage], root: Path, done: frozenset[str], work: Path) -> None:
        self.plan = plan
        self._writers = {stage.name: stage for stage in plan}
        self._root, self._done, self._work = root, done, work
        self._tasks: dict[str, Task] = {}
        self._counts: dict[str, Texts | Items] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_tasks": {}}  # tasks hold data, and are opened again where they are needed

    def folder(self, name: str) -> Path:
        """Where a stage's output is, or its stand-in's."""
        return (self._root if name in self._done else self._work / "stages") / name

    def scratch_folder(self) -> Path:
        """A folder of its own for a miniature's output."""
        (self._work / "miniatures").mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=self._work / "miniatures"))

    # Counts

    def counts_key(self, stage: Stage) -> str:
        """Equal for stages whose texts or items are the same."""
        settings, texts = stage.settings, is_taught(stage)
        task = {**settings["task"], "settings": dict(settings["task"]["settings"])}
        if texts:
            task["settings"]["num_fewshot"] = 0  # no training text has shots
        rest = [_tokens(stage), *_texts_of(stage)] if texts else [settings["split"], settings["evaluation"]["limit"]]
        tokenizers, across = dict.fromkeys([self._tokenizer_key(stage, student(stage))]), None
        if reads_old(stage):
            tokenizers[self._tokenizer_key(stage, "old")], across = None, _named_across(stage)
        return json.dumps([texts, task, stage.inputs.get("tasks_folder"), rest, across, *tokenizers])

    def _tokenizer_key(self, stage: Stage, side: str) -> str:
        file = Path(self._source(stage, side)) / "tokenizer.json"  # which both bases from scratch may share
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else str(file.parent)

    def count(self, stage: Stage) -> Texts | Items:
        """The texts of a stage that is taught, the items of an evaluation; counted once."""
        key = self.counts_key(stage)
        if key not in self._counts:
            self._counts[key] = self._count_texts(stage) if is_taught(stage) else self._count_items(stage)
        return self._counts[key]

    def remember(self, key: str, counted: Texts | Items) -> None:
        """Take over what another process has counted."""
        self._counts[key] = counted

    def texts(self, stage: Stage) -> Texts:
        """Of a stage that is taught."""
        counted = self.count(stage)
        assert isinstance(counted, Texts)
        return counted

    def items(self, stage: Stage) -> Items:
        """Of an evaluation."""
        counted = self.count(stage)
        assert isinstance(counted, Items)
        return counted

    def _count_texts(self, stage: Stage) -> Texts:
        started = time.perf_counter()
        task = self._open(stage)
        opened = time.perf_counter()
        tokenizer = load_tokenizer(self.base(stage, student(stage)))
        kind, unlabelled = _texts_of(stage)
        rows = task.examples("training", tokenizer, kind), task.examples("validation", tokenizer)
        if unlabelled:
            every = all_choices(task.unlabelled(tokenizer))
            rows[0].extend(every if kind == "choices" else {example.item: example for example in every}.values())
        training, held_out = (TokenizedExamples(each, tokenizer, _tokens(stage)) for each in rows)
        old_targets = self._old_targets(stage, training)
        prepared = time.perf_counter()
        return Texts(
            training=len(training),
            items=len(training.items),
            held_out=len(held_out),
            tokens=sum(map(len, training.ids)),
            targets=sum(training.targets),
            longest=max(map(len, [*training.ids, *held_out.ids]), default=1),
            opening=opened - started,
            preparing=prepared - opened,
            old_targets=old_targets,
        )

    def _old_targets(self, stage: Stage, training: TokenizedExamples) -> int | None:
        """Of the same texts, if the old teacher's tokenizer is another one by them; in the student's chat template."""
        if not reads_old(stage):
            return None
        theirs = TokenizedExamples(training.rows, load_tokenizer(self.base(stage, "old")), _tokens(stage))
        return sum(theirs.targets) if _named_across(stage) or theirs.ids != training.ids else None

    def _count_items(self, stage: Stage) -> Items:
        key = json.dumps(stage.settings["task"])
        if key not in self._tasks:
            self._tasks[key] = self._open(stage)
        task, settings = self._tasks[key], stage.settings
        evaluated = task.for_evaluation(settings["split"])
        number = len(evaluated.eval_docs)
        tokenizer = load_tokenizer(self.base(stage, student(stage)))
        rows = task.examples("training", tokenizer)[:SAMPLE]
        texts = [len(ids) for ids in tokenizer([row.context + row.answer for row in rows])["input_ids"]]
        answers = [len(ids) for ids in tokenizer([row.answer for row in rows])["input_ids"]]
        return Items(
            number=min(number, settings["evaluation"]["limit"] or number),
            longest=(1 + (evaluated.config.num_fewshot or 0)) * max(texts, default=1),
            answer=1 + max(answers, default=1) if evaluated.OUTPUT_TYPE == "generate_until" else None,
        )

    def _open(self, stage: Stage) -> Task:
        folder = stage.inputs.get("tasks_folder")
        return stages.task_of(stage.settings["task"], self.folder(folder) if folder else None)

    @staticmethod
    def with_texts(task: Mapping[str, Any], count: int) -> dict[str, Any]:
        """A task's settings with so many training texts, and its share of held-out ones beside."""
        share = task["settings"]["validation_share"] or 0
        return {
            **task,
            "settings": {**task["settings"], "train_limit": max(2, math.ceil(count / max(0.05, 1 - share)))},
        }

    def held_out(self, stage: Stage, task: Mapping[str, Any]) -> int:
        """Held-out texts of a miniature with such a task."""
        share = task["settings"]["validation_share"]
        return self.texts(stage).held_out if share is None else round(share * task["settings"]["train_limit"])

    # Models

    def of(
        self, stage: Stage, changes: Mapping[str, Any], layers: int | None
    ) -> tuple[dict[str, Any], dict[str, Path]]:
        """Settings and folders to call a stage's function with, its models replaced by stand-ins."""
        settings = {**stage.settings, **changes}
        folders = {keyword: self.folder(name) for keyword, name in stage.inputs.items()}
        for side in sides_of(stage):
            base, lora = self._stand_in(stage, side, layers), self.lora(stage, side)
            adapter = self._adapter(base, lora) if lora else None
            settings[side] = {**settings[side], "base": base.as_dict(), "adapter": adapter}
            instead = (*MODELS[side], f"{side}_states", "answers")  # states of stand-ins are made on the spot
            folders = {key: path for key, path in folders.items() if key not in instead}
        return settings, folders

    def config(self, stage: Stage, side: str) -> PretrainedConfig:
        """The configuration of a side's base: "model", "old" or "new"."""
        return config_of(self.base(stage, side))

    def written_config(self, name: str) -> PretrainedConfig:
        """Of the base that a stage writes."""
        return config_of(Base(base=str(self.folder(name))))

    def layers(self, stage: Stage) -> int:
        """Of the deepest of a stage's bases."""
        return max(int(self.config(stage, side).get_text_config().num_hidden_layers) for side in sides_of(stage))

    def parameters(self, stage: Stage, layers: int | None) -> int:
        """Weights of the base that is trained, or of those that are evaluated."""
        sides = [student(stage)] if is_taught(stage) else sides_of(stage)
        models = (on_meta(cut(self.config(stage, side), layers)) for side in sides)
        return sum(weight.numel() for model in models for weight in model.parameters())

    def lora(self, stage: Stage, side: str) -> LoraSettings | None:
        """Shape of the adapter that a side is loaded with; None where there is none."""
        given = stage.settings[side]["adapter"]
        if given:
            with explained("adapter", given):
                name, revision = split_revision(given)
                config = PeftConfig.from_pretrained(name, revision=revision)
            return LoraSettings(rank=getattr(config, "r", 16))
        writer = self._writers.get(stage.inputs.get(MODELS[side][1], ""))
        while writer is not None:
            if writer.settings.get("lora"):
                return convert(writer.settings["lora"], LoraSettings)
            if writer.settings.get("new", {}).get("adapter"):
                return self.lora(writer, "new")
            writer = self._writers.get(writer.inputs.get("new_adapter", ""))
        return None

    def architecture(self, stage: Stage, side: str) -> str:
        """Equal where two bases have equal shapes."""
        config = self.config(stage, side).to_dict()
        for name in ("_name_or_path", "transformers_version", "_commit_hash"):
            config.pop(name, None)
        loaded = [stage.settings[side]["base"][name] for name in ("dtype", "quantization")]
        return json.dumps([config, loaded], sort_keys=True, default=str)

    def _source(self, stage: Stage, side: str) -> str | Path:
        written = stage.inputs.get(MODELS[side][0])
        return self.folder(written) if written else stage.settings[side]["base"]["base"]

    def base(self, stage: Stage, side: str) -> Base:
        """Where a side's base is, or its stand-in, and how it is loaded."""
        return convert({**stage.settings[side]["base"], "base": str(self._source(stage, side))}, Base)

    def _stand_in(self, stage: Stage, side: str, layers: int | None) -> Base:
        base = self.base(stage, side)

        def write(folder: Path) -> None:
            config = cut(config_of(base), layers)
            dtype = getattr(torch, base.dtype) if base.dtype != "auto" else config.dtype
            with countable(config):
                build(config, dtype=dtype or torch.float32).save_pretrained(folder)
            load_tokenizer(base).save_pretrained(folder)

        folder = self._made("bases", f"{self.architecture(stage, side)} {layers} {base.base}", write)
        return merged(base, {"base": folder})

    def _adapter(self, base: Base, lora: LoraSettings) -> str:
        def write(folder: Path) -> None:
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                base.base, trust_remote_code=base.trust_remote_code
            )
            add_adapter(model.requires_grad_(False), lora, 0).save_pretrained(folder)

        return self._made("adapters", json.dumps([base.base, lora.as_dict()]), write)

    def _made(self, kind: str, key: str, write: Callable[[Path], None]) -> str:
        """A folder for all processes that ask for the same; the first to have written it is taken."""
        folder = self._work / kind / hashlib.sha256(key.encode()).hexdigest()
        if not folder.exists():
            own = self.scratch_folder()
            write(own)
            folder.parent.mkdir(exist_ok=True)
            with suppress(OSError):  # another process was first
                own.rename(folder)
        return str(folder)


def sides_of(stage: Stage) -> list[str]:
    """Keys of a stage's settings that hold a task model."""
    return [side for side in MODELS if isinstance(stage.settings.get(side), Mapping)]


def student(stage: Stage) -> str:
    """The side whose tokenizer makes the texts, and whose model is trained or evaluated."""
    return "model" if "model" in stage.settings else "new"


def is_taught(stage: Stage) -> bool:
    """Whether it reads training texts."""
    return stage.function in (stages.adapt, stages.align, stages.teach)


def alignment_of(stage: Stage) -> AlignmentSettings:
    """What an alignment learns from; of a search, what its budget is counted by, with both teachers."""
    settings = convert(stage.settings.get("alignment") or {"weight": None}, AlignmentSettings)
    gold = {"search": None, "texts": "gold", "unlabelled": False, "level": "token", "weight": "mixture"}
    gold["teacher_cache"] = "off" if settings.teacher_cache == "off" else "disk"  # which all its trials share
    return merged(settings, gold) if settings.search else settings


def reads_old(stage: Stage) -> bool:
    """Whether an old teacher says something of the training texts."""
    return "old" in stage.settings and (stage.function is stages.teach or "old" in alignment_of(stage).teachers)


def across_of(stage: Stage, texts: Texts | None) -> Across | None:
    """How an old teacher is heard whose tokenizer is another one; None: token by token, or nobody has counted."""
    differs = texts is not None and texts.old_targets is not None
    named = _named_across(stage) if reads_old(stage) else None
    return named or (default_across(stage.settings.get("level") or alignment_of(stage).level) if differs else None)


def _named_across(stage: Stage) -> Across | None:
    found: Across | None = stage.settings.get("across") or alignment_of(stage).across
    return found


def texts_per_batch(stage: Stage, texts: Texts) -> int:
    """Texts that go forward at once: a batch is so many items."""
    return math.ceil(texts.per_item * int(stage.settings["training"]["batch_size"]))


def _tokens(stage: Stage) -> Any:
    return stage.settings.get("tokens") or stage.settings["training"]["tokens"]


def _texts_of(stage: Stage) -> tuple[Literal["gold", "choices"], bool]:
    """Which texts are made of an item, and whether there are more of inputs without labels."""
    found = alignment_of(stage)
    return stage.settings.get("texts", found.texts), stage.settings.get("unlabelled", found.unlabelled)
