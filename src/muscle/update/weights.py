"""How much the old teacher rules each row: functions of what is known about the rows to w in [0, 1], (n,), float32.

A row is a position whose next token is a target. The paper's masks m (section 4 and table 7) are w in {0, 1}: 1 aligns
the token to the old model, 0 to the new one.

A weight's parameters are the facts that it reads, each (n,), and no other is computed: `targets`, the gold tokens;
`sequence`, which text of the batch a row belongs to; and of the `student` as it is now and of the `old` task model
`_top`, the most likely token (of several the first), and `_gold`, the gold token's log-likelihood.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature

import torch
from torch import Tensor
from torch.nn import functional

from muscle.update.recipe import WeightName

Weight = Callable[..., Tensor]
"""Facts, by name -> w."""


def student_wrong(student_top: Tensor, targets: Tensor) -> Tensor:
    """m_i = 1[argmax s(z_C,i) != y_i], the student is wrong *now*: the paper's method (section 4, eq. 1)."""
    return (student_top != targets).float()


def old_right(old_top: Tensor, targets: Tensor) -> Tensor:
    """m_i = 1[argmax s(z_v1,i) = y_i], the old model is right (section 6.5, table 7: "m: v1 = y")."""
    return (old_top == targets).float()


def always_old(targets: Tensor) -> Tensor:
    """m_i = 1, plain distillation from the old model (section 6.5, table 7: "a_v1")."""
    return torch.ones_like(targets, dtype=torch.float32)


def token_likelihood(student_gold: Tensor, old_gold: Tensor) -> Tensor:
    """m_i = 1[s(z_C,i)[y_i] < s(z_v1,i)[y_i]], the student finds the token less likely (section 6.5, table 7: "LL_L").

    Stable only beside a share of cross-entropy, the paper says.
    """
    return (student_gold < old_gold).float()


def sequence_likelihood(student_gold: Tensor, old_gold: Tensor, sequence: Tensor) -> Tensor:
    """m_i = 1[sum_j log s(z_C,j)[y_j] < sum_j log s(z_v1,j)[y_j]] for every i of a sequence (table 7: "LL_S").

    The sums run over the rows j of the sequence. Stable only beside a share of cross-entropy, as above.
    """
    texts = len(sequence) and int(sequence.max()) + 1
    student, old = (gold.new_zeros(texts).index_add(0, sequence, gold) for gold in (student_gold, old_gold))
    return (student < old).float()[sequence]


WEIGHTS: dict[WeightName, Weight] = {
    "student_wrong": student_wrong,
    "old_right": old_right,
    "always_old": always_old,
    "token_likelihood": token_likelihood,
    "sequence_likelihood": sequence_likelihood,
}
"""By the name that settings use."""


def facts_read(weight: Weight) -> frozenset[str]:
    """Names of the facts that a weight reads."""
    return frozenset(signature(weight).parameters)


def model_facts(model: str, logits: Tensor, targets: Tensor, names: frozenset[str]) -> dict[str, Tensor]:
    """The facts among these names that a model's logits tell.

    Args:
        model: `student` or `old`.
        logits: (n, V).
        targets: (n,).
        names: Of facts.
    """
    found: dict[str, Tensor] = {}
    if f"{model}_top" in names:
        found[f"{model}_top"] = logits.argmax(-1)
    if f"{model}_gold" in names:
        precision = torch.promote_types(logits.dtype, torch.float32)
        likelihoods = functional.log_softmax(logits, dim=-1, dtype=precision)
        found[f"{model}_gold"] = likelihoods.gather(-1, targets[:, None])[:, 0]
    return found
