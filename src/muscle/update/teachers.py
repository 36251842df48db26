"""What a frozen task model says about the training set, computed once."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from muscle.errors import MuscleError
from muscle.update.models import device, hidden_and_logits, output_head
from muscle.update.tasks import PaddingCollator, TokenizedExamples


class CachedTeacher:
    """A frozen teacher reduced to its final hidden states over the training set and its head.

    The adapter and the body of the teacher run once per text instead of once per text and epoch; afterwards the model
    can be freed. Memory: H numbers per token, plus the head.

    Args:
        model: a task model (base and adapter).
        data: the training set whose `index` will be asked for.
        collator: pads as the trainer does.
        batch_size: texts per forward pass.

    Raises:
        MuscleError: the model changes its logits after the head (softcap, scale), so that the cache would be wrong.
    """

    def __init__(
        self, model: nn.Module, data: TokenizedExamples, collator: PaddingCollator, batch_size: int = 128
    ) -> None:
        model.eval().to(device())
        self._head = copy.deepcopy(output_head(model)).requires_grad_(False)
        self._hidden: list[Tensor] = []
        for batch in DataLoader(data, batch_size, collate_fn=collator):
            inputs = {name: batch[name].to(device()) for name in ("input_ids", "attention_mask")}
            hidden, logits = hidden_and_logits(model, **inputs)
            if not self._hidden and not torch.allclose(self._head(hidden), logits, atol=1e-4):
                raise MuscleError(
                    f"{type(model).__name__} changes its logits after the output head, which the teacher cache "
                    "does not reproduce: use an architecture without logit softcapping or scaling"
                )
            lengths = batch["attention_mask"].sum(1).tolist()
            self._hidden += [row[:length].clone() for row, length in zip(hidden.cpu(), lengths, strict=True)]

    @torch.no_grad()
    def logits(self, index: Tensor) -> Tensor:
        """Logits (B, T, V) of the texts `index` (B,), right-padded to the longest of them."""
        hidden = pad_sequence([self._hidden[i] for i in index.tolist()], batch_first=True)
        logits: Tensor = self._head(hidden.to(device()))
        return logits
