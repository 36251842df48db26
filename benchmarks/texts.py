"""The texts that `training.py` and `gpu.py` train on: GSM8K's, whose lengths vary as real ones do."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from common import DATA
from peft import PeftModel
from torch import Tensor
from transformers import AutoTokenizer

from muscle.update.prompts import Example
from muscle.update.scratch import train_tokenizer
from muscle.update.tokenized import IGNORED, PaddingCollator, TokenizedExamples

Tokens = Literal["all", "answer"]
VOCABULARY = 8000  # of the tokenizer; a model may know more, none less


def prepare(folder: Path, number: int, student: PeftModel) -> None:
    """Draw texts, train a tokenizer on their like, and make a student of random weights right on about half of them.

    A trained student is right on most tokens, one of random weights on none, and what the paper's mask chooses hangs on
    it: every second target is therefore the student's own first choice.
    """
    rows = [*_rows()]
    tokenizer = train_tokenizer([context + answer for context, answer in rows], VOCABULARY)
    tokenizer.save_pretrained(folder / "tokenizer")
    chosen = random.Random(0).sample(rows, number)
    data = TokenizedExamples([Example(*row) for row in chosen], tokenizer)
    labels = [_half_right(student, data[index]["input_ids"], seed=index) for index in range(number)]
    student.config.save_pretrained(folder / "base")
    (folder / "texts.json").write_text(json.dumps({"rows": chosen, "labels": labels}))


class Texts(TokenizedExamples):
    """What `prepare` wrote, as the project's own training set."""

    def __init__(self, folder: Path, tokens: Tokens) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        written = json.loads((folder / "texts.json").read_text())
        super().__init__([Example(*row) for row in written["rows"]], tokenizer, tokens)
        self.tokenizer = tokenizer
        self.base = folder / "base"  # the configuration of the bases
        self.collator = PaddingCollator(tokenizer.pad_token_id)
        self._labels = [torch.tensor(labels) for labels in written["labels"]]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = super().__getitem__(index)
        return {**item, "labels": torch.where(item["labels"] == IGNORED, IGNORED, self._labels[index])}

    def facts(self) -> dict[str, Any]:
        """How many there are, and how long."""
        lengths = sorted(map(len, self.ids))
        targets = sum(int((self[index]["labels"][1:] != IGNORED).sum()) for index in range(len(self)))
        median = lengths[len(lengths) // 2]
        return {
            "texts": len(self),
            "tokens": sum(lengths),
            "targets": targets,
            "median": median,
            "longest": lengths[-1],
        }


@torch.no_grad()
def _half_right(student: PeftModel, ids: Tensor, seed: int) -> list[int]:
    """Labels (T,) of a text: at random, what the student holds most likely there, or the text's own token."""
    logits = student(input_ids=ids[None].to(student.device), use_cache=False).logits[0]
    first_choices = torch.cat([ids[:1], logits.argmax(-1)[:-1].cpu()])
    coins = torch.rand(len(ids), generator=torch.Generator().manual_seed(seed))
    labels: list[int] = torch.where(coins < 0.5, first_choices, ids).tolist()
    return labels


def _rows() -> Iterator[tuple[str, str]]:
    """Contexts and answers of GSM8K's test split, or made-up ones of such lengths where the data is not at hand."""
    file = DATA / "tasks" / "gsm8k" / "test.jsonl"
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            document = json.loads(line)
            yield f"Question: {document['question']}\nAnswer:", f" {document['answer']}"
        return
    made_up = random.Random(0)
    words = ["".join(made_up.choices("abcdefghijklmnopqrstuvwxyz", k=made_up.randint(1, 8))) for _ in range(4000)]
    for _ in range(1319):
        lengths = (int(made_up.lognormvariate(3.8, 0.4)) + 4, int(made_up.lognormvariate(4.2, 0.5)) + 4)
        yield tuple(" ".join(["", *made_up.choices(words, k=length)]) for length in lengths)  # type: ignore[misc]
