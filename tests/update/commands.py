"""The real command in a process group of its own, which can be killed whole, as a power cut would."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MUSCLE = [sys.executable, "-m", "muscle"]
ENVIRONMENT = os.environ | {
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",  # threads that spin while they wait stand in the way of tests that run side by side
}


def run(*arguments: str | Path, cwd: Path, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    """Run `muscle` to its end."""
    command = [*MUSCLE, *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=seconds, check=False
    )


def stop_when(
    reached: Callable[[], Any], *arguments: str | Path, cwd: Path, by: signal.Signals = signal.SIGKILL
) -> tuple[int, str, str]:
    """Start `muscle`, send its whole group a signal as soon as something is so, and return code, output and errors."""
    command = [*MUSCLE, *map(str, arguments)]
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            deadline = time.monotonic() + 180
            while not reached():
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline, "it never came to that"
                time.sleep(0.005)
            os.killpg(process.pid, by)
            output, errors = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output, errors
