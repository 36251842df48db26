"""Evaluation through lm-eval, written as its own samples logs; and the ensemble that one model is held to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from muscle.update.models import device
from muscle.update.recipe import Split

BATCH_SIZE = 256


def task_model_lm(base: str | Path, adapter: str | Path) -> HFLM:
    """A base with its adapter behind lm-eval's interface."""
    return HFLM(pretrained=str(base), peft=str(adapter), **_options())


def _options() -> dict[str, Any]:
    return {"backend": "causal", "batch_size": BATCH_SIZE, "device": str(device())}


def evaluate(lm: HFLM, name: str, task: Any, split: Split, destination: Path) -> None:
    """Evaluate one lm-eval task and write `results_*.json` and `samples_*.jsonl` under `destination`.

    Args:
        lm: The model behind lm-eval's interface.
        name: What the log calls the model.
        task: A task of lm-eval; scoring its validation split takes its test split away for good.
        split: Which of the task's splits to score.
        destination: Folder to write to.
    """
    if split == "validation":
        task.set_config("test_split", None)  # lm-eval scores the validation split of a task without a test split
    tracker = EvaluationTracker(output_path=str(destination))
    tracker.general_config_tracker.log_experiment_args("hf", {"pretrained": name}, None, None, None)
    # Not simple_evaluate, which spends seconds on each call describing the machine.
    results = lm_eval.evaluate(lm, {"tasks": {task.config.task: task}}, bootstrap_iters=0)
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task_name, rows in samples.items():
        tracker.save_results_samples(task_name, rows)


class Ensemble(HFLM):  # type: ignore[misc]  # lm-eval is untyped
    """Both task models at inference: softmax of their mean logits, token by token.

    It needs both models in memory and twice the time; it is here as the reference that one model is held to.
    """

    def __init__(self, old: HFLM, base: str | Path, adapter: str | Path) -> None:
        super().__init__(pretrained=str(base), peft=str(adapter), **_options())
        self._old = old

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        mean: Tensor = (super()._model_call(inps) + self._old._model_call(inps)) / 2
        return mean

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **kwargs: Any) -> Tensor:
        mix = _MeanWith(self._old.model, kwargs["attention_mask"])
        generated: Tensor = super()._model_generate(
            context, max_length, stop, logits_processor=LogitsProcessorList([mix]), **kwargs
        )
        return generated


class _MeanWith(LogitsProcessor):
    """Mean of the generating model's next-token logits and another model's, whose context is read anew each step."""

    def __init__(self, other: nn.Module, prompt_mask: Tensor) -> None:
        self._other, self._prompt_mask = other, prompt_mask

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        generated = input_ids.shape[1] - self._prompt_mask.shape[1]
        mask = torch.nn.functional.pad(self._prompt_mask, (0, generated), value=1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)  # prompts are padded on the left
        logits = self._other(input_ids=input_ids, attention_mask=mask, position_ids=positions).logits[:, -1]
        mean: Tensor = (scores + logits) / 2
        return mean
