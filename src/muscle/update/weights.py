"""How much the old teacher rules each row, and how much a row counts: functions of what is known about the rows.

A row is a position whose next token is a target. A weight gives w in [0, 1], (n,), float32: the teacher's logits are
w z_old + (1 - w) z_new. The paper's masks m (section 4 and table 7) are w in {0, 1}: 1 aligns the token to the old
model, 0 to the new one. An emphasis gives a factor, at least 0, (n,), of a row's distance from its teacher.

The parameters are the facts that a function reads, each (n,), and no other is computed: `targets`, the gold tokens;
`sequence`, which text of the batch a row belongs to; `item`, which item that text belongs to, and `right`, whether it
is the item's right text (False where that is not known); `tokens`, how many targets a row stands for, 1 except where
rows are chunks of text (`across`); and of the `student` as it is now and of the task models
`old` and `new` `_top`, the most likely token (of several the first), and `_gold`, the gold token's log-likelihood.
Parameters that go by keyword only are settings (`AlignmentSettings`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import Parameter, signature

import torch
from torch import Tensor
from torch.nn import functional

from muscle.update.alignment_settings import AlignmentSettings, EmphasisName, WeightName
from muscle.update.rows import sums

Weight = Callable[..., Tensor]
"""Facts, by name -> a number for each row."""


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
    return (_within(sequence, student_gold) < _within(sequence, old_gold)).float()


def mixture(targets: Tensor, *, old_share: float) -> Tensor:
    """w_i = a everywhere: the teacher is the log-linear mixture softmax(a z_v1 + (1 - a) z_v2) of both task models.

    With a = 0.5 it says what the ensemble of both says at inference; with 1 or 0 one of them is distilled.
    """
    return torch.full_like(targets, old_share, dtype=torch.float32)


def old_right_else_mixture(old_top: Tensor, targets: Tensor, right: Tensor, *, old_share: float) -> Tensor:
    """w_i = 1 where the old model's most likely token is the gold one, else a."""
    return _one_or(old_share, (old_top == targets) & right)


def old_right_item_else_mixture(
    old_top: Tensor,
    old_gold: Tensor,
    targets: Tensor,
    sequence: Tensor,
    item: Tensor,
    right: Tensor,
    *,
    old_share: float,
) -> Tensor:
    """w_i = 1 on all texts of an item that the old model gets right, else a.

    It gets an item of several texts right if none has a larger total log-likelihood than the right one, and an item of
    one text if each target is its most likely token, as in greedy decoding: use it with `tokens: answer`.
    """
    likelihood = _within(sequence, old_gold)
    found = torch.where(
        _largest(item, sequence) > -_largest(item, -sequence),  # several texts
        likelihood >= _largest(item, likelihood),
        _within(sequence, (old_top != targets).float()) == 0,
    )
    return _one_or(old_share, _largest(item, (found & right).float()) > 0)


def likelier(
    old_gold: Tensor, new_gold: Tensor, sequence: Tensor, right: Tensor, tokens: Tensor, *, old_share: float
) -> Tensor:
    """w_i = a p_v1 / (a p_v1 + (1 - a) p_v2), p the geometric mean of the likelihoods a model gives a text's targets.

    The instance weight that the paper leaves open for large gaps: how far the old model can be trusted on this text,
    against the new one. Where the right text is not known, w is a.
    """
    ahead = (_within(sequence, old_gold) - _within(sequence, new_gold)) / _within(sequence, tokens)
    prior = torch.logit(torch.tensor(old_share, dtype=ahead.dtype, device=ahead.device))
    return torch.where(right, torch.sigmoid(ahead + prior), old_share).float()


WEIGHTS: dict[WeightName, Weight] = {
    "student_wrong": student_wrong,
    "old_right": old_right,
    "always_old": always_old,
    "token_likelihood": token_likelihood,
    "sequence_likelihood": sequence_likelihood,
    "mixture": mixture,
    "old_right_else_mixture": old_right_else_mixture,
    "old_right_item_else_mixture": old_right_item_else_mixture,
    "likelier": likelier,
}
"""By the name that settings use."""


def focal(old_top: Tensor, targets: Tensor, right: Tensor, *, focal_beta: float) -> Tensor:
    """1 + beta where the old model is right: focal distillation (Yan et al. 2021, positive-congruent training).

    Theirs is alpha + beta where it is right; alpha is 1 here, and the share of cross-entropy takes its part.
    """
    return 1 + focal_beta * ((old_top == targets) & right).float()


def constrained(student_gold: Tensor, old_gold: Tensor) -> Tensor:
    """1 where the student finds the gold token less likely than the old model does, else 0 (Xie et al. 2021).

    What is distilled is confined to where the student regresses.
    """
    return (student_gold < old_gold).float()


def old_likelihood(old_gold: Tensor, sequence: Tensor, tokens: Tensor) -> Tensor:
    """The geometric mean of the likelihoods that the old model gives a text's targets, in (0, 1].

    An instance weight: texts of which the old model knows little count little.
    """
    return (_within(sequence, old_gold) / _within(sequence, tokens)).exp()


EMPHASES: dict[EmphasisName, Weight] = {"focal": focal, "constrained": constrained, "old_likelihood": old_likelihood}
"""By the name that settings use."""


def with_settings(function: Weight, settings: AlignmentSettings) -> Weight:
    """A function of facts alone: its parameters by keyword only are bound to the settings of that name."""
    own = [
        name for name, parameter in signature(function).parameters.items() if parameter.kind == Parameter.KEYWORD_ONLY
    ]
    return partial(function, **{name: getattr(settings, name) for name in own}) if own else function


def facts_read(function: Weight) -> frozenset[str]:
    """Names of the facts that a function reads."""
    parameters = signature(function).parameters.items()
    return frozenset(name for name, parameter in parameters if parameter.default is Parameter.empty)


WHOLE = frozenset({"sequence", "item"})
"""Facts that say which rows belong together: who reads them needs all rows at once."""


def model_facts(model: str, logits: Tensor, targets: Tensor, names: frozenset[str]) -> dict[str, Tensor]:
    """The facts among these names that a model's logits tell.

    Args:
        model: `student`, `old` or `new`.
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


def _within(group: Tensor, numbers: Tensor) -> Tensor:
    """For each row the sum over its group, (n,)."""
    return sums(numbers, group)[group]


def _largest(group: Tensor, numbers: Tensor) -> Tensor:
    """For each row the largest number of its group, (n,)."""
    groups, of_row = torch.unique(group, return_inverse=True)
    return numbers.new_zeros(len(groups)).scatter_reduce(0, of_row, numbers, "amax", include_self=False)[of_row]


def _one_or(share: float, rows: Tensor) -> Tensor:
    """1 on these rows, the share elsewhere."""
    return torch.where(rows, 1.0, share).float()
