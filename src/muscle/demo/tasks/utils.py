"""Loads the data that lies beside the task definitions, so that the folder works wherever it is put."""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict


def scenes(**_: Any) -> DatasetDict:
    """Splits of the scenes task."""
    return _load("scenes")


def sums(**_: Any) -> DatasetDict:
    """Splits of the sums task."""
    return _load("sums")


def _load(task: str) -> DatasetDict:
    folder = Path(__file__).parent / task
    splits = {}
    for path in sorted(folder.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        splits[path.stem] = Dataset.from_list(rows)
    return DatasetDict(splits)
