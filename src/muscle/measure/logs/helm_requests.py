"""What a HELM run asked and got, from scenario_state.json: the predicted answer, the true ones, the texts.

Read off HELM itself: `benchmark/adaptation/request_state.py` and `benchmark/metrics` (basic_metrics.py,
evaluate_reference_metrics.py), whose predicted answer is rebuilt here.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from muscle.measure.logs.documents import at, content_hash, read_document
from muscle.measure.logs.rows import as_text

Key = tuple[str, str, int]
"""An item: the instance's id, its perturbation as `perturbation_key` writes it, and the number of the training set."""

# What a perturbation's description says beside what it did.
_NOT_DONE = ("name", "robustness", "fairness", "computed_on")


class _Token(msgspec.Struct):
    text: str = ""
    logprob: float = 0.0


class _Completion(msgspec.Struct):
    text: str = ""
    logprob: float = 0.0
    tokens: list[_Token] | None = None


class _Result(msgspec.Struct):
    completions: list[_Completion] = []


class _Reference(msgspec.Struct):
    output: Any = None
    tags: list[str] = []

    @property
    def text(self) -> str:
        return _text(self.output) or ""


class _Instance(msgspec.Struct):
    id: str
    input: Any = None
    references: list[_Reference] = []
    perturbation: dict[str, Any] | None = None
    split: Any = None
    sub_split: Any = None
    extra_data: Any = None


class Request(msgspec.Struct):
    """One request and its result; where each choice is scored on its own, an item has several."""

    instance: _Instance
    train_trial_index: int = 0
    reference_index: int | None = None
    request_mode: str | None = None
    output_mapping: dict[str, str] | None = None
    result: _Result | None = None


class _State(msgspec.Struct):
    request_states: list[Request] = []


def read_requests(file: Path) -> dict[Key, list[Request]]:
    """The requests by item.

    Raises:
        LogError: The file is not a scenario state.
    """
    requests: dict[Key, list[Request]] = {}
    for request in read_document(file, msgspec.json.Decoder(_State)).request_states:
        instance = request.instance
        key = instance.id, perturbation_key(instance.perturbation), request.train_trial_index
        requests.setdefault(key, []).append(request)
    return requests


def perturbation_key(perturbation: Mapping[str, Any] | None) -> str:
    """What was done to an instance, such as "misspellings(prob=0.1)"; empty where nothing was."""
    if not perturbation:
        return ""
    done = {name: value for name, value in perturbation.items() if name not in _NOT_DONE}
    settings = ",".join(f"{name}={json.dumps(value, sort_keys=True)}" for name, value in sorted(done.items()))
    name = as_text(perturbation.get("name")) or "?"
    return f"{name}({settings})" if settings else name


def answer(requests: Sequence[Request], stats: Mapping[str, float | None]) -> str | None:
    """The predicted answer in words; None where it cannot be told."""
    first = requests[0]
    if first.reference_index is None:
        return _completion(first)
    references = first.instance.references
    index = stats.get("predicted_index")  # since HELM 0.2.1
    if index is None:
        index = _likeliest(requests, len(references))
    chosen = references[int(index)].text if index is not None and 0 <= index < len(references) else None
    exact = stats.get("exact_match")
    agrees = chosen is not None and (exact is None or (exact > 0) == (chosen in targets(first)))
    return chosen if agrees else None


def targets(request: Request) -> tuple[str, ...]:
    """The references that are tagged as correct."""
    return tuple(reference.text for reference in request.instance.references if "correct" in reference.tags)


def question(request: Request) -> str | None:
    """What was asked, without the examples before it."""
    return _text(request.instance.input)


def item_hash(request: Request) -> str:
    """Of the question and its references."""
    instance = request.instance
    return content_hash([_text(instance.input), [reference.text for reference in instance.references]])


def _completion(request: Request) -> str | None:
    """The likeliest completion; of a multiple choice, the text that its letter stands for, if it stands for one."""
    if request.result is None or not request.result.completions:
        return None
    text = max(request.result.completions, key=lambda completion: completion.logprob).text.strip()
    return (request.output_mapping or {}).get(text, text)


def _likeliest(requests: Sequence[Request], choices: int) -> int | None:
    """The choice with the highest log-likelihood, per token or against that without the question (calibration)."""
    totals: dict[tuple[int | None, str | None], tuple[float, int]] = {}
    for request in requests:
        found = _log_likelihood(request)
        if found is None:
            return None
        totals[request.reference_index, request.request_mode or "original"] = found
    scores = []
    for index in range(choices):
        total, tokens = totals.get((index, "original"), (0.0, 0))
        prior, _ = totals.get((index, "calibration"), (None, 0))
        if not tokens:
            return None
        scores.append(total / tokens if prior is None else total - prior)
    return max(range(choices), key=scores.__getitem__, default=None)


def _log_likelihood(request: Request) -> tuple[float, int] | None:
    """Log-likelihood and number of the tokens at the end that spell the reference; None where none do."""
    references, index = request.instance.references, request.reference_index
    if index is None or not 0 <= index < len(references) or request.result is None or not request.result.completions:
        return None
    wanted = references[index].text.strip()
    spelled, total = "", 0.0
    for count, token in enumerate(reversed(request.result.completions[0].tokens or ()), 1):
        spelled = token.text + spelled
        total += token.logprob
        if spelled.strip() == wanted:
            return total, count
        if len(spelled) > len(wanted) + 1:
            break
    return None


def _text(content: object) -> str | None:
    """A text, or the text in {"text": ...}; the first HELM wrote the text itself."""
    return as_text(at(content, "text")) if isinstance(content, dict) else as_text(content)
