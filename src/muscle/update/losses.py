"""Losses of a batch as a sum over target positions, in nats, and their number; only the trainer divides.

Softmaxes are computed in float32 at least, whatever the logits are. With no position counted the sum is 0 and still
has a graph, so that every process of a group takes part in the backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, targets: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the targets: n * L_CE of the paper (appendix A.4).

    Args:
        logits: (B, T, V).
        targets: token ids (B, T).
        counted: bool (B, T), the positions that enter the sum.

    Returns:
        Sum in nats, and the number of counted positions.
    """
    return functional.cross_entropy(_rows(logits, counted), targets[counted], reduction="sum"), counted.sum()


def divergence(
    student: Tensor,
    old: Tensor,
    new: Tensor,
    weight: Tensor,
    counted: Tensor,
    temperature: float = 1.0,
    squared_temperature: bool = False,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """KL(softmax((w * old + (1 - w) * new) / T) || softmax(student / T)), summed over the counted positions.

    With w in {0, 1} the teacher is one of the two models and the sum is n * L_comp of the paper (section 4, eq. 1).

    Args:
        student: logits (B, T, V); gradients flow through these only.
        old: logits of the old task model (B, T, V).
        new: logits of the new task model (B, T, V).
        weight: w in [0, 1], (B, T): how much the old teacher rules. No gradient flows through it.
        counted: bool (B, T), the positions that enter the sum.
        temperature: T > 0.
        squared_temperature: multiply the sum by T^2, so that its gradient hardly depends on T (Hinton et al. 2015,
            section 2.1). The paper does not.

    Returns:
        Sum in nats, the number of counted positions, and sums over them without a graph: `old_divergence` and
        `new_divergence`, KL(softmax(teacher / T) || softmax(student / T)) whichever teacher rules (a_v1 and a_v2 of
        eq. 1, never times T^2), and `aligned_to_old`, the weights.
    """
    log_student = functional.log_softmax(_rows(student, counted) / temperature, dim=-1)  # (n, V)
    with torch.no_grad():
        w = weight[counted][:, None]
        log_old, log_new = (functional.log_softmax(_rows(z, counted) / temperature, dim=-1) for z in (old, new))
        # A softmax does not see constants: mixing log-probabilities is mixing logits.
        log_teacher = functional.log_softmax(w * log_old + (1 - w) * log_new, dim=-1)
        sums = {
            "old_divergence": _kl(log_old, log_student),
            "new_divergence": _kl(log_new, log_student),
            "aligned_to_old": w.sum(),
        }
    total = _kl(log_teacher, log_student)
    return total * temperature**2 if squared_temperature else total, counted.sum(), sums


def _rows(logits: Tensor, counted: Tensor) -> Tensor:
    """Logits of the counted positions (n, V), in float32 at least."""
    return logits[counted].to(torch.promote_types(logits.dtype, torch.float32))


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Sum over rows of KL(p || q)."""
    return functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
