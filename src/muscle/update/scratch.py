"""Small bases pretrained from scratch, for updates that must run where no published base can be had."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from muscle.errors import MuscleError
from muscle.update.objectives import task_objective
from muscle.update.pipeline import CHECKPOINTS, Report
from muscle.update.recipe import Scratch, TrainingSettings
from muscle.update.tokenized import IGNORED
from muscle.update.trainer import train

PAD, END = "<pad>", "<eos>"


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocabulary` tokens, which can say any text; digits stand alone.

    Its words are cut as Qwen2's are: transformers puts that in place of what is saved beside a model of that type, and
    bases of an update share one tokenizer, whatever their types.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
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
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=END
    )


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
        texts: Of all tasks. Their order is shuffled alike for every base.
        scratch: Size and schooling of the base.
        tokenizer: Shared by both bases.
        destination: Folder of the base; training goes on from the checkpoints there.
        report: Told after every step.
    """
    order = np.random.default_rng(0).permutation(len(texts))[: max(1, round(scratch.text_share * len(texts)))]
    model = build_model(scratch, tokenizer)
    if scratch.steps:
        documents = [texts[i] for i in order]
        rows = PackedDocuments(documents, tokenizer, scratch.length, repeat_to=scratch.steps * scratch.batch_size)
        pretrain(model, rows, scratch.learning_rate, scratch.batch_size, scratch.seed, destination, report)
    model.save_pretrained(destination)
    tokenizer.save_pretrained(destination)


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
