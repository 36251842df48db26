"""What one row of an lm-eval samples log says: the predicted answer, and the texts that a person reads.

Read off the harness itself (0.4.13): `api/task.py` process_results picks the answer that its metrics judge.
"""

import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Annotated, Any, Literal

import msgspec

from muscle.errors import quoted
from muscle.measure.logs.rows import BadRowError, as_text

# Metrics that divide a choice's log-likelihood by the choice's length before taking the best.
LENGTHS: dict[str | None, Callable[[str], int]] = {
    "acc_norm": len,
    "acc_bytes": lambda choice: len(choice.encode(errors="surrogatepass")),
}

# A text and a list of texts as Python prints them: ast.literal_eval takes 10 s and 500 MB for a megabyte.
_ESCAPE = r"""\\(?:[\\'"nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U00(?:0[0-9a-f]|10)[0-9a-f]{4})"""
_QUOTED = rf"""(?:'(?:[^'\\\n]++|{_ESCAPE})*+'|"(?:[^"\\\n]++|{_ESCAPE})*+")"""
_TEXT, _TEXT_LIST = re.compile(_QUOTED), re.compile(rf"\[{_QUOTED}(?:, ?{_QUOTED})*+\]")
LONGEST_INDEX = 9  # digits


class Response(msgspec.Struct, array_like=True, gc=False):
    """[log-likelihood, is_greedy]; both are texts in most versions, which the decoder turns into what they mean."""

    log_likelihood: Annotated[float, msgspec.Meta(le=sys.float_info.max)]
    """Not NaN, which keeps no limit."""
    is_greedy: Literal["True", "False"] | bool


_LOG_LIKELIHOOD: Callable[[Response], float] = attrgetter("log_likelihood")


class Argument(msgspec.Struct, gc=False):
    """One request to the model, since 0.4.3; what it does not name is skipped."""

    arg_1: Any = None


class ArgumentPair(msgspec.Struct, array_like=True, gc=False):
    """One request to the model, before 0.4.3."""

    arg_0: Any = None
    arg_1: Any = None


class FullArgument(Argument, gc=False):
    """With the prompt, which is long."""

    arg_0: Any = None


class Sample(msgspec.Struct, gc=False, kw_only=True):
    """The fields of a row that are always read."""

    doc_id: int | str | float
    filtered_resps: list[Any]
    """Of Response, where the rows of the file are known to be multiple choice."""
    target: Any = None
    filter: str | None = None
    doc_hash: str | None = None


class SampleWithChoices(Sample, gc=False, kw_only=True):
    """With what the lengths of the choices are counted from."""

    arguments: dict[str, Argument] | list[ArgumentPair] = {}


class SampleWithTexts(Sample, gc=False, kw_only=True):
    """With everything that there is to show."""

    arguments: dict[str, FullArgument] | list[ArgumentPair] = {}
    doc: Any = None


def answer_rule(metric: str | None, *, doubled: bool) -> Callable[[Sample], str | None]:
    """How the metric gets the predicted answer from a row.

    A choice's index by the highest log-likelihood (multiple choice), `is_greedy` (a single log-likelihood), or the
    filtered text (generation).

    Args:
        metric: The metric that decides right or wrong.
        doubled: With acc_mutual_info the unconditional log-likelihoods of all choices follow the conditional ones.
    """
    simple = not doubled and metric not in LENGTHS

    def answer(row: Sample) -> str | None:
        responses = row.filtered_resps
        if simple and len(responses) > 1 and type(responses[0]) is Response:  # as nearly all rows of most logs
            values = list(map(_LOG_LIKELIHOOD, responses))
            return str(values.index(max(values)))
        try:
            scores = log_likelihoods(responses)
            if scores is None:
                return as_text(responses[0]) if responses else None
            if len(scores) == 1:
                return as_text(responses[0].is_greedy if type(responses[0]) is Response else responses[0][1])
            if not simple:
                scores = _as_judged(row, scores, metric, doubled=doubled)
            if any(map(math.isnan, scores)):
                raise BadRowError("a log-likelihood is NaN")
        except BadRowError as fault:
            unscored = f", or set {metric} to null (unscored)" if metric else ""
            raise BadRowError(f"{fault}; evaluate the item again{unscored}") from None
        return str(scores.index(max(scores)))

    return answer


def log_likelihoods(responses: Sequence[Any]) -> list[float] | None:
    """The log-likelihood of every response; None where the responses are texts.

    Raises:
        BadRowError: Some are, some are not.
    """
    if responses and type(responses[0]) is Response:
        return list(map(_LOG_LIKELIHOOD, responses))
    values = [_log_likelihood(response) for response in responses]
    known = [value for value in values if value is not None]
    if not known:
        return None
    if len(known) < len(values):
        raise BadRowError(f"{quoted(responses[values.index(None)])} stands among the log-likelihoods")
    return known


def _log_likelihood(response: object) -> float | None:
    """The first of [log-likelihood, is_greedy]; None for anything else."""
    if not isinstance(response, list) or len(response) != 2 or str(response[1]) not in ("True", "False"):
        return None
    try:
        return float(response[0])
    except (TypeError, ValueError, OverflowError):
        return None


def _as_judged(row: Sample, scores: list[float], metric: str | None, *, doubled: bool) -> list[float]:
    """What the metric takes the highest of, by choice."""
    total = len(scores)
    if doubled:
        if total % 2:
            raise BadRowError(f"{total} log-likelihoods are not two per choice, which acc_mutual_info needs")
        scores, unconditional = scores[: total // 2], scores[total // 2 :]
        if metric == "acc_mutual_info":
            return [score - prior for score, prior in zip(scores, unconditional, strict=True)]
    if metric in LENGTHS:
        continuations = [argument.arg_1 for argument in _arguments(row)]
        if len(continuations) != total:
            raise BadRowError(f"arguments holds {len(continuations)} choices for {total} log-likelihoods")
        lengths = _choice_lengths(continuations[: len(scores)], LENGTHS[metric])
        return [score / length for score, length in zip(scores, lengths, strict=True)]
    return scores


def _arguments(row: Sample) -> list[Any]:
    arguments = row.arguments if isinstance(row, SampleWithChoices | SampleWithTexts) else []
    return list(arguments.values()) if isinstance(arguments, dict) else list(arguments)


def _choice_lengths(choices: Sequence[object], length: Callable[[str], int]) -> list[int]:
    """Length of each choice, without the one blank that the harness puts before every choice by default."""
    texts = []
    for choice in choices:
        if not isinstance(choice, str):
            raise BadRowError(f"arguments has {quoted(choice)} where a choice's text (arg_1) should be")
        texts.append(choice)
    if all(text.startswith(" ") for text in texts):
        texts = [text[1:] for text in texts]
    return [max(length(text), 1) for text in texts]


def targets_of(value: object) -> tuple[str, ...]:
    """The true answers: several where the target is a list, which 0.4.3 and later write as Python prints it."""
    if isinstance(value, str):
        return tuple(map(_unquoted, _TEXT.findall(value))) if _TEXT_LIST.fullmatch(value) else (value,)
    texts = map(as_text, value if isinstance(value, list | tuple) else [value])
    return tuple(text for text in texts if text is not None)


def _unquoted(text: str) -> str:
    return text[1:-1].encode("latin-1", "backslashreplace").decode("unicode_escape")


def in_words(
    row: SampleWithTexts, answer: str | None, *, doubled: bool
) -> tuple[str | None, str | None, tuple[str, ...]]:
    """The prompt, the answer and the targets as a person reads them.

    Args:
        row: The row.
        answer: What `answer_rule` got from it.
        doubled: As of `answer_rule`.
    """
    arguments = _arguments(row)
    prompt = prompt_text(arguments[0].arg_0) if arguments else None
    targets = targets_of(row.target)
    number = len(row.filtered_resps)
    if number < 2 or number != len(arguments) or log_likelihoods(row.filtered_resps) is None:
        return prompt, answer, targets
    choices = _choices(arguments[: number // 2 if doubled else number], row.doc)

    def named(index: str) -> str:
        is_index = index.isdecimal() and len(index) <= LONGEST_INDEX and int(index) < len(choices)
        return choices[int(index)] if is_index else index

    return prompt, None if answer is None else named(answer), tuple(map(named, targets))


def _choices(arguments: Sequence[Any], doc: object) -> list[str]:
    """Each choice with its index or letter: "1: gravity", "B: gravity"."""
    texts = [str(as_text(argument.arg_1)).strip() for argument in arguments]
    if len(set(texts)) == 1 and len(texts) > 1:  # the choices stand in the prompts, and the endings are the same
        texts = unlike_parts([str(as_text(argument.arg_0)) for argument in arguments])[1]
    if isinstance(doc, dict) and all(len(text) <= 2 for text in texts):  # letters say little
        for field in ("choices", "options"):
            full = doc.get(field)
            full = full.get("text") if isinstance(full, dict) else full
            if isinstance(full, list) and len(full) == len(texts) and full != texts:
                return [f"{text}: {as_text(choice)}" for text, choice in zip(texts, full, strict=True)]
    return [f"{i}: {text}" for i, text in enumerate(texts)]


def unlike_parts(texts: Sequence[str]) -> tuple[str, list[str]]:
    """What the texts begin with in common, in whole words, and what follows in each."""
    common = os.path.commonprefix(texts)  # noqa: RUF071  # character by character is what is meant
    end = max(common.rfind(" "), common.rfind("\n")) + 1
    return common[:end], [text[end:].strip() for text in texts]


def prompt_text(prompt: object) -> str | None:
    """A prompt as text; a chat as its messages, each after its role."""
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt.startswith('[{"'):
        try:
            messages = json.loads(prompt)
            return "\n\n".join(f"{message['role']}: {as_text(message['content'])}" for message in messages)
        except (ValueError, TypeError, KeyError, RecursionError):
            pass  # a prompt that only looks like a chat
    return as_text(prompt)
