"""Time how texts are cut into chunks that two tokenizers share, the step before an old teacher of another tokenizer.

    python benchmarks/chunking.py [--runs 5] [--quick]

It reads GSM8K from MUSCLE_DATA (default ../shared/data; without it texts are made up). There is no peer; the goal is
20,000 texts a minute and core, the tokenizing of both sides included.
Texts are those of both sides' own evaluation: first in equal prompts, then in two chat templates, whose common part has
to be found. Seconds are those of the processor, all threads together.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Sequence
from typing import Any

from common import Bar, write_results
from texts import VOCABULARY, _rows
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from muscle.update.across.chunks import Chunks
from muscle.update.prompts import Example
from muscle.update.scratch import train_tokenizer
from muscle.update.tokenized import TokenizedExamples

UNIT = "texts/min"
TEMPLATES = {
    "equal prompts": ("{}", "{}"),
    "two chat templates": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        "[INST] {} [/INST]",
    ),
}


def old_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose words keep the space before them, of half the vocabulary; the student's is byte-level."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY // 2, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="100 texts, one run")
    arguments = parser.parse_args()
    rows = list(itertools.islice(_rows(), 100 if arguments.quick else None))
    whole = [context + answer for context, answer in rows]
    tokenizers = train_tokenizer(whole, VOCABULARY), old_tokenizer(whole)
    bars, details = list[Bar](), dict[str, Any]()
    for work, templates in TEMPLATES.items():
        sides = [[Example(template.format(context), answer) for context, answer in rows] for template in templates]
        tokenizing, cutting = list[float](), list[float]()
        for _ in range(1 if arguments.quick else arguments.runs):
            start = time.process_time()
            student, old = (TokenizedExamples(*side) for side in zip(sides, tokenizers, strict=True))
            middle = time.process_time()
            chunks = Chunks.of(student, old)
            tokenizing.append(middle - start)
            cutting.append(time.process_time() - middle)
        alone = 60 * len(rows) / statistics.median(cutting)
        both = 60 * len(rows) / statistics.median(map(sum, zip(cutting, tokenizing, strict=True)))
        tokens = [sum(map(len, side.ids)) for side in (student, old)]
        print(
            f"{work}: {len(rows):,} texts of {tokens[0]:,} and {tokens[1]:,} tokens, {chunks.count:,} chunks, "
            f"{chunks.aligned:.1%} of targets aligned"
        )
        for name, found in (("cutting alone", alone), ("tokenized twice and cut", both)):
            bars.append(Bar.limit(f"across tokenizers, {name}, {work}", found, f">= 20000 {UNIT}", len(cutting), UNIT))
            print(f"  {name}: {found:,.0f} texts a minute and core: {'met' if bars[-1].met else 'missed'}", flush=True)
        details[work] = {"texts": len(rows), "tokens": tokens, "chunks": chunks.count, "aligned": chunks.aligned}
    write_results(__file__, bars, details, ("tokenizers", "transformers"))


if __name__ == "__main__":
    main()
