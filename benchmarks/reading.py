"""Time the comparison of two big logs against a straightforward pandas script, and assert equal flips.

    python benchmarks/reading.py [--rows 1000000] [--runs 3] [--peer-runs 1] [--folder DIR]

Two lm-eval samples logs (MMLU-like, 1.4 KB a row, the new model a little better than the old) are written to a
temporary folder; then each program runs in a process of its own, from the start of Python to its end, while the system
keeps count of time and peak memory. The figures go to benchmarks/results/reading.json. At a million rows pandas needs
16 GB of memory.
"""

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "reading.json"
BYTES_PER_ROW = 1500
LETTERS = "aabcdeeefghiiklmnnoooprrssttttuvwy"
SUBJECTS = [f"subject_{i}" for i in range(57)]

MUSCLE = """
import json, sys
from muscle.measure import compare
update = compare(sys.argv[1], sys.argv[2]).update
print(json.dumps({name: getattr(update, name) for name in ("n", "positive_flips", "negative_flips")}))
"""
PANDAS = """
import json, sys
import pandas as pd
old, new = (pd.read_json(path, lines=True) for path in sys.argv[1:])
both = old.merge(new, on="doc_id", suffixes=("_old", "_new"))
positive, negative = ((both.acc_old == right) & (both.acc_new == 1 - right) for right in (0, 1))
print(json.dumps({"n": len(both), "positive_flips": int(positive.sum()), "negative_flips": int(negative.sum())}))
"""
PROGRAMS = {"muscle": MUSCLE, "pandas": PANDAS}


def write_log(path: Path, rows: int, model: int, skill: float) -> None:
    """Write one model's log; items and most of the log-likelihoods are the same for every model."""
    items, own = random.Random(0), random.Random(model)
    words = ["".join(items.choices(LETTERS, k=items.randint(1, 8))) for _ in range(1000)]
    with path.open("w", encoding="utf-8") as file:
        for doc_id in range(rows):
            question, *choices = (" ".join(items.choices(words, k=length)) for length in (12, 3, 3, 3, 3))
            target = items.randrange(4)
            scores = [-abs(items.expovariate(0.25) + own.gauss(0, 0.3)) for _ in choices]
            scores[target] *= 1 - skill
            file.write(json.dumps(sample(doc_id, question, choices, target, scores)) + "\n")


def sample(doc_id: int, question: str, choices: list[str], target: int, scores: list[float]) -> dict[str, Any]:
    """A row as lm-eval 0.4.13 writes it."""
    prompt = f"Question: {question}?\nAnswer:"
    right = float(scores.index(max(scores)) == target)
    responses = [[str(score), "False"] for score in scores]
    return {
        "doc_id": doc_id,
        "doc": {"question": question, "subject": SUBJECTS[doc_id % 57], "choices": choices, "answer": target},
        "target": str(target),
        "arguments": {f"gen_args_{i}": {"arg_0": prompt, "arg_1": f" {text}"} for i, text in enumerate(choices)},
        "resps": [[response] for response in responses],
        "filtered_resps": responses,
        "filter": "none",
        "metrics": ["acc"],
        "doc_hash": sha256(question + "".join(choices)),
        "prompt_hash": sha256(prompt),
        "target_hash": sha256(str(target)),
        "acc": right,
    }


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def run(program: str, logs: list[Path]) -> dict[str, Any]:
    """Run a program in a process of its own: what it prints, seconds of the clock and of the processor, peak memory."""
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAMS[program], *map(str, logs)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{program} ended with {process.returncode}; has the machine enough memory?")
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "flips": json.loads(printed),
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mb": round(usage.ru_maxrss * unit / 1e6),
    }


def measure(folder: Path, rows: int, runs: dict[str, int]) -> dict[str, Any]:
    """Write the logs, run the programs, and put the figures together."""
    logs = [folder / "old.jsonl", folder / "new.jsonl"]
    for model, log in enumerate(logs):
        write_log(log, rows, model, skill=0.5 + 0.05 * model)
    size = sum(log.stat().st_size for log in logs)
    figures: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    for turn in range(max(runs.values())):  # in turn, so that a machine that others slow down slows both
        for name in runs:
            if turn < runs[name]:
                figures[name].append(run(name, logs))
                print(name, figures[name][-1], flush=True)
    flips = [figure.pop("flips") for each in figures.values() for figure in each]
    assert all(found == flips[0] for found in flips), f"the programs disagree: {flips}"
    medians = {
        name: {key: statistics.median(figure[key] for figure in each) for key in each[0]}
        for name, each in figures.items()
    }
    return {
        "rows": rows,
        "bytes": size,
        "flips": flips[0],
        "medians": medians,
        "times_faster": {
            key: round(medians["pandas"][key] / medians["muscle"][key], 1) for key in ("seconds", "cpu_seconds")
        },
        "times_less_memory": round(medians["pandas"]["peak_mb"] / medians["muscle"]["peak_mb"], 1),
        "runs": figures,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=3, help="of muscle; the median counts")
    parser.add_argument("--peer-runs", type=int, default=1, help="of pandas")
    parser.add_argument("--folder", type=Path, help="for the logs, which are deleted afterwards")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="muscle-reading-", dir=arguments.folder) as name:
        needed = 2 * arguments.rows * BYTES_PER_ROW
        if shutil.disk_usage(name).free < 2 * needed:
            raise SystemExit(f"{name}: less than {2 * needed / 1e9:.1f} GB are free; choose another --folder")
        runs = {"muscle": arguments.runs, "pandas": arguments.peer_runs}
        found = measure(Path(name), arguments.rows, runs)
    machine = {
        "processor": processor(),
        "cpus": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    versions = {name: version(name) for name in ("muscle-llm", "msgspec", "numpy", "pandas")}
    head = {"date": datetime.now(UTC).date().isoformat(), "machine": machine, "versions": versions}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(head | found, indent=2) + "\n", encoding="utf-8")


def processor() -> str:
    """The processor's name where the system tells."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
