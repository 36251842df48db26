"""What adapters learn from: the texts of a task in a base's tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn
from transformers import PreTrainedTokenizerBase

from muscle.errors import MuscleError
from muscle.update.answers import all_choices, read_answers
from muscle.update.comparison import Scales
from muscle.update.models import load_task_model, load_tokenizer
from muscle.update.prompts import Example
from muscle.update.recipe import Base, TaskModel
from muscle.update.settings import TargetTokens
from muscle.update.tasks import Task
from muscle.update.tokenized import PaddingCollator, TokenizedExamples


def unlabelled_texts(
    task: Task, tokenizer: PreTrainedTokenizerBase, texts: Literal["gold", "choices"], answers: Path | None
) -> list[Example]:
    """What is learnt from the inputs without labels that a task names.

    Args:
        task: The task.
        tokenizer: Whose chat template to use.
        texts: All choices of each input, or gold: what stands for the gold text, from `answers`.
        answers: The folder where `answers.keep_answers` has kept what both task models answer.

    Raises:
        MuscleError: There are no such inputs, they have no choices, or the answers cannot be read.
    """
    if texts == "choices":
        task.require_choices()
        return all_choices(task.unlabelled(tokenizer))
    assert answers
    return read_answers(answers)


class TaskData:
    """Training and validation texts of a task in a base's tokens.

    Args:
        base: Whose tokenizer makes the tokens.
        task: Its training split is learnt from; of its validation split the gold texts decide when it is enough.
        tokens: Which tokens are targets.
        texts: What is learnt from an item of the training split: its gold text, or those of all its choices.
        unlabelled: Texts of inputs without labels, which come after the others.

    Raises:
        MuscleError: There is nothing to learn from, nothing is held out, or the items have no choices.
    """

    def __init__(
        self,
        base: Base,
        task: Task,
        tokens: TargetTokens,
        texts: Literal["gold", "choices"] = "gold",
        unlabelled: Sequence[Example] = (),
    ) -> None:
        self.tokenizer = load_tokenizer(base)
        assert isinstance(self.tokenizer.pad_token_id, int)
        self.collator = PaddingCollator(self.tokenizer.pad_token_id)
        labelled = task.examples("training", self.tokenizer, texts)
        self.training = TokenizedExamples([*labelled, *unlabelled], self.tokenizer, tokens)
        self.validation = TokenizedExamples(task.examples("validation", self.tokenizer), self.tokenizer, tokens)
        settings_of_texts = ("chat_template", "system_instruction", "validation_share", "train_limit", "seed")
        self.settings = {"name": task.name, **{name: getattr(task.settings, name) for name in settings_of_texts}}
        self.hashes = {"data": task.data_hash()}
        if unlabelled:
            self.settings["unlabelled"] = task.settings.unlabelled
            content = "".join(json.dumps([row.context, row.answer]) for row in unlabelled)
            self.hashes["unlabelled"] = hashlib.sha256(content.encode()).hexdigest()
        if not labelled:
            raise MuscleError(f"task {task.name}: nothing to train on: lower validation_share, or raise train_limit")
        if not len(self.validation) and task.settings.validation_share != 0:
            raise MuscleError(
                f"task {task.name}: no item can be held out for validation, since items with one prompt stay together: "
                "raise validation_share, or set it to 0 to keep the last epoch"
            )

    @property
    def beyond_gold(self) -> Iterator[str]:
        """The texts that are learnt from beside the gold ones."""
        return (row.context + row.answer for row in self.training.rows if not row.right)

    @property
    def counts(self) -> dict[str, int]:
        """How many texts and items are learnt from, and how many of the items without their labels."""
        items = self.training.items
        return {"texts": len(self.training), "items": len(items), "unlabelled": len(items) - self._labelled}

    @property
    def scales(self) -> Scales:
        """Of the training texts."""
        targets, items = self.training.targets, len(self.training.items)
        right = sum(count for count, row in zip(targets, self.training.rows, strict=True) if row.right)
        return Scales(right=sum(targets) / right, item=sum(targets) / items, labelled=items / self._labelled)

    @property
    def _labelled(self) -> int:
        return sum(row.right for row in self.training.rows)

    def load(self, model: TaskModel, trainable: bool = False) -> Any:
        """A task model that these texts fit, as `load_task_model` loads it."""
        loaded = load_task_model(model, trainable)
        self.check_fit(loaded, model.base)
        return loaded

    def check_fit(self, model: nn.Module, base: Base) -> None:
        """Refuse texts beyond the base's window, which evaluation cuts and training would not, or its vocabulary."""
        texts = [*self.training.ids, *self.validation.ids]
        longest, largest = max(map(len, texts)), max(map(max, texts))
        window = getattr(model.config, "max_position_embeddings", None)
        if isinstance(window, int) and longest > window:
            raise MuscleError(
                f"a training text has {longest} tokens, and {base.base} a window of {window}: leave such items out of "
                "the data, or choose a base with a longer window"
            )
        rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
        if largest >= rows:
            raise MuscleError(
                f"the tokenizer gives token {largest}, and {base.base} knows {rows}: resize its embeddings to its "
                "tokenizer, or correct the tokenizer"
            )
