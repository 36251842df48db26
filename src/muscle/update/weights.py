"""How much the old teacher rules each token: functions to w in [0, 1], (B, T). The paper's masks are w in {0, 1}.

Logits are (B, T, V), targets are token ids (B, T); targets of ignored positions may be any number.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Weight = Callable[[Tensor, Tensor], Tensor]
"""(student logits, targets) -> w."""


def student_wrong(student_logits: Tensor, targets: Tensor) -> Tensor:
    """1 where the student's most likely token is not the target, *now*: the paper's mask (section 4, eq. 1)."""
    return (student_logits.argmax(-1) != targets).to(student_logits.dtype)


def always_old(student_logits: Tensor, targets: Tensor) -> Tensor:
    """1 everywhere: plain distillation from the old model (table 7, a_v1)."""
    return torch.ones_like(targets, dtype=student_logits.dtype)


WEIGHTS: dict[str, Weight] = {"student_wrong": student_wrong, "always_old": always_old}
"""By the name that settings use."""
