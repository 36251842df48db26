"""The Comparison as JSON (documented in docs/logs.md): the same inputs give the same bytes."""

from pathlib import Path
from typing import Any

import msgspec

from muscle import __version__
from muscle.errors import MuscleError
from muscle.measure.comparison import Comparison, TaskComparison

SCHEMA = 1


def to_json(comparison: Comparison) -> bytes:
    """Render as UTF-8 JSON, indented, with a final newline; undefined values are null."""
    document = {
        "schema": SCHEMA,
        "muscle": __version__,
        "inputs": comparison.inputs,
        "seed": comparison.seed,
        "resamples": comparison.resamples,
        "notes": comparison.notes,
        **_flat(comparison),
    }
    if len(comparison.tasks) > 1:
        document["tasks"] = {name: _flat(task) for name, task in comparison.tasks.items()}
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def write_json(comparison: Comparison, file: Path) -> None:
    """Write `to_json` to a file.

    Raises:
        MuscleError: The file cannot be written.
    """
    try:
        file.write_bytes(to_json(comparison))
    except OSError as error:
        raise MuscleError(f"{file}: cannot be written ({error.strerror}); check the folder") from None


def _flat(task: TaskComparison) -> dict[str, Any]:
    """The update's fields at the top, where a user looks for `nfr`; the rest beside them where there are three logs."""
    fields: dict[str, Any] = msgspec.to_builtins(task.update)
    if task.compatible:
        fields |= {"compatible": task.compatible, "alignment": task.alignment}
    return fields
