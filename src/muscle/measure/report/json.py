"""The Comparison as JSON (documented in docs/logs.md): the same inputs give the same bytes."""

import os
from pathlib import Path
from typing import Any

import msgspec

from muscle import __version__
from muscle.errors import MuscleError
from muscle.measure.comparison import Comparison, TaskComparison
from muscle.measure.logs.source import reads

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
    return msgspec.json.format(msgspec.json.encode(_encodable(msgspec.to_builtins(document))), indent=2) + b"\n"


def write_json(comparison: Comparison, file: Path) -> None:
    """Write `to_json` to a file, whole or not at all.

    Raises:
        MuscleError: The file cannot be written, or one of the logs is read from it.
    """
    content = to_json(comparison)
    try:
        for role, source in comparison.inputs.items():
            if reads(Path(source.path), file):
                raise MuscleError(f"{file}: belongs to the {role} log ({source.path}); write the JSON to another file")
        if file.exists() and not file.is_file():  # a pipe or a device, which cannot be replaced
            file.write_bytes(content)
        else:
            _replace(Path(os.path.realpath(file)), content)
    except OSError as error:
        raise MuscleError(f"{file}: cannot be written ({error.strerror}); check the folder") from None


def _replace(file: Path, content: bytes) -> None:
    """Write beside the file and rename: whoever looks sees the old content or the new, never half of it."""
    draft = file.with_name(f".muscle-{os.getpid()}.tmp")
    try:
        draft.write_bytes(content)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def _encodable(value: Any) -> Any:
    """The same value with the halves of surrogate pairs, which UTF-8 cannot hold, as Python escapes them."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(item) for item in value]
    return value


def _flat(task: TaskComparison) -> dict[str, Any]:
    """The update's fields at the top, where a user looks for `nfr`; the rest beside them where there are three logs."""
    fields: dict[str, Any] = msgspec.to_builtins(task.update)
    if task.compatible:
        fields |= {"compatible": task.compatible, "alignment": task.alignment}
    return fields
