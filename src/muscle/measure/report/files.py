"""Reports as files: whole or not at all, and never over a log."""

import os
from pathlib import Path

from muscle.errors import MuscleError
from muscle.measure.logs.source import reads
from muscle.measure.results import Comparison


def write_whole(comparison: Comparison, file: Path, content: bytes) -> None:
    """Write a report to a file.

    Raises:
        MuscleError: The file cannot be written, or one of the logs is read from it.
    """
    try:
        refuse_logs(comparison, file)
        if file.exists() and not file.is_file():  # a pipe or a device, which cannot be replaced
            file.write_bytes(content)
        else:
            replace_whole(Path(os.path.realpath(file)), content)
    except OSError as error:
        raise MuscleError(f"{file}: cannot be written ({error.strerror}); check the folder") from None


def refuse_logs(comparison: Comparison, file: Path) -> None:
    """Refuse a file that one of the logs is read from.

    Raises:
        MuscleError: It is.
        OSError: It cannot be told.
    """
    for role, source in comparison.inputs.items():
        if reads(Path(source.path), file):
            raise MuscleError(f"{file}: belongs to the {role} log ({source.path}); write the report to another file")


def replace_whole(file: Path, content: bytes) -> None:
    """Write beside the file and rename: whoever looks sees the old content or the new, never half of it.

    Raises:
        OSError: It cannot be written.
    """
    draft = file.with_name(f".muscle-{os.getpid()}.tmp")
    try:
        draft.write_bytes(content)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
