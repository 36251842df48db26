"""Loss and gradient, row by row and in chunks, against a naive float64 reference that shares no trick with the code."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from muscle.update import losses
from muscle.update.heads import Head
from muscle.update.losses import (
    LARGEST,
    Aim,
    Distance,
    Take,
    absolute_difference,
    cross_entropy,
    divergence,
    logit_difference,
    loss_of_rows,
)

from .reference import away, kl, softmax

N, H, V = 15, 6, 7

EVERY_TEMPERATURE = pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])


def draw(seed: int, *shape: int) -> Tensor:
    return 3 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def logits(seed: int) -> Tensor:
    return draw(seed, N, V)


def targets(seed: int, rows: int = N, vocabulary: int = V) -> Tensor:
    return torch.randint(vocabulary, (rows,), generator=torch.Generator().manual_seed(seed))


@EVERY_TEMPERATURE
@given(seed=st.integers(0, 10_000))
def test_divergence_and_its_gradient(seed: int, temperature: float) -> None:
    student, teacher = logits(2 * seed).requires_grad_(), logits(2 * seed + 1).requires_grad_()
    found = divergence(student, teacher.detach(), temperature)
    found.sum().backward()
    assert student.grad is not None
    for i in range(N):
        p, q = (softmax(z[i].tolist(), temperature) for z in (teacher, student))
        assert found[i].item() == pytest.approx(kl(p, q), rel=1e-10)
        # d/dz KL(p || softmax(z / T)) = (softmax(z / T) - p) / T, by hand
        by_hand = [(y - x) / temperature for x, y in zip(p, q, strict=True)]
        assert student.grad[i].tolist() == pytest.approx(by_hand, abs=1e-12)


def test_squared_temperature_keeps_the_gradient_of_a_high_temperature() -> None:
    """T^2 KL tends to half the mean squared difference of centred logits (Hinton et al. 2015, section 2.1)."""
    student, teacher = logits(0).requires_grad_(), logits(1)
    total = 1e5**2 * divergence(student, teacher, 1e5).sum()
    total.backward()
    difference = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    assert total.item() == pytest.approx(0.5 * difference.square().sum().item() / V, rel=1e-3)
    torch.testing.assert_close(student.grad, difference.detach() / V, rtol=1e-3, atol=1e-4)


@given(seed=st.integers(0, 10_000), temperature=st.floats(0.1, 10))
def test_divergence_is_zero_only_towards_itself(seed: int, temperature: float) -> None:
    student, other = logits(seed), logits(seed + 1)
    assert divergence(student, student + 3, temperature).tolist() == pytest.approx([0.0] * N, abs=1e-9)
    assert divergence(student, other, temperature).sum() > 1e-3


@given(seed=st.integers(0, 10_000), vocabulary=st.sampled_from([1, 2, V, LARGEST, 2 * LARGEST + 3]))
def test_logit_difference_and_its_gradient(seed: int, vocabulary: int) -> None:
    student, teacher = (draw(2 * seed + k, N, vocabulary) for k in range(2))
    student.requires_grad_()
    found = logit_difference(student, teacher)
    found.sum().backward()
    assert student.grad is not None
    for i in range(N):
        value, by_hand = away(student[i].tolist(), teacher[i].tolist(), "logits", 1.0)
        assert found[i].item() == pytest.approx(value, rel=1e-10, abs=1e-20)
        assert student.grad[i].tolist() == pytest.approx(by_hand, abs=1e-12)


@given(seed=st.integers(0, 10_000), shift=st.floats(-50, 50))
def test_logit_difference_is_zero_only_towards_itself_and_sees_the_largest(seed: int, shift: float) -> None:
    student, other = draw(seed, N, 2 * LARGEST), draw(seed + 1, N, 2 * LARGEST)
    assert logit_difference(student, student + shift).tolist() == pytest.approx([0.0] * N, abs=1e-9)
    assert (logit_difference(student, other) > 1e-3).all()
    smallest = other.topk(LARGEST, largest=False).indices
    raised = student.scatter_add(-1, smallest, torch.ones_like(student))
    assert torch.equal(logit_difference(raised, other), logit_difference(student, other))


@EVERY_TEMPERATURE
@given(seed=st.integers(0, 10_000))
def test_absolute_difference_and_its_gradient(seed: int, temperature: float) -> None:
    student, teacher = logits(2 * seed).requires_grad_(), logits(2 * seed + 1)
    found = absolute_difference(student, teacher, temperature)
    found.sum().backward()
    assert student.grad is not None
    for i in range(N):
        p, q = (softmax(z[i].tolist(), temperature) for z in (teacher, student))
        assert found[i].item() == pytest.approx(sum(abs(x - y) for x, y in zip(p, q, strict=True)), rel=1e-10)
        # by the chain rule: sum_v sign(q_v - p_v) dq_v/dz_k, with dq_v/dz_k = q_v ((v = k) - q_k) / T
        by_hand = [
            sum(math.copysign(1, q[v] - p[v]) * q[v] * ((v == k) - q[k]) / temperature for v in range(V))
            for k in range(V)
        ]
        assert student.grad[i].tolist() == pytest.approx(by_hand, abs=1e-12)


@given(seed=st.integers(0, 10_000), shift=st.floats(-50, 50), temperature=st.floats(0.1, 10))
def test_absolute_difference_is_zero_only_towards_itself_and_two_at_most(
    seed: int, shift: float, temperature: float
) -> None:
    student, other = logits(seed), logits(seed + 1)
    assert absolute_difference(student, student + shift, temperature).tolist() == pytest.approx([0.0] * N, abs=1e-9)
    assert absolute_difference(student, other, temperature).sum() > 1e-3
    apart = torch.tensor([[0.0, 1e4], [1e4, 0.0]])
    assert absolute_difference(apart, apart.flip(0), temperature).tolist() == [2.0, 2.0]


def test_cross_entropy_and_its_gradient() -> None:
    student, gold = logits(0).requires_grad_(), targets(1)
    found = cross_entropy(student, gold)
    found.sum().backward()
    assert student.grad is not None
    for i, y in enumerate(gold.tolist()):
        q = softmax(student[i].tolist())
        assert found[i].item() == pytest.approx(-math.log(q[y]))
        # d/dz -log softmax(z)[y] = softmax(z) - onehot(y)
        assert student.grad[i].tolist() == pytest.approx([q[v] - (v == y) for v in range(V)], abs=1e-12)


# --------------------------------------------------------------------------------- chunk by chunk


def aims(
    gold: Tensor, teacher: Tensor | None = None, distance: Distance = "divergence", **shares: float | Tensor
) -> Take:
    def take(logits: Tensor, rows: slice) -> Aim:
        noted = {"first": logits[:, 0], "row": torch.arange(len(gold))[rows]}
        own = {name: share[rows] if isinstance(share, Tensor) else share for name, share in shares.items()}
        said = None if teacher is None else teacher[rows]
        return Aim(gold[rows], teacher=said, distance=distance, noted=noted, **own)  # type: ignore[arg-type]

    return take


def naive(
    states: Tensor, head: Callable[[Tensor], Tensor], take: Take
) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
    """All logits at once, in float64, and autograd: sum, losses by row, gradient of the states."""
    wide = states.detach().double().requires_grad_()
    z = head(wide)
    aim = take(z.detach(), slice(None))
    columns = {"cross_entropy": -z.log_softmax(-1)[range(len(z)), aim.targets]}
    total = (aim.ce_share * columns["cross_entropy"]).sum()
    if aim.teacher is not None:
        t = aim.teacher.double()
        p, q = (x[:, : t.shape[-1]].div(aim.temperature).softmax(-1) for x in (t, z))
        if aim.distance == "divergence":
            columns["distance"] = (p * (p / q).log()).sum(-1)
        elif aim.distance == "absolute":
            columns["distance"] = (p - q).abs().sum(-1)
        else:
            k = min(LARGEST, t.shape[-1])
            compared = [(z[i, t[i].argsort()[-k:]], t[i].sort().values[-k:]) for i in range(len(z))]
            columns["distance"] = torch.stack([(a - a.mean() - b + b.mean()).pow(2).sum() / 2 / k for a, b in compared])
        total = total + (aim.distance_share * columns["distance"]).sum()
    total.backward()
    return total, columns, wide.grad


def linear(seed: int, bias: bool, dtype: torch.dtype, rows: int = V) -> nn.Linear:
    layer = nn.Linear(H, rows, bias).to(dtype).requires_grad_(False)
    for i, weight in enumerate(layer.parameters()):
        weight.copy_(draw(seed + i, *weight.shape) / 4)
    return layer


def assert_near(found: Tensor, expected: Tensor | None, tolerance: float, terms: float = 0.0) -> None:
    """Relative to the largest, or to the terms where these cancel: one softmax less another is as exact as each."""
    assert expected is not None
    assert (found.double() - expected).abs().max() <= tolerance * max(expected.abs().max().item(), terms)


@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 13),
    chunk=st.integers(1, 14),
    shared=st.integers(2, V),
    temperature=st.floats(0.3, 20),
    ce_share=st.sampled_from([0.0, 0.3, 1.0]),
    squared=st.booleans(),
    distance=st.sampled_from(["divergence", "logits", "absolute"]),
    by_row=st.sampled_from([(False, False), (True, False), (False, True), (True, True)]),
    bias=st.booleans(),
    scale=st.sampled_from([1.0, 0.25, 3.0]),
    softcap=st.sampled_from([None, 2.0, 30.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    trained=st.booleans(),
)
def test_chunks_have_the_sum_and_gradient_of_the_whole(
    seed: int,
    rows: int,
    chunk: int,
    shared: int,
    temperature: float,
    ce_share: float,
    squared: bool,
    distance: Distance,
    by_row: tuple[bool, bool],
    bias: bool,
    scale: float,
    softcap: float | None,
    dtype: torch.dtype,
    trained: bool,
) -> None:
    layer = linear(seed, bias, dtype)
    head, reference = Head(layer, scale, softcap), Head(linear(seed, bias, torch.float64), scale, softcap)
    reference.load_state_dict(head.state_dict())
    for weights in (layer, reference):
        weights.requires_grad_(trained)
    states = draw(seed + 2, rows, H).to(dtype).requires_grad_()
    teacher = draw(seed + 3, rows, shared).to(dtype)
    share = (1 - ce_share) * (temperature**2 if squared else 1.0)
    shares = [
        each * draw(seed + 4 + k, rows).relu().to(dtype) if some else each
        for k, (each, some) in enumerate(zip((ce_share, share), by_row, strict=True))
    ]
    shown = {"ce_share": shares[0], "distance_share": shares[1], "temperature": temperature}
    take = aims(targets(seed, rows), teacher, distance, **shown)
    expected, columns, gradient = naive(states, reference, take)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "LEAST_ROWS", chunk)
        patch.setitem(losses.LOGITS_AT_A_TIME, "cpu", 0)
        total, found = loss_of_rows(states, head, take)
        (3 * total).backward()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert total.item() == pytest.approx(expected.item(), rel=tolerance, abs=10 * tolerance * max(1, share))
    for name, column in columns.items():
        torch.testing.assert_close(found[name].double(), column.detach(), rtol=tolerance, atol=tolerance)
        assert not found[name].requires_grad
    assert found["row"].tolist() == list(range(rows))
    assert set(found) == {"cross_entropy", "distance", "first", "row"}
    assert states.grad is not None
    assert gradient is not None
    terms = 0.3 * (ce_share + share / temperature) * scale
    assert_near(states.grad, 3 * gradient, tolerance, terms * layer.weight.abs().max().item())
    for weight, wide in zip(layer.parameters(), reference.parameters(), strict=True):
        assert (weight.grad is not None) == trained
        if weight.grad is not None and wide.grad is not None:
            assert_near(weight.grad, 3 * wide.grad, tolerance, terms * states.abs().max().item())


def test_logits_are_never_there_in_whole() -> None:
    seen: list[int] = []

    def head(rows: Tensor) -> Tensor:
        seen.append(len(rows))
        return layer(rows)

    layer, n = linear(0, True, torch.float32), 3 * losses.LEAST_ROWS + 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(losses.LOGITS_AT_A_TIME, "cpu", 10 * V)
        loss_of_rows(draw(1, n, H).float().requires_grad_(), head, aims(targets(0, n)))[0].backward()
    assert max(seen) == losses.LEAST_ROWS
    assert sum(seen) == n  # one product each; the gradient makes no logits


def test_without_a_gradient_none_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.autograd, "grad", lambda *_: pytest.fail("asked for"))
    states, head, take = draw(0, N, H), linear(0, False, torch.float64), aims(targets(1), logits(2))
    expected, _, _ = naive(states, head, take)
    with torch.no_grad():
        total, _ = loss_of_rows(states, head, take)
    assert total.item() == pytest.approx(expected.item())
    assert not total.requires_grad


def test_states_that_are_logits_stay_as_they_are() -> None:
    """Of a model whose head is not known, the logits themselves are the states."""
    states, kept = logits(0).requires_grad_(), logits(0)
    take = aims(targets(1), logits(2), ce_share=0.5, distance_share=0.5)
    total, _ = loss_of_rows(states, nn.Identity(), take)
    total.backward()
    assert torch.equal(states, kept)
    expected, _, gradient = naive(kept, nn.Identity(), take)
    assert total.item() == pytest.approx(expected.item())
    torch.testing.assert_close(states.grad, gradient)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("trained", [False, True])
def test_softmaxes_of_half_precision_logits_are_in_float32(dtype: torch.dtype, trained: bool) -> None:
    """The only rounding is that of the logits themselves, and of the gradient on its way back."""
    layer = linear(0, False, dtype).requires_grad_(trained)
    states, teacher = (5 * draw(1, N, H)).to(dtype).requires_grad_(), (5 * logits(2)).to(dtype)
    take = aims(targets(3), teacher, ce_share=0.5, distance_share=0.5, temperature=3.0)
    total, by_row = loss_of_rows(states, layer, take)
    assert total.dtype == by_row["cross_entropy"].dtype == by_row["distance"].dtype == torch.float32
    expected, columns, gradient = naive(states, lambda rows: _rounded(rows, layer), take)
    for name, column in columns.items():
        torch.testing.assert_close(by_row[name].double(), column.detach(), rtol=1e-5, atol=1e-6)
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    total.backward()
    assert states.grad is not None
    assert states.grad.dtype == dtype
    assert_near(states.grad, gradient, 2e-2)


def _rounded(rows: Tensor, layer: nn.Linear) -> Tensor:
    """The values of the layer's coarse logits, and the gradient of exact ones."""
    exact: Tensor = rows @ layer.weight.double().T
    return exact + (layer(rows.to(layer.weight.dtype)).double() - exact).detach()


@pytest.mark.parametrize("trained", [False, True])
def test_mixed_precision_is_the_heads_alone(trained: bool) -> None:
    layer = linear(0, True, torch.float32).requires_grad_(trained)
    states, teacher = draw(1, N, H).float().requires_grad_(), logits(2).float()
    seen: list[torch.dtype] = []

    def take(z: Tensor, rows: slice) -> Aim:
        seen.append(z.dtype)
        return replace(aims(targets(3), teacher, distance_share=1.0)(z, rows), noted={})

    with torch.autocast("cpu", torch.bfloat16):
        total, by_row = loss_of_rows(states, layer, take)
    total.backward()
    assert set(seen) == {torch.bfloat16}
    rounded = layer(states.float()).detach() if trained else layer.bfloat16()(states.bfloat16()).float()
    assert by_row["distance"].dtype == torch.float32
    torch.testing.assert_close(by_row["cross_entropy"], cross_entropy(rounded, targets(3)), rtol=2e-2, atol=0.1)
    assert states.grad is not None
    assert states.grad.dtype == torch.float32


@pytest.mark.parametrize("trained", [False, True])
def test_no_rows_keep_the_graph(trained: bool) -> None:
    states, layer = draw(0, 0, H).requires_grad_(), linear(0, False, torch.float64).requires_grad_(trained)
    total, by_row = loss_of_rows(states, layer, aims(targets(0, 0), draw(1, 0, V), distance_share=1.0))
    assert total.item() == 0
    assert {name: tuple(column.shape) for name, column in by_row.items()} == dict.fromkeys(
        ("cross_entropy", "distance", "first", "row"), (0,)
    )
    total.backward()
    assert states.grad is not None
    assert trained == (layer.weight.grad is not None)
