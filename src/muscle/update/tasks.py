"""Any lm-eval task as training examples, through the task's own prompts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.tasks import TaskManager
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from muscle.errors import MuscleError

IGNORED = -100
"""Label of a position that is no target: padding, and the first token of a sequence."""


@dataclass(frozen=True)
class Example:
    """One training text: what the model reads and what it should say, delimiter included."""

    context: str
    answer: str


def load_task(name: str, include_path: Path) -> Any:
    """The lm-eval task `name`, defined by a YAML file under `include_path`.

    Raises:
        MuscleError: no task of that name is defined there.
    """
    manager = TaskManager(include_path=str(include_path), include_defaults=False)
    if name not in manager.all_tasks:
        known = ", ".join(sorted(manager.all_tasks)) or "none"
        raise MuscleError(f"no lm-eval task '{name}' under {include_path} (defined there: {known}): correct the name")
    return manager.load(name)["tasks"][name]


def examples(task: Any, split: str) -> list[Example]:
    """Render one split ("training" or "validation") of an lm-eval task with its own prompt and gold answer.

    Raises:
        MuscleError: the task has no such split.
    """
    docs = getattr(task, f"{split}_docs")()
    if docs is None:
        raise MuscleError(f"task '{task.config.task}' has no {split} split: add {split}_split to its YAML file")
    return [Example(task.doc_to_text(doc), task.config.target_delimiter + _gold_text(task, doc)) for doc in docs]


def _gold_text(task: Any, doc: dict[str, Any]) -> str:
    target = task.doc_to_target(doc)
    if task.config.doc_to_choice is not None and isinstance(target, int):
        return str(task.doc_to_choice(doc)[target])
    return str(target)


class TokenizedExamples(Dataset[dict[str, Tensor]]):
    """Examples as token ids: context and answer tokenized as one text, closed by the end-of-text token.

    Items hold `input_ids` and `labels` (T,), and `index` (), the position in the data set, by which cached teachers
    find their row. Every token but the first is a target, context and answer alike, as the paper has it for the
    compatibility adapter (appendix A.1).
    """

    def __init__(self, rows: list[Example], tokenizer: PreTrainedTokenizerBase) -> None:
        self.rows = rows
        texts = tokenizer([row.context + row.answer for row in rows])["input_ids"]
        self.ids = [[*text, tokenizer.eos_token_id] for text in texts]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = torch.tensor(self.ids[index])
        labels = ids.clone()
        labels[0] = IGNORED
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
