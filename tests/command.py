"""The real command in its own process."""

import subprocess
import sys
from pathlib import Path

MUSCLE = [sys.executable, "-c", "from muscle.cli import main; main()"]
GOOD = '{"id": 1, "correct": true, "answer": "a"}\n{"id": 2, "correct": false, "answer": "b"}\n'
NEW = '{"id": 1, "correct": false, "answer": "b"}\n{"id": 2, "correct": false, "answer": "c"}\n'


def muscle(
    *arguments: str | Path, cwd: Path | None = None, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `muscle` to its end."""
    command = [*MUSCLE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120, check=False, input=stdin)
