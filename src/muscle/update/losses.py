"""Losses of rows of logits, in nats, and their sum over hidden states without the logits of more than a few rows.

A row is a position whose next token is a target. Losses come one per row; only the trainer divides. Softmaxes are
computed in float32 at least, whatever the logits are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

LEAST_ROWS = 64
"""At a time: with fewer, reading the head's weights takes longer than multiplying by them."""
LARGEST = 10
"""Logits of a teacher that `logit_difference` compares."""
LOGITS_AT_A_TIME = {"cpu": 2**22, "gpu": 2**26}
"""As many as stay near a CPU's caches (16 MB in float32), and keep a GPU busy (256 MB)."""


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of each target: L_CE of the paper (appendix A.4), row by row.

    Args:
        logits: (n, V).
        targets: token ids (n,).

    Returns:
        Nats (n,).
    """
    return functional.cross_entropy(_wide(logits), targets, reduction="none")


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(softmax(teacher / T) || softmax(student / T)): a_v1 or a_v2 of the paper's section 4, row by row.

    Args:
        student: logits (n, V).
        teacher: logits (n, V) of the model that rules each row.
        temperature: T > 0.

    Returns:
        Nats (n,), never times T^2.
    """
    log_student, log_teacher = (functional.log_softmax(_wide(z) / temperature, dim=-1) for z in (student, teacher))
    return functional.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)


def logit_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the mean squared difference between the K largest logits of a teacher and the student's there, row by row.

    Logit-difference inhibition (ELODI: Zhao et al. 2022, section 3.2), without its margin. What is added to all
    logits of a row means nothing, so both sets are centred first.

    Args:
        student: logits (n, V).
        teacher: logits (n, V).

    Returns:
        Numbers (n,), at least 0.
    """
    _, difference = _at_largest(_wide(student), _wide(teacher))
    return difference.square().mean(-1) / 2


def absolute_difference(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """sum_v |softmax(student / T)_v - softmax(teacher / T)_v|, row by row: twice the total variation.

    With a teacher sorted like the student (`muscle.update.across.translations.by_rank`) it is that of the universal
    logit distillation loss (Boizard et al. 2024, arXiv 2402.12030, section 3).

    Args:
        student: logits (n, V).
        teacher: logits (n, V).
        temperature: T > 0.

    Returns:
        Numbers (n,) from 0 to 2, never times T^2.
    """
    q, p = (functional.softmax(_wide(z) / temperature, dim=-1) for z in (student, teacher))
    return (q - p).abs().sum(-1)


Distance = Literal["divergence", "logits", "absolute"]


@dataclass(frozen=True)
class Aim:
    """What rows of a student's logits (n, V) are drawn to."""

    targets: Tensor
    """Token ids (n,)."""
    ce_share: float | Tensor = 1.0
    """Factor of the cross-entropy; a tensor (n,) has one for each row."""
    teacher: Tensor | None = None
    """Logits (n, S) of the teacher that rules, S <= V: the distance sees the first S rows of the vocabulary."""
    distance: Distance = "divergence"
    """From the teacher: `divergence`, `absolute_difference`, or `logit_difference` (logits) without a temperature."""
    distance_share: float | Tensor = 0.0
    """Factor of the distance; a tensor (n,) has one for each row."""
    temperature: float = 1.0
    """T of both softmaxes of the divergence, or of the absolute difference."""
    noted: dict[str, Tensor] = field(default_factory=dict)
    """Whatever else of the rows is to be known afterwards, each (n,)."""


Take = Callable[[Tensor, slice], Aim]
"""Student's logits of some rows (c, V), and which rows these are -> what they are drawn to."""


def loss_of_rows(
    states: Tensor, head: Callable[[Tensor], Tensor], take: Take, slices: Sequence[slice] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy and distance from a teacher, each times its share, summed over rows, chunk by chunk.

    One product with the head makes a chunk's logits, and another one their gradient's way back to the hidden states,
    at once, so that no logits are kept. A head that is trained itself needs its logits again in the backward pass.

    Args:
        states: The student's final hidden states (n, H). With n = 0 the sum is 0 and still has a graph, so that every
            process of a group takes part in the backward pass.
        head: Makes logits (c, V) of hidden states (c, H).
        take: Called for each chunk once (again in the backward pass if the head is trained), without gradient.
        slices: The chunks, in order and one at least; None: those of `chunks`.

    Returns:
        Sum in nats; by name, without a graph and each (n,): `cross_entropy`, `distance` if there are teachers, and
        what was noted.
    """
    learns = torch.is_grad_enabled()
    columns: list[dict[str, Tensor]] = []
    probe = head(states[:0].detach())
    slices = [*chunks(states, probe.shape[-1])] if slices is None else slices
    if learns and probe.requires_grad:
        totals = []
        for rows in slices:
            total, noted = checkpoint(_differentiable, states[rows], head, take, rows, use_reentrant=False)
            totals.append(total)
            columns.append(noted)
        return torch.stack(totals).sum(), _joined(columns)
    gradients = []
    for rows in slices:
        part = states[rows].detach().requires_grad_(learns)
        logits = head(part)
        with torch.no_grad(), torch.autocast(states.device.type, enabled=False):
            by_row, gradient = _by_hand(logits, take(logits.detach(), rows), learns)
            columns.append(by_row)
            if learns:
                (back,) = torch.autograd.grad(logits, part, gradient)
                gradients.append(_wide(back))
        del logits, gradient  # before the next chunk's
    joined = _joined(columns)
    total = joined.pop("loss").sum()
    return (_Known.apply(states, total, torch.cat(gradients)) if learns else total), joined  # type: ignore[no-untyped-call]


def chunks(states: Tensor, vocabulary: int) -> Iterator[slice]:
    """Rows to take at a time, so that their logits stay small, and the head's weights are not read too often.

    At least one chunk, if an empty one.
    """
    numbers = LOGITS_AT_A_TIME["cpu" if states.device.type == "cpu" else "gpu"]
    size = max(LEAST_ROWS, numbers // vocabulary)
    for start in range(0, max(1, len(states)), size):
        yield slice(start, min(start + size, len(states)))


class _Known(torch.autograd.Function):
    """A sum over hidden states whose gradient was computed with it."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, total: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype = states.dtype
        return total.clone()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (outer * gradient).to(ctx.dtype), None, None


def _by_hand(logits: Tensor, aim: Aim, learns: bool) -> tuple[dict[str, Tensor], Tensor | None]:
    """The rows' losses, and the gradient of their sum with respect to the logits, in as few passes as torch allows."""
    z = _wide(logits)
    gradient = None
    if learns and _counts(aim.ce_share):
        q, log_sum = _softmax(z)
        gradient = q.mul_(_column(aim.ce_share))  # d/dz -log softmax(z)[y] = softmax(z) - onehot(y)
        gradient.scatter_add_(-1, aim.targets[:, None], -_column(aim.ce_share) * gradient.new_ones(len(z), 1))
    else:
        log_sum = z.logsumexp(-1)
    by_row = {"cross_entropy": log_sum - z.gather(-1, aim.targets[:, None])[:, 0]}
    by_row["loss"] = aim.ce_share * by_row["cross_entropy"]
    if aim.teacher is not None:
        shared, all_rows = aim.teacher.shape[-1], z.shape[-1]
        by_row["distance"], towards = _BY_HAND[aim.distance](z[:, :shared], _wide(aim.teacher), aim, learns)
        by_row["loss"] = by_row["loss"] + aim.distance_share * by_row["distance"]
        if towards is not None:
            if gradient is not None:
                gradient[:, :shared] += towards
            else:
                gradient = towards if shared == all_rows else functional.pad(towards, (0, all_rows - shared))
    if learns and gradient is None:
        gradient = torch.zeros_like(z)
    return {**by_row, **aim.noted}, None if gradient is None else gradient.to(logits.dtype)


def _divergence_by_hand(z: Tensor, t: Tensor, aim: Aim, learns: bool) -> tuple[Tensor, Tensor | None]:
    """`divergence`, and its share's gradient with respect to the student's logits z."""
    z, t = z / aim.temperature, t / aim.temperature
    (q, log_sum), (p, teacher_log_sum) = _softmax(z), _softmax(t)
    # sum_v p_v (log p_v - log q_v), of which rounding may leave less than nothing
    by_row = (t.sub_(z).mul_(p).sum(-1) - teacher_log_sum + log_sum).clamp(min=0)
    # d/dz KL(p || softmax(z / T)) = (softmax(z / T) - p) / T
    return by_row, q.sub_(p).mul_(_column(aim.distance_share) / aim.temperature) if learns else None


def _logit_difference_by_hand(z: Tensor, t: Tensor, aim: Aim, learns: bool) -> tuple[Tensor, Tensor | None]:
    """`logit_difference`, and its share's gradient with respect to the student's logits z."""
    largest, difference = _at_largest(z, t)
    by_row = difference.square().mean(-1) / 2
    if not learns:
        return by_row, None
    # the difference is centred, so that centring again changes nothing
    towards = difference * _column(aim.distance_share) / difference.shape[-1]
    return by_row, torch.zeros_like(z).scatter_(-1, largest, towards)


def _absolute_difference_by_hand(z: Tensor, t: Tensor, aim: Aim, learns: bool) -> tuple[Tensor, Tensor | None]:
    """`absolute_difference`, and its share's gradient with respect to the student's logits z."""
    q, difference = (z / aim.temperature).softmax(-1), (t / aim.temperature).softmax(-1)
    difference = torch.sub(q, difference, out=difference)
    by_row = difference.abs().sum(-1)
    if not learns:
        return by_row, None
    # with s = sign(q - p), d/dz sum_v |q_v - p_v| = q (s - sum_v s_v q_v) / T
    signs = difference.sign_()
    mean = (signs * q).sum(-1, keepdim=True)
    return by_row, signs.sub_(mean).mul_(q).mul_(_column(aim.distance_share) / aim.temperature)


_BY_HAND = {
    "divergence": _divergence_by_hand,
    "logits": _logit_difference_by_hand,
    "absolute": _absolute_difference_by_hand,
}


def _at_largest(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Where the teacher's largest logits are, (n, K), and what the student's are above them when both are centred."""
    theirs, largest = teacher.topk(min(LARGEST, teacher.shape[-1]))
    difference = student.gather(-1, largest) - theirs
    return largest, difference - difference.mean(-1, keepdim=True)


def _counts(share: float | Tensor) -> bool:
    return isinstance(share, Tensor) or share != 0


def _column(share: float | Tensor) -> float | Tensor:
    """To multiply (n, V) by."""
    return share[:, None] if isinstance(share, Tensor) else share


def _differentiable(
    states: Tensor, head: Callable[[Tensor], Tensor], take: Take, rows: slice
) -> tuple[Tensor, dict[str, Tensor]]:
    """The same losses by the plain functions above, for autograd."""
    logits = head(states)
    with torch.autocast(states.device.type, enabled=False):
        with torch.no_grad():
            aim = take(logits.detach(), rows)
        by_row = {"cross_entropy": cross_entropy(logits, aim.targets)}
        total = (aim.ce_share * by_row["cross_entropy"]).sum()
        if aim.teacher is not None:
            student = logits[:, : aim.teacher.shape[-1]]
            if aim.distance == "logits":
                by_row["distance"] = logit_difference(student, aim.teacher)
            else:
                measured = divergence if aim.distance == "divergence" else absolute_difference
                by_row["distance"] = measured(student, aim.teacher, aim.temperature)
            total = total + (aim.distance_share * by_row["distance"]).sum()
    return total, {name: column.detach() for name, column in {**by_row, **aim.noted}.items()}


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities (n, V), and the logarithm (n,) of what they were divided by."""
    probabilities = logits.softmax(-1)
    return probabilities, logits.amax(-1) - probabilities.amax(-1).log()  # exact at the largest, which is >= 1 / V


def _joined(columns: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([column[name] for column in columns]) for name in columns[0]}


def _wide(numbers: Tensor) -> Tensor:
    """In float32 at least."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))
