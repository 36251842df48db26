"""One item of an lm-eval task as training texts: the very prompt of its evaluation, and what may follow it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import lm_eval.utils
from jinja2 import TemplateError
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.api.utils import maybe_delimit
from transformers import PreTrainedTokenizerBase

from muscle.errors import MuscleError, quoted

ChatTemplate = Callable[..., str]
"""(messages, add_generation_prompt) -> prompt; what lm-eval calls to put messages through a chat template."""


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


def render(
    task: ConfigurableTask, doc: dict[str, Any], system_instruction: str | None, chat: ChatTemplate | None
) -> Example:
    """One item of an lm-eval task as training text: the prompt of a zero-shot evaluation and the gold continuation.

    Of several right answers the first counts, as in lm-eval's own few-shot examples.

    Raises:
        MuscleError: The item has no gold answer, or is not text.
    """
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return Example("", str(task.doc_to_target(doc)))
    asked = requests(task, doc, system_instruction, chat)
    if task.OUTPUT_TYPE == "generate_until":
        return Example(asked[0].args[0], _generated(task, doc, chat is not None))
    return Example(*asked[_gold(task, doc) if task.OUTPUT_TYPE == "multiple_choice" else 0].args[:2])


def render_choices(
    task: ConfigurableTask, doc: dict[str, Any], item: int, system_instruction: str | None, chat: ChatTemplate | None
) -> list[Example]:
    """One item of multiple choice as the texts that lm-eval scores, one for each choice and in their order.

    Raises:
        MuscleError: The item has no gold answer, or is not text.
    """
    gold = _gold(task, doc)
    return [
        Example(request.args[0], request.args[1], item, right=choice == gold)
        for choice, request in enumerate(requests(task, doc, system_instruction, chat))
    ]


def requests(
    task: ConfigurableTask, doc: dict[str, Any], system_instruction: str | None, chat: ChatTemplate | None
) -> list[Instance]:
    """What lm-eval asks a model about an item without shots: one request, or one for each choice.

    Raises:
        MuscleError: The item is not text.
    """
    if task.config.doc_to_image or task.config.doc_to_audio:
        raise MuscleError("its prompt holds more than text")
    context = task.fewshot_context(
        doc,
        num_fewshot=0,
        system_instruction=system_instruction,
        apply_chat_template=chat is not None,
        fewshot_as_multiturn=True,
        chat_template=chat,
        gen_prefix=task.doc_to_prefix(doc),
    )
    asked = task.construct_requests(doc, context, apply_chat_template=chat is not None, metadata=(task.task_name, 0, 1))
    # With acc_mutual_info the choices without context follow.
    return asked[: len(task.doc_to_choice(doc))] if isinstance(asked, list) else [asked]


def without_labels(task: ConfigurableTask) -> ConfigurableTask:
    """A copy of the task whose prompts and choices are made without a look at the label, which items may then lack."""
    blind = copy.copy(task)
    if task.multiple_input:  # the text is the number of the gold choice, the target what follows each choice
        blind.doc_to_text = lambda *_: 0
    else:
        blind.doc_to_target = lambda *_: None
    return blind


def _gold(task: ConfigurableTask, doc: dict[str, Any]) -> int:
    """Index of the gold choice."""
    choices: list[str] = task.doc_to_choice(doc)
    gold = _first(task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc))
    if isinstance(gold, str) and gold in choices:
        return choices.index(gold)
    if isinstance(gold, int) and 0 <= gold < len(choices):
        return gold
    raise MuscleError(f"its answer {quoted(gold)} is none of its {len(choices)} choices")


def _generated(task: ConfigurableTask, doc: dict[str, Any], chat: bool) -> str:
    """The text to generate, with what parts it from the prompt in lm-eval's few-shot examples."""
    target = _first(task.doc_to_target(doc))
    if target is None:
        raise MuscleError("it has no answer")
    if task.config.doc_to_choice is not None and isinstance(target, int):
        target = task.doc_to_choice(doc)[target]
    return delimited(task, doc, str(target), chat)


def delimited(task: ConfigurableTask, doc: dict[str, Any], answer: str, chat: bool) -> str:
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
