"""What a frozen task model says about training texts: from a cache of its final hidden states, or live."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import psutil
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from muscle.errors import MuscleError
from muscle.update.models import Head, device, hidden_and_logits
from muscle.update.tasks import PaddingCollator, TokenizedExamples


class Teacher(Protocol):
    """A frozen task model, as a source of logits."""

    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, T, V) of a right-padded batch, without gradient, on the device of the batch.

        What they are at padding is not defined.

        Args:
            batch: `input_ids` and `attention_mask` (B, T), and `index` (B,), the texts' positions in the training set.
        """
        ...


class CachedTeacher:
    """A frozen teacher reduced to its final hidden states over the training set and its head.

    The adapter and the body of the teacher run once per text instead of once per text and epoch; afterwards the model
    can be freed. Memory: H numbers of the model's dtype per token, on the CPU, plus the head.

    Args:
        model: A task model (base with or without adapter).
        data: The training set whose `index` will be asked for.
        collator: Pads as the trainer does.
        batch_size: Texts per forward pass.

    Raises:
        MuscleError: The cache would not fit into memory, or the model makes logits in a way that `Head` does not know,
            so that the cache would be wrong.
    """

    def __init__(
        self, model: nn.Module, data: TokenizedExamples, collator: PaddingCollator, batch_size: int = 32
    ) -> None:
        _move(model.eval(), device())
        self._head = Head.of(model)
        self._hidden: list[Tensor] = []  # by index, each (T_i, H)
        for batch in DataLoader(data, batch_size, collate_fn=collator):
            inputs = {name: batch[name].to(device()) for name in ("input_ids", "attention_mask")}
            hidden, logits = hidden_and_logits(model, **inputs)
            if not self._hidden:
                self._head.check(hidden, logits, model)
                _check_memory(hidden, data)
            lengths = batch["attention_mask"].sum(1).tolist()
            self._hidden += [row[:length].clone() for row, length in zip(hidden.cpu(), lengths, strict=True)]

    @torch.no_grad()
    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """See `Teacher.logits`."""
        ids = batch["input_ids"]
        rows = [self._hidden[i] for i in batch["index"].tolist()]
        hidden = rows[0].new_zeros(*ids.shape, rows[0].shape[-1])
        for padded, row in zip(hidden, rows, strict=True):
            padded[: len(row)] = row
        with torch.autocast(ids.device.type, enabled=False):  # its own precision, whatever the student's
            logits: Tensor = self._head.to(ids.device)(hidden.to(ids.device))
        return logits


class LiveTeacher:
    """A frozen teacher that runs beside the student: for models whose cache would not fit, or whose head is unknown.

    Args:
        model: A task model (base with or without adapter).
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """See `Teacher.logits`."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        where = inputs["input_ids"].device
        _move(self._model, where)
        with torch.autocast(where.type, enabled=False):  # its own precision, whatever the student's
            logits: Tensor = self._model(**inputs, use_cache=False).logits
        return logits


def _check_memory(hidden: Tensor, data: TokenizedExamples) -> None:
    """Refuse a cache that this machine cannot hold, rather than be killed when its memory is full."""
    needed = sum(map(len, data.ids)) * hidden.shape[-1] * hidden.element_size()
    if needed > psutil.virtual_memory().available:
        raise MuscleError(
            f"what a teacher says of {len(data)} texts takes {needed / 1e9:.0f} GB of memory, more than is free: set "
            "`teachers: live`"
        )


def _move(model: Any, where: torch.device) -> None:
    """To a device; quantized models were loaded where they belong, and refuse to move."""
    if model.device != where and not getattr(model, "is_quantized", False):
        model.to(where)
