"""What happens beside the steps of a training run: checkpoints, the log, early stopping, progress, trackers."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import integration_utils

from muscle.errors import MuscleError
from muscle.update.distributed import processes
from muscle.update.pipeline import Report


def validations(state: TrainerState) -> list[dict[str, float]]:
    """What was measured after each epoch, in order; after a resumption too."""
    return [entry for entry in state.log_history if "eval_cross_entropy" in entry]


def best_epoch(epochs: Sequence[Mapping[str, float]]) -> int:
    """The first epoch, counted from 1, with fewest flips, then lowest cross-entropy; uncounted flips are most."""
    keys = [(epoch.get("eval_flips", math.inf), epoch["eval_cross_entropy"]) for epoch in epochs]
    return keys.index(min(keys)) + 1


class Checkpoints(TrainerCallback):
    """The last and the best checkpoint, each with a mark that it is whole and whose it is.

    The mark is made when every process has written its part, and older checkpoints go only after that: whenever the
    processes are killed, the last whole checkpoint is still there.

    Args:
        folder: Where the trainer writes checkpoints. Several machines must share it.
        owner: Plain JSON values. A checkpoint of another owner is not resumed from.
    """

    def __init__(self, folder: Path, owner: Mapping[str, Any]) -> None:
        self._folder, self._owner = folder, json.dumps(owner)

    def last(self) -> Path | None:
        """The last whole checkpoint of this owner."""
        return max(filter(self._is_whole, self._all()), key=_step, default=None)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Find the best checkpoint again, also if the whole folder has moved since."""
        if state.best_global_step:
            state.best_model_checkpoint = str(self._folder / f"checkpoint-{state.best_global_step}")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Mark the checkpoint just written, and remove what is neither it nor the best."""
        processes().wait_for_everyone()  # each has written its random state
        if not state.is_world_process_zero:
            return
        mark = self._mark(self._folder / f"checkpoint-{state.global_step}")
        partial = mark.with_suffix(".partial")
        partial.write_text(self._owner)
        partial.replace(mark)
        for folder in self._all():
            if _step(folder) not in (state.global_step, state.best_global_step):
                shutil.rmtree(folder)

    def _all(self) -> list[Path]:
        return list(self._folder.glob("checkpoint-*"))

    def _is_whole(self, folder: Path) -> bool:
        mark = self._mark(folder)
        return mark.exists() and mark.read_text() == self._owner

    @staticmethod
    def _mark(folder: Path) -> Path:
        return folder / "whole.json"


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint-"))


class StepLog(TrainerCallback):
    """One JSON line per optimiser step and per validation, the same whether training was interrupted or not."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin with what the checkpoint knows: lines of steps that are lost and done again are dropped."""
        if state.is_world_process_zero:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_bytes(b"".join(map(_line, state.log_history)))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Write the line at once, so that it can be followed; the summary of run times is left to trackers."""
        if state.is_world_process_zero and logs and "train_runtime" not in logs:
            with self._path.open("ab") as file:
                file.write(_line(state.log_history[-1]))


def _line(entry: Mapping[str, float]) -> bytes:
    # Sorted as checkpoints have it. What is not finite (the gradient of an overflown float16 step) becomes null.
    return msgspec.json.encode(entry, order="sorted") + b"\n"


class EarlyStopping(TrainerCallback):
    """Stop when the best epoch lies so many epochs back."""

    def __init__(self, patience: int) -> None:
        self._patience = patience

    def is_due(self, state: TrainerState) -> bool:
        """Whether training is over."""
        epochs = validations(state)
        return bool(epochs) and len(epochs) - best_epoch(epochs) >= self._patience

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop after this epoch's checkpoint."""
        if self.is_due(state):
            control.should_training_stop = True


class Progress(TrainerCallback):
    """Tells the main process's `report` the share of steps done and the last validation."""

    def __init__(self, report: Report) -> None:
        self._report, self._words = report, ""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After every optimiser step."""
        if state.is_world_process_zero:
            self._report(state.global_step / state.max_steps, self._words)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **_: Any
    ) -> None:
        """After every epoch."""
        self._words = f"epoch {round(state.epoch or 0)}, validation {metrics['eval_cross_entropy']:.4f} nats"
        if "eval_flips" in metrics:
            self._words += f", {metrics['eval_flips']:.4g} flips"


def trackers(names: Sequence[str], folder: Path) -> list[TrainerCallback]:
    """Callbacks of transformers that send the log to TensorBoard, Weights & Biases, trackio, ...

    Args:
        names: As in `TrainingSettings.report_to`.
        folder: Where a tracker that writes files (TensorBoard) gets a folder of its name.

    Raises:
        MuscleError: There is no such tracker, or its library is not installed.
    """
    callbacks = []
    for name in names:
        try:
            callback = integration_utils.get_reporting_integration_callbacks([name])[0]()  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise MuscleError(f"report_to: {error}: correct the name") from error
        except (RuntimeError, ImportError) as error:
            raise MuscleError(f"report_to: {error}") from error
        if hasattr(callback, "logging_dir"):
            callback.logging_dir = callback.logging_dir or str(folder / name)  # else in the folder of checkpoints
        callbacks.append(callback)
    return callbacks
