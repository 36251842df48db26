"""Any lm-eval task as training texts, through the task's own prompts, and what is held out of them."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from datasets import Dataset as Documents
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from transformers import PreTrainedTokenizerBase

from muscle.errors import MuscleError
from muscle.update.prompts import (
    ChatTemplate,
    Doc,
    Example,
    Renderer,
    chat_template_of,
    delimited,
    templates_compiled_once,
)
from muscle.update.recipe import Split, TaskSettings
from muscle.update.task_sources import open_task, split_of

FEWSHOT_SEED = 1234
"""lm-eval's own default: which shots an item gets."""


def load_task(name: str, settings: TaskSettings, data: Path | None = None) -> Task:
    """The lm-eval task `name`: from `settings.include_path`, this project's tasks, or lm-eval's own.

    Args:
        name: One task of lm-eval, no group.
        settings: How it is used.
        data: Folder of local data in place of the hub's: <data>/<task>/<split>.jsonl, .json or .parquet, with the split
            names of the task's YAML file.

    Raises:
        MuscleError: No such task, or its data cannot be had.
    """
    include_path = Path(settings.include_path) if settings.include_path else None
    return Task(open_task(name, include_path, data, settings.num_fewshot), settings)


class Task:
    """Training texts, held-out texts and evaluation of one lm-eval task."""

    def __init__(self, definition: ConfigurableTask, settings: TaskSettings) -> None:
        self.name: str = definition.config.task
        self.settings = settings
        self._task = definition

    def examples(
        self,
        split: Literal["training", "validation"],
        tokenizer: PreTrainedTokenizerBase | None = None,
        texts: Literal["gold", "choices"] = "gold",
    ) -> list[Example]:
        """Render one split with the task's own prompt and gold answer; validation is what was held out of training.

        The context is what lm-eval gives a model for this item without shots, byte for byte: task description,
        gen_prefix and chat template included.

        Args:
            split: Which of the two.
            tokenizer: Whose chat template to use; needed where the settings ask for one.
            texts: What becomes of an item: its gold text, or those of all its choices, which then share a number.

        Raises:
            MuscleError: The task has no such split or is not multiple choice, an item has no prompt or gold answer, or
                the tokenizer has no chat template.
        """
        if texts == "choices":
            self.require_choices()
        return self._examples(split, self.chat_template(tokenizer), texts)

    def require_choices(self) -> None:
        """Refuse a task whose items have no choices.

        Raises:
            MuscleError: It is not multiple choice.
        """
        if self._task.OUTPUT_TYPE != "multiple_choice":
            raise MuscleError(
                f"task '{self.name}' is not multiple choice, and its items have no choices to learn from: set `texts` "
                "under `alignment` to gold for it"
            )

    @property
    def generates(self) -> bool:
        """Whether answers are generated."""
        return bool(self._task.OUTPUT_TYPE == "generate_until")

    def unlabelled(self, tokenizer: PreTrainedTokenizerBase | None = None) -> list[list[Instance]]:
        """The inputs that `unlabelled` of the settings names, each as lm-eval's requests without shots.

        Labels are not read, and may be missing. An input whose prompt occurs among the held-out validation items or
        the evaluated ones, as rendered without a chat template, is left out: nothing is learnt about those.

        Args:
            tokenizer: Whose chat template to use; needed where the settings ask for one.

        Returns:
            For each input one request, to generate, or one for each choice.

        Raises:
            MuscleError: The settings name no inputs, or no such split; none is left; an input has no prompt; the task
                neither chooses nor generates; or the tokenizer has no chat template.
        """
        chat = self.chat_template(tokenizer)
        if chat is None:
            return list(self._unlabelled.values())
        docs, _ = self._inputs
        return list(self._renderer(chat).requests(docs, "unlabelled", list(self._unlabelled)).values())

    def count_unlabelled(self) -> int:
        """How many inputs `unlabelled` gives; it raises the same."""
        return len(self._unlabelled)

    def unlabelled_hash(self, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
        """SHA-256 of what is asked about these inputs, and of how answers are read; it raises the same."""
        asked = [request.args for requests in self.unlabelled(tokenizer) for request in requests]
        config = self._task.config
        content = [asked, config.filter_list, config.target_delimiter, config.gen_prefix]
        plain = json.dumps(content, default=lambda value: getattr(value, "__qualname__", type(value).__name__))
        return hashlib.sha256(plain.encode()).hexdigest()

    def answer_form(self, request: Instance, answer: str) -> str | None:
        """What a model has generated, as gold answers are in training texts: with what parts them from the prompt.

        None where it says nothing, or the task's first filter does not find an answer in it.
        """
        first = self._task._filters[0]
        asked = copy.copy(request)
        asked.resps, asked.filtered_resps = [answer], {}
        first.apply([asked])
        found = asked.filtered_resps[first.name]
        while isinstance(found, list):
            found = found[0] if found else ""
        nothing = {"", *(fallback for each in first.filters if (fallback := getattr(each(), "fallback", None)))}
        if not answer.strip() or found in nothing:
            return None
        return delimited(self._task, request.doc, answer.strip(), self.settings.chat_template)

    def for_evaluation(self, split: Split) -> ConfigurableTask:
        """An lm-eval task to score: its evaluation split ("test"), or the held-out items ("validation").

        A copy each time, so that scoring one leaves the others as they are. Shots are drawn anew by lm-eval's default
        seed. They come from where the task says; shots for held-out items never include a held-out item.

        Raises:
            MuscleError: Nothing is held out, or too few items are left to draw shots from.
        """
        task = copy.copy(self._task)
        task._config = copy.copy(task.config)
        task.set_config("generation_kwargs", copy.deepcopy(task.config.generation_kwargs))
        if self.settings.num_fewshot is not None:
            task.set_config("num_fewshot", self.settings.num_fewshot)
        task.sampler = copy.copy(task.sampler)
        if split == "validation":
            held_out = self._held_out()
            task.set_config("test_split", None)  # lm-eval scores the validation split of a task without a test split
            task.set_config("validation_split", task.config.validation_split or task.config.training_split)
            task.validation_docs = lambda: held_out
            seen = {_key(doc) for doc in held_out}
            pool = [doc for doc in task.sampler.df if _key(doc) not in seen]
            if len(pool) < (task.config.num_fewshot or 0):
                raise MuscleError(
                    f"task '{self.name}': {len(pool)} items are left for {task.config.num_fewshot} shots beside those "
                    "held out: lower num_fewshot, or validation_share"
                )
            task.sampler.replace_df(pool)
        task.set_fewshot_seed(FEWSHOT_SEED)
        return task

    def chat_template(self, tokenizer: PreTrainedTokenizerBase | None) -> ChatTemplate | None:
        """How a list of messages becomes a prompt, as lm-eval's HFLM has it; None where the settings ask for none.

        Raises:
            MuscleError: The tokenizer has no chat template.
        """
        if not self.settings.chat_template:
            return None
        if tokenizer is None or not tokenizer.chat_template:
            name = tokenizer.name_or_path if tokenizer else "none"
            raise MuscleError(
                f"task '{self.name}': the tokenizer ({name}) has no chat template: set chat_template to false"
            )
        return chat_template_of(tokenizer)

    def evaluation_texts(self, tokenizer: PreTrainedTokenizerBase | None = None) -> list[str]:
        """All distinct text of the evaluation: prompts, shots included, and the answers they are scored with."""
        task, chat = self.for_evaluation("test"), self.chat_template(tokenizer)
        with templates_compiled_once():
            task.build_all_requests(
                system_instruction=self.settings.system_instruction,
                apply_chat_template=chat is not None,
                fewshot_as_multiturn=True,
                chat_template=chat,
            )
        parts = (part for request in task.instances for part in request.args if isinstance(part, str))
        return list(dict.fromkeys(parts))

    def data_hash(self) -> str:
        """SHA-256 of the rendered training and held-out texts and of the evaluated items, for provenance."""
        digest = hashlib.sha256()
        for split in ("training", "validation"):
            for example in self._examples(split, None):
                digest.update(json.dumps([split, example.context, example.answer]).encode())
        for doc in self._task.eval_docs:
            digest.update(_key(doc).encode())
        return digest.hexdigest()

    def _examples(self, split: str, chat: ChatTemplate | None, texts: str = "gold") -> list[Example]:
        renderer = self._renderer(chat)
        render = renderer.gold if texts == "gold" else renderer.choices
        if split == "validation" and self.settings.validation_share is None:
            return render(self._validation_split, split, range(len(self._validation_split)))
        chosen = self._divided[split == "validation"]
        if chat is None and texts == "gold":
            return [self._training_texts[index] for index in chosen]
        return render(self._training_split, "training", chosen)

    @cached_property
    def _training_split(self) -> Sequence[Doc]:
        return self._docs("training")

    @cached_property
    def _validation_split(self) -> Sequence[Doc]:
        if not self._task.has_test_docs():
            raise MuscleError(
                f"task '{self.name}' is evaluated on its validation split, for lack of a test split: "
                "set validation_share to hold out a share of its training split"
            )
        return self._docs("validation")

    def _docs(self, split: str) -> Sequence[Doc]:
        docs: Sequence[Doc] | None = getattr(self._task, f"{split}_docs")()
        if docs is None:
            raise MuscleError(f"task '{self.name}' has no {split} split: add {split}_split to its YAML file")
        return docs

    @cached_property
    def _training_texts(self) -> dict[int, Example]:
        """Plain rendering, by index, of the items used of the training split."""
        indices = list(range(len(self._training_split)))
        if (limit := self.settings.train_limit) is not None and limit < len(indices):
            indices = sorted(random.Random(self.settings.seed).sample(indices, limit))
        texts = self._renderer(None).gold(self._training_split, "training", indices)
        return dict(zip(indices, texts, strict=True))

    @cached_property
    def _divided(self) -> tuple[list[int], list[int]]:
        """Indices into the training split: (training, held out)."""
        indices = list(self._training_texts)
        contexts = [example.context for example in self._training_texts.values()]
        parts = hold_out(contexts, self.settings.validation_share or 0, self.settings.seed)
        return [indices[place] for place in parts[0]], [indices[place] for place in parts[1]]

    def _held_out(self) -> Sequence[Doc]:
        if self.settings.validation_share is None:
            return self._validation_split
        docs, indices = self._training_split, self._divided[1]
        if not indices:
            raise MuscleError(f"task '{self.name}': nothing is held out of {len(docs)} items: raise validation_share")
        return docs.select(indices) if isinstance(docs, Documents) else [docs[index] for index in indices]

    @cached_property
    def _inputs(self) -> tuple[Sequence[Doc], list[int]]:
        """The items whose labels are not read: where they are, and which of these."""
        if self.settings.unlabelled is None:
            raise MuscleError(
                f"task '{self.name}' names no inputs without labels: set its `unlabelled` to a split of its data, or "
                "to rest, or `unlabelled` under `alignment` to false"
            )
        if self.settings.unlabelled == "rest":
            docs = self._training_split
            return docs, [index for index in range(len(docs)) if index not in self._training_texts]
        docs = split_of(self._task, self.settings.unlabelled)
        return docs, list(range(len(docs)))

    @cached_property
    def _unlabelled(self) -> dict[int, list[Instance]]:
        """Plain requests, by index, of the inputs that are neither held out nor evaluated."""
        if self._task.OUTPUT_TYPE not in ("multiple_choice", "generate_until"):
            raise MuscleError(
                f"task '{self.name}' neither chooses nor generates, so that nothing is learnt from inputs without "
                "labels: set `unlabelled` under `alignment` to false for it, and leave "
                f"`tasks.{self.name}.unlabelled` out"
            )
        own_split = self.settings.validation_share is None
        held_out = range(len(self._validation_split)) if own_split else self._divided[1]
        evaluated, renderer = self._task.eval_docs, self._renderer(None)
        known = {
            request.args[0]
            for docs, split, indices in (
                (self._validation_split if own_split else self._training_split, "validation", held_out),
                (evaluated, "evaluated", range(len(evaluated))),
            )
            for asked in renderer.requests(docs, split, indices).values()
            for request in asked
        }
        docs, indices = self._inputs
        found = renderer.requests(docs, "unlabelled", indices)
        fresh = {index: asked for index, asked in found.items() if not any(each.args[0] in known for each in asked)}
        if not fresh:
            raise MuscleError(
                f"task '{self.name}': of {len(found)} inputs that `unlabelled: {self.settings.unlabelled}` names, none "
                f"is left beside those held out or evaluated: name others by `tasks.{self.name}.unlabelled`, or "
                "lower train_limit if it is rest"
            )
        return fresh

    def _renderer(self, chat: ChatTemplate | None) -> Renderer:
        return Renderer(self._task, self.settings.system_instruction, chat)


def hold_out(keys: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Divide items at random into (training, held out), as indices in order.

    Items with equal keys stay together, so that no prompt is on both sides. So at most round(share * n) items are held
    out, and exactly as many where keys are distinct.
    """
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    shuffled = list(groups.values())
    random.Random(seed).shuffle(shuffled)
    room = round(share * len(keys))
    held_out: set[int] = set()
    for group in shuffled:
        if len(held_out) + len(group) <= room:
            held_out.update(group)
    return [index for index in range(len(keys)) if index not in held_out], sorted(held_out)


def _key(doc: Doc) -> str:
    return json.dumps(doc, sort_keys=True, default=str)
