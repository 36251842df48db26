"""The demo's tokenizer and its two bases: small Llama models pretrained from scratch on the world's documents."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from muscle.demo.world import vocabulary
from muscle.update.objectives import task_objective
from muscle.update.pipeline import Report
from muscle.update.recipe import TrainingSettings
from muscle.update.tasks import IGNORED
from muscle.update.trainer import train

SPECIAL = ("<pad>", "<eos>", "<unk>")

PACKED_LENGTH = 64
PACKED_BATCH = 32
LEARNING_RATE = 3e-3


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the world."""
    words = {word: i for i, word in enumerate((*SPECIAL, *vocabulary()))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=256
    )


def build_model(vocabulary_size: int, seed: int) -> LlamaForCausalLM:
    """A freshly initialised base (about 165k parameters)."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary_size,
            hidden_size=80,
            intermediate_size=208,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=SPECIAL.index("<eos>"),
            pad_token_id=SPECIAL.index("<pad>"),
        )
    )


def pretrain(documents: Iterable[str], steps: int, seed: int, destination: Path, report: Report) -> None:
    """Train a base from scratch on the documents and save it with its tokenizer to `destination`."""
    tokenizer = build_tokenizer()
    rows = PackedDocuments(documents, tokenizer, repeat_to=steps * PACKED_BATCH)
    model = build_model(len(tokenizer), seed)
    schedule = TrainingSettings(1, LEARNING_RATE, PACKED_BATCH, warmup_steps=50, seed=seed)
    train(model, task_objective, schedule, rows, None, rows.collate, destination, report)
    model.save_pretrained(destination)
    tokenizer.save_pretrained(destination)


class PackedDocuments(Dataset[dict[str, Tensor]]):
    """Documents joined by the end-of-text token and cut into rows of equal length.

    Args:
        repeat_to: number of rows of the data set; the text is gone through as often as that takes.
    """

    def __init__(self, documents: Iterable[str], tokenizer: PreTrainedTokenizerFast, repeat_to: int) -> None:
        stream: list[int] = []
        for ids in tokenizer(list(documents))["input_ids"]:
            stream += [*ids, tokenizer.eos_token_id]
        usable = len(stream) - len(stream) % PACKED_LENGTH
        self._rows = torch.tensor(stream[:usable]).view(-1, PACKED_LENGTH)
        self._length = repeat_to

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self._rows[index % len(self._rows)]}

    @staticmethod
    def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Stack rows; every token but a row's first is a target."""
        input_ids = torch.stack([row["input_ids"] for row in rows])
        labels = input_ids.clone()
        labels[:, 0] = IGNORED
        return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels}
