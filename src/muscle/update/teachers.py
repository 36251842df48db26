"""What a frozen task model says about training texts: from a cache of its final hidden states, or live."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from accelerate.utils.memory import clear_device_cache
from peft import PeftModel
from torch import Tensor, nn

from muscle.update.alignment_settings import AlignmentSettings
from muscle.update.heads import Head, head_is_known, output_head
from muscle.update.models import device, evaluating, move
from muscle.update.pipeline import Report
from muscle.update.recipe import TaskModel
from muscle.update.settings import SideName
from muscle.update.teacher_cache import (
    HEAD,
    States,
    Texts,
    check_room,
    compute_states,
    counted_states,
    open_states,
    states_size,
)


class Teacher(Protocol):
    """A frozen task model, as a source of final hidden states and of what makes logits of them."""

    def states(self, batch: Mapping[str, Tensor], counted: Tensor) -> tuple[Tensor, Head]:
        """What the teacher says of the counted positions, without gradient, and in its own precision.

        Asked before the student's forward pass.

        Args:
            batch: Right-padded `input_ids`, `attention_mask` and `labels` (B, T), and `index` (B,), the texts'
                positions in the training set.
            counted: Bool (B, T - 1), where token t + 1 is a target: all targets of a text, or none where it is silent.

        Returns:
            States (n, H) in the order of counted.nonzero(), on the batch's device; and the frozen head that makes
            logits of any of these rows.
        """
        ...


class CachedTeacher:
    """A teacher reduced to its final hidden states at the targets of the training set, and its head.

    Adapter and body run once per text instead of once per text and epoch; afterwards the model can be freed.

    Args:
        states: Of the training set whose `index` will be asked for.
        head: Of the same model.
    """

    def __init__(self, states: States, head: Head) -> None:
        self._states, self._head = states, head

    def states(self, batch: Mapping[str, Tensor], counted: Tensor) -> tuple[Tensor, Head]:
        """See `Teacher.states`."""
        return self._states.of(batch, counted), self._head.to(counted.device)


class LiveTeacher:
    """A teacher that runs beside the student.

    Args:
        model: A task model (base with or without adapter).
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model.eval().requires_grad_(False)
        move(model, device())
        self._head = Head.within(model) if head_is_known(model) else None

    def states(self, batch: Mapping[str, Tensor], counted: Tensor) -> tuple[Tensor, Head]:
        """See `Teacher.states`."""
        move(self._model, counted.device)
        return _run(self._model, self._head, batch, counted)


class InitialTeacher:
    """The student as it was when this teacher was made, with which it shares all weights that are not trained.

    The new teacher is just that: training starts from its adapter. What it takes is a copy of the trained weights.

    Args:
        student: Before its first step, and before it is resumed from a checkpoint.
    """

    def __init__(self, student: PeftModel) -> None:
        move(student, device())
        self._student = student
        self._trained = [weight for weight in student.parameters() if weight.requires_grad]
        self._initial = [weight.detach().clone() for weight in self._trained]
        with evaluating(student):
            self._head = frozen_head(student) if head_is_known(student) else None

    def states(self, batch: Mapping[str, Tensor], counted: Tensor) -> tuple[Tensor, Head]:
        """See `Teacher.states`."""
        base = self._student.get_base_model()  # holds the adapter; the trainer's mixed precision is on the outer model
        with self._as_it_was():
            return _run(base, self._head, batch, counted)

    @contextmanager
    def _as_it_was(self) -> Iterator[None]:
        """The initial weights in the place of the trained ones, which no graph holds between two steps."""
        now = [weight.data for weight in self._trained]
        self._initial = [initial.to(data.device) for initial, data in zip(self._initial, now, strict=True)]
        try:
            for weight, initial in zip(self._trained, self._initial, strict=True):
                weight.data = initial
            with evaluating(self._student):
                yield
        finally:
            for weight, data in zip(self._trained, now, strict=True):
                weight.data = data


class Teachers:
    """Makes the teachers of one training, as its settings want them.

    Args:
        models: Both task models.
        load: Loads one, where it is needed.
        texts: The training texts.
        alignment: What is read of the teachers, and where and how their states are kept.
        folders: Of the states of each, where they are kept on disk. What is whole there is not computed again.
        report: Told how far a cache is.
        sides: Of which models these are; an old one with another tokenizer is no such teacher (`old_side`).

    Raises:
        MuscleError: The states do not fit.
    """

    def __init__(
        self,
        models: Mapping[SideName, TaskModel],
        load: Callable[[TaskModel], nn.Module],
        texts: Texts,
        alignment: AlignmentSettings,
        folders: Mapping[SideName, Path],
        report: Report,
        sides: Sequence[SideName] = ("old", "new"),
    ) -> None:
        self._models, self._load, self._texts, self._report = models, load, texts, report
        self._live, self._kept = alignment.teacher_cache == "off", alignment.cache_dtype
        self._read = [side for side in alignment.teachers if side in sides]
        self._folders = folders if alignment.teacher_cache == "disk" else {}
        check_room(self.missing, next(iter(self._folders.values()), None))

    def folder(self, side: SideName) -> Path | None:
        """Where what a side says is kept on disk; None: it is not."""
        return self._folders.get(side)

    def old(self) -> Teacher | None:
        """The old task model, None if never read; of a cached one, body and adapter are freed before this returns.

        Raises:
            MuscleError: The model cannot be loaded, or its states not be kept.
        """
        if "old" not in self._read:
            return None
        if self._live:
            return LiveTeacher(self._load(self._models["old"]))
        if states := self._on_disk("old"):
            return CachedTeacher(states, Head.load(self._folders["old"] / HEAD))
        model = self._load(self._models["old"])
        states = self._computed("old", model)
        head = Head.load(self._folders["old"] / HEAD) if self._folders else Head.of(model)
        del model
        clear_device_cache(garbage_collection=True)
        return CachedTeacher(states, head)

    def new(self, student: PeftModel, sharded: bool) -> Teacher | None:
        """The new task model, which is the student before its first step; None where the weight never reads it.

        Args:
            student: As it was loaded.
            sharded: Whether processes are to share out the student's weights, so that none has them whole any more.

        Raises:
            MuscleError: A second copy of the model cannot be loaded, or its states not be kept.
        """
        if "new" not in self._read:
            return None
        if self._live:
            return LiveTeacher(self._load(self._models["new"])) if sharded else InitialTeacher(student)
        states = self._on_disk("new") or self._computed("new", student)
        return CachedTeacher(states, Head.of(student) if sharded else frozen_head(student))

    def _on_disk(self, side: SideName) -> States | None:
        return open_states(self._folders[side], self._texts) if self._folders else None

    def _computed(self, side: SideName, model: nn.Module) -> States:
        return compute_states(model, self._texts, self._kept, self._folders.get(side), self._report)

    @property
    def missing(self) -> int:
        """Bytes of the states that are to be computed yet."""
        if self._live:
            return 0
        missing = [self._models[side].base for side in self._read if not self._on_disk(side)]
        return sum(states_size(base, self._texts, self._kept) for base in missing)


def frozen_head(student: nn.Module) -> Head:
    """The head of a model that is about to be trained: its own where nothing trains it, else a copy."""
    layer = output_head(student)
    plain = type(layer) is nn.Linear and not any(weight.requires_grad for weight in layer.parameters())
    return Head.within(student) if plain else Head.of(student)


def _run(model: nn.Module, head: Head | None, batch: Mapping[str, Tensor], counted: Tensor) -> tuple[Tensor, Head]:
    """States and head; of a model whose head is not known, logits, and a head that leaves them as they are."""
    with torch.no_grad(), torch.autocast(counted.device.type, enabled=False):  # its own precision, not the student's
        if head:
            return counted_states(model, batch, counted), head.to(counted.device)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits: Tensor = model(**inputs, use_cache=False).logits[:, :-1]
        return logits[counted], Head(nn.Identity())
