"""Time the comparison of two big logs against a straightforward pandas script, and assert equal flips.

    python benchmarks/reading.py [--quick] [--rows 200000] [--runs 3] [--peer-runs 1] [--folder DIR]

Two lm-eval samples logs (MMLU-like, 1.4 KB a row, the new model a little better than the old) are written to a
temporary folder; then each program runs in a process of its own, from the start of Python to its end, while the system
keeps count of time and peak memory. The figures go to benchmarks/results/reading.json. At a million rows pandas needs
20 GB of memory and six minutes.
"""

import argparse
import hashlib
import json
import random
import shutil
import statistics
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import Bar, run_program, write_results

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
PEER = "pandas script: read_json, merge, compare"


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
    """What a program finds, with seconds of the clock and of the processor, and peak memory."""
    finished = run_program([sys.executable, "-c", PROGRAMS[program], *logs])
    return {
        "flips": finished.result,
        "seconds": round(finished.seconds, 2),
        "cpu_seconds": round(finished.cpu_seconds, 2),
        "peak_mb": round(finished.peak_mb),
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
    return {"rows": rows, "bytes": size, "flips": flips[0], "medians": medians, "runs": figures}


def bars(found: dict[str, Any], runs: int) -> list[Bar]:
    """Time and peak memory of whole processes; without pandas there is nothing to hold them against."""
    names = [f"compare two logs of {found['rows']:,} rows{what}" for what in ("", ", peak memory")]
    if "pandas" not in found["medians"]:
        units = ("s", "MB")
        return [
            Bar.not_run(name, unit, PEER, None, "pandas is not installed")
            for name, unit in zip(names, units, strict=True)
        ]
    ours, peer = found["medians"]["muscle"], found["medians"]["pandas"]
    return [
        Bar.time(names[0], ours["seconds"], peer["seconds"], PEER, None, runs),
        Bar.memory(names[1], ours["peak_mb"], peer["peak_mb"], PEER, None, runs),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few rows, one run")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--runs", type=int, default=3, help="of muscle; the median counts")
    parser.add_argument("--peer-runs", type=int, default=1, help="of pandas")
    parser.add_argument("--folder", type=Path, help="for the logs, which are deleted afterwards")
    arguments = parser.parse_args()
    rows, runs = (5000, 1) if arguments.quick else (arguments.rows, arguments.runs)
    with tempfile.TemporaryDirectory(prefix="muscle-reading-", dir=arguments.folder) as name:
        needed = 2 * rows * BYTES_PER_ROW
        if shutil.disk_usage(name).free < 2 * needed:
            raise SystemExit(f"{name}: less than {2 * needed / 1e9:.1f} GB are free; choose another --folder")
        competitors = {"muscle": runs} | ({"pandas": arguments.peer_runs} if find_spec("pandas") else {})
        found = measure(Path(name), rows, competitors)
    write_results(__file__, bars(found, runs), found, ("msgspec", "numpy", "pandas"))


if __name__ == "__main__":
    main()
