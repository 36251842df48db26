"""Loss and gradient against a naive float64 reference that shares no trick with the code."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from muscle.update import weights
from muscle.update.losses import cross_entropy, divergence

B, T, V = 3, 5, 7


def softmax(row: list[float], temperature: float) -> list[float]:
    top = max(row)
    exps = [math.exp((value - top) / temperature) for value in row]
    return [value / sum(exps) for value in exps]


def naive_eq1(student: Tensor, old: Tensor, new: Tensor, targets: Tensor, counted: Tensor, t: float) -> float:
    """n * L_comp of equation 1, word by word: one Kullback-Leibler divergence per token, to the teacher of its mask."""
    total = 0.0
    for b in range(student.shape[0]):
        for i in range(student.shape[1]):
            if not counted[b, i]:
                continue
            z = student[b, i].tolist()
            wrong = z.index(max(z)) != targets[b, i].item()
            teacher = softmax((old if wrong else new)[b, i].tolist(), t)
            total += sum(p * math.log(p / q) for p, q in zip(teacher, softmax(z, t), strict=True))
    return total


def logits(seed: int) -> Tensor:
    return 3 * torch.randn(B, T, V, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(V, (B, T), generator=generator)
    return targets, torch.rand(B, T, generator=generator) < 0.7


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@given(seed=st.integers(0, 10_000))
def test_divergence_is_equation_1(seed: int, temperature: float) -> None:
    student, old, new = logits(3 * seed), logits(3 * seed + 1), logits(3 * seed + 2)
    targets, counted = batch(seed)
    total, count = divergence(student, old, new, weights.student_wrong(student, targets), counted, temperature)
    assert total.item() == pytest.approx(naive_eq1(student, old, new, targets, counted, temperature), rel=1e-10)
    assert count.item() == counted.sum().item()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_gradient_of_equation_1(temperature: float) -> None:
    student, old, new = (logits(seed).requires_grad_() for seed in range(3))
    targets, counted = batch(0)
    divergence(student, old, new, weights.student_wrong(student, targets), counted, temperature)[0].backward()
    assert student.grad is not None
    assert old.grad is None
    assert new.grad is None
    # d/dz KL(p || softmax(z / T)) = (softmax(z / T) - p) / T, by hand
    for b in range(B):
        for i in range(T):
            z = student[b, i].tolist()
            teacher = softmax((old if z.index(max(z)) != targets[b, i] else new)[b, i].tolist(), temperature)
            by_hand = [(q - p) / temperature for p, q in zip(teacher, softmax(z, temperature), strict=True)]
            expected = by_hand if counted[b, i] else [0.0] * V
            assert student.grad[b, i].tolist() == pytest.approx(expected, abs=1e-12)


def test_mixture_teacher_is_log_linear() -> None:
    student, old, new = logits(0), logits(1), logits(2)
    counted = torch.ones(B, T, dtype=torch.bool)
    total, _ = divergence(student, old, new, torch.full((B, T), 0.3), counted)
    expected = 0.0
    for b in range(B):
        for i in range(T):
            mixed = [0.3 * x + 0.7 * y for x, y in zip(old[b, i].tolist(), new[b, i].tolist(), strict=True)]
            pairs = zip(softmax(mixed, 1), softmax(student[b, i].tolist(), 1), strict=True)
            expected += sum(p * math.log(p / q) for p, q in pairs)
    assert total.item() == pytest.approx(expected, rel=1e-6)  # w is float32


def test_cross_entropy_is_the_negative_log_likelihood() -> None:
    student, (targets, counted) = logits(0), batch(1)
    total, count = cross_entropy(student, targets, counted)
    picked = [
        -math.log(softmax(student[b, i].tolist(), 1)[int(targets[b, i])])
        for b in range(B)
        for i in range(T)
        if counted[b, i]
    ]
    assert total.item() == pytest.approx(sum(picked))
    assert count.item() == len(picked)


def test_a_batch_without_targets_keeps_its_graph() -> None:
    student, nothing = logits(0).requires_grad_(), torch.zeros(B, T, dtype=torch.bool)
    targets = torch.zeros(B, T, dtype=torch.long)
    for total, count in (
        cross_entropy(student, targets, nothing),
        divergence(student, logits(1), logits(2), torch.ones(B, T), nothing),
    ):
        assert (total.item(), count.item()) == (0.0, 0)
        total.backward()
    assert student.grad is not None
    assert not student.grad.any()


@given(seed=st.integers(0, 10_000))
def test_masks(seed: int) -> None:
    student, (targets, _) = logits(seed), batch(seed)
    wrong = weights.student_wrong(student, targets)
    for b in range(B):
        for i in range(T):
            best = max(range(V), key=lambda v: student[b, i, v].item())
            assert wrong[b, i].item() == float(best != targets[b, i].item())
    assert weights.always_old(student, targets).tolist() == [[1.0] * T] * B
