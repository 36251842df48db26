"""What several test modules share: where the real data lies."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from .command import GOOD, NEW

# How long an example takes depends on who else uses the machine.
settings.register_profile("muscle", deadline=None)
settings.load_profile("muscle")

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real logs and tasks: MUSCLE_DATA, by default ../shared/data beside the repository."""
    folder = Path(os.environ.get("MUSCLE_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MUSCLE_DATA to its folder")
    return folder


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A folder with old.jsonl and new.jsonl: one negative flip, one wrong answer that became another."""
    (tmp_path / "old.jsonl").write_text(GOOD)
    (tmp_path / "new.jsonl").write_text(NEW)
    return tmp_path
