"""Time training and packed scoring of a model of 7B on a GPU; where there is none, its bars stand as not run.

    python benchmarks/gpu.py [--shape 7b|tiny] [--texts 64] [--epochs 2]

The model has Llama 2 7B's shape, random weights in bfloat16, and LoRA adapters of rank 128 as in the paper. Training is
`training.py`'s contest; scoring is of GSM8K's questions with four answers each, against lm-eval's HFLM and, where it is
installed, vLLM. Every competitor has a process of its own. `--shape tiny` runs all of it on a CPU, to see that it runs.
Results go to benchmarks/results/gpu.json.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from common import Bar, in_own_process, write_results
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from texts import Texts, Tokens, prepare
from training import PEERS, Contest, Figures
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from variants import NEW, VARIANTS, Watch, Work, task_model

from muscle.update.backends import LocalLM
from muscle.update.models import device
from muscle.update.recipe import EvaluationSettings

Shape = Literal["7b", "tiny"]
CHOICES = 4
PEAKS = {  # FLOPs a second of bfloat16 without sparsity, by a part of the device's name, from NVIDIA's data sheets
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
}


@dataclass(frozen=True)
class Size:
    """What is run on a shape."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    rank: int
    dtype: torch.dtype
    batch_size: int
    """Of training."""
    scoring_batch_sizes: tuple[int, ...]
    """Among which the fastest of ours and of HFLM is searched."""
    tolerance: float
    """Of loss and gradients: in bfloat16 logits tie, and the mask breaks ties as the order of sums will have it."""


SIZES: dict[Shape, Size] = {
    "7b": Size(4096, 32, 32, 11_008, 32_000, 128, torch.bfloat16, 8, (8, 32, 128), tolerance=0.1),
    "tiny": Size(64, 2, 2, 192, 8192, 4, torch.float32, 2, (4,), tolerance=1e-5),
}


def base(shape: Shape, seed: int) -> LlamaForCausalLM:
    """A model of random weights, on the device from the start."""
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    size = SIZES[shape]
    config = LlamaConfig(
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        intermediate_size=size.intermediate,
        vocab_size=size.vocabulary,
        tie_word_embeddings=False,
        dtype=size.dtype,
    )
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(size.dtype)
    try:
        with device():
            made: LlamaForCausalLM = LlamaForCausalLM(config).eval()  # type: ignore[no-untyped-call]
    finally:
        torch.set_default_dtype(before)
    return made


def parameters(shape: Shape) -> tuple[int, int]:
    """Of the body, whose every weight takes part for every token, and of the head."""
    size = SIZES[shape]
    layer = 4 * size.hidden**2 + 3 * size.hidden * size.intermediate
    return size.layers * layer, size.hidden * size.vocabulary


def share_of_peak(flops: float, seconds: float) -> float | None:
    """Of what the card can do in bfloat16; None for a card, or a CPU, that the table does not know."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((peak for part, peak in PEAKS.items() if part in name), None)
    return None if peak is None else flops / seconds / peak


def prepare_texts(folder: str, shape: Shape, number: int) -> Figures:
    """As `training.prepare_texts`."""
    prepare(Path(folder), number, task_model(base(shape, NEW), SIZES[shape].rank, NEW).eval())
    return {tokens: Texts(Path(folder), tokens).facts() for tokens in ("answer", "all")}


def train(folder: str, variant: str, shape: Shape, tokens: Tokens, batch_size: int, epochs: int) -> Figures:
    """As `training.train`; with the share of the card's peak that the student's own work comes to.

    Per token 4 FLOPs per weight of the body (2 forward, 2 backward: frozen weights have no gradients), per target 6 per
    weight of the head (student, teacher, gradient). What teachers' bodies cost is not counted, whoever runs them.
    """
    watch, data = Watch(), Texts(Path(folder), tokens)
    losses = VARIANTS[variant](Work(partial(base, shape), SIZES[shape].rank, data, batch_size, epochs), watch)
    torch.save((losses[0], watch.gradients), Path(folder) / f"{variant}-{tokens}.pt")
    figures: Figures = {**watch.seconds(epochs), **peak_memory()}
    (body, head), facts = parameters(shape), data.facts()
    flops = 4 * body * facts["tokens"] + 6 * head * facts["targets"]
    return figures | {
        "tokens_per_second": facts["tokens"] / figures["epoch"],
        "share_of_peak": share_of_peak(flops, figures["epoch"]),
    }


def peak_memory() -> Figures:
    """Of the GPU, in MB; on a CPU the system's own figure stands."""
    return {"peak_mb": torch.cuda.max_memory_allocated() / 1e6} if torch.cuda.is_available() else {}


def score(folder: str, who: str, shape: Shape, batch_size: int, questions: int) -> Figures:
    """Score questions once to warm up and once on the clock; runs in a process of its own."""
    tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "tokenizer")
    asked = requests(Texts(Path(folder), "answer"), questions)
    if who == "vllm":
        from lm_eval.models.vllm_causallms import VLLM

        weights = Path(folder) / "weights"
        base(shape, NEW).save_pretrained(weights)
        torch.cuda.empty_cache()
        dtype = str(SIZES[shape].dtype).removeprefix("torch.")
        lm = VLLM(str(weights), tokenizer=str(Path(folder) / "tokenizer"), dtype=dtype, max_model_len=2048)
    elif who == "hflm":
        hflm = {"backend": "causal", "batch_size": batch_size, "softmax_dtype": "float32"}
        lm = HFLM(base(shape, NEW), tokenizer=tokenizer, **hflm)
    else:
        lm = LocalLM(base(shape, NEW), tokenizer, EvaluationSettings(batch_size=batch_size))
    run = partial(lm.loglikelihood, asked, disable_tqdm=True)
    run()
    start = time.perf_counter()
    answers = run()  # ends with figures on the CPU, so that nothing is under way any more
    seconds = time.perf_counter() - start
    tokens = sum(len(tokenizer(request.args[1])["input_ids"]) for request in asked)
    tokens += sum(len(tokenizer(request.args[0])["input_ids"]) for request in asked[::CHOICES])
    body, head = parameters(shape)
    return {
        "epoch": seconds,
        "tokens_per_second": tokens / seconds,
        "share_of_peak": share_of_peak(2 * (body + head) * tokens, seconds),
        "answers": [float(answer[0]) for answer in answers],
        **peak_memory(),
    }


def requests(data: Texts, questions: int) -> list[Instance]:
    """Questions as contexts, each with a text's own answer and those of the texts that follow."""
    rows = data.rows
    return [
        Instance("loglikelihood", {}, (row.context, rows[(place + other) % len(rows)].answer), place)
        for place, row in enumerate(rows[:questions])
        for other in range(CHOICES)
    ]


TRAINING = (
    ("10 epochs, against a plain script", "naive", "epochs_10"),
    ("10 epochs, against TRL's kernel", "trl", "epochs_10"),
)
HFLM_NAME, VLLM_NAME = "lm-eval's HFLM", "lm-eval's vLLM back end"


def title(what: str, shape: Shape) -> str:
    """Name of a bar."""
    return f"GPU, {shape} model, {what}"


def bars_of_training(contest: Contest, shape: Shape, epochs: int) -> tuple[list[Bar], Figures]:
    """Time and memory against both peers, all at one batch size."""
    size = SIZES[shape].batch_size
    variants = [variant for variant in ("naive", "trl", "ours") if variant != "trl" or find_spec("trl")]
    medians = contest.race(dict.fromkeys(variants, size), "answer", 1, epochs, peer_epochs=epochs)
    ours, bars = medians["ours"], []
    for words, peer, key in TRAINING:
        peer_name = f"{PEERS[peer]}, batch size {size}"
        if peer in medians:
            bars.append(Bar.time(title(f"training, {words}", shape), ours[key], medians[peer][key], peer_name, None, 1))
        else:
            bars.append(Bar.not_run(title(f"training, {words}", shape), "s", peer_name, None, "trl is not installed"))
    peak, naive = title("training, peak memory", shape), medians["naive"]["peak_mb"]
    bars.append(Bar.memory(peak, ours["peak_mb"], naive, PEERS["naive"], None, 1))
    return bars, {"medians": medians, "runs": contest.runs, "texts": contest.facts}


def bars_of_scoring(folder: str, shape: Shape, questions: int) -> tuple[list[Bar], Figures]:
    """Packed scoring against lm-eval's back ends, whose answers must be ours."""
    size = SIZES[shape]

    def run(who: str, batch_size: int) -> Figures:
        finished = in_own_process(score, folder, who, shape, batch_size, questions)
        figures: Figures = {"peak_mb": finished.peak_mb, "batch_size": batch_size, **finished.result}
        print(who, {name: figure for name, figure in figures.items() if name != "answers"}, flush=True)
        return figures

    def best(who: str) -> Figures:
        return min((run(who, batch) for batch in size.scoring_batch_sizes), key=lambda figures: float(figures["epoch"]))

    found = {"ours": best("ours"), "hflm": best("hflm")}
    if find_spec("vllm"):
        found["vllm"] = run("vllm", 0)
    answers = {who: torch.tensor(figures.pop("answers")) for who, figures in found.items()}
    bars = []
    for who, name in (("hflm", HFLM_NAME), ("vllm", VLLM_NAME)):
        bar = title(f"packed scoring, 4 answers a question, against {name}", shape)
        if who not in found:
            bars.append(Bar.not_run(bar, "s", name, None, f"{who} is not installed"))
            continue
        apart = float(((answers[who] - answers["ours"]) / answers["ours"]).abs().max())
        assert apart < size.tolerance, f"{who} and ours differ by {apart:.1e} of a log-likelihood"
        peer = f"{name}, batch size {found[who]['batch_size'] or 'its own'}"
        bars.append(Bar.time(bar, found["ours"]["epoch"], found[who]["epoch"], peer, None, 1))
    return bars, found


def not_run(shape: Shape, why: str) -> list[Bar]:
    """All bars of this script."""
    names = [(f"training, {words}", PEERS[peer], "s") for words, peer, _ in TRAINING]
    names += [("training, peak memory", PEERS["naive"], "MB")]
    names += [(f"packed scoring, 4 answers a question, against {n}", n, "s") for n in (HFLM_NAME, VLLM_NAME)]
    return [Bar.not_run(title(words, shape), unit, peer, None, why) for words, peer, unit in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the tiny shape, a few texts")
    parser.add_argument("--shape", choices=SIZES, default="7b")
    parser.add_argument("--texts", type=int, default=64, help="of an epoch, and questions to score")
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()
    shape, texts, epochs = arguments.shape, arguments.texts, arguments.epochs
    if arguments.quick:
        shape, texts, epochs = "tiny", 4, 2
    if shape == "7b" and not torch.cuda.is_available():
        print("not run: no GPU", flush=True)
        bars, details = not_run(shape, "no GPU"), {}
    else:
        with tempfile.TemporaryDirectory(prefix="muscle-gpu-") as name:
            folder = Path(name) / "work"
            contest = Contest(folder, shape, texts, prepare_texts, train, SIZES[shape].tolerance)
            bars, training = bars_of_training(contest, shape, epochs)
            further, scoring = bars_of_scoring(str(folder), shape, texts)
            bars, details = [*bars, *further], {"training": training, "scoring": scoring}
    packages = ("torch", "transformers", "peft", "accelerate", "trl", "vllm", "lm-eval")
    write_results(__file__, bars, details, packages)


if __name__ == "__main__":
    main()
