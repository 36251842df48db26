"""Reads large logs made from small ones: what is wrong here is not an error but an hour, or all of the memory.

    python fuzz/large.py inspect-json --seconds 60 --seed 1

Each input has about a megabyte and a process of its own; one that takes more than 5 s or 500 MiB is kept in fuzz/found.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mutation import OPTION_BYTES, inflate
from readers import FOUND, TARGETS, attempt, corpus, place

SIZE = 900_000
_SECONDS, _MEMORY = 5.0, 500  # the latter in MiB


def main(arguments: Sequence[str] | None = None) -> int:
    """Make and read large logs of one format."""
    parser = argparse.ArgumentParser(description="Read large logs.")
    parser.add_argument("reader", metavar="READER", choices=TARGETS, help="of %(choices)s")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    chance, seeds = random.Random(options.seed), corpus(options.reader)
    until, inputs, slowest, largest, faults = time.monotonic() + options.seconds, 0, 0.0, 0, 0
    while time.monotonic() < until:
        data = chance.choice(seeds)
        data = bytes(chance.randrange(256) for _ in range(OPTION_BYTES)) + inflate(data, SIZE, chance)[OPTION_BYTES:]
        seconds, memory, told = measured(options.reader, data)
        inputs, slowest, largest = inputs + 1, max(slowest, seconds), max(largest, memory)
        if told or seconds > _SECONDS or memory > _MEMORY:
            faults += 1
            fault = told or f"{seconds:.1f} s, {memory} MiB"
            FOUND.mkdir(exist_ok=True)
            (FOUND / f"{options.reader}-large-{options.seed}-{inputs}.input").write_bytes(data)
            print(f"FOUND {options.reader} large-{options.seed}-{inputs}: {fault}", file=sys.stderr, flush=True)
    print(f"{inputs} large inputs, at most {slowest:.1f} s and {largest} MiB, {faults} found")
    return 1 if faults else 0


def measured(reader: str, data: bytes) -> tuple[float, int, str]:
    """Seconds of a core, MiB, and the fault, if any, of reading an input in a process of its own."""
    shared_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as folder:
        fault, inside = Path(folder) / "fault", Path(folder) / "log"
        inside.mkdir()
        child = os.fork()
        if not child:
            signal.alarm(int(12 * _SECONDS))
            resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
            try:
                attempt(TARGETS[reader], data, inside)
            except BaseException as error:
                fault.write_text(f"{place(error)}: {str(error)[:200]!r}")
            os._exit(0)
        _, status, usage = os.wait4(child, 0)
        code = os.waitstatus_to_exitcode(status)
        told = fault.read_text() if fault.exists() else ""
        fault_or_not = told or (f"exit status {code}" if code else "")
        return usage.ru_utime + usage.ru_stime, usage.ru_maxrss >> 10, fault_or_not


if __name__ == "__main__":
    sys.exit(main())
