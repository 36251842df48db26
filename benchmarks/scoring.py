"""Time packed multiple-choice scoring against lm-eval's own HFLM, and assert equal answers.

    python benchmarks/scoring.py [--quick] [--full] [--runs 3]

Both score the same requests with the same model of random weights, on one thread, the packed one at its default batch
size and HFLM at the best one for each work. Whether the model can be read in trees is tried before the clock starts, as
it is once for each model; the details tell what it takes. `--full` takes all real questions, `--quick` few of
everything on a small model. Real data are read from MUSCLE_DATA.
"""

import argparse
import logging
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from common import DATA, Bar, Finished, ModelName, alternate, in_own_process, model, write_results
from lm_eval import simple_evaluate
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from muscle.recipes.prepare_data import prepare
from muscle.update import packed
from muscle.update.backends import LocalLM
from muscle.update.prompts import templates_compiled_once
from muscle.update.recipe import EvaluationSettings, TaskSettings
from muscle.update.tasks import Task, load_task

BATCH_SIZES = (1, 4, 8, 16, 32)
PROBE = 2000
"""So many tokens are read to choose among batch sizes."""
VOCABULARY = 32_000
SHOTS = 720
PACKAGES = ("lm-eval", "torch", "transformers")

Requests = list[tuple[None, list[int], list[int]]]
Answers = list[tuple[float, bool]]


def tokens(number: int, draw: random.Random) -> list[int]:
    """Random ones."""
    return [draw.randrange(3, VOCABULARY) for _ in range(number)]


def zero_shot(questions: int, draw: random.Random) -> Requests:
    """HellaSwag's shape: 80 tokens of context, give or take, and 4 choices of 25."""
    return list(_questions([[]] * questions, (60, 100), (20, 30), draw))


def different_shots(questions: int, draw: random.Random) -> Requests:
    """Each question after 5 shots of its own, 800 tokens in all."""
    return list(_questions([tokens(SHOTS, draw) for _ in range(questions)], (60, 100), (20, 30), draw))


def same_shots(questions: int, draw: random.Random) -> Requests:
    """All questions after the same 5 shots."""
    return list(_questions([tokens(SHOTS, draw)] * questions, (60, 100), (20, 30), draw))


def letters(questions: int, draw: random.Random) -> Requests:
    """MMLU's shape: the same shots, and choices of one token."""
    return list(_questions([tokens(SHOTS, draw)] * questions, (60, 100), (1, 1), draw))


def labels(questions: int, draw: random.Random) -> Requests:
    """Banking77's shape: 77 labels, the same for each question."""
    names = [tokens(draw.randint(2, 5), draw) for _ in range(77)]
    contexts = [tokens(draw.randint(20, 40), draw) for _ in range(questions)]
    return [(None, context, name) for context in contexts for name in names]


def _questions(
    prefixes: list[list[int]], context: tuple[int, int], choice: tuple[int, int], draw: random.Random
) -> Iterator[tuple[None, list[int], list[int]]]:
    for prefix in prefixes:
        whole = prefix + tokens(draw.randint(*context), draw)
        for _ in range(4):
            yield None, whole, tokens(draw.randint(*choice), draw)


ZERO_SHOT = "zero-shot, HellaSwag's shape"
SHAPES: dict[str, tuple[Callable[[int, random.Random], Requests], int, str | None]] = {
    ZERO_SHOT: (zero_shot, 16, ">= 2.5"),
    "5-shot, shots of each question's own": (different_shots, 3, ">= 3.5"),
    "5-shot, the same shots": (same_shots, 6, ">= 8"),
    "one-token choices, MMLU's shape, the same shots": (letters, 12, None),
    "77 labels, Banking77's shape": (labels, 3, None),
}
"""By name: requests, how many questions, the goal."""


def answers(lm: HFLM, requests: Requests) -> Answers:
    """What the harness asks of a model."""
    found: Answers = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    return found


def assert_equal(ours: Answers, peers: Answers) -> float:
    """Greedy flags are equal and log-likelihoods within 1e-3 nats; by how much they differ."""
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in peers]
    difference = float(np.abs(np.subtract([one for one, _ in ours], [one for one, _ in peers])).max())
    assert difference <= 1e-3, difference
    return difference


def packed_lm(name: ModelName, tokenizer: PreTrainedTokenizerFast) -> LocalLM:
    """As `muscle evaluate` makes it."""
    return LocalLM(model(name), tokenizer, EvaluationSettings())


def hflm(lm: LocalLM, batch_size: int) -> HFLM:
    """lm-eval's own, of the same model; in the same precision, too."""
    return HFLM(
        pretrained=lm.model,
        tokenizer=lm.tokenizer,
        backend="causal",
        batch_size=batch_size,
        softmax_dtype="float32",
    )


def fastest_hflm(lm: LocalLM, requests: Requests, batch_sizes: tuple[int, ...]) -> tuple[HFLM, str]:
    """HFLM at the batch size at which it answers the first of the requests fastest, once tried each; and its name."""
    lengths = np.cumsum([len(context) + len(continuation) for _, context, continuation in requests])
    probe = requests[: max(4, int(np.searchsorted(lengths, PROBE)))]
    sizes = [size for size in batch_sizes if size <= len(probe)] or [batch_sizes[0]]
    best = sizes[0]
    if len(sizes) > 1:
        timed = alternate({str(size): partial(answers, hflm(lm, size), probe) for size in sizes}, runs=1)
        best = int(min(timed, key=lambda size: timed[size].median))
    tried = f" (best of {', '.join(map(str, sizes))})" if len(sizes) > 1 else ""
    return hflm(lm, best), f"lm-eval HFLM, batch size {best}{tried}"


def first_trial(lm: LocalLM, requests: Requests) -> float:
    """Seconds that it takes to try whether the model can be read in trees as long as these."""
    questions = packed._Questions(requests, lm.max_length)
    start = time.perf_counter()
    assert lm._agrees_with_hflm(questions.longest_text())
    seconds = time.perf_counter() - start
    packed.READ_IN_TREES[lm.model] = int(questions.texts.lengths.max())
    return seconds


def shape_bar(
    lm: LocalLM, name: str, shape: str, questions: int, batch_sizes: tuple[int, ...], runs: int
) -> tuple[Bar, dict[str, Any]]:
    """One work's bar, and its details."""
    make, _, goal = SHAPES[shape]
    requests = make(questions, random.Random(0))
    trial = first_trial(lm, requests)
    peer, peer_name = fastest_hflm(lm, requests, batch_sizes)
    timed = alternate({"ours": lambda: answers(lm, requests), "peer": lambda: answers(peer, requests)}, runs)
    difference = assert_equal(timed["ours"].results[0], timed["peer"].results[0])
    title = f"packed scoring, {shape}, {name} model"
    bar = Bar.time(title, timed["ours"].median, timed["peer"].median, peer_name, goal, runs)
    seconds = {called: each.seconds for called, each in timed.items()}
    return bar, {"requests": len(requests), "largest_difference": difference, "trial": trial, **seconds}


def peak_of(which: str, name: ModelName, shape: str, questions: int, batch_size: int) -> int:
    """Score requests of a shape; the process's peak memory is what is asked for. Returns their number."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    requests = SHAPES[shape][0](questions, random.Random(0))
    lm = packed_lm(name, words())
    answers(lm if which == "ours" else hflm(lm, batch_size), requests)
    return len(requests)


def memory_bar(name: ModelName, shape: str, questions: int, batch_size: int) -> Bar:
    """Peak memory of a process that scores."""
    ours, peer = (
        _peak(in_own_process(peak_of, which, name, shape, questions, batch_size)) for which in ("ours", "peer")
    )
    called = f"peak memory of packed scoring, {shape}, {name} model"
    return Bar.memory(called, ours, peer, f"lm-eval HFLM, batch size {batch_size}", None, 1)


def _peak(finished: Finished) -> float:
    assert finished.result > 0
    return finished.peak_mb


def words() -> PreTrainedTokenizerFast:
    """A tokenizer of three tokens: HFLM wants one, and the requests here are tokens already."""
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    vocabulary = {word: i for i, word in enumerate(special.values())}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)  # type: ignore[no-untyped-call]


def trained(tasks: dict[str, Task], texts: int | None) -> PreTrainedTokenizerFast:
    """Byte pairs of the first of each task's own training texts."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    examples = (each for task in tasks.values() for each in islice(task.examples("training"), texts))
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((each.context + each.answer for each in examples), trainer)
    special = {"pad_token": "<pad>", "eos_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)  # type: ignore[no-untyped-call]


def evaluated(lm: HFLM, definition: ConfigurableTask, limit: int | None = None) -> dict[str, Any]:
    """A task end to end through lm-eval: its log of samples, and its figures."""
    looks_at_the_machine = patch("lm_eval.evaluator.add_env_info")  # for seconds, whoever evaluates
    manager = TaskManager(include_defaults=False)  # reads no other tasks' definitions, for seconds as well
    with templates_compiled_once(), looks_at_the_machine:
        found = simple_evaluate(
            lm, tasks=[definition], limit=limit, bootstrap_iters=0, log_samples=True, task_manager=manager
        )
    (samples,), (figures,) = found["samples"].values(), found["results"].values()
    return {"samples": samples, "figures": {key: each for key, each in figures.items() if isinstance(each, float)}}


def real_bars(name: ModelName, quick: bool, limit: int | None, runs: int) -> Iterator[tuple[Bar, dict[str, Any]]]:
    """HellaSwag and PIQA, their validation data that are not for training, end to end."""
    with tempfile.TemporaryDirectory() as folder:
        prepare(DATA / "tasks", Path(folder))
        tasks = {task: load_task(task, TaskSettings(), Path(folder)) for task in ("hellaswag", "piqa")}
        lm = packed_lm(name, trained(tasks, 200 if quick else None))
        for task in tasks.values():
            yield real_bar(lm, name, task, (8,) if quick else BATCH_SIZES, limit, runs)


def real_bar(
    lm: LocalLM, name: ModelName, task: Task, batch_sizes: tuple[int, ...], limit: int | None, runs: int
) -> tuple[Bar, dict[str, Any]]:
    """One task's bar, and its details; no prediction may change."""
    definition = task.for_evaluation("test")
    if limit is not None:  # lm-eval's own takes the first, of one kind and short, and prepares all
        definition.dataset = {
            split: rows.select(range(0, len(rows), max(1, len(rows) // limit))[:limit])
            for split, rows in definition.dataset.items()
        }
    asked = recorded(lm, lambda: evaluated(lm, definition, 16))
    peer, peer_name = fastest_hflm(lm, asked, batch_sizes)
    timed = alternate({"ours": lambda: evaluated(lm, definition), "peer": lambda: evaluated(peer, definition)}, runs)
    ours, theirs = timed["ours"].results[0], timed["peer"].results[0]
    assert ours["figures"] == theirs["figures"]
    difference = 0.0
    for mine, other in zip(ours["samples"], theirs["samples"], strict=True):
        scores = [[(float(score), flag) for score, flag in row["filtered_resps"]] for row in (mine, other)]
        difference = max(difference, assert_equal(*scores))
        assert len({int(np.argmax([score for score, _ in each])) for each in scores}) == 1
    title = f"packed scoring, {task.name}'s validation data end to end, {name} model"
    bar = Bar.time(title, timed["ours"].median, timed["peer"].median, peer_name, goal=None, runs=runs)
    seconds = {called: each.seconds for called, each in timed.items()}
    details = {"questions": len(ours["samples"]), "largest_difference": difference, "figures": ours["figures"]}
    return bar, {**details, **seconds}


def recorded(lm: LocalLM, run: Callable[[], object]) -> Requests:
    """The requests, in tokens, that a model is asked within a run."""
    with patch.object(lm, "_loglikelihood_tokens", wraps=lm._loglikelihood_tokens) as asked:
        run()
    return [request for call in asked.call_args_list for request in call.args[0]]


def all_bars(quick: bool, full: bool, runs: int) -> Iterator[tuple[Bar, dict[str, Any]]]:
    """Bars and details in turn, as they are measured."""
    name: ModelName = "S" if quick else "D"
    lm = packed_lm(name, words())
    for shape, (_, questions, _) in SHAPES.items():
        yield shape_bar(lm, name, shape, 2 if quick else questions, (8,) if quick else BATCH_SIZES, runs)
    del lm
    yield from real_bars(name, quick, 4 if quick else None if full else 32, 1)
    yield memory_bar(name, ZERO_SHOT, 4 if quick else 16, 8), {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model and few questions, to see that all runs")
    parser.add_argument("--full", action="store_true", help="all real questions")
    parser.add_argument("--runs", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    bars, details = list[Bar](), dict[str, Any]()
    for bar, found in all_bars(arguments.quick, arguments.full, 1 if arguments.quick else arguments.runs):
        bars.append(bar)
        details[bar.name] = found
        print(f"{bar.name}: {bar.ours:.5g} {bar.unit}, HFLM {bar.peer:.5g}; ratio {bar.ratio:.2f}", flush=True)
    write_results(__file__, bars, {"threads": 1, "quick": arguments.quick, **details}, PACKAGES)


if __name__ == "__main__":
    main()
