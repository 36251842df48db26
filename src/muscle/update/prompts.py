"""Items of an lm-eval task as training texts: the very prompt of their evaluation, and what may follow it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

import lm_eval.utils
from jinja2 import TemplateError
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.api.utils import maybe_delimit
from transformers import PreTrainedTokenizerBase

from muscle.errors import MuscleError, quoted
from muscle.update.task_sources import brief

ChatTemplate = Callable[..., str]
"""(messages, add_generation_prompt) -> prompt; what lm-eval calls to put messages through a chat template."""
Doc = dict[str, Any]
"""An item as the data set has it."""
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Example:
    """One training text: what the model reads and what it should say, delimiter included."""

    context: str
    answer: str
    item: int | None = None
    """Number of the question, which several texts may share; below zero where its label was not read. None: this text
    is alone."""
    right: bool = True
    """Whether it is the gold text; of several right answers the first is."""


@dataclass(frozen=True)
class Renderer:
    """Items of an lm-eval task as texts and requests, as its zero-shot evaluation has them.

    Its methods raise a `MuscleError` that names the item: it is not text, has no gold answer where one is needed, or
    makes a template or code of the task's YAML file fail.
    """

    task: ConfigurableTask
    system_instruction: str | None
    chat: ChatTemplate | None

    def gold(self, docs: Sequence[Doc], split: str, indices: Sequence[int]) -> list[Example]:
        """The prompt and the gold continuation of each item.

        Of several right answers the first counts, as in lm-eval's own few-shot examples.

        Args:
            docs: Items, of which some are rendered.
            split: What they are called in errors.
            indices: Which of them.
        """
        return list(self._each(docs, split, indices, lambda _, doc: self._gold_text(doc)).values())

    def choices(self, docs: Sequence[Doc], split: str, indices: Sequence[int]) -> list[Example]:
        """The texts that lm-eval scores, of each item of multiple choice one for each choice and in their order."""
        made = self._each(docs, split, indices, self._choice_texts)
        return [example for examples in made.values() for example in examples]

    def requests(self, docs: Sequence[Doc], split: str, indices: Sequence[int]) -> dict[int, list[Instance]]:
        """What lm-eval asks about items, by index: one request, or one for each choice. Their labels are not read."""
        blind = replace(self, task=_without_labels(self.task))
        return self._each(docs, split, indices, lambda _, doc: blind._asked(doc))

    def _each(
        self, docs: Sequence[Doc], split: str, indices: Sequence[int], make: Callable[[int, Doc], _Made]
    ) -> dict[int, _Made]:
        rows = {}
        with templates_compiled_once():
            for index in indices:
                try:
                    rows[index] = make(index, docs[index])
                except Exception as error:  # templates and code of YAML files can raise anything
                    reason = str(error) if isinstance(error, MuscleError) else f"cannot be rendered ({brief(error)})"
                    raise MuscleError(
                        f"task '{self.task.config.task}', {split} item {index}: {reason}: correct its data or its YAML "
                        "file"
                    ) from error
        return rows

    def _gold_text(self, doc: Doc) -> Example:
        if self.task.OUTPUT_TYPE == "loglikelihood_rolling":
            return Example("", str(self.task.doc_to_target(doc)))
        asked = self._asked(doc)
        if self.task.OUTPUT_TYPE == "generate_until":
            return Example(asked[0].args[0], _generated(self.task, doc, self.chat is not None))
        return Example(*asked[_gold(self.task, doc) if self.task.OUTPUT_TYPE == "multiple_choice" else 0].args[:2])

    def _choice_texts(self, item: int, doc: Doc) -> list[Example]:
        gold = _gold(self.task, doc)
        return [
            Example(request.args[0], request.args[1], item, right=choice == gold)
            for choice, request in enumerate(self._asked(doc))
        ]

    def _asked(self, doc: Doc) -> list[Instance]:
        task, chat = self.task, self.chat
        if task.config.doc_to_image or task.config.doc_to_audio:
            raise MuscleError("its prompt holds more than text")
        context = task.fewshot_context(
            doc,
            num_fewshot=0,
            system_instruction=self.system_instruction,
            apply_chat_template=chat is not None,
            fewshot_as_multiturn=True,
            chat_template=chat,
            gen_prefix=task.doc_to_prefix(doc),
        )
        metadata = (task.task_name, 0, 1)
        asked = task.construct_requests(doc, context, apply_chat_template=chat is not None, metadata=metadata)
        # With acc_mutual_info the choices without context follow.
        return asked[: len(task.doc_to_choice(doc))] if isinstance(asked, list) else [asked]


def _without_labels(task: ConfigurableTask) -> ConfigurableTask:
    """A copy of the task whose prompts and choices are made without a look at the label, which items may then lack."""
    blind = copy.copy(task)
    if task.multiple_input:  # the text is the number of the gold choice, the target what follows each choice
        blind.doc_to_text = lambda *_: 0
    else:
        blind.doc_to_target = lambda *_: None
    return blind


def _gold(task: ConfigurableTask, doc: Doc) -> int:
    """Index of the gold choice."""
    choices: list[str] = task.doc_to_choice(doc)
    gold = _first(task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc))
    if isinstance(gold, str) and gold in choices:
        return choices.index(gold)
    if isinstance(gold, int) and 0 <= gold < len(choices):
        return gold
    raise MuscleError(f"its answer {quoted(gold)} is none of its {len(choices)} choices")


def _generated(task: ConfigurableTask, doc: Doc, chat: bool) -> str:
    """The text to generate, with what parts it from the prompt in lm-eval's few-shot examples."""
    target = _first(task.doc_to_target(doc))
    if target is None:
        raise MuscleError("it has no answer")
    if task.config.doc_to_choice is not None and isinstance(target, int):
        target = task.doc_to_choice(doc)[target]
    return delimited(task, doc, str(target), chat)


def delimited(task: ConfigurableTask, doc: Doc, answer: str, chat: bool) -> str:
    """A generated answer with what parts it from the prompt in lm-eval's few-shot examples."""
    if prefix := task.doc_to_prefix(doc):
        return str(maybe_delimit(prefix, answer))[len(prefix) :]
    return f"{'' if chat else task.config.target_delimiter}{answer}"


def _first(target: Any) -> Any:
    return next(iter(target), None) if isinstance(target, list) else target


def chat_template_of(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """A tokenizer's chat template, as lm-eval's HFLM applies it."""

    def apply(messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        text = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return str(text)

    def without_system_if_refused(messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        try:
            return apply(messages, add_generation_prompt)
        except TemplateError:  # HFLM drops the system message then, and so must training
            return apply([message for message in messages if message["role"] != "system"], add_generation_prompt)

    return without_system_if_refused


@contextmanager
def templates_compiled_once() -> Iterator[None]:
    """Within it lm-eval keeps the templates of YAML files, which it compiles anew for every item (20 times slower)."""
    environment, compile_template = lm_eval.utils.env, lm_eval.utils.env.from_string
    environment.from_string = lru_cache(compile_template)
    try:
        yield
    finally:
        environment.from_string = compile_template
