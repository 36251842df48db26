"""The real data sets, cut to a few rows so that reading them costs little."""

import subprocess
import sys
from pathlib import Path

from .commands import ENVIRONMENT


def some_rows(data: Path, out: Path, rows: int) -> Path:
    """Prepare the data sets under `data` by the real command, and keep a few rows of each split in `out`/data."""
    whole, cut = out / "whole", out / "data"
    command = [sys.executable, "-m", "muscle.recipes.prepare_data", str(data / "tasks"), str(whole)]
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, timeout=300)
    for file in whole.rglob("*.jsonl"):
        (cut / file.parent.name).mkdir(parents=True, exist_ok=True)
        lines = file.read_text(encoding="utf-8").split("\n")
        chosen = lines[:: len(lines) // rows][:rows]  # some data sets are sorted by their labels
        (cut / file.relative_to(whole)).write_text("\n".join(chosen) + "\n", encoding="utf-8")
    return cut
