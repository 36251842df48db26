"""The reference that one model is held to: both task models at inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from muscle.errors import MuscleError
from muscle.update.backends import LocalLM, in_process, load_on_device
from muscle.update.models import load_tokenizer
from muscle.update.recipe import EvaluationSettings, TaskModel


class Ensemble(LocalLM):
    """Both task models at inference: softmax of their mean logits, token by token.

    It needs both models in memory and twice the time; it is here as the reference that one model is held to. Of
    vocabularies that are padded to different sizes it knows the rows that both have.
    """

    def __init__(self, old: TaskModel, new: TaskModel, settings: EvaluationSettings) -> None:
        super().__init__(load_on_device(new), load_tokenizer(new.base), in_process(settings))
        self._old = load_on_device(old)

    @property
    def _models(self) -> tuple[Any, ...]:
        return self.model, self._old

    def _mixed(self, logits: Sequence[Tensor]) -> Tensor:
        return _mean_logits(*logits)

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        with self._inference():
            return _mean_logits(super()._model_call(inps), self._old(inps).logits)

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **kwargs: Any) -> Tensor:
        if kwargs.get("num_beams", 1) > 1:
            raise MuscleError("the ensemble of two models decodes without beams: set num_beams to 1 in the task")
        mix = _MeanWith(self._old, kwargs["attention_mask"])
        generated: Tensor = super()._model_generate(
            context, max_length, stop, logits_processor=LogitsProcessorList([mix]), **kwargs
        )
        return generated


def _mean_logits(one: Tensor, other: Tensor) -> Tensor:
    """(..., V) in float32; V is the smaller of both vocabularies."""
    rows = min(one.shape[-1], other.shape[-1])
    return (one[..., :rows].float() + other[..., :rows].float()) / 2


class _MeanWith(LogitsProcessor):
    """Mean of the generating model's next-token logits and another model's, which keeps its own cache of the context.

    It serves one batch, from the prompt on. A model that hands no cache back reads its whole context anew each step.
    """

    def __init__(self, other: nn.Module, prompt_mask: Tensor) -> None:
        self._other, self._prompt_mask = other, prompt_mask
        self._cache: Any = None

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        generated = input_ids.shape[1] - self._prompt_mask.shape[1]
        mask = torch.nn.functional.pad(self._prompt_mask, (0, generated), value=1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)  # prompts are padded on the left
        unread = slice(None) if self._cache is None else slice(-1, None)
        outputs = self._other(
            input_ids=input_ids[:, unread],
            attention_mask=mask,
            position_ids=positions[:, unread],
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache = outputs.get("past_key_values")
        return _mean_logits(scores, outputs.logits[:, -1])
