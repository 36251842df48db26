"""Time from the start of the command to its first work: what a user waits for before any data is read.

    python benchmarks/startup.py [--runs 15] [--quick]

Each run is a fresh process. `muscle compare` gets two logs of one row, so that its time is an upper bound of what it
takes to start. The slowest imports of each command go into benchmarks/results/startup.json too.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from common import Bar, alternate, run_program, write_results

COMMAND = Path(sys.executable).with_name("muscle")
ROW = {
    **{"doc_id": 0, "doc": {"question": "?"}, "target": "0", "arguments": {}, "resps": [["a"]]},
    **{"filtered_resps": ["a"], "filter": "none", "metrics": ["acc"], "doc_hash": "0", "prompt_hash": "0"},
    **{"target_hash": "0", "acc": 1.0},
}


def commands(folder: Path) -> dict[str, tuple[Sequence[str], str]]:
    """By name: the arguments, and the limit."""
    logs = [folder / f"samples_{name}.jsonl" for name in ("old", "new")]
    for log in logs:
        log.write_text(json.dumps(ROW) + "\n", encoding="utf-8")
    return {
        "muscle --help": (["--help"], "<= 0.15 s"),
        "muscle compare --help": (["compare", "--help"], "<= 0.5 s"),
        "muscle compare of two logs of one row": (["compare", *map(str, logs)], "<= 0.5 s"),
    }


def slowest_imports(arguments: Sequence[str], count: int = 12) -> dict[str, float]:
    """Milliseconds of the modules that took the longest themselves, those that they import left out."""
    command = [sys.executable, "-X", "importtime", str(COMMAND), *arguments]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    found: dict[str, float] = {}
    for line in lines:
        own, _, module = line.removeprefix("import time:").split("|")
        if own.strip().isdigit():  # the first line is a heading
            found[module.strip()] = int(own) / 1000
    return dict(sorted(found.items(), key=lambda item: -item[1])[:count])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="three runs")
    arguments = parser.parse_args()
    runs = 3 if arguments.quick else arguments.runs
    with tempfile.TemporaryDirectory(prefix="muscle-startup-") as folder:
        asked = commands(Path(folder))
        programs = {name: partial(run_program, [COMMAND, *given]) for name, (given, _) in asked.items()}
        alternate(programs, 1)  # files are read from the disk once
        timed = alternate(programs, runs)
        bars, details = [], {}
        for name, (given, goal) in asked.items():
            finished = timed[name].results
            seconds, cpu = (sorted(getattr(each, what) for each in finished) for what in ("seconds", "cpu_seconds"))
            bars.append(Bar.limit(name, seconds[runs // 2], goal, runs))
            details[name] = {
                **{"seconds": seconds, "cpu_seconds": cpu},
                "slowest_imports_ms": slowest_imports(given),
            }
            print(f"{name}: {seconds[runs // 2]:.3f} s, {cpu[runs // 2]:.3f} s of the processor ({goal})", flush=True)
    write_results(__file__, bars, details, ["typer", "numpy", "msgspec"])


if __name__ == "__main__":
    main()
