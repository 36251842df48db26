"""Whether two bases read the texts of a task as the same tokens."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice

from transformers import PreTrainedTokenizerBase

from muscle.errors import quoted
from muscle.update.models import load_tokenizer
from muscle.update.recipe import Base
from muscle.update.tasks import Task

BLOCK = 256
"""Texts that are tokenized at a time."""


def tokenizer_difference(
    old: Base, new: Base, new_tokenizer: PreTrainedTokenizerBase, task: Task, further: Iterable[str] = ()
) -> str | None:
    """What two bases read differently, in words; None: their tokenizers are the same.

    Same means: identical ids on all training, validation and evaluation text, whatever else the tokenizers hold.

    Args:
        old: The old base.
        new: The new base.
        new_tokenizer: Its tokenizer.
        task: Its gold texts, and all text of its evaluation.
        further: Other texts that are learnt from.
    """
    old_tokenizer = load_tokenizer(old)
    definition = _definition(new_tokenizer)
    if definition and definition == _definition(old_tokenizer):
        return None  # then the texts, shots and all, need not be rendered
    texts = chain(_texts(task, new_tokenizer), further)
    while some := [*islice(texts, BLOCK)]:  # mostly the first texts tell, and there may be very many
        both = (tokenizer(some)["input_ids"] for tokenizer in (old_tokenizer, new_tokenizer))
        for text, old_ids, new_ids in zip(some, *both, strict=True):
            if old_ids != new_ids:
                return f"{old.base} and {new.base} tokenize {quoted(text)} differently"
    if old_tokenizer.eos_token_id != new_tokenizer.eos_token_id:
        ends = old_tokenizer.eos_token_id, new_tokenizer.eos_token_id
        return f"{old.base} ends texts with token {ends[0]}, {new.base} with {ends[1]}"
    return None


def _definition(tokenizer: PreTrainedTokenizerBase) -> tuple[object, ...] | None:
    """All that decides a tokenizer's ids, end of text included; None where not all of it can be seen.

    What a back end writes of itself holds only one of several words with one id, and not always the same.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return (backend.to_str(), tokenizer.get_vocab(), tokenizer.eos_token_id) if backend else None


def _texts(task: Task, tokenizer: PreTrainedTokenizerBase) -> Iterable[str]:
    for split in ("training", "validation"):
        yield from (row.context + row.answer for row in task.examples(split, tokenizer))
    yield from task.evaluation_texts(tokenizer)
