"""The Comparison as JSON (documented in docs/json.md): the same inputs give the same bytes."""

from pathlib import Path
from typing import Any

import msgspec

from muscle import __version__
from muscle.measure.gate import Verdict
from muscle.measure.measures import notable
from muscle.measure.report.files import write_whole
from muscle.measure.report.text import signature
from muscle.measure.results import Comparison, Measures

SCHEMA = 2


def to_json(comparison: Comparison, verdict: Verdict | None = None) -> bytes:
    """Render as UTF-8 JSON, indented, with a final newline; undefined values are null."""
    document = {
        "schema": SCHEMA,
        "muscle": __version__,
        "signature": signature(comparison),
        **({"verdict": verdict} if verdict else {}),
        "inputs": comparison.inputs,
        "missing": comparison.missing,
        "confidence": comparison.confidence,
        "seed": comparison.seed,
        "resamples": comparison.resamples,
        "settings": comparison.settings,
        "cluster": comparison.cluster,
        "clusters": comparison.clusters,
        "notes": comparison.notes,
        **_flat(comparison.total),
    }
    if len(comparison.tasks) > 1:
        document["tasks"] = {name: _flat(task) for name, task in comparison.tasks.items()}
    if comparison.slices:
        document["slices"] = [
            {"column": part.column, "value": part.value, "q_value": part.q_value, **_flat(part.measures)}
            for part in comparison.slices
        ]
    if comparison.repeats:
        document["repeats"] = comparison.repeats
    document["items"] = _items(comparison)
    return msgspec.json.format(msgspec.json.encode(_encodable(msgspec.to_builtins(document))), indent=2) + b"\n"


def write_json(comparison: Comparison, file: Path, verdict: Verdict | None = None) -> None:
    """Write `to_json` to a file, whole or not at all.

    Raises:
        MuscleError: The file cannot be written, or one of the logs is read from it.
    """
    write_whole(comparison, file, to_json(comparison, verdict))


def _items(comparison: Comparison) -> dict[str, list[dict[str, Any]]]:
    """The items that people want to see by name, in the order of the old log."""
    items: dict[str, list[dict[str, Any]]] = {}
    for task in comparison.items:
        for kind, rows in notable(task).items():
            named = items.setdefault(kind, [])
            for item, draw in task.items(rows):
                named.append({"task": task.task, "id": item} | ({"draw": draw} if task.asked else {}))
    for kind, changed in comparison.reliable.items():
        items[kind] = [{"task": task, "id": item} for task, item in changed]
    return items


def _encodable(value: Any) -> Any:
    """The same value with the halves of surrogate pairs, which UTF-8 cannot hold, as Python escapes them."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(item) for item in value]
    return value


def _flat(measures: Measures) -> dict[str, Any]:
    """The update's fields at the top, where a user looks for `nfr`; the other models' beside them."""
    fields: dict[str, Any] = msgspec.to_builtins(measures.update)
    if measures.compatible:
        fields |= {"compatible": measures.compatible, "alignment": measures.alignment}
    if measures.floor:
        fields["floor"] = measures.floor
    if measures.controls:
        fields["controls"] = measures.controls
    return fields
