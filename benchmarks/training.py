"""Time training by the paper's objective, with its peak memory, against a plain script and TRL's kernel.

    python benchmarks/training.py [--quick | --full] [--runs 2] [--texts 32]

Each variant (`variants.py`) runs in a process of its own, with one thread, on two bases of random weights with LoRA
adapters of rank 16 on all linear layers. An equal loss and equal gradients of the first optimiser step are asserted
before any time is reported. The seconds of 10 epochs are what came once (the cache, the Trainer's start) and 10 median
epochs. The peers have the batch size that is fastest for them; where memory is compared, all have ours. `--full` adds
figures for all tokens as targets, and those of ours without the cache, with it on disk, and with TRL's kernel.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from common import Bar, ModelName, in_own_process, model, write_results
from texts import Texts, Tokens, prepare
from variants import NEW, TEXTS_PER_STEP, VARIANTS, Watch, Work, task_model

BATCH_SIZE = 8
RANK = 16
TOLERANCE = 1e-5  # of the loss, and of the gradients against their length
PEERS = {
    "naive": "plain PyTorch script: three models, all logits",
    "trl": "TRL's chunked divergence kernel: targets only, live teachers, one new base",
}
Figures = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much is run."""

    texts: int
    """Of an epoch."""
    runs: int
    epochs: int
    """Of a run of ours."""
    batch_sizes: tuple[int, ...]
    """Among which a peer's fastest is searched, on half of the texts."""


def prepare_texts(folder: str, name: ModelName, number: int) -> Figures:
    """Write what all variants of a model train on; runs in a process of its own."""
    torch.set_num_threads(1)
    prepare(Path(folder), number, task_model(model(name, NEW), RANK, NEW).eval())
    return {tokens: Texts(Path(folder), tokens).facts() for tokens in ("answer", "all")}


def train(folder: str, variant: str, name: ModelName, tokens: Tokens, batch_size: int, epochs: int) -> Figures:
    """Train one variant, and leave its first loss and gradients in the folder; runs in a process of its own."""
    torch.set_num_threads(1)
    watch = Watch()
    work = Work(partial(model, name), RANK, Texts(Path(folder), tokens), batch_size, epochs)
    losses = VARIANTS[variant](work, watch)
    torch.save((losses[0], watch.gradients), Path(folder) / f"{variant}-{tokens}.pt")
    return watch.seconds(epochs)


class Contest:
    """Variants on one model and its texts.

    Args:
        folder: For the texts and the gradients.
        name: Of the model.
        texts: How many.
        prepare: As `prepare_texts`.
        train: As `train`.
        tolerance: Of loss and gradients.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        texts: int,
        prepare: Callable[..., Figures] = prepare_texts,
        train: Callable[..., Figures] = train,
        tolerance: float = TOLERANCE,
    ) -> None:
        folder.mkdir()
        self._folder, self._name, self._train, self._tolerance = str(folder), name, train, tolerance
        self.facts: Figures = in_own_process(prepare, self._folder, name, texts).result
        self.runs: list[Figures] = []

    def run(self, variant: str, tokens: Tokens, batch_size: int, epochs: int) -> Figures:
        """Time and peak memory of one run, whose first step must be that of the plain script, which comes first."""
        finished = in_own_process(self._train, self._folder, variant, self._name, tokens, batch_size, epochs)
        what = {"variant": variant, "tokens": tokens, "batch_size": batch_size, "epochs": epochs}
        difference = difference_of_gradients(Path(self._folder), variant, tokens, self._tolerance)
        spent = {"peak_mb": finished.peak_mb, "cpu_seconds_of_process": finished.cpu_seconds}
        figures = {**what, **spent, **finished.result, "gradient_difference": difference}
        print(self._name, figures, flush=True)
        self.runs.append(figures)
        return figures

    def fastest_batch_size(self, variant: str, sizes: Sequence[int]) -> int:
        """That of a peer, by one epoch each."""
        seconds = {size: self.run(variant, "answer", size, 1)["epoch"] for size in sizes}
        return min(seconds, key=lambda size: seconds[size])

    def race(
        self, sizes: Mapping[str, int], tokens: Tokens, runs: int, epochs: int, peer_epochs: int = 1
    ) -> dict[str, Figures]:
        """Medians by variant; they take turns, so that a machine that others slow down slows all of them alike.

        On a CPU nothing in the peers comes once, and one epoch tells all.
        """
        found: dict[str, list[Figures]] = {variant: [] for variant in sizes}
        for _ in range(runs):
            for variant, size in sizes.items():
                found[variant].append(self.run(variant, tokens, size, peer_epochs if variant in PEERS else epochs))
        keys = ("epoch", "once", "epochs_1", "epochs_10", "peak_mb")
        return {
            variant: {key: statistics.median(figures[key] for figures in each) for key in keys}
            for variant, each in found.items()
        }


def difference_of_gradients(folder: Path, variant: str, tokens: Tokens, tolerance: float) -> float:
    """Of the first step's from the plain script's: the difference's length, relative.

    Raises:
        AssertionError: They are others, or the loss is.
    """
    (loss, found), (plain_loss, plain) = (torch.load(folder / f"{who}-{tokens}.pt") for who in (variant, "naive"))
    assert found.keys() == plain.keys()
    apart = torch.cat([(found[name] - plain[name]).flatten() for name in plain]).norm()
    relative = float(apart / torch.cat([gradient.flatten() for gradient in plain.values()]).norm())
    assert relative < tolerance, f"{variant}: gradients differ by {relative:.1e} from those of the plain script"
    assert abs(loss / plain_loss - 1) < tolerance, (
        f"{variant}: a loss of {loss}, and the plain script's is {plain_loss}"
    )
    return relative


def bars_of_time(name: ModelName, sizes: Mapping[str, int], figures: Mapping[str, Figures], runs: int) -> list[Bar]:
    """Against both peers, on one model."""
    wanted = (
        ("10 epochs, against a plain script", "naive", "epochs_10", ">= 2.5"),
        ("10 epochs, against TRL's kernel", "trl", "epochs_10", ">= 1.8"),
        ("1 epoch, against TRL's kernel", "trl", "epochs_1", ">= 1"),
    )
    bars = []
    for words, peer, key, goal in wanted:
        title = f"training, {name} model, {words}"
        if peer in figures:
            peer_name = f"{PEERS[peer]}, batch size {sizes[peer]}"
            bars.append(Bar.time(title, figures["ours"][key], figures[peer][key], peer_name, goal, runs))
        else:
            bars.append(Bar.not_run(title, "s", PEERS[peer], goal, "trl is not installed"))
    return bars


def bar_of_memory(name: ModelName, ours: Figures, naive: Figures, goal: str, runs: int) -> Bar:
    """Peak memory of the process, on one model."""
    title, peer_name = f"training, {name} model, peak memory", f"{PEERS['naive']}, batch size {BATCH_SIZE}"
    return Bar.memory(title, ours["peak_mb"], naive["peak_mb"], peer_name, goal, runs)


def measure(folder: Path, deep: ModelName, wide: ModelName, size: Size, full: bool) -> tuple[list[Bar], Figures]:
    """All bars, and the figures that stand beside them."""
    peers = [peer for peer in PEERS if peer == "naive" or find_spec("trl")]
    sizes, searched = dict.fromkeys(peers, size.batch_sizes[0]), list[Figures]()
    if len(size.batch_sizes) > 1:
        search = Contest(folder / "search", deep, size.texts // 2)
        sizes, searched = {peer: search.fastest_batch_size(peer, size.batch_sizes) for peer in peers}, search.runs
    contest = Contest(folder / "deep", deep, size.texts)
    medians = {"answers": contest.race({**sizes, "ours": BATCH_SIZE}, "answer", size.runs, size.epochs)}
    answers = medians["answers"]
    ours_size = contest.race({"naive": BATCH_SIZE}, "answer", 1, 1) if sizes["naive"] != BATCH_SIZE else answers
    bars = bars_of_time(deep, sizes, answers, size.runs)
    bars.append(bar_of_memory(deep, answers["ours"], ours_size["naive"], "<= 0.6", size.runs))
    second = Contest(folder / "wide", wide, size.texts)
    both = dict.fromkeys(("naive", "ours"), BATCH_SIZE)
    vocabulary = medians["large vocabulary"] = second.race(both, "answer", 1, 1)
    bars.append(bar_of_memory(wide, vocabulary["ours"], vocabulary["naive"], "<= 0.25", 1))
    if full:
        further = [name for name in VARIANTS if name not in answers and (find_spec("trl") or "TRL" not in name)]
        medians["further"] = contest.race(dict.fromkeys(further, BATCH_SIZE), "answer", 1, size.epochs)
        medians["all tokens"] = contest.race({**sizes, "ours": BATCH_SIZE}, "all", 1, size.epochs)
    runs = {"search": searched, "deep": contest.runs, "wide": second.runs}
    return bars, {"medians": medians, "texts": contest.facts, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="model S and a few texts")
    extent.add_argument("--full", action="store_true", help="further variants, and all tokens as targets")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--texts", type=int, default=TEXTS_PER_STEP, help="of an epoch")
    parser.add_argument("--epochs", type=int, default=3, help="of a run of ours, the first of which is not timed")
    arguments = parser.parse_args()
    deep: ModelName = "D"
    wide: ModelName = "V"
    size = Size(arguments.texts, arguments.runs, arguments.epochs, (4, 8, 16))
    if arguments.quick:
        deep, wide, size = "S", "S", Size(texts=4, runs=1, epochs=2, batch_sizes=(BATCH_SIZE,))
    with tempfile.TemporaryDirectory(prefix="muscle-training-") as folder:
        bars, details = measure(Path(folder), deep, wide, size, arguments.full)
    settings = {"threads": 1, "texts_per_step": TEXTS_PER_STEP, "rank": RANK}
    packages = ("torch", "transformers", "peft", "accelerate", "trl")
    write_results(__file__, bars, {**settings, **details}, packages)


if __name__ == "__main__":
    main()
