"""Time the text scores against rouge_score and sacrebleu on the same pairs of real texts, and assert equal results.

    python benchmarks/text_scores.py [--pairs 20000] [--runs 5]

It reads E2E from MUSCLE_DATA (default ../shared/data) and writes benchmarks/results/text_scores.json. Two logs are
imitated: each human description of a restaurant is a reference, and two others of the same restaurant are the answers
of the old and the new model. More pairs take further answers, each round with new scorers, so that no scorer meets a
reference more often than in one comparison of two models.
"""

import argparse
import csv
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import sacrebleu
from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sacrebleu.tokenizers.tokenizer_re import TokenizerRegexp

from muscle.measure.similarity import scorer

REPOSITORY = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "text_scores.json"
Pair = tuple[str, str]  # answer, reference
Score = Callable[[str, str], float]
Maker = Callable[[], Score]


def rounds(pairs: int) -> Iterator[list[Pair]]:
    """Pairs of E2E descriptions, as many as asked for."""
    described: dict[str, list[str]] = {}
    folder = Path(os.environ.get("MUSCLE_DATA", REPOSITORY.parent / "shared" / "data")) / "tasks" / "e2e"
    for name in ("devset.csv", "testset_w_refs.csv"):
        with (folder / name).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                described.setdefault(row["mr"], []).append(row["ref"])
    groups = [texts for texts in described.values() if len(texts) >= 3]
    shift = 0
    while pairs > 0:
        found: list[Pair] = []
        for texts in groups:
            for place, reference in enumerate(texts):
                for model in (0, 1):
                    other = 1 + (shift + model) % (len(texts) - 1)
                    found.append((texts[(place + other) % len(texts)], reference))
        yield found[:pairs]
        pairs -= len(found)
        shift += 2


def ours(name: str, stem: bool = False) -> Score:
    score = scorer(name, stem=stem)
    return lambda answer, reference: score(answer, [reference])


def rouge(name: str, stem: bool = False) -> Score:
    score = RougeScorer([name], use_stemmer=stem).score
    return lambda answer, reference: float(score(reference, answer)[name].fmeasure)


def bleu_function() -> Score:
    return lambda answer, reference: min(sacrebleu.sentence_bleu(answer, [reference]).score / 100, 1.0)


def bleu_object() -> Score:
    score = sacrebleu.BLEU(effective_order=True).sentence_score
    return lambda answer, reference: min(score(answer, [reference]).score / 100, 1.0)


def chrf_function() -> Score:
    return lambda answer, reference: float(sacrebleu.sentence_chrf(answer, [reference]).score) / 100


def cases() -> Iterator[tuple[str, Maker, dict[str, Maker]]]:
    """Name, ours, and the peers by name."""
    for name in ("rouge1", "rouge2", "rougeL"):
        yield name, partial(ours, name), {"rouge_score": partial(rouge, name)}
        yield f"{name} stemmed", partial(ours, name, stem=True), {"rouge_score": partial(rouge, name, stem=True)}
    yield "bleu", partial(ours, "bleu"), {"sacrebleu.sentence_bleu": bleu_function, "sacrebleu.BLEU": bleu_object}
    yield "chrf", partial(ours, "chrf"), {"sacrebleu.sentence_chrf": chrf_function}


def compete(makers: dict[str, Maker], workload: list[list[Pair]]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Seconds of processor time, making the scorers included, and the scores.

    The competitors take turns every 200 pairs, so that a machine that others slow down slows all of them alike.
    """
    seconds = dict.fromkeys(makers, 0.0)
    scores: dict[str, list[float]] = {name: [] for name in makers}
    for pairs in workload:
        # sacrebleu remembers texts in its classes; nobody is to clean up what another left there.
        Tokenizer13a.__call__.cache_clear()
        TokenizerRegexp.__call__.cache_clear()
        gc.collect()
        made: dict[str, Score] = {}
        for name, make in makers.items():
            start = time.process_time()
            made[name] = make()
            seconds[name] += time.process_time() - start
        for first in range(0, len(pairs), 200):
            some = pairs[first : first + 200]
            for name, score in made.items():
                start = time.process_time()
                scores[name] += [score(answer, reference) for answer, reference in some]
                seconds[name] += time.process_time() - start
    return seconds, scores


def measure(make: Maker, peers: dict[str, Maker], workload: list[list[Pair]], runs: int) -> dict[str, Any]:
    """Medians over runs."""
    makers = {"muscle": make, **peers}
    all_seconds: dict[str, list[float]] = {name: [] for name in makers}
    for _ in range(runs):
        seconds, scores = compete(makers, workload)
        for name in makers:
            all_seconds[name].append(seconds[name])
            assert scores[name] == scores["muscle"], f"{name} gives other scores"
    medians = {name: statistics.median(each) for name, each in all_seconds.items()}
    return {
        "microseconds_per_pair": {n: round(1e6 * median / len(scores[n]), 1) for n, median in medians.items()},
        "times_faster": {name: round(medians[name] / medians["muscle"], 2) for name in peers},
        "seconds": {name: [round(taken, 3) for taken in each] for name, each in all_seconds.items()},
        "mean_score": statistics.fmean(scores["muscle"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    workload = list(rounds(arguments.pairs))
    results = {}
    for name, make, peers in cases():
        make()  # imports, once per process, are no part of the times
        results[name] = measure(make, peers, workload, arguments.runs)
        print(name, results[name]["microseconds_per_pair"], results[name]["times_faster"], flush=True)
    found = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {
            "processor": processor(),
            "cpus": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "versions": {name: version(name) for name in ("muscle-llm", "rouge-score", "nltk", "sacrebleu")},
        "pairs": sum(map(len, workload)),
        "runs": arguments.runs,
        "results_equal": True,  # `measure` fails otherwise
        "results": results,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def processor() -> str:
    """The processor's name where the system tells."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(islice(names, 1), platform.processor())


if __name__ == "__main__":
    main()
