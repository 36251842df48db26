"""What several test modules share: where the real data lies."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real logs and tasks: MUSCLE_DATA, by default ../shared/data beside the repository."""
    folder = Path(os.environ.get("MUSCLE_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MUSCLE_DATA to its folder")
    return folder
