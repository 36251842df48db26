"""How time and memory grow, with log rows, training tokens, vocabulary, choices and shots: measured, and by the model.

    python benchmarks/growth.py [--quick | --full] [--picture docs/growth.svg]

Each axis runs in a process of its own, from its smallest point to its largest, on one thread. Peak memory is what the
system says of the process after each point. The model of a cost is a formula (docs/performance.md) times a free
scale, on top of what is fixed, both fitted to the measured points. The figures go to
benchmarks/results/growth.json, and a picture of small multiples beside the documentation.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import REPOSITORY, in_own_process, write_results
from scipy.optimize import nnls

HIDDEN, LAYERS, HEADS, VOCABULARY = 256, 2, 4, 8000
MLP, RANK = 704, 16
BODY = LAYERS * (4 * HIDDEN**2 + 3 * HIDDEN * MLP)
"""Weights of the body's matrices."""
TEXTS, LENGTH, STEPS = 4, 64, 2
QUESTIONS, QUESTION, CHOICE, SHOT = 8, 48, 8, 56
"""Items, and tokens of an item's parts, of the evaluated axes."""

POINTS: dict[str, dict[str, list[int]]] = {
    "rows": {"quick": [1000, 10_000], "default": [10**3, 10**4, 10**5, 10**6], "full": [10**n for n in range(3, 8)]},
    "tokens": {"quick": [64, 256], "default": [32, 64, 128, 256, 512]},
    "vocabulary": {"quick": [8000, 64_000], "default": [8000, 16_000, 32_000, 64_000, 128_000, 256_000]},
    "choices": {"quick": [2, 20], "default": [2, 5, 10, 20, 50, 100, 150]},
    "shots": {"quick": [0, 4], "default": [0, 1, 2, 4, 8]},
}
LABELS = {
    "rows": "rows of each log",
    "tokens": "tokens of a training text",
    "vocabulary": "vocabulary",
    "choices": "choices of a question",
    "shots": "shots",
}


def seconds_model(axis: str, x: int) -> float:
    """What time is proportional to: rows read, or floating-point operations."""
    if axis == "rows":
        return x
    if axis in ("tokens", "vocabulary"):  # forward and backward through the body, three products with the head
        length, words = (x, VOCABULARY) if axis == "tokens" else (LENGTH, x)
        return TEXTS * length * (4 * BODY + 6 * HIDDEN * words + 8 * LAYERS * HIDDEN * length)
    shots, choices = (x, 4) if axis == "shots" else (0, x)
    context, ends = QUESTION + SHOT * shots, choices * CHOICE  # the context once, then each choice
    return QUESTIONS * ((context + ends) * (2 * BODY + 4 * LAYERS * HIDDEN * context) + 2 * ends * HIDDEN * VOCABULARY)


def bytes_model(axis: str, x: int) -> float:
    """Bytes that grow, beside what is there before: weights, and what is kept of tokens."""
    if axis == "rows":
        return 100.0 * x  # a key, a hash and the scores of each item
    if axis in ("tokens", "vocabulary"):
        length, words = (x, VOCABULARY) if axis == "tokens" else (LENGTH, x)
        saved = LAYERS * TEXTS * length * 4 * (14 * HIDDEN + 5 * MLP)
        return 4.0 * (BODY + 2 * HIDDEN * words) + saved + 24.0 * max(2**22, 64 * words)
    shots, choices = (x, 4) if axis == "shots" else (0, x)
    tokens = QUESTION + SHOT * shots + choices * CHOICE
    return 4.0 * (BODY + 2 * HIDDEN * VOCABULARY) + 4.0 * QUESTIONS * tokens * (8 * HIDDEN + MLP)


def measure(axis: str, points: list[int]) -> dict[str, Any]:
    """Median seconds and peak MB at each point, in ascending order, and MB before the first."""
    prepare: Callable[[int], Callable[[], object]] = {
        "rows": _compare,
        "tokens": lambda length: _train(length, VOCABULARY),
        "vocabulary": lambda words: _train(LENGTH, words),
        "choices": lambda choices: _score(0, choices),
        "shots": lambda shots: _score(shots, 4),
    }[axis]
    if axis != "rows":
        import torch

        from muscle.update import adapters, scoring  # noqa: F401  # libraries first, so that they are no part of a point

        torch.set_num_threads(1)
    before, measured = _peak(), []
    for x in points:
        run, seconds = prepare(x), []
        for _ in range(1 if axis == "rows" and x >= 10**6 else 3):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        measured.append([x, statistics.median(seconds), _peak()])
    return {"before": before, "points": measured}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def _compare(rows: int) -> Callable[[], object]:
    from reading import write_log

    from muscle.measure import compare

    folder = Path(tempfile.mkdtemp())
    logs = [folder / f"samples_{model}.jsonl" for model in ("old", "new")]
    for model, log in enumerate(logs):
        write_log(log, rows, model, 0.1 * model)

    def run() -> None:
        compare(*logs)

    return run


def _model(vocabulary: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=4096,
    )
    return LlamaForCausalLM(config)


def _train(length: int, vocabulary: int) -> Callable[[], object]:
    """Some updates of an adapter by plain cross-entropy on all tokens."""
    import torch

    from muscle.update.lora import add_adapter
    from muscle.update.objectives import task_objective
    from muscle.update.recipe import LoraSettings, TrainingSettings
    from muscle.update.scratch import PackedDocuments
    from muscle.update.trainer import train

    model = add_adapter(_model(vocabulary).requires_grad_(False), LoraSettings(rank=RANK), 0)
    texts = torch.randint(0, vocabulary, (TEXTS * STEPS, length), generator=torch.Generator().manual_seed(0))
    rows: Any = [{"input_ids": text} for text in texts]
    settings = TrainingSettings(epochs=1, batch_size=TEXTS, accumulation=1, warmup_steps=0, select_by="last")

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder) / "run" / "checkpoints"
            work.mkdir(parents=True)
            train(model, task_objective, settings, rows, None, PackedDocuments.collate, work, lambda *_: None)

    return run


def _score(shots: int, choices: int) -> Callable[[], object]:
    """Questions of several choices, each with shots of its own."""
    import random

    from lm_eval.api.instance import Instance
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    from muscle.update.backends import LocalLM
    from muscle.update.recipe import EvaluationSettings

    words = [f"w{i}" for i in range(VOCABULARY)]
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    made.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="w1", pad_token="w0", unk_token="w0")  # type: ignore[no-untyped-call]
    lm = LocalLM(_model(VOCABULARY).eval(), tokenizer, EvaluationSettings(batch_size=32))
    draw = random.Random(0)
    requests = []
    for question in range(QUESTIONS):
        context = " ".join(draw.choices(words, k=QUESTION + SHOT * shots))
        for choice in range(choices):
            pair = context, " " + " ".join(draw.choices(words, k=CHOICE))
            requests.append(Instance("loglikelihood", {}, pair, choice, metadata=("growth", question, 1)))
    return lambda: lm.loglikelihood(requests, disable_tqdm=True)


def fitted(axis: str, found: dict[str, Any]) -> list[list[float]]:
    """Seconds and MB of the model at each point."""
    xs, seconds, peaks = zip(*found["points"], strict=True)
    time = _on_top_of_what_is_fixed([seconds_model(axis, x) for x in xs], seconds)
    memory = _on_top_of_what_is_fixed([bytes_model(axis, x) / 1e6 for x in xs], peaks)
    return [list(each) for each in zip(time, memory, strict=True)]


def _on_top_of_what_is_fixed(formula: Sequence[float], measured: Sequence[float]) -> list[float]:
    """The formula times a scale, and a fixed cost: both at least 0, with the smallest relative errors (squared)."""
    shapes = np.stack([np.ones(len(formula)), np.array(formula)], axis=1)
    fixed_and_scale, _ = nnls(shapes / np.array(measured)[:, None], np.ones(len(measured)))
    line: list[float] = (shapes @ fixed_and_scale).tolist()
    return line


def draw(results: dict[str, dict[str, Any]], picture: Path) -> None:
    """Two rows of small multiples: time and peak memory by axis, points measured, lines by the model."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "growth", "font.size": 8})
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, len(results), figsize=(2.4 * len(results), 4.2), layout="constrained")
    for column, (axis, found) in enumerate(results.items()):
        xs = [x for x, _, _ in found["points"]]
        for row, name in enumerate(("seconds", "peak memory, MB")):
            panel = panels[row][column]
            panel.plot(xs, [line[row] for line in found["model"]], color="#999999", label="model")
            panel.plot(xs, [point[row + 1] for point in found["points"]], "o", color="#1f5fa8", ms=4, label="measured")
            if axis != "shots":
                panel.set_xscale("log")
                panel.set_xticks([xs[0], xs[-1]], [f"{xs[0]:,}", f"{xs[-1]:,}"])
                panel.minorticks_off()
            if row == 0 and axis != "shots":
                panel.set_yscale("log")
                panel.yaxis.set_major_formatter("{x:g}")
                panel.yaxis.set_minor_formatter("")
            else:
                panel.set_ylim(bottom=0)
            panel.spines[["top", "right"]].set_visible(False)
            if column == 0:
                panel.set_ylabel(name)
            if row:
                panel.set_xlabel(LABELS[axis])
    panels[0][0].legend(frameon=False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, metadata={"Date": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, fit, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="two points of each axis, and no picture but by --picture")
    size.add_argument("--full", action="store_true", help="also ten million rows")
    parser.add_argument("--picture", type=Path, help="file of the picture [default: docs/growth.svg, unless --quick]")
    chosen = parser.parse_args(arguments)
    extent = "quick" if chosen.quick else "full" if chosen.full else "default"
    results: dict[str, dict[str, Any]] = {}
    for axis, points in POINTS.items():
        found = in_own_process(measure, axis, points.get(extent, points["default"])).result
        results[axis] = {**found, "model": fitted(axis, found)}
        for (x, seconds, peak), (line, memory) in zip(found["points"], results[axis]["model"], strict=True):
            print(f"{axis:<11}{x:>9}  {seconds:8.3f} s (model {line:8.3f})  {peak:7.0f} MB (model {memory:7.0f})")
    write_results(__file__, [], {"extent": extent, "axes": results}, ["torch", "transformers", "peft", "lm-eval"])
    picture = chosen.picture or (None if chosen.quick else REPOSITORY / "docs" / "growth.svg")
    if picture:
        draw(results, picture)


if __name__ == "__main__":
    main()
