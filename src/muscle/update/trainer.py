"""The one training loop: transformers.Trainer with an objective given as (sum, count); the only division by a count."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerState

from muscle.errors import MuscleError
from muscle.update.callbacks import (
    Checkpoints,
    EarlyStopping,
    Progress,
    StepLog,
    best_epoch,
    trackers,
    validations,
)
from muscle.update.distributed import Collator, SharedLoader, over_processes, process
from muscle.update.heads import Head, head_is_known, run_to_head
from muscle.update.models import evaluating
from muscle.update.objectives import Objective, task_objective
from muscle.update.pipeline import Report
from muscle.update.recipe import TrainingSettings
from muscle.update.rows import Outcome
from muscle.update.training_arguments import check_warmup, training_arguments

Flips = Callable[[nn.Module], float]
"""The negative flips of a model on the validation items, or what else is to be small there.

Every process calls it; the main process's answer counts.
"""


class DivergedError(MuscleError):
    """A loss or a cross-entropy that is not finite."""


class UpdateTrainer(Trainer):
    """Trainer whose loss is an `Objective`, and whose evaluation is the exact validation cross-entropy.

    Args:
        *args: Of `Trainer`.
        objective: What each step minimises.
        flips: Measured at evaluations too; then the epoch with fewest is the best.
        flips_from: The first epoch, counted from 1, after which they are.
        length_pool: Steps whose texts are sorted by length together.
        **kwargs: Of `Trainer`.
    """

    def __init__(
        self,
        *args: Any,
        objective: Objective,
        flips: Flips | None = None,
        flips_from: int = 1,
        length_pool: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.objective: Objective = objective
        self.flips, self.flips_from = flips, flips_from
        self.length_pool = length_pool
        assert self.model is not None
        with evaluating(self.model):  # also draws no random numbers
            self.head_known = head_is_known(self.model)
        # Makes Trainer count targets over all accumulated batches, so that accumulation does not change the loss.
        self.model_accepts_loss_kwargs = True
        self._sums: dict[str, Tensor] = {}

    def get_train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """This process's share of the training set, in an order that depends on the seed and the epoch alone."""
        data: Any = self.train_dataset
        return SharedLoader(
            data,
            self.args.per_device_train_batch_size,
            self.data_collator,
            self.args.seed,
            self.args.gradient_accumulation_steps,
            self.length_pool,
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean of the objective over the targets of the whole batch: accumulated, and of all processes."""
        total, count, statistics = outcome(model, self.objective, inputs, self.head_known)
        for name, value in {**statistics, "count": count}.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().float()
        loss = total / (count if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # the count is of all processes, whose gradients are averaged
        return (loss, {}) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the objective's statistics, per target, to a step's loss.

        Raises:
            DivergedError: The loss is not finite.
        """
        if "loss" in logs:
            self._check_finite(logs["loss"])
            *sums, count = over_processes(torch.stack([*self._sums.values()]).tolist(), self.args.device)
            logs.update({name: value / count for name, value in zip(self._sums, sums, strict=False)})
            self._sums = {}
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Validation cross-entropy in nats per target, whatever the training objective is (the paper's selection).

        Returns:
            `eval_cross_entropy`; `eval_flips` if they are counted; `eval_best_epoch`, the best epoch so far, which
            rises in just those epochs that are better than all before.

        Raises:
            DivergedError: The cross-entropy is not finite.
        """
        assert self.model is not None
        data: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        loader = SharedLoader(data, self.args.per_device_eval_batch_size, self.data_collator)
        metrics = {"eval_cross_entropy": mean_cross_entropy(self.model, loader, self.head_known)}
        self._check_finite(metrics["eval_cross_entropy"])
        if self.flips and round(self.state.epoch or 0) >= self.flips_from:
            with evaluating(self.model):
                flips = self.flips(self.model)
            metrics["eval_flips"] = over_processes([flips if process()[0] == 0 else 0.0], self.args.device)[0]
        metrics["eval_best_epoch"] = best_epoch([*validations(self.state), metrics])
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _check_finite(self, value: float) -> None:
        if not math.isfinite(value):
            raise DivergedError(
                f"training diverged in epoch {math.ceil(self.state.epoch or 1)}: choose a lower learning rate"
            )


def outcome(model: nn.Module, objective: Objective, batch: dict[str, Tensor], head_known: bool = True) -> Outcome:
    """What an objective makes of a model on a batch.

    Args:
        model: As such, or as accelerate wraps it.
        objective: Asked before the model runs.
        batch: `input_ids` and `attention_mask` (B, T), and whatever the objective reads.
        head_known: See `heads.head_is_known`. Where it is not, all logits (B, T, V) of the model are computed.
    """
    read = objective(batch)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    if head_known:
        (total, count, statistics), output = run_to_head(model, read, **inputs)
        return total + output.sum(), count, statistics
    return read(model(**inputs).logits, Head(nn.Identity()))


def mean_cross_entropy(model: nn.Module, loader: DataLoader[dict[str, Tensor]], head_known: bool = True) -> float:
    """Nats per target token over a whole data set, of which each process's loader gives its share.

    `head_known` is that of `outcome`.
    """
    device = next(model.parameters()).device
    total, count = 0.0, 0
    with evaluating(model):
        for cpu_batch in loader:
            batch = {name: tensor.to(device) for name, tensor in cpu_batch.items()}
            batch_sum, batch_count, _ = outcome(model, task_objective, batch, head_known)
            total, count = total + batch_sum.item(), count + int(batch_count)
    total, targets = over_processes([total, count], device)
    return total / targets


@dataclass(frozen=True)
class TrainingResult:
    """What a training run did, interruptions and resumptions included."""

    validation_cross_entropy: list[float]
    """Nats per target token, one per epoch; empty where no validation set was given."""
    validation_flips: list[float]
    """One per epoch after which they were counted to decide which is kept; else empty."""
    best_epoch: int
    """The epoch whose weights were kept, counted from 1."""
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
    flips: Flips | None = None,
    flips_last: int | None = None,
) -> TrainingResult:
    """Train the model's trainable weights in place, and leave those of the epoch that `settings.select_by` names.

    Started again with the same arguments after it was killed, it goes on from the last whole checkpoint in `work_dir`;
    on a CPU the final weights are then the same bit by bit. All processes of a distributed run call it alike.

    Args:
        model: The student; its trainable weights are changed.
        objective: What each step minimises.
        settings: How long and how fast, and which epoch is kept.
        train_set: Items with `input_ids`, `labels` and whatever the objective reads.
        validation_set: Decides which epoch is kept; None keeps the last.
        collator: Turns items into a padded batch.
        work_dir: The last and the best checkpoint go here; the caller removes it. Beside it, in its parent, `log.jsonl`
            gets a line per step (loss, gradient norm, learning rate, the objective's statistics) and per validation.
        report: Told after every step, in the main process.
        flips: Called at the end of each epoch where `settings.select_by` is flips. Without it, as for task adapters,
            which have no old model, cross-entropy decides.
        flips_last: Call it after so many epochs at the end only, of which one is then kept; None: after each.

    Raises:
        MuscleError: Training diverges, transformers refuses a setting, or all steps are warm-up.
    """
    arguments = training_arguments(settings, validation_set is not None, work_dir)
    owner = {"settings": settings.as_dict(), "texts": len(train_set), "processes": arguments.world_size}  # type: ignore[arg-type]
    checkpoints = Checkpoints(work_dir, owner)
    last, callbacks = checkpoints.last(), [Progress(report), StepLog(work_dir.parent / "log.jsonl"), checkpoints]
    if settings.early_stopping:
        stopping = EarlyStopping(settings.early_stopping)
        callbacks.append(stopping)
        state = TrainerState.load_from_json(str(last / "trainer_state.json")) if last else TrainerState()
        if stopping.is_due(state):
            arguments.num_train_epochs = len(validations(state))  # was killed between its last checkpoint and its end
    trainer = UpdateTrainer(
        model,
        arguments,
        objective=objective,
        flips=flips if settings.select_by == "flips" else None,
        flips_from=max(1, settings.epochs - flips_last + 1) if flips_last else 1,
        length_pool=settings.length_pool,
        train_dataset=train_set,
        eval_dataset=validation_set,
        data_collator=collator,
        callbacks=[*callbacks, *trackers(settings.report_to, work_dir.parent)],
    )
    trainer.remove_callback(PrinterCallback)
    check_warmup(settings, len(trainer.get_train_dataloader()))
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)  # takes mixed precision off the model
    trainer.accelerator.wait_for_everyone()  # from here on no process needs the checkpoints
    epochs = validations(trainer.state)
    return TrainingResult(
        validation_cross_entropy=[epoch["eval_cross_entropy"] for epoch in epochs],
        validation_flips=[epoch["eval_flips"] for epoch in epochs if "eval_flips" in epoch],
        best_epoch=best_epoch(epochs) if arguments.load_best_model_at_end else round(trainer.state.epoch or 0),
        steps=trainer.state.global_step,
    )
