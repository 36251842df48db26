"""Run folders written by hand: a recipe, and lm-eval samples logs of a few items."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

DATE = "2026-01-02T03-04-05.678901"


def write_log(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A model's log as lm-eval lays it out: a folder named after the model, with a file per task."""
    file = folder / "model" / f"samples_task_{DATE}.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def choices(answers: str) -> list[dict[str, Any]]:
    """Items of three choices, of which the first is right; one digit per item: the choice taken."""
    return [
        _row(item, "acc", float(answer == "0"))
        | {"filtered_resps": [[str(-1.0 - (choice != int(answer))), "False"] for choice in range(3)], "target": "0"}
        for item, answer in enumerate(answers)
    ]


def texts(answers: Sequence[str], metric: str = "exact_match") -> list[dict[str, Any]]:
    """Items that were answered by a text; "right" is right."""
    return [
        _row(item, metric, float(answer == "right")) | {"filtered_resps": [answer], "target": "right"}
        for item, answer in enumerate(answers)
    ]


def graded(grades: Sequence[float], **others: Any) -> list[dict[str, Any]]:
    """Items whose answers have a ROUGE."""
    return [
        _row(item, "rouge1", grade) | {"filtered_resps": [f"text {grade}"], "target": "a text"} | others
        for item, grade in enumerate(grades)
    ]


def _row(item: int, metric: str, value: float) -> dict[str, Any]:
    return {
        "doc_id": item,
        "doc": {},
        "arguments": {},
        "resps": [],
        "filter": "none",
        "doc_hash": f"{item:064x}",
        "metrics": [metric],
        metric: value,
    }


def write_run(run: Path, recipe: Mapping[str, Any], logs: Mapping[str, Iterable[Mapping[str, Any]]]) -> Path:
    """A run folder; logs by "<task>/<model>", tasks in their order there."""
    tasks = {name.partition("/")[0]: {} for name in logs}
    content = {"old": {"base": "models/v1"}, "new": {"base": "models/v2"}, "tasks": tasks, **recipe}
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"recipe": content, "muscle": "0"}))
    for name, rows in logs.items():
        write_log(run / "logs" / name, rows)
    return run
