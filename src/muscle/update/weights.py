"""How much the old teacher rules each token: functions to w in [0, 1], (B, T), float32.

The paper's masks m (section 4 and table 7) are w in {0, 1}: 1 aligns the token to the old model, 0 to the new one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from muscle.update.recipe import WeightName


@dataclass(frozen=True)
class WeightInputs:
    """What a weight may look at."""

    student: Tensor
    """Logits of the student as it is now (B, T, V), without gradient."""
    old: Tensor
    """Logits of the old task model (B, T, V), without gradient."""
    targets: Tensor
    """Gold next tokens (B, T); any number where not counted."""
    counted: Tensor
    """Bool (B, T), the positions that enter the loss; w elsewhere is in [0, 1], but means nothing."""


Weight = Callable[[WeightInputs], Tensor]
"""Inputs -> w."""


def student_wrong(inputs: WeightInputs) -> Tensor:
    """m_i = 1[argmax s(z_C,i) != y_i], the student is wrong *now*: the paper's method (section 4, eq. 1)."""
    return (inputs.student.argmax(-1) != inputs.targets).float()


def old_right(inputs: WeightInputs) -> Tensor:
    """m_i = 1[argmax s(z_v1,i) = y_i], the old model is right (section 6.5, table 7: "m: v1 = y")."""
    return (inputs.old.argmax(-1) == inputs.targets).float()


def always_old(inputs: WeightInputs) -> Tensor:
    """m_i = 1, plain distillation from the old model (section 6.5, table 7: "a_v1")."""
    return torch.ones_like(inputs.targets, dtype=torch.float32)


def token_likelihood(inputs: WeightInputs) -> Tensor:
    """m_i = 1[s(z_C,i)[y_i] < s(z_v1,i)[y_i]], the student finds the token less likely (section 6.5, table 7: "LL_L").

    Stable only beside a share of cross-entropy, the paper says.
    """
    student, old = (_log_likelihood(logits, inputs.targets) for logits in (inputs.student, inputs.old))
    return (student < old).float()


def sequence_likelihood(inputs: WeightInputs) -> Tensor:
    """m_i = 1[sum_j log s(z_C,j)[y_j] < sum_j log s(z_v1,j)[y_j]] for every i of a sequence (table 7: "LL_S").

    The sums run over the counted positions j of the sequence. Stable only beside a share of cross-entropy, as above.
    """
    student, old = (
        _log_likelihood(logits, inputs.targets).masked_fill(~inputs.counted, 0.0).sum(1, keepdim=True)
        for logits in (inputs.student, inputs.old)
    )
    return (student < old).float().expand(inputs.targets.shape)


WEIGHTS: dict[WeightName, Weight] = {
    "student_wrong": student_wrong,
    "old_right": old_right,
    "always_old": always_old,
    "token_likelihood": token_likelihood,
    "sequence_likelihood": sequence_likelihood,
}
"""By the name that settings use."""


def _log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-likelihood of each target, log s(z_i)[y_i], (B, T); of some other token where there is none."""
    precision = torch.promote_types(logits.dtype, torch.float32)
    gold = targets.clamp(0, logits.shape[-1] - 1)[..., None]
    return functional.log_softmax(logits, dim=-1, dtype=precision).gather(-1, gold)[..., 0]
