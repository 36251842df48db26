"""The demo's tokenizer and its two bases: small Llama models pretrained from scratch on the world's documents."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from muscle.demo.world import vocabulary
from muscle.update.pipeline import Report
from muscle.update.scratch import PackedDocuments, pretrain

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


def pretrain_in_world(documents: Iterable[str], steps: int, seed: int, destination: Path, report: Report) -> None:
    """Train a base from scratch on the documents and save it with its tokenizer to `destination`."""
    tokenizer = build_tokenizer()
    rows = PackedDocuments(documents, tokenizer, PACKED_LENGTH, repeat_to=steps * PACKED_BATCH)
    model = build_model(len(tokenizer), seed)
    pretrain(model, rows, LEARNING_RATE, PACKED_BATCH, seed, destination, report)
    model.save_pretrained(destination)
    tokenizer.save_pretrained(destination)
