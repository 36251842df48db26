"""Small bases pretrained from scratch, for updates that must run where no published base can be had."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from muscle.errors import MuscleError
from muscle.update.models import load_tokenizer
from muscle.update.objectives import task_objective
from muscle.update.pipeline import CHECKPOINTS, Report
from muscle.update.recipe import Base, Scratch, TokenizerKind, TrainingSettings
from muscle.update.tokenized import IGNORED
from muscle.update.trainer import train

PAD, END, UNKNOWN, BEGIN = "<pad>", "<eos>", "<unk>", "<s>"
SPACE = "\u2581"
"""What a space is to a tokenizer with metaspace."""


def train_tokenizer(texts: Sequence[str], vocabulary: int, kind: TokenizerKind = "bytes") -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocabulary` tokens, or as many as its bytes and special tokens take.

    Args:
        texts: What it is trained on.
        vocabulary: Tokens, special ones included.
        kind: As in `Scratch`. All but words can say any text, up to Unicode normalization (bytes: NFC).
    """
    tokenizer, further = _KINDS[kind](texts, vocabulary)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, **further
    )


_Trained = tuple[Tokenizer, dict[str, str]]
"""A tokenizer, and the special tokens that it has beside those of all."""


def _bytes(texts: Sequence[str], vocabulary: int) -> _Trained:
    """Byte-level BPE, cut as Qwen2's: transformers puts that in place of what is saved beside a model of that type."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    return _byte_level(tokenizer, PRETOKENIZE_REGEX, texts, vocabulary), {"unk_token": END}


def _grouped(texts: Sequence[str], vocabulary: int) -> _Trained:
    """Byte-level BPE, cut as Llama 3's: up to three digits are one word."""
    pattern = PRETOKENIZE_REGEX.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
    return _byte_level(Tokenizer(models.BPE()), pattern, texts, vocabulary), {"unk_token": END}


def _byte_level(tokenizer: Tokenizer, pattern: str, texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """Trained on the texts, whose words are what the pattern matches."""
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _metaspace(texts: Sequence[str], vocabulary: int) -> _Trained:
    """BPE of characters, with spaces as a visible one, bytes for what is rare, and a token with which each text begins,
    as Llama 2's; digits stand alone.
    """
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    special = [UNKNOWN, PAD, END, BEGIN]
    spaces = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    words = pre_tokenizers.Split(SPACE, behavior="merged_with_next")
    cut = pre_tokenizers.Sequence([words, pre_tokenizers.Digits(individual_digits=True)])
    learner = Tokenizer(models.BPE())
    learner.normalizer, learner.pre_tokenizer = spaces, cut
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[*special, *fallback],
        limit_alphabet=max(1, (vocabulary - len(special) - len(fallback)) // 2),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learnt = json.loads(learner.to_str())["model"]  # bytes are no special tokens, as they were in training
    merges = [tuple(merge) for merge in learnt["merges"]]
    tokenizer = Tokenizer(models.BPE(learnt["vocab"], merges, byte_fallback=True, fuse_unk=True, unk_token=UNKNOWN))
    tokenizer.add_special_tokens(special)
    tokenizer.normalizer, tokenizer.pre_tokenizer = spaces, cut
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    begin = [(BEGIN, learnt["vocab"][BEGIN])]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=begin)
    return tokenizer, {"unk_token": UNKNOWN, "bos_token": BEGIN}


def _words(texts: Sequence[str], vocabulary: int) -> _Trained:
    """One token for each of the most frequent words between spaces, and one for all others."""
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(vocab_size=vocabulary, special_tokens=[PAD, END, UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer, {"unk_token": UNKNOWN}


_KINDS: Mapping[TokenizerKind, Callable[[Sequence[str], int], _Trained]] = {
    "bytes": _bytes,
    "grouped": _grouped,
    "metaspace": _metaspace,
    "words": _words,
}
"""What trains a tokenizer."""


def build_model(scratch: Scratch, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A freshly initialised model of any architecture that transformers knows, in the sizes asked for.

    Raises:
        MuscleError: transformers has no such architecture, or it does not take these sizes.
    """
    try:
        config = AutoConfig.for_model(
            scratch.architecture,
            vocab_size=len(tokenizer),
            hidden_size=scratch.hidden_size,
            intermediate_size=8 * (scratch.hidden_size // 3),
            num_hidden_layers=scratch.layers,
            num_attention_heads=scratch.heads,
            num_key_value_heads=scratch.heads,
            head_dim=scratch.hidden_size // scratch.heads,
            max_position_embeddings=2048,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        torch.manual_seed(scratch.seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except (ValueError, KeyError) as error:
        raise MuscleError(
            f"scratch.architecture {scratch.architecture}: cannot be built ({error}); correct it"
        ) from None
    return model


def pretrain_on_texts(
    texts: Sequence[str], scratch: Scratch, tokenizer: PreTrainedTokenizerFast, destination: Path, report: Report
) -> None:
    """Pretrain a base on its share of the texts, and save it with its tokenizer.

    Args:
        texts: Of all tasks, or documents. Their order is shuffled alike for every base that reads them.
        scratch: Size and schooling of the base.
        tokenizer: Its own, or the one that both bases share.
        destination: Folder of the base; training goes on from the checkpoints there.
        report: Told after every step.

    Raises:
        MuscleError: Transformers cannot build the base, or reads its tokenizer otherwise than it was trained.
    """
    order = np.random.default_rng(0).permutation(len(texts))[: max(1, round(scratch.text_share * len(texts)))]
    model = build_model(scratch, tokenizer)
    model.config.save_pretrained(destination)
    tokenizer.save_pretrained(destination)
    _check_kept(tokenizer, scratch, destination, texts[:CHECKED])
    if scratch.steps:
        documents = [texts[i] for i in order]
        rows = PackedDocuments(documents, tokenizer, scratch.length, repeat_to=scratch.steps * scratch.batch_size)
        pretrain(model, rows, scratch.learning_rate, scratch.batch_size, scratch.seed, destination, report)
    model.save_pretrained(destination)


def _check_kept(tokenizer: PreTrainedTokenizerFast, scratch: Scratch, folder: Path, texts: Sequence[str]) -> None:
    """Transformers puts a tokenizer of its own in place of what is saved beside a model of some types."""
    loaded = load_tokenizer(Base(base=str(folder)))
    sample = [*texts, "  two 2000 and  12 \n\n"]
    if loaded(sample)["input_ids"] != tokenizer(sample)["input_ids"]:
        raise MuscleError(
            f"transformers gives models of type {scratch.architecture} another tokenizer than {scratch.tokenizer}: set "
            "tokenizer under scratch to bytes, or choose another architecture, such as llama"
        )


def pretrain(
    model: PreTrainedModel,
    rows: PackedDocuments,
    learning_rate: float,
    batch_size: int,
    seed: int,
    destination: Path,
    report: Report,
) -> None:
    """One epoch over the rows with at most 50 warm-up steps and a cosine schedule; changes the model in place."""
    settings = TrainingSettings(
        epochs=1,
        learning_rate=learning_rate,
        batch_size=batch_size,
        accumulation=1,
        warmup_steps=min(50, len(rows) // batch_size // 3),
        select_by="last",
        seed=seed,
    )
    train(model, task_objective, settings, rows, None, rows.collate, destination / CHECKPOINTS, report)


CHECKED = 200
"""Texts by which it is judged whether a saved tokenizer is read as it is."""


class PackedDocuments(Dataset[dict[str, Tensor]]):
    """Documents joined by the end-of-text token and cut into rows of equal length.

    Args:
        length: Tokens per row.
        repeat_to: number of rows of the data set; the text is gone through as often as that takes.
    """

    def __init__(
        self, documents: Iterable[str], tokenizer: PreTrainedTokenizerFast, length: int, repeat_to: int
    ) -> None:
        stream: list[int] = []
        for ids in tokenizer(list(documents))["input_ids"]:
            stream += [*ids, tokenizer.eos_token_id]
        while len(stream) < length:
            stream += stream
        usable = len(stream) - len(stream) % length
        self._rows = torch.tensor(stream[:usable]).view(-1, length)
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
