"""Fuzzes the readers one after the other, and says what came of it.

    python fuzz/run.py --seconds 60                      every reader
    python fuzz/run.py --seconds 600 helm promptfoo      some

Most of a reader's time goes to small inputs (`readers.py`, guided by coverage), a fifth to large ones (`large.py`). The
exit status is 1 where an input made a reader do what it must not; these inputs are in fuzz/found.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from readers import TARGETS

_RUNS = re.compile(r"stat::number_of_executed_units: (\d+)")
_COVERED = re.compile(r"cov: (\d+) ft: (\d+)")
_MEASURED = re.compile(r"(\d+) large inputs, at most ([\d.]+) s and (\d+) MiB")
_FOUND = re.compile(r"^FOUND \S+ (.+)$", re.MULTILINE)
_SPENT = 120  # seconds for the start, the seeds and the last input, beside the time that the scripts count


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz, and print a table."""
    parser = argparse.ArgumentParser(description="Fuzz the readers of evaluation logs.")
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--seconds", type=int, default=60, help="for each reader (%(default)s)")
    options = parser.parse_args(arguments)
    if unknown := set(options.readers) - TARGETS.keys():
        parser.error(f"no reader {', '.join(sorted(unknown))}; choose among {', '.join(TARGETS)}")
    print(f"{'reader':<14}{'inputs':>9}{'edges':>7}{'features':>10}{'large':>7}{'slowest':>9}{'most':>9}  found")
    faults = 0
    for name in options.readers or TARGETS:
        small, found = _small(name, options.seconds * 4 // 5)
        large, found_large = _large(name, options.seconds // 5)
        faults += len(found) + len(found_large)
        print(f"{name:<14}{small}{large}  {len(found) + len(found_large) or '-'}", flush=True)
        for fault in (*found, *found_large):
            print(f"    {fault}", flush=True)
    return 1 if faults else 0


def _small(name: str, seconds: int) -> tuple[str, list[str]]:
    """Fuzz with small inputs: cells of the table, and what was found."""
    done = _run("readers.py", seconds, name, f"-max_total_time={seconds}")
    runs, covered = _RUNS.findall(done.stderr), _COVERED.findall(done.stderr)
    edges, features = covered[-1] if covered else ("?", "?")
    found = _FOUND.findall(done.stderr)
    if done.returncode:  # a crash of the process, a hang, no memory left
        found.append(f"exit status {done.returncode}: {' '.join(done.stderr.split()[-12:])}")
    return f"{runs[-1] if runs else '?':>9}{edges:>7}{features:>10}", found


def _large(name: str, seconds: int) -> tuple[str, list[str]]:
    """Fuzz with large inputs: cells of the table, and what was found."""
    done = _run("large.py", seconds, name, f"--seconds={seconds}", f"--seed={int(time.time())}")
    measured = _MEASURED.search(done.stdout)
    inputs, slowest, most = measured.groups() if measured else ("?", "?", "?")
    return f"{inputs:>7}{slowest:>7} s{most:>5} MiB", _FOUND.findall(done.stderr)


def _run(script: str, seconds: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=2 * seconds + _SPENT)


if __name__ == "__main__":
    sys.exit(main())
