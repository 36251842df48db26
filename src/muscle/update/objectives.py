"""What one training step minimises, as a function of the student's logits and the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from muscle.errors import MuscleError
from muscle.update.losses import cross_entropy, divergence
from muscle.update.recipe import AlignmentSettings
from muscle.update.tasks import IGNORED
from muscle.update.teachers import Teacher
from muscle.update.weights import WEIGHTS, Weight, WeightInputs

Objective = Callable[[Tensor, Mapping[str, Tensor]], tuple[Tensor, Tensor, dict[str, Tensor]]]
"""(student logits (B, T, V), batch) -> (sum in nats, number of target positions, statistics).

Statistics are scalars without a graph, sums over the target positions: divided by the number they can be logged.
"""


def task_objective(logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Plain cross-entropy: how task adapters are trained, and the control of the compatibility adapter.

    Statistics: `cross_entropy` in nats, `token_accuracy` (targets that are the student's most likely token).
    """
    targets = batch["labels"][:, 1:]
    counted, student = targets != IGNORED, logits[:, :-1]  # the logits that predict a token stand one before it
    total, count = cross_entropy(student, targets, counted)
    right = student.argmax(-1) == targets  # no token has the number IGNORED
    return total, count, {"cross_entropy": total.detach(), "token_accuracy": right.sum().float()}


@dataclass(frozen=True)
class Compatibility:
    """lambda * L_comp + (1 - lambda) * L_CE (the paper's section 4, eq. 1, and appendix A.4).

    Vocabularies may be padded to different sizes: L_comp sees the rows that student and teachers share, L_CE all rows
    of the student.
    """

    old: Teacher
    new: Teacher
    weight: Weight
    """Which teacher rules a token."""
    temperature: float
    """T of both softmaxes of L_comp."""
    squared_temperature: bool
    """L_comp times T^2; the paper has it without."""
    ce_share: float
    """1 - lambda, in [0, 1]."""

    def __call__(self, logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Sum, count and statistics over the batch's targets.

        Statistics: those of `task_objective` and of `losses.divergence`.

        Raises:
            MuscleError: A target lies beyond the rows that the three vocabularies share.
        """
        targets = batch["labels"][:, 1:]
        counted = targets != IGNORED
        student, old, new = _shared_rows(logits, self.old.logits(batch), self.new.logits(batch), targets=targets)
        # Without a share in the loss, cross-entropy is only logged: a graph would hold (B, T, V) for nothing.
        ce_total, count, statistics = task_objective(logits if self.ce_share else logits.detach(), batch)
        weight = self.weight(WeightInputs(student.detach(), old, targets, counted))
        total, _, divergences = divergence(
            student, old, new, weight, counted, self.temperature, self.squared_temperature
        )
        total = (1 - self.ce_share) * total + self.ce_share * ce_total
        return total, count, {**statistics, **divergences}


def compatibility(old: Teacher, new: Teacher, settings: AlignmentSettings) -> Compatibility:
    """The objective that the settings describe, which must name a weight: without one there is nothing to ask teachers.

    Args:
        old: The old task model.
        new: The new task model.
        settings: What to learn from.
    """
    assert settings.weight is not None
    return Compatibility(
        old=old,
        new=new,
        weight=WEIGHTS[settings.weight],
        temperature=settings.temperature,
        squared_temperature=settings.squared_temperature,
        ce_share=settings.ce_share,
    )


def _shared_rows(*logits: Tensor, targets: Tensor) -> list[Tensor]:
    """The logits before each target (B, T - 1, V), cut to the smallest vocabulary among them."""
    rows = min(z.shape[-1] for z in logits)
    if beyond := targets[targets >= rows].tolist():
        raise MuscleError(
            f"token {beyond[0]} of the training texts has no logit in every model, which share the first {rows} rows "
            "of their vocabularies: choose bases with the same added tokens, or remove it from the texts"
        )
    return [z[:, :-1, :rows] for z in logits]
