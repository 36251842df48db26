"""How long and how fast to train, as transformers' Trainer is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from muscle.errors import MuscleError
from muscle.update.distributed import batch_count, process
from muscle.update.recipe import TrainingSettings


def training_arguments(settings: TrainingSettings, validated: bool, work_dir: Path) -> TrainingArguments:
    """The settings in transformers' terms.

    Args:
        settings: How long and how fast to train, and which epoch is kept.
        validated: Whether there is a validation set.
        work_dir: Folder of the checkpoints.

    Raises:
        MuscleError: transformers refuses a setting.
    """
    # transformers 5.2x calls activation what was gradient checkpointing, and warns of the old name
    kind = "activation" if hasattr(TrainingArguments, "activation_checkpointing") else "gradient"
    checkpointing: dict[str, Any] = {
        f"{kind}_checkpointing": settings.gradient_checkpointing,
        f"{kind}_checkpointing_kwargs": {"use_reentrant": False},
    }
    selected = validated and settings.select_by != "last"
    try:
        arguments = TrainingArguments(
            output_dir=str(work_dir),
            run_name=work_dir.parent.name,
            num_train_epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=settings.batch_size,
            gradient_accumulation_steps=settings.accumulation,
            warmup_steps=settings.warmup_steps,
            lr_scheduler_type=settings.schedule,
            optim=settings.optimizer,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            bf16=settings.precision == "bfloat16",
            fp16=settings.precision == "float16",
            use_cpu=not torch.accelerator.is_available(),
            deepspeed=settings.deepspeed,
            seed=settings.seed,
            eval_strategy="epoch" if validated else "no",
            save_strategy="epoch",
            load_best_model_at_end=selected,
            metric_for_best_model="best_epoch" if selected else None,
            greater_is_better=True,
            logging_steps=1,
            logging_nan_inf_filter=False,
            average_tokens_across_devices=True,
            ddp_find_unused_parameters=False,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            **checkpointing,
        )
    except (ValueError, ImportError) as error:
        raise MuscleError(f"training settings: {error}") from error
    if settings.precision == "float16" and arguments.device.type == "cpu":
        raise MuscleError("precision float16 needs a GPU: choose bfloat16 or float32")
    # Trainer would split batches over the GPUs that one process sees; several GPUs take several processes here.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def batches_per_epoch(settings: TrainingSettings, items: int) -> int:
    """How many batches each process reads in an epoch over so many items."""
    return batch_count(items, settings.batch_size, process()[1])


def check_warmup(settings: TrainingSettings, batches: int) -> None:
    """Refuse a warm-up that never ends.

    Args:
        settings: How long to train.
        batches: In an epoch, of each process.

    Raises:
        MuscleError: All steps are warm-up.
    """
    steps = settings.epochs * -(-batches // settings.accumulation)
    if settings.warmup_steps >= steps:
        raise MuscleError(
            f"training.warmup_steps: {settings.warmup_steps} of {steps} steps in all, so that the learning rate would "
            "never be reached: lower it, or train longer"
        )
