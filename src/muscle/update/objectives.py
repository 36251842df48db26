"""What one training step minimises, as a function of the student's logits and the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from muscle.update.losses import cross_entropy, divergence
from muscle.update.tasks import IGNORED
from muscle.update.teachers import CachedTeacher
from muscle.update.weights import Weight

Objective = Callable[[Tensor, Mapping[str, Tensor]], tuple[Tensor, Tensor]]
"""(student logits (B, T, V), batch) -> (sum in nats, number of target positions)."""


def task_objective(logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Plain cross-entropy: how task adapters are trained, and the control of the compatibility adapter."""
    targets = batch["labels"][:, 1:]
    return cross_entropy(logits[:, :-1], targets, targets != IGNORED)


@dataclass(frozen=True)
class Compatibility:
    """lambda * L_comp + (1 - lambda) * L_CE (the paper's eq. 1 and appendix A.4)."""

    old: CachedTeacher
    new: CachedTeacher
    weight: Weight
    """Which teacher rules a token."""
    temperature: float
    ce_share: float
    """1 - lambda, in [0, 1)."""

    def __call__(self, logits: Tensor, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Sum and count over the batch's targets."""
        targets = batch["labels"][:, 1:]
        counted, student = targets != IGNORED, logits[:, :-1]
        old, new = (teacher.logits(batch["index"])[:, :-1] for teacher in (self.old, self.new))
        weight = self.weight(student.detach(), targets)
        total, count = divergence(student, old, new, weight, counted, self.temperature)
        if self.ce_share:
            total = (1 - self.ce_share) * total + self.ce_share * cross_entropy(student, targets, counted)[0]
        return total, count
