"""The one training loop: transformers.Trainer with an objective given as (sum, count)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from muscle.errors import MuscleError
from muscle.update.objectives import Objective, task_objective
from muscle.update.pipeline import Report
from muscle.update.recipe import TrainingSettings

Collator = Callable[[list[dict[str, Tensor]]], dict[str, Tensor]]


class UpdateTrainer(Trainer):
    """Trainer whose loss is an `Objective`, and whose evaluation is the exact validation cross-entropy."""

    def __init__(self, *args: Any, objective: Objective, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.objective: Objective = objective
        # Makes Trainer count targets over all accumulated batches, so that accumulation does not change the loss.
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean of the objective over the targets of the whole (accumulated) batch; the only division by a count."""
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        total, count = self.objective(outputs.logits, inputs)
        loss = total / (count if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # the count is of all processes, whose gradients are averaged
        return (loss, outputs) if return_outputs else loss

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Validation cross-entropy in nats per target, whatever the training objective is (the paper's selection).

        Raises:
            MuscleError: It is not finite.
        """
        data: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        assert self.model is not None
        loader = DataLoader(data, self.args.eval_batch_size, collate_fn=self.data_collator)
        metrics = {f"{metric_key_prefix}_cross_entropy": mean_cross_entropy(self.model, loader)}
        if not all(map(math.isfinite, metrics.values())):
            raise MuscleError(f"training diverged in epoch {self.state.epoch:.0f}: choose a lower learning rate")
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


@torch.no_grad()
def mean_cross_entropy(model: nn.Module, loader: DataLoader[dict[str, Tensor]]) -> float:
    """Nats per target token over a whole data set."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    total, count = 0.0, 0
    for cpu_batch in loader:
        batch = {name: tensor.to(device) for name, tensor in cpu_batch.items()}
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        batch_sum, batch_count = task_objective(logits, batch)
        total, count = total + batch_sum.item(), count + int(batch_count)
    model.train(was_training)
    return total / count


@dataclass(frozen=True)
class TrainingResult:
    """What a training run did."""

    validation_cross_entropy: list[float]
    """Nats per target token, one per epoch."""
    best_epoch: int | None
    """Counted from 1; None where no validation set was given."""
    steps: int


def train(
    model: nn.Module,
    objective: Objective,
    settings: TrainingSettings,
    train_set: Dataset[dict[str, Tensor]],
    validation_set: Dataset[dict[str, Tensor]] | None,
    collator: Collator,
    work_dir: Path,
    report: Report,
) -> TrainingResult:
    """Train the model's trainable weights in place; with a validation set, leave the best epoch's weights in it.

    Args:
        model: The student; its trainable weights are changed.
        objective: What each step minimises.
        settings: How long and how fast.
        train_set: Items with `input_ids`, `labels` and whatever the objective reads.
        validation_set: Decides which epoch's weights are kept; None keeps the last.
        collator: Turns items into a padded batch.
        work_dir: Checkpoints go here; the caller removes it.
        report: Told after every step.
    """
    select = validation_set is not None
    arguments = TrainingArguments(
        output_dir=str(work_dir),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=4 * settings.batch_size,
        warmup_steps=settings.warmup_steps,
        lr_scheduler_type="cosine",
        weight_decay=0.0,
        seed=settings.seed,
        eval_strategy="epoch" if select else "no",
        save_strategy="best" if select else "no",
        load_best_model_at_end=select,
        metric_for_best_model="cross_entropy" if select else None,
        greater_is_better=False,
        save_total_limit=1,
        save_only_model=True,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    trainer = UpdateTrainer(
        model,
        arguments,
        objective=objective,
        train_dataset=train_set,
        eval_dataset=validation_set,
        data_collator=collator,
        callbacks=[_ReportCallback(report)],
    )
    trainer.train()
    curve = [entry["eval_cross_entropy"] for entry in trainer.state.log_history if "eval_cross_entropy" in entry]
    best = min(range(len(curve)), key=curve.__getitem__) + 1 if curve else None
    return TrainingResult(curve, best, trainer.state.global_step)


class _ReportCallback(TrainerCallback):
    def __init__(self, report: Report) -> None:
        self._report, self._words = report, ""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._report(state.global_step / state.max_steps, self._words)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._words = f"epoch {round(state.epoch)}, validation {kwargs['metrics']['eval_cross_entropy']:.4f} nats"
