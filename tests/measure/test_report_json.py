"""The JSON keeps its promises: every key is documented, and what stands in it is the Comparison."""

import dataclasses
import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from muscle.measure import Alignment, Comparison, Smooth, Update, compare
from muscle.measure.repeats import Repeats
from muscle.measure.report.json import to_json
from muscle.measure.report.terminal import print_comparison
from muscle.measure.results import Input

from .conftest import WriteRows

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "json.md"
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
    top = {"schema", "muscle", "signature", "inputs", "missing", "confidence", "seed", "resamples", "settings"}
    top |= {"cluster", "clusters", "notes", "compatible", "alignment", "tasks", "items"}
    assert set(document) == top | UPDATE_KEYS
    assert set(document["compatible"]) == UPDATE_KEYS
    assert set(document["tasks"]) == {"piqa", "gsm8k"}
    assert set(document["tasks"]["piqa"]) == UPDATE_KEYS | {"compatible", "alignment"}
    assert set(document["inputs"]["compatible"]) == {"path", "format", "rows", "sha256", "metric", "filter", "score"}
    assert (document["n"], document["tasks"]["piqa"]["n"]) == (6, 3)
    assert document["tasks"]["gsm8k"]["alignment"] == json.loads(
        json.dumps(dataclasses.asdict(comparison.tasks["gsm8k"].alignment))
    )


def test_the_terminal_s_alignment_rows_are_the_json_s_values(write_rows: WriteRows) -> None:
    """Cells unlike each other, so that no row can stand for another: 5 flips fixed, 2 made, 3 kept."""
    kinds = {(1, 0, 1): 5, (1, 0, 0): 3, (1, 1, 0): 2, (0, 0, 1): 4, (0, 1, 0): 1, (1, 1, 1): 30, (0, 0, 0): 6}
    items = [kind for kind, count in kinds.items() for _ in range(count)]
    files = [
        write_rows(f"{log}.jsonl", [{"id": i, "correct": item[log]} for i, item in enumerate(items)])
        for log in range(3)
    ]
    comparison = compare(*files)
    terminal = io.StringIO()
    print_comparison(comparison, Console(file=terminal, width=120))
    _, alignment_rows = terminal.getvalue().split("compatible against new")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in alignment_rows.splitlines()]
    shown = {
        row[0]: [float(number) for number in re.findall(r"[-+]?\d+\.?\d*", row[2])] for row in cells if len(row) > 2
    }

    alignment = json.loads(to_json(comparison))["alignment"]
    assert (alignment["fixed"], alignment["made"]) == (5, 2)
    for label, key, scale in (
        ("accuracy", "delta_accuracy", 100),
        ("dNFR_c", "delta_nfr", 100),
        ("d%NFR_c *", "nfr_change_percent", 1),
    ):
        rate = alignment[key]
        assert shown[label] == pytest.approx([scale * rate[end] for end in ("value", "low", "high")], abs=0.005)
    assert shown["flips fixed"] == [alignment["fixed"]]
    assert shown["flips newly made"] == [alignment["made"]]
    assert shown["McNemar mid-p"] == pytest.approx([alignment["mid_p"]], abs=5e-5)


def test_every_key_is_documented() -> None:
    text = DOCUMENTATION.read_text()
    kinds = (Update, Alignment, Smooth, Repeats, Input)
    keys = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert {key for key in keys if f"`{key}`" not in text} == set()
