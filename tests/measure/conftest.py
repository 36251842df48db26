"""Small logs written by hand."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

WriteRows = Callable[[str, Iterable[dict[str, Any]]], Path]


@pytest.fixture
def write_rows(tmp_path: Path) -> WriteRows:
    """Write rows as JSON lines into a file of the test's own folder."""

    def write(name: str, rows: Iterable[dict[str, Any]]) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    return write
