"""Time the text scores against rouge_score and sacrebleu on the same pairs of real texts, and assert equal results.

    python benchmarks/text_scores.py [--runs 5] [--quick]

It reads from MUSCLE_DATA (default ../shared/data) and writes benchmarks/results/text_scores.json. Each reference meets
the answers of an old and a new model, as in a comparison:

- GSM8K: the reference solutions, and those of four real systems, 5,276 pairs, all that there are;
- dialogue: CLINC150, what people say to an assistant; of each intent some utterances are references, others answers;
- E2E: human descriptions of a restaurant are references, others of the same restaurant answers.

The scores with a goal are timed on 100,000 pairs, the number that the goals were set for (GSM8K: on all), the others on
the first 10,000. That takes rounds, in which each text meets further ones: 30,000 pairs a round of dialogue, 18,590 of
E2E. Each round has new scorers. The stems of words, which ours keeps beyond a scorer, are forgotten before each run: to
stem each distinct word once is part of the times.
"""

import argparse
import csv
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import sacrebleu
from common import DATA, Bar, write_results
from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sacrebleu.tokenizers.tokenizer_re import TokenizerRegexp

from muscle.measure import similarity

GOALS = {"rouge1": ">= 4", "rouge1 stemmed": ">= 20"}
PAIRS, OTHER_PAIRS = 100_000, 10_000  # of the scores with a goal, and of the others
OTHERS_WORK = ("bleu", "chrf")  # sacrebleu's on both sides: slow, and once is enough
Pair = tuple[str, str]  # answer, reference
Score = Callable[[str, str], float]
Maker = Callable[[], Score]
Workload = list[list[Pair]]  # rounds


def workloads(pairs: int) -> dict[str, Workload]:
    """By name, each of at most that many pairs."""
    return {"GSM8K": [gsm8k()[:pairs]], "dialogue": dialogue(pairs), "E2E": e2e(pairs)}


def gsm8k() -> list[Pair]:
    """Solutions by four systems against the reference."""
    path = DATA / "logs" / "gsm8k_openai_solutions" / "example_model_solutions.jsonl"
    items = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    models = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    return [(item[model]["solution"], item["ground_truth"]) for item in items for model in models]


def dialogue(pairs: int) -> Workload:
    """Utterances against others of the same intent."""
    splits = json.loads((DATA / "tasks" / "clinc150" / "data_full.json").read_text(encoding="utf-8"))
    groups: dict[str, list[str]] = {}
    for text, intent in splits["train"]:
        groups.setdefault(intent, []).append(text)
    return rounds(list(groups.values()), pairs)


def e2e(pairs: int) -> Workload:
    """Descriptions against others of the same restaurant."""
    groups: dict[str, list[str]] = {}
    for name in ("devset.csv", "testset_w_refs.csv"):
        with (DATA / "tasks" / "e2e" / name).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                groups.setdefault(row["mr"], []).append(row["ref"])
    return rounds([texts for texts in groups.values() if len(texts) >= 3], pairs)


def rounds(groups: list[list[str]], pairs: int) -> Workload:
    """Each text against two others of its group, further ones in each round."""
    found: Workload = []
    while pairs > 0:
        shift = 2 * len(found)
        some = [
            (texts[(place + 1 + (shift + model) % (len(texts) - 1)) % len(texts)], reference)
            for texts in groups
            for place, reference in enumerate(texts)
            for model in (0, 1)
        ]
        found.append(some[:pairs])
        pairs -= len(some)
    return found


def ours(name: str, stem: bool = False) -> Score:
    score = similarity.scorer(name, stem=stem)
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


def compete(makers: dict[str, Maker], workload: Workload) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Seconds of processor time, making the scorers included, and the scores.

    The competitors take turns every 200 pairs, so that a machine that others slow down slows all of them alike.
    """
    seconds = dict.fromkeys(makers, 0.0)
    scores: dict[str, list[float]] = {name: [] for name in makers}
    similarity._stems.cache_clear()
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


def measure(make: Maker, peers: dict[str, Maker], workload: Workload, runs: int) -> dict[str, Any]:
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
        "pairs": len(scores["muscle"]),
        "microseconds_per_pair": {n: round(1e6 * median / len(scores[n]), 1) for n, median in medians.items()},
        "times_faster": {name: round(medians[name] / medians["muscle"], 2) for name in peers},
        "seconds": {name: [round(taken, 3) for taken in each] for name, each in all_seconds.items()},
        "mean_score": statistics.fmean(scores["muscle"]),
    }


def bar(name: str, work: str, found: dict[str, Any], peer: str, runs: int) -> Bar:
    """Of microseconds a pair."""
    taken = found["microseconds_per_pair"]
    title = f"{name.replace('rouge1', 'ROUGE-1')}, a pair of texts, {work}"
    return Bar.time(title, taken["muscle"], taken[peer], peer, GOALS[name], runs, unit="µs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="1,000 pairs, one run")
    arguments = parser.parse_args()
    pairs, other_pairs, runs = (1000, 1000, 1) if arguments.quick else (PAIRS, OTHER_PAIRS, arguments.runs)
    bars: list[Bar] = []
    details: dict[str, Any] = {"runs": runs, "results_equal": True}  # `measure` fails otherwise
    other_workloads = workloads(other_pairs)
    for work, workload in workloads(pairs).items():
        details[work] = {}
        for name, make, peers in cases():
            make()  # imports, once per process, are no part of the times
            pairs_of_it = workload if name in GOALS else other_workloads[work]
            found = details[work][name] = measure(make, peers, pairs_of_it, 1 if name in OTHERS_WORK else runs)
            print(work, name, found["microseconds_per_pair"], found["times_faster"], flush=True)
            if name in GOALS:
                bars.append(bar(name, work, found, next(iter(peers)), runs))
    write_results(__file__, bars, details, ["rouge-score", "nltk", "sacrebleu"])


if __name__ == "__main__":
    main()
