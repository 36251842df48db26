"""Any lm-eval task as training texts, through the task's own prompts, and what is held out of them."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset as Documents
from lm_eval.api.task import ConfigurableTask
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from muscle.errors import MuscleError
from muscle.update.prompts import ChatTemplate, Example, chat_template_of, render, templates_compiled_once
from muscle.update.recipe import Split, TaskSettings
from muscle.update.task_sources import brief, open_task

IGNORED = -100
"""Label of a position that is no target: padding, and the first token of a sequence."""
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
        self, split: Literal["training", "validation"], tokenizer: PreTrainedTokenizerBase | None = None
    ) -> list[Example]:
        """Render one split with the task's own prompt and gold answer; validation is what was held out of training.

        The context is what lm-eval gives a model for this item without shots, byte for byte: task description,
        gen_prefix and chat template included.

        Args:
            split: Which of the two.
            tokenizer: Whose chat template to use; needed where the settings ask for one.

        Raises:
            MuscleError: The task has no such split, an item has no prompt or gold answer, or the tokenizer has no chat
                template.
        """
        return self._examples(split, self.chat_template(tokenizer))

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

    def _examples(self, split: str, chat: ChatTemplate | None) -> list[Example]:
        if split == "validation" and self.settings.validation_share is None:
            return self._render(self._validation_split, split, range(len(self._validation_split)), chat)
        chosen = self._divided[split == "validation"]
        if chat is None:
            return [self._training_texts[index] for index in chosen]
        return self._render(self._training_split, "training", chosen, chat)

    @cached_property
    def _training_split(self) -> Sequence[dict[str, Any]]:
        return self._docs("training")

    @cached_property
    def _validation_split(self) -> Sequence[dict[str, Any]]:
        if not self._task.has_test_docs():
            raise MuscleError(
                f"task '{self.name}' is evaluated on its validation split, for lack of a test split: "
                "set validation_share to hold out a share of its training split"
            )
        return self._docs("validation")

    def _docs(self, split: str) -> Sequence[dict[str, Any]]:
        docs: Sequence[dict[str, Any]] | None = getattr(self._task, f"{split}_docs")()
        if docs is None:
            raise MuscleError(f"task '{self.name}' has no {split} split: add {split}_split to its YAML file")
        return docs

    @cached_property
    def _training_texts(self) -> dict[int, Example]:
        """Plain rendering, by index, of the items used of the training split."""
        indices = list(range(len(self._training_split)))
        if (limit := self.settings.train_limit) is not None and limit < len(indices):
            indices = sorted(random.Random(self.settings.seed).sample(indices, limit))
        return dict(zip(indices, self._render(self._training_split, "training", indices, None), strict=True))

    @cached_property
    def _divided(self) -> tuple[list[int], list[int]]:
        """Indices into the training split: (training, held out)."""
        indices = list(self._training_texts)
        contexts = [example.context for example in self._training_texts.values()]
        parts = hold_out(contexts, self.settings.validation_share or 0, self.settings.seed)
        return [indices[place] for place in parts[0]], [indices[place] for place in parts[1]]

    def _held_out(self) -> Sequence[dict[str, Any]]:
        if self.settings.validation_share is None:
            return self._validation_split
        docs, indices = self._training_split, self._divided[1]
        if not indices:
            raise MuscleError(f"task '{self.name}': nothing is held out of {len(docs)} items: raise validation_share")
        return docs.select(indices) if isinstance(docs, Documents) else [docs[index] for index in indices]

    def _render(
        self, docs: Sequence[dict[str, Any]], split: str, indices: Sequence[int], chat: ChatTemplate | None
    ) -> list[Example]:
        rows = []
        with templates_compiled_once():
            for index in indices:
                try:
                    rows.append(render(self._task, docs[index], self.settings.system_instruction, chat))
                except Exception as error:  # templates and code of YAML files can raise anything
                    reason = str(error) if isinstance(error, MuscleError) else f"cannot be rendered ({brief(error)})"
                    raise MuscleError(
                        f"task '{self.name}', {split} item {index}: {reason}: correct its data or its YAML file"
                    ) from error
        return rows


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


def _key(doc: dict[str, Any]) -> str:
    return json.dumps(doc, sort_keys=True, default=str)


class TokenizedExamples(Dataset[dict[str, Tensor]]):
    """Examples as token ids: context and answer tokenized as one text, closed by the end-of-text token.

    Items hold `input_ids` and `labels` (T,), and `index` (), the position in the data set, by which cached teachers
    find their row. With tokens="all" every token but the first is a target, context and answer alike, as the paper has
    it for the compatibility adapter (appendix A.1). With "answer" only tokens that hold a character of the answer are,
    and the end-of-text token: a token that runs from the context into the answer is a target.
    """

    def __init__(
        self, rows: list[Example], tokenizer: PreTrainedTokenizerBase, tokens: Literal["all", "answer"] = "all"
    ) -> None:
        """Tokenize; a text that begins with the begin-of-text token, by its chat template, does not get another.

        Raises:
            MuscleError: The tokenizer has no end-of-text token, or cannot tell where in the text its tokens lie.
        """
        if tokenizer.eos_token_id is None:
            raise MuscleError(f"tokenizer {tokenizer.name_or_path} has no end-of-text token: set its eos_token")
        if tokens == "answer" and not tokenizer.is_fast:
            raise MuscleError(f"tokenizer {tokenizer.name_or_path} gives no character offsets: set tokens to all")
        self.rows = rows
        self.ids: list[list[int]] = []
        self._first_targets: list[int] = []
        for row in rows:
            text = row.context + row.answer
            has_bos = bool(tokenizer.bos_token) and text.startswith(str(tokenizer.bos_token))
            encoded = tokenizer(text, add_special_tokens=not has_bos, return_offsets_mapping=tokens == "answer")
            ids = list(encoded["input_ids"])
            if ids[-1:] != [tokenizer.eos_token_id]:
                ids.append(tokenizer.eos_token_id)
            self.ids.append(ids)
            ends = [end for _, end in encoded["offset_mapping"]] if tokens == "answer" else []
            before = (place for place, end in enumerate(ends) if end > len(row.context))
            self._first_targets.append(max(1, next(before, len(ends))))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = torch.tensor(self.ids[index])
        labels = ids.clone()
        labels[: self._first_targets[index]] = IGNORED
        return {"input_ids": ids, "labels": labels, "index": torch.tensor(index)}


@dataclass(frozen=True)
class PaddingCollator:
    """Right-pad a batch: `input_ids`, `attention_mask` and `labels` (B, T), `index` (B,)."""

    pad_id: int

    def __call__(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Stack rows of unequal length."""
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        return {
            "input_ids": pad_sequence([row["input_ids"] for row in rows], True, self.pad_id),
            "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
            "labels": pad_sequence([row["labels"] for row in rows], True, IGNORED),
            "index": torch.stack([row["index"] for row in rows]),
        }
