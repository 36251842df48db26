"""Losses of a batch as (sum over target positions in nats, number of those positions); only the trainer divides."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, targets: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the targets.

    Args:
        logits: (B, T, V).
        targets: token ids (B, T).
        counted: bool (B, T), the positions that enter the sum.

    Returns:
        Sum in nats, and the number of counted positions. With none counted the sum is 0 and still has a graph.
    """
    kept = counted.reshape(-1)
    rows, gold = logits.flatten(0, 1)[kept], targets.reshape(-1)[kept]
    return functional.cross_entropy(rows, gold, reduction="sum"), kept.sum()


def divergence(
    student: Tensor, old: Tensor, new: Tensor, weight: Tensor, counted: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """KL(softmax((w * old + (1 - w) * new) / T) || softmax(student / T)), summed over the counted positions.

    With w in {0, 1} the teacher is one of the two models and the sum is n * L_comp of the paper (section 4, eq. 1).
    The paper does not scale by T^2, nor does this.

    Args:
        student: logits (B, T, V); gradients flow through these only.
        old: logits of the old task model (B, T, V).
        new: logits of the new task model (B, T, V).
        weight: w in [0, 1], (B, T): how much the old teacher rules. No gradient flows through it.
        counted: bool (B, T), the positions that enter the sum.
        temperature: T > 0.

    Returns:
        Sum in nats, and the number of counted positions. With none counted the sum is 0 and still has a graph.
    """
    kept = counted.reshape(-1)
    w = weight.detach().reshape(-1, 1)[kept]
    teacher = w * old.flatten(0, 1)[kept] + (1 - w) * new.flatten(0, 1)[kept]  # (n, V)
    log_teacher = functional.log_softmax(teacher.detach() / temperature, dim=-1)
    log_student = functional.log_softmax(student.flatten(0, 1)[kept] / temperature, dim=-1)
    return functional.kl_div(log_student, log_teacher, reduction="sum", log_target=True), kept.sum()
