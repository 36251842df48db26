"""Time generation against lm-eval's HFLM on GSM8K's questions, with answers of GSM8K's lengths; assert equal answers.

    python benchmarks/generation.py [--requests 64] [--runs 1] [--quick]

It reads GSM8K from MUSCLE_DATA (default ../shared/data), and writes benchmarks/results/generation.json. Prompts are
questions, tokenized by a BPE trained on GSM8K. A model of random weights never ends an answer, so that it gets a
script: each prompt ends with a token that stands for a number, the reference answer's length, and the hooked model
counts down from it, token by token, until it says "Question:", at which lm-eval's gsm8k stops. All of the model's
work is done for each token; only the largest logit is another. Both sides are timed at several batch sizes, on one
thread, and the best of each counts.
"""

import argparse
import json
import random
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from common import DATA, Bar, ModelName, alternate, model, write_results
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import nn
from transformers import PreTrainedTokenizerFast

from muscle.update.backends import LocalLM
from muscle.update.generation import can_refill
from muscle.update.recipe import EvaluationSettings

STOPS = ["Question:", "</s>", "<|im_end|>"]  # of lm-eval's gsm8k
LONGEST = 256  # lm-eval's max_gen_toks where a task says nothing
VOCABULARY = 32_000 - LONGEST
Item = tuple[str, str]


def gsm8k(split: str) -> list[Item]:
    """Questions and reference answers."""
    lines = (DATA / "tasks" / "gsm8k" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [(item["question"], item["answer"]) for item in map(json.loads, lines)]


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, and a token for each number: <0>, <1>, ..."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    alphabet = ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>"]
    trainer = BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([f"<{number}>" for number in range(LONGEST)])
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)  # type: ignore[no-untyped-call]


def script(scripted: nn.Module, tokenizer: PreTrainedTokenizerFast, vocabulary: int) -> None:
    """Let a model count down from a number to "Question:"; what follows then is its own."""
    numbers = [tokenizer.convert_tokens_to_ids(f"<{number}>") for number in reversed(range(LONGEST))]
    chain = [*numbers, *tokenizer.encode("Question:", add_special_tokens=False)]
    follows = torch.full((vocabulary,), -1)
    for token, following in pairwise(chain):
        follows[token] = following

    def say(_: nn.Module, __: Any, inputs: dict[str, Any], output: Any) -> None:
        following = follows[inputs["input_ids"][:, -1]]
        rows = (following >= 0).nonzero()[:, 0]
        output.logits[rows, -1, following[rows]] = 1e4

    scripted.register_forward_hook(say, with_kwargs=True)


def requests(items: Sequence[Item], tokenizer: PreTrainedTokenizerFast) -> list[Instance]:
    """Prompts of lm-eval's gsm8k without shots, and the number of tokens to come."""
    made = []
    for number, (question, answer) in enumerate(items):
        length = min(len(tokenizer.encode(answer)), LONGEST - 8)
        prompt = f"Question: {question}\nAnswer:<{length}>"
        made.append(Instance("generate_until", {}, (prompt, {"until": STOPS, "do_sample": False}), number))
    return made


def compete(lms: dict[int, LocalLM], asked: list[Instance], runs: int) -> dict[str, dict[int, list[float]]]:
    """Seconds of each side's runs by batch size."""
    sides = {"muscle": LocalLM.generate_until, "HFLM": HFLM.generate_until}
    timed = alternate(
        {f"{side} {size}": partial(run, lm, asked, True) for size, lm in lms.items() for side, run in sides.items()},
        runs,
    )
    answers = [answer for each in timed.values() for answer in each.results]
    assert all(answer == answers[0] for answer in answers), "the answers differ"
    return {side: {size: timed[f"{side} {size}"].seconds for size in lms} for side in sides}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="model S, 24 requests, one batch size")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train, test = gsm8k("train"), gsm8k("test")
    tokenizer = train_tokenizer([text for item in train for text in item])
    name: ModelName = "S" if arguments.quick else "D"
    count, sizes = (24, [8]) if arguments.quick else (arguments.requests, [8, 16, 32])
    asked = requests(random.Random(0).sample(test, count), tokenizer)
    scripted = model(name)
    script(scripted, tokenizer, scripted.config.vocab_size)
    lms = {size: LocalLM(scripted, tokenizer, EvaluationSettings(batch_size=size)) for size in sizes}
    assert can_refill(lms[sizes[0]], asked)
    runs = 1 if arguments.quick else arguments.runs
    seconds = compete(lms, asked, runs)
    medians = {side: {size: median(each) for size, each in tried.items()} for side, tried in seconds.items()}
    best = {side: min(tried, key=tried.__getitem__) for side, tried in medians.items()}
    bar = Bar.time(
        f"generation, GSM8K-shaped requests, {name} model, 1 thread",
        medians["muscle"][best["muscle"]],
        medians["HFLM"][best["HFLM"]],
        f"lm-eval HFLM, its best batch size of {', '.join(map(str, sizes))}",
        None if arguments.quick else ">= 1.5",
        runs,
    )
    print(f"{bar.ratio:.2f} times faster", best, medians)
    details = {"requests": count, "best_batch_size": best, "seconds": seconds}
    write_results(__file__, [bar], details, ["lm-eval", "torch", "transformers"])


if __name__ == "__main__":
    main()
