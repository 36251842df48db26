"""Loss and gradient against a naive float64 reference that shares no trick with the code."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from muscle.update.losses import cross_entropy, divergence

from .reference import kl, softmax

B, T, V = 3, 5, 7

EVERY_TEMPERATURE = pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])


def logits(seed: int) -> Tensor:
    return 3 * torch.randn(B, T, V, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mask(seed: int, share: float = 0.7) -> Tensor:
    return torch.rand(B, T, generator=torch.Generator().manual_seed(seed)) < share


def targets(seed: int) -> Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(seed))


@EVERY_TEMPERATURE
@given(seed=st.integers(0, 10_000))
def test_divergence_with_a_mask_is_equation_1(seed: int, temperature: float) -> None:
    student, old, new = (logits(3 * seed + k) for k in range(3))
    m, counted = mask(seed), mask(seed + 1)
    total, count, sums = divergence(student, old, new, m.float(), counted, temperature)
    expected = to_old = to_new = 0.0
    for b, i in counted.nonzero().tolist():
        z_c, z_1, z_2 = (softmax(model[b, i].tolist(), temperature) for model in (student, old, new))
        a_v1, a_v2 = kl(z_1, z_c), kl(z_2, z_c)
        m_i = int(m[b, i])
        expected += m_i * a_v1 + (1 - m_i) * a_v2
        to_old, to_new = to_old + a_v1, to_new + a_v2
    assert total.item() == pytest.approx(expected, rel=1e-10)
    assert count.item() == counted.sum().item()
    assert {name: value.item() for name, value in sums.items()} == {
        "old_divergence": pytest.approx(to_old, rel=1e-10),
        "new_divergence": pytest.approx(to_new, rel=1e-10),
        "aligned_to_old": (m & counted).sum().item(),
    }


@EVERY_TEMPERATURE
@given(seed=st.integers(0, 10_000))
def test_divergence_between_the_teachers_is_to_their_logits_mixture(seed: int, temperature: float) -> None:
    student, old, new = (logits(3 * seed + k) for k in range(3))
    w = torch.rand(B, T, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    counted = mask(seed)
    expected = 0.0
    for b, i in counted.nonzero().tolist():
        w_i = w[b, i].item()
        mixed = [w_i * x + (1 - w_i) * y for x, y in zip(old[b, i].tolist(), new[b, i].tolist(), strict=True)]
        expected += kl(softmax(mixed, temperature), softmax(student[b, i].tolist(), temperature))
    total, _, sums = divergence(student, old, new, w, counted, temperature)
    assert total.item() == pytest.approx(expected, rel=1e-10)
    assert sums["aligned_to_old"].item() == pytest.approx(w[counted].sum().item())


@EVERY_TEMPERATURE
@pytest.mark.parametrize("squared", [False, True])
def test_gradient_of_the_divergence(temperature: float, squared: bool) -> None:
    student, old, new = (logits(seed).requires_grad_() for seed in range(3))
    w = torch.rand(B, T, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    counted = mask(0)
    total, _, sums = divergence(student, old, new, w, counted, temperature, squared)
    assert not any(value.requires_grad for value in sums.values())
    total.backward()
    assert student.grad is not None
    assert old.grad is new.grad is w.grad is None  # teachers and weights are given, not learnt
    for b in range(B):
        for i in range(T):
            w_i = w[b, i].item()
            mixed = [w_i * x + (1 - w_i) * y for x, y in zip(old[b, i].tolist(), new[b, i].tolist(), strict=True)]
            p, q = softmax(mixed, temperature), softmax(student[b, i].tolist(), temperature)
            # d/dz KL(p || softmax(z / T)) = (softmax(z / T) - p) / T, by hand
            scale = temperature**2 if squared else 1.0
            by_hand = [scale * (y - x) / temperature for x, y in zip(p, q, strict=True)]
            expected = by_hand if counted[b, i] else [0.0] * V
            assert student.grad[b, i].tolist() == pytest.approx(expected, abs=1e-12)


@EVERY_TEMPERATURE
def test_squared_temperature_is_a_factor_of_the_loss_alone(temperature: float) -> None:
    arguments = logits(0), logits(1), logits(2), mask(0).float(), mask(1), temperature
    (plain, count, sums), (squared, same_count, same_sums) = divergence(*arguments), divergence(*arguments, True)
    assert squared.item() == plain.item() * temperature**2
    assert (same_count, same_sums) == (count, sums)


def test_squared_temperature_keeps_the_gradient_of_a_high_temperature() -> None:
    """T^2 KL tends to half the mean squared difference of centred logits (Hinton et al. 2015, section 2.1)."""
    student, teacher, counted = logits(0).requires_grad_(), logits(1), torch.ones(B, T, dtype=torch.bool)
    total, _, _ = divergence(student, teacher, teacher, torch.ones(B, T), counted, 1e5, squared_temperature=True)
    total.backward()
    difference = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    assert total.item() == pytest.approx(0.5 * difference.square().sum().item() / V, rel=1e-3)
    torch.testing.assert_close(student.grad, difference.detach() / V, rtol=1e-3, atol=1e-4)


@given(seed=st.integers(0, 10_000), temperature=st.floats(0.1, 10))
def test_divergence_is_zero_only_towards_itself(seed: int, temperature: float) -> None:
    student, other, w = logits(seed), logits(seed + 1), mask(seed).float()
    counted = torch.ones(B, T, dtype=torch.bool)
    total, _, sums = divergence(student, student + 3, student - 3, w, counted, temperature)
    assert total.item() == pytest.approx(0, abs=1e-9)
    assert sums["old_divergence"].item() == pytest.approx(0, abs=1e-9)
    assert divergence(student, other, other, w, counted, temperature)[0].item() > 1e-3


def test_cross_entropy_and_its_gradient() -> None:
    student, gold, counted = logits(0).requires_grad_(), targets(1), mask(1)
    total, count = cross_entropy(student, gold, counted)
    total.backward()
    assert student.grad is not None
    expected = 0.0
    for b in range(B):
        for i in range(T):
            q, y = softmax(student[b, i].tolist()), int(gold[b, i])
            expected -= math.log(q[y]) if counted[b, i] else 0.0
            # d/dz -log softmax(z)[y] = softmax(z) - onehot(y)
            by_hand = [(q[v] - (v == y)) if counted[b, i] else 0.0 for v in range(V)]
            assert student.grad[b, i].tolist() == pytest.approx(by_hand, abs=1e-12)
    assert total.item() == pytest.approx(expected)
    assert count.item() == counted.sum().item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_softmaxes_of_half_precision_logits_are_in_float32(dtype: torch.dtype) -> None:
    """The only rounding is that of the logits themselves, and of the gradient on its way back."""
    student, old, new = (20 * logits(seed).to(dtype) for seed in range(3))
    student.requires_grad_()
    wide, gold, w, counted = student.detach().double().requires_grad_(), targets(0), mask(0).float(), mask(1)
    for half, exact in (
        (cross_entropy(student, gold, counted)[0], cross_entropy(wide, gold, counted)[0]),
        (
            divergence(student, old, new, w, counted, 3.0)[0],
            divergence(wide, old.double(), new.double(), w, counted, 3.0)[0],
        ),
    ):
        student.grad = wide.grad = None
        half.backward()
        exact.backward()
        assert half.dtype == torch.float32
        assert half.item() == pytest.approx(exact.item(), rel=1e-5)
        assert student.grad is not None
        assert student.grad.dtype == dtype
        torch.testing.assert_close(student.grad.double(), wide.grad, rtol=1e-2, atol=1e-6)


def test_a_batch_without_targets_keeps_its_graph() -> None:
    student, nothing = logits(0).requires_grad_(), torch.zeros(B, T, dtype=torch.bool)
    for total, count, *sums in (
        cross_entropy(student, torch.full((B, T), -100), nothing),
        divergence(student, logits(1), logits(2), torch.ones(B, T), nothing),
    ):
        assert (total.item(), count.item()) == (0.0, 0)
        assert all(value.item() == 0 for group in sums for value in group.values())
        total.backward()
    assert student.grad is not None
    assert not student.grad.any()
