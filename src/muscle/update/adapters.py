"""LoRA adapters: task adapters and compatibility adapters, trained and saved as ordinary PEFT adapters."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from muscle.errors import MuscleError, quoted
from muscle.update.models import load_base, load_task_model, load_tokenizer
from muscle.update.objectives import Compatibility, Objective, task_objective
from muscle.update.pipeline import Report
from muscle.update.recipe import AlignmentSettings, LoraSettings, TrainingSettings
from muscle.update.tasks import PaddingCollator, TokenizedExamples, examples
from muscle.update.teachers import CachedTeacher
from muscle.update.trainer import train
from muscle.update.weights import WEIGHTS


def add_adapter(base: PreTrainedModel, lora: LoraSettings, seed: int) -> PeftModel:
    """Put a fresh adapter on a base (in place); the base's weights are frozen."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model: PeftModel = get_peft_model(base, config)
    return model.train()


def train_task_adapter(
    base: str | Path, task: Any, lora: LoraSettings, settings: TrainingSettings, destination: Path, report: Report
) -> None:
    """Train an adapter for a task on a base with plain cross-entropy and save the best epoch's to `destination`."""
    model = add_adapter(load_base(base), lora, settings.seed)
    data = _TaskData(base, task)
    _train_and_save(model, task_objective, settings, data, destination, report)


def train_compatibility_adapter(
    old_base: str | Path,
    old_adapter: str | Path,
    new_base: str | Path,
    new_adapter: str | Path,
    task: Any,
    alignment: AlignmentSettings,
    settings: TrainingSettings,
    destination: Path,
    report: Report,
) -> None:
    """Train the new task adapter on, towards two frozen task models, and save the best epoch's (section 4).

    Args:
        old_base: Base of the old task model: local folder or hub id. Both bases must share one tokenizer.
        old_adapter: Its task adapter.
        new_base: Base of the new task model, and of the result.
        new_adapter: Its task adapter, where training starts.
        task: lm-eval task with a training and a validation split.
        alignment: What to learn from. Without a weight no teacher is read: plain cross-entropy, the control.
        settings: How long and how fast to learn.
        destination: Where the PEFT adapter is saved.
        report: Told after every step.

    Raises:
        MuscleError: The bases tokenize differently, or training diverges.
    """
    data = _TaskData(new_base, task)
    objective: Objective = task_objective
    if alignment.weight:
        _check_same_tokenizer(old_base, new_base, data)
        old, new = (
            CachedTeacher(load_task_model(base, adapter), data.training, data.collator)
            for base, adapter in ((old_base, old_adapter), (new_base, new_adapter))
        )
        objective = Compatibility(old, new, WEIGHTS[alignment.weight], alignment.temperature, alignment.ce_share)
    student = load_task_model(new_base, new_adapter, trainable=True)
    _train_and_save(student, objective, settings, data, destination, report, alignment)


def _check_same_tokenizer(old_base: str | Path, new_base: str | Path, data: _TaskData) -> None:
    """Same means: identical ids on all training and validation text."""
    tokenizer = load_tokenizer(old_base)
    for part in (data.training, data.validation):
        old = TokenizedExamples(part.rows, tokenizer)
        for row, old_ids, new_ids in zip(part.rows, old.ids, part.ids, strict=True):
            if old_ids != new_ids:
                raise MuscleError(
                    f"{old_base} and {new_base} tokenize {quoted(row.context + row.answer)} differently: "
                    "aligning needs two bases that share a tokenizer"
                )


class _TaskData:
    """Training and validation texts of a task in a base's tokens."""

    def __init__(self, base: str | Path, task: Any) -> None:
        tokenizer = load_tokenizer(base)
        self.collator = PaddingCollator(int(tokenizer.pad_token_id))
        self.training = TokenizedExamples(examples(task, "training"), tokenizer)
        self.validation = TokenizedExamples(examples(task, "validation"), tokenizer)


def _train_and_save(
    model: PeftModel,
    objective: Objective,
    settings: TrainingSettings,
    data: _TaskData,
    destination: Path,
    report: Report,
    alignment: AlignmentSettings | None = None,
) -> None:
    checkpoints = destination / "checkpoints"
    result = train(model, objective, settings, data.training, data.validation, data.collator, checkpoints, report)
    model.save_pretrained(str(destination))
    shutil.rmtree(checkpoints)
    record = {"training": asdict(settings), "result": asdict(result)}
    if alignment:
        record["alignment"] = asdict(alignment)
    (destination / "training.json").write_text(json.dumps(record, indent=2) + "\n")
