"""The JSON keeps its promises: every key is documented, and what stands in it is the Comparison."""

import dataclasses
import json
from pathlib import Path

import pytest

from muscle.measure import Alignment, Comparison, Update, compare
from muscle.measure.report.json import to_json

from .conftest import WriteRows

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "logs.md"
UPDATE_KEYS = {field.name for field in dataclasses.fields(Update)}


@pytest.fixture
def comparison(tmp_path: Path, write_rows: WriteRows) -> Comparison:
    """Three logs of two tasks."""
    for log, outcomes in {"old": (1, 1, 0), "new": (0, 1, 1), "compatible": (1, 1, 0)}.items():
        for task in ("piqa", "gsm8k"):
            write_rows(f"{log}/{task}.jsonl", [{"id": i, "correct": right} for i, right in enumerate(outcomes)])
    return compare(tmp_path / "old", tmp_path / "new", tmp_path / "compatible")


def test_layout(comparison: Comparison) -> None:
    document = json.loads(to_json(comparison))
    top = {"schema", "muscle", "inputs", "seed", "resamples", "notes", "compatible", "alignment", "tasks"}
    assert set(document) == top | UPDATE_KEYS
    assert set(document["compatible"]) == UPDATE_KEYS
    assert set(document["tasks"]) == {"piqa", "gsm8k"}
    assert set(document["tasks"]["piqa"]) == UPDATE_KEYS | {"compatible", "alignment"}
    assert set(document["inputs"]["compatible"]) == {"path", "format", "rows", "sha256", "metric", "filter"}
    assert (document["n"], document["tasks"]["piqa"]["n"]) == (6, 3)
    assert document["tasks"]["gsm8k"]["alignment"] == dataclasses.asdict(comparison.tasks["gsm8k"].alignment)


def test_every_key_is_documented() -> None:
    text = DOCUMENTATION.read_text()
    keys = UPDATE_KEYS | {field.name for field in dataclasses.fields(Alignment)}
    assert {key for key in keys if f"`{key}`" not in text} == set()
