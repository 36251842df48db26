"""What the YAML files beside this one cannot say: labels as names, and ROUGE."""

from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel, Dataset

from muscle.measure.similarity import scorer

_ROUGE = {name: scorer(name) for name in ("rouge1", "rouge2", "rougeL")}


def in_scope(dataset: Dataset) -> Dataset:
    """CLINC150's requests that have an intent, which becomes the field `name` in words."""
    labels = dataset.features["intent"]
    name_of = labels.int2str if isinstance(labels, ClassLabel) else str
    named = dataset.map(lambda doc: {"name": name_of(doc["intent"]).replace("_", " ")})
    return named.filter(lambda doc: doc["name"] != "oos")


def score_description(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """ROUGE of a description of E2E, the best of its references."""
    return _rouge(results[0], doc["references"])


def score_summary(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """ROUGE of a summary of SAMSum."""
    return _rouge(results[0], [doc["summary"]])


def _rouge(answer: str, references: Sequence[str]) -> dict[str, float]:
    return {name: score(answer, references) for name, score in _ROUGE.items()}
