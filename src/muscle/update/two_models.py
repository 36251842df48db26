"""References that need both task models at inference, and choose between answers that one of them gives by itself."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from scipy.special import log_softmax

from muscle.errors import MuscleError
from muscle.measure.statistics import FloatArray
from muscle.update.across.same_tokenizer import tokenizer_difference
from muscle.update.backends import LocalLM, in_process, load_on_device
from muscle.update.ensemble import Ensemble
from muscle.update.generation import Generated, can_refill, generate
from muscle.update.models import load_tokenizer
from muscle.update.packed import Answer
from muscle.update.recipe import EvaluationSettings, Reference, TaskModel
from muscle.update.tasks import Task

NOTHING_TO_MIX = (
    "the ensemble mixes what two models say of the next token, and these have different tokenizers: take gated in its "
    "place, which chooses between whole answers"
)
SAMPLES = 8
"""Answers that are drawn from the new model for the old one to rank, beside its own."""

NO_CANDIDATE = 1e9
"""Nats below the old model's log-likelihood at which a choice is logged that was no candidate: so much that it stays
below the candidates by characters or bytes too, and a number that every reader of a log can read."""


@dataclass(frozen=True)
class _Choice:
    """What both models say of one of an item's texts."""

    context: str
    old: Answer
    new: Answer


@dataclass(frozen=True)
class _Item:
    """What both models say of an item of multiple choice."""

    doc: int
    """Its number in its split."""
    texts: Mapping[int, _Choice]
    """All that lm-eval asks about it, by number."""
    choices: Sequence[int]
    """The numbers of those that are its choices, (C,)."""
    old: FloatArray
    """(C,) their total log-likelihoods under the old model."""
    new: FloatArray
    """(C,) those under the new model."""


class _Pair(LocalLM):
    """Both task models in this process, each with its own tokenizer. To lm-eval it is the new one, by its template.

    Args:
        old: The old task model.
        new: The new task model.
        settings: Of both. Log-likelihoods are those of each model alone, packed as ever.

    Raises:
        MuscleError: `settings.draws` is more than 1, which is not defined.
    """

    asked_for = "reranked and gated"
    """What messages speak of."""
    way_out = "leave these controls out"

    def __init__(self, old: TaskModel, new: TaskModel, settings: EvaluationSettings) -> None:
        if settings.draws > 1:
            raise MuscleError("reranked and gated answer each item once: leave draws at 1, or these controls out")
        settings = in_process(settings)
        super().__init__(load_on_device(new), load_tokenizer(new.base), settings)
        self._old = LocalLM(load_on_device(old), load_tokenizer(old.base), settings)
        self._seed = settings.seed

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Answer]:
        """Log-likelihoods from which the choice follows, item by item.

        Raises:
            MuscleError: An item has a single text, so that there is nothing to choose.
        """
        olds = self._old.loglikelihood(requests, disable_tqdm)
        news = super().loglikelihood(requests, disable_tqdm)
        items: dict[tuple[Any, Any], dict[int, _Choice]] = {}
        for request, old, new in zip(requests, olds, news, strict=True):  # a process may be asked the same twice
            choices = items.setdefault((request.task_name, request.doc_id), {})
            choices[request.idx] = _Choice(request.args[0], old, new)
        chosen = {item: self._answers(item, choices) for item, choices in items.items()}
        return [chosen[request.task_name, request.doc_id][request.idx] for request in requests]

    def _answers(self, item: tuple[Any, Any], texts: Mapping[int, _Choice]) -> Mapping[int, Answer]:
        """By number of the text. Texts without a context are no choices: lm-eval subtracts them (acc_mutual_info)."""
        choices = sorted([number for number, text in texts.items() if text.context] or texts)
        task, doc = item
        if len(choices) < 2:
            raise MuscleError(
                f"reranked and gated choose among an item's answers, of which task '{task}' scores a single one: "
                "leave these controls out"
            )
        old, new = (np.array([getattr(texts[n], side)[0] for n in choices]) for side in ("old", "new"))
        return self._choose(_Item(doc, texts, choices, old, new))

    @abstractmethod
    def _choose(self, item: _Item) -> Mapping[int, Answer]:
        """Answers by number of the text."""

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Not defined.

        Raises:
            MuscleError: Always.
        """
        raise MuscleError("reranked and gated choose between answers, and whole texts have none: leave these out")

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answer chosen for each request of (prompt, gen_kwargs).

        Raises:
            MuscleError: A model generates in a way in which the tokens of its answers are not kept.
        """
        for lm in (self, self._old):
            if not can_refill(lm, requests):
                raise MuscleError(
                    f"{self.asked_for} generate with stop strings, lengths and sampling alone, and with models that "
                    f"keep keys and values by token: {self.way_out}, or change the task's generation_kwargs"
                )
        return [answer.text for answer in self._generated([request.args for request in requests], disable_tqdm)]

    @abstractmethod
    def _generated(self, asked: Sequence[tuple[str, dict[str, Any]]], disable_tqdm: bool) -> Iterator[Generated]:
        """The chosen answers to pairs of a prompt and its gen_kwargs."""


class Apart(LocalLM):
    """The ensemble of two models with different tokenizers: the mean of their log-likelihoods of each whole text.

    That is all that can be said without a common next token: choices are ranked as by the product of both models'
    probabilities, and nothing can be generated.
    """

    def __init__(self, old: TaskModel, new: TaskModel, settings: EvaluationSettings) -> None:
        settings = in_process(settings)
        super().__init__(load_on_device(new), load_tokenizer(new.base), settings)
        self._old = LocalLM(load_on_device(old), load_tokenizer(old.base), settings)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Answer]:
        """(mean of both log-likelihoods, whether both models would write the text themselves) of each request."""
        olds = self._old.loglikelihood(requests, disable_tqdm)
        news = super().loglikelihood(requests, disable_tqdm)
        return [((old[0] + new[0]) / 2, old[1] and new[1]) for old, new in zip(olds, news, strict=True)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Mean of both models' log-likelihoods of each text."""
        olds = self._old.loglikelihood_rolling(requests, disable_tqdm)
        news = super().loglikelihood_rolling(requests, disable_tqdm)
        return [(old + new) / 2 for old, new in zip(olds, news, strict=True)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Not defined.

        Raises:
            MuscleError: Always.
        """
        raise MuscleError(NOTHING_TO_MIX)


class Reranked(_Pair):
    """Backward-congruent re-ranking: of the new model's answers that which the old model finds likeliest.

    Cai et al., Measuring and Reducing Model Update Regression in Structured Prediction for NLP, NeurIPS 2022. They draw
    candidates with dropout at inference, which language models mostly have none of; here they are ancestral samples:
    of generated answers `SAMPLES` at temperature 1 from the whole vocabulary (unless the task's generation_kwargs cut
    that down), of choices as many from the softmax of their total log-likelihoods. The answer that the new model gives
    by itself is a candidate as well, the first one, which wins ties.

    Generated candidates are ranked by the log-likelihood of all of their tokens, with those that ended them, not
    divided by their number; both models must then share a tokenizer. Of choices the log holds the old model's
    log-likelihoods, less `NO_CANDIDATE` for those that were no candidates, so that each metric ranks the candidates as
    the old model does under that metric: acc by the total, acc_norm by that per character.
    """

    def _choose(self, item: _Item) -> Mapping[int, Answer]:
        draws = np.random.default_rng([self._seed, item.doc])  # whichever process it falls to
        p = np.exp(log_softmax(item.new))
        places = {int(item.new.argmax()), *draws.choice(len(p), size=SAMPLES, p=p / p.sum()).tolist()}
        answers = {number: text.old for number, text in item.texts.items()}
        for place, number in enumerate(item.choices):
            if place not in places:
                answers[number] = (item.texts[number].old[0] - NO_CANDIDATE, False)
        return answers

    def _generated(self, asked: Sequence[tuple[str, dict[str, Any]]], disable_tqdm: bool) -> Iterator[Generated]:
        own = generate(self, asked, disable_tqdm)
        repeated = [(prompt, _sampling(kwargs)) for prompt, kwargs in asked for _ in range(SAMPLES)]
        sampled = generate(self, repeated, disable_tqdm)
        candidates = [[first, *sampled[i * SAMPLES : (i + 1) * SAMPLES]] for i, first in enumerate(own)]
        prompts = [prompt for (prompt, _), each in zip(asked, candidates, strict=True) for _ in each]
        answers = [answer for each in candidates for answer in each]
        self._refuse_other_tokens(prompts, answers)
        scores = iter(_log_likelihoods(self._old, prompts, answers))
        for each in candidates:
            ranked = [next(scores) for _ in each]
            yield each[ranked.index(max(ranked))]

    def _refuse_other_tokens(self, prompts: Sequence[str], answers: Sequence[Generated]) -> None:
        alike = self.eot_token_id == self._old.eot_token_id
        alike = alike and all(self.tok_encode(prompt) == self._old.tok_encode(prompt) for prompt in set(prompts))
        if not (alike and all(self._old.tok_decode(each.tokens) == self.tok_decode(each.tokens) for each in answers)):
            raise MuscleError(
                "reranked needs an old model that reads the new one's tokens, and their tokenizers differ: leave it out"
            )


class Gated(_Pair):
    """Of each item the answer of the model that is surer of it; the new one where both are equally sure.

    Of choices a model is as sure as the largest of its probabilities, by the softmax of their total log-likelihoods;
    the log holds that model's log-likelihoods of all of the item's texts, so that all metrics of the item are those of
    one model. Of generated answers, each decoded as the task says, a model is as sure as the mean log-probability of
    its answer's tokens, with those that ended it, is high. The finer a tokenizer, the likelier each of its tokens:
    where both read the prompt or an answer as different tokens, the sum over the tokens is divided by the UTF-8 bytes
    of the answer instead (an empty one has 1).
    """

    def _choose(self, item: _Item) -> Mapping[int, Answer]:
        surer_old = log_softmax(item.old).max() > log_softmax(item.new).max()
        return {number: text.old if surer_old else text.new for number, text in item.texts.items()}

    def _generated(self, asked: Sequence[tuple[str, dict[str, Any]]], disable_tqdm: bool) -> Iterator[Generated]:
        prompts = [prompt for prompt, _ in asked]
        scored = []
        for lm in (self, self._old):
            answers = generate(lm, asked, disable_tqdm)
            scored.append([*zip(answers, _log_likelihoods(lm, prompts, answers), strict=True)])
        for prompt, (new, new_total), (old, old_total) in zip(prompts, *scored, strict=True):
            texts = prompt, new.text, old.text
            alike = all(self.tok_encode(text) == self._old.tok_encode(text) for text in texts)
            new_length, old_length = (
                len(each.tokens) if alike else max(1, len(each.text.encode())) for each in (new, old)
            )
            yield old if old_total / old_length > new_total / new_length else new


def reference(name: Reference, old: TaskModel, new: TaskModel, task: Task, settings: EvaluationSettings) -> LocalLM:
    """Both task models at inference, as the control of that name has them.

    Raises:
        MuscleError: A model cannot be loaded, or the settings are not defined for it.
    """
    if name == "reranked":
        return Reranked(old, new, settings)
    if name == "gated":
        return Gated(old, new, settings)
    difference = tokenizer_difference(old.base, new.base, load_tokenizer(new.base), task)
    return (Apart if difference else Ensemble)(old, new, settings)


def _sampling(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """As `draws` samples: transformers keeps 50 tokens where nothing is said."""
    return {"top_k": 0, "top_p": 1.0, **kwargs, "do_sample": True, "temperature": 1.0}


def _log_likelihoods(lm: LocalLM, prompts: Sequence[str], answers: Sequence[Generated]) -> list[float]:
    """Log-likelihood of each answer's tokens after its prompt; -inf with tokens that the model has no row for."""
    rows = lm.model.config.get_text_config().vocab_size
    known = [max(answer.tokens) < rows for answer in answers]
    asked = [
        (None, lm.tok_encode(prompt), answer.tokens)
        for prompt, answer, has_rows in zip(prompts, answers, known, strict=True)
        if has_rows
    ]
    found = iter(lm._loglikelihood_tokens(asked, disable_tqdm=True))
    return [next(found)[0] if has_rows else -math.inf for has_rows in known]
