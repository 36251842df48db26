"""The whole objective on a padded batch, loss, gradient and statistics, against `reference`, token by token."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from muscle.errors import MuscleError
from muscle.update import losses
from muscle.update.heads import Head
from muscle.update.objectives import Compatibility, Objective, Outcome, compatibility, task_objective
from muscle.update.recipe import AlignmentSettings, WeightName
from muscle.update.tasks import IGNORED
from muscle.update.weights import student_wrong

from .reference import Gold, argmax, kl, masks, softmax

LENGTHS, WIDTH, V = (6, 3, 5), 6, 5
PROMPT = (0, 0, 2)
"""Tokens at the start of each row that are context, not targets."""

EVERY_WEIGHT = pytest.mark.parametrize("weight", get_args(WeightName))


@dataclass
class Fixed:
    """A teacher that always says the same; stands in for real ones, which their own tests compare with a model."""

    said: Tensor
    """Logits (texts, T, V)."""
    asked: list[int] = field(default_factory=list)
    """Rows that its head was asked for, time after time."""

    def states(self, batch: Mapping[str, Tensor], counted: Tensor) -> tuple[Tensor, Head]:
        return self.said[batch["index"]][:, :-1][counted], Head(self.hear)

    def hear(self, rows: Tensor) -> Tensor:
        self.asked.append(len(rows))
        return rows.clone()


def outcome(objective: Objective, logits: Tensor, rows: Mapping[str, Tensor] | None = None) -> Outcome:
    """Of a student whose final hidden states are its logits: heads have their own tests."""
    return objective(batch() if rows is None else rows)(logits, Head(nn.Identity()))


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(V, (len(LENGTHS), WIDTH), generator=generator)
    for row, (length, prompt) in enumerate(zip(LENGTHS, PROMPT, strict=True)):
        labels[row, length:] = IGNORED
        labels[row, : max(1, prompt)] = IGNORED
    return {"labels": labels, "index": torch.tensor([1, 0, 2])}


def said(seed: int, rows: int = V, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(len(LENGTHS), WIDTH, rows, dtype=torch.float64, generator=generator).to(dtype)


@dataclass
class Sums:
    """What the reference adds up over the target positions."""

    total: float = 0.0
    count: int = 0
    gradient: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    """By row and position; zero elsewhere."""
    statistics: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(
            ("cross_entropy", "token_accuracy", "old_divergence", "new_divergence", "aligned_to_old"), 0.0
        )
    )


def expected(student: Tensor, old: Tensor, new: Tensor, settings: AlignmentSettings) -> Sums:
    """n * (lambda * L_comp + (1 - lambda) * L_CE), its gradient by hand, and the statistics."""
    sums, rows, t = Sums(), batch(), settings.temperature
    shared, scale = min(z.shape[-1] for z in (student, old, new)), t**2 if settings.squared_temperature else 1.0
    ce_share = settings.ce_share
    for row, source in enumerate(rows["index"].tolist()):
        full = student[row].tolist()
        z_c, z_1, z_2 = (z[i, :, :shared].tolist() for z, i in ((student, row), (old, source), (new, source)))
        labels = rows["labels"][row].tolist()
        # the logits that predict a token stand one before it
        gold: Gold = [None if y == IGNORED else y for y in labels[1:]] + [None]
        m = masks(str(settings.weight), z_c, z_1, gold)
        for i, y in enumerate(gold):
            if y is None:
                continue
            p_1, p_2, q = softmax(z_1[i], t), softmax(z_2[i], t), softmax(z_c[i], t)
            likelihood = softmax(full[i])
            a_v1, a_v2, ce = kl(p_1, q), kl(p_2, q), -math.log(likelihood[y])
            sums.total += (1 - ce_share) * scale * (a_v1 if m[i] else a_v2) + ce_share * ce
            sums.count += 1
            gradient = [ce_share * (p - (v == y)) for v, p in enumerate(likelihood)]
            for v, (p, q_v) in enumerate(zip(p_1 if m[i] else p_2, q, strict=True)):
                gradient[v] += (1 - ce_share) * scale * (q_v - p) / t
            sums.gradient[row, i] = gradient
            here = (ce, argmax(full[i]) == y, a_v1 if m[i] else 0, 0 if m[i] else a_v2, m[i])
            for name, value in zip(sums.statistics, here, strict=True):
                sums.statistics[name] += float(value or 0)
    return sums


@EVERY_WEIGHT
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("ce_share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("vocabularies", [(V, V, V), (V + 3, V, V + 1), (V + 1, V + 3, V + 2)])
def test_compatibility_is_the_papers_sum(
    weight: WeightName, temperature: float, squared: bool, ce_share: float, vocabularies: tuple[int, int, int]
) -> None:
    student, old, new = (said(seed, rows) for seed, rows in enumerate(vocabularies))
    student.requires_grad_()
    settings = AlignmentSettings(weight=weight, temperature=temperature, squared_temperature=squared, ce_share=ce_share)
    total, count, statistics = outcome(compatibility(Fixed(old), Fixed(new), settings), student)
    total.backward()

    sums = expected(student.detach(), old, new, settings)
    assert total.item() == pytest.approx(sums.total, rel=1e-9)
    assert count.item() == sums.count
    assert {name: value.item() for name, value in statistics.items()} == pytest.approx(sums.statistics, rel=1e-9)
    assert not any(value.requires_grad for value in statistics.values())
    assert student.grad is not None
    for row in range(len(LENGTHS)):
        for i in range(WIDTH):
            by_hand = sums.gradient.get((row, i), [0.0] * vocabularies[0])
            assert student.grad[row, i].tolist() == pytest.approx(by_hand, abs=1e-12)


def test_the_batch_tries_both_sides_of_every_mask() -> None:
    for weight in get_args(WeightName):
        sums = expected(said(0), said(1), said(2), AlignmentSettings(weight=weight))
        assert sums.statistics["aligned_to_old"] > 0
        assert weight == "always_old" or sums.statistics["aligned_to_old"] < sums.count
        assert 0 < sums.statistics["token_accuracy"] < sums.count


def test_task_objective_is_cross_entropy() -> None:
    student = said(0).requires_grad_()
    total, count, statistics = outcome(task_objective, student)
    total.backward()
    sums = expected(student.detach(), said(1), said(2), AlignmentSettings(ce_share=1.0))
    assert total.item() == statistics["cross_entropy"].item() == pytest.approx(sums.total)
    assert count.item() == sums.count
    assert statistics["token_accuracy"].item() == sums.statistics["token_accuracy"]
    assert list(statistics) == ["cross_entropy", "token_accuracy"]
    assert student.grad is not None
    for (row, i), by_hand in sums.gradient.items():
        assert student.grad[row, i].tolist() == pytest.approx(by_hand, abs=1e-12)


@EVERY_WEIGHT
def test_equal_teachers_make_the_mask_irrelevant(weight: WeightName) -> None:
    teacher = Fixed(said(1))
    total, _, _ = outcome(compatibility(teacher, teacher, AlignmentSettings(weight=weight)), said(0))
    always, _, _ = outcome(compatibility(teacher, None, AlignmentSettings(weight="always_old")), said(0))
    assert total.item() == pytest.approx(always.item())


def test_weights_between_the_teachers_are_allowed() -> None:
    old, new, student = said(1), said(2), said(0)
    half = Compatibility(Fixed(old), Fixed(new), lambda targets: torch.full(targets.shape, 0.5), 2.0, False, 0.0)
    between = Fixed((old + new) / 2)
    total, count, statistics = outcome(half, student)
    alone, _, _ = outcome(compatibility(between, between, AlignmentSettings()), student)
    assert total.item() == pytest.approx(alone.item())
    assert statistics["aligned_to_old"] == count / 2
    assert statistics["old_divergence"] == statistics["new_divergence"] == pytest.approx(total.item() / 2)


@given(seed=st.integers(0, 10_000), chunk=st.integers(1, 12))
def test_any_mixture_row_by_row_in_chunks_of_any_size(seed: int, chunk: int) -> None:
    """Some rows are the old teacher's, some the new one's, some lie between."""
    student, old, new = (said(3 * seed + k) for k in range(3))
    rows, generator = batch(), torch.Generator().manual_seed(seed)
    counted = (rows["labels"][:, 1:] != IGNORED).nonzero().tolist()
    drawn = torch.rand(len(counted), generator=generator).mul(2).sub(0.5).clamp(0, 1)

    def weight(targets: Tensor, sequence: Tensor) -> Tensor:  # reading `sequence`, it is asked once for all rows
        assert len(targets) == len(sequence) == len(drawn)
        return drawn

    objective = Compatibility(Fixed(old), Fixed(new), weight, 2.0, False, 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "LEAST_ROWS", chunk)
        patch.setitem(losses.LOGITS_AT_A_TIME, "cpu", 0)
        total, _, statistics = outcome(objective, student)
    expected = to_old = 0.0
    for (row, i), w in zip(counted, drawn.tolist(), strict=True):
        source = rows["index"][row]
        mixed = [w * x + (1 - w) * y for x, y in zip(old[source, i].tolist(), new[source, i].tolist(), strict=True)]
        away = kl(softmax(mixed, 2.0), softmax(student[row, i].tolist(), 2.0))
        expected, to_old = expected + away, to_old + w * away
    assert total.item() == pytest.approx(expected, rel=1e-6)
    assert statistics["old_divergence"].item() == pytest.approx(to_old, rel=1e-6)
    assert statistics["new_divergence"].item() == pytest.approx(expected - to_old, rel=1e-6)


def test_a_teacher_is_asked_only_where_it_rules() -> None:
    old, new = Fixed(said(1)), Fixed(said(2))
    _, count, statistics = outcome(compatibility(old, new, AlignmentSettings()), said(0))
    ruled = int(statistics["aligned_to_old"])
    assert 0 < ruled < count
    assert (sum(old.asked), sum(new.asked)) == (ruled, count - ruled)
    old.asked.clear()
    outcome(compatibility(old, None, AlignmentSettings(weight="always_old")), said(0))
    assert sum(old.asked) == count


@EVERY_WEIGHT
def test_a_weight_is_that_of_all_logits_at_once_whatever_the_chunks(weight: WeightName) -> None:
    objective = compatibility(Fixed(said(1)), Fixed(said(2)), AlignmentSettings(weight=weight, ce_share=0.3))
    total, _, statistics = outcome(objective, said(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "LEAST_ROWS", 2)
        patch.setitem(losses.LOGITS_AT_A_TIME, "cpu", 0)
        in_pairs, _, same = outcome(objective, said(0))
    assert in_pairs.item() == pytest.approx(total.item())
    assert {name: value.item() for name, value in same.items()} == pytest.approx(
        {name: value.item() for name, value in statistics.items()}
    )


def test_teachers_are_asked_before_the_student_runs() -> None:
    asked = []

    class Noting(Fixed):
        def states(self, batch: Mapping[str, Tensor], counted: Tensor) -> tuple[Tensor, Head]:
            asked.append(counted.sum().item())
            return super().states(batch, counted)

    compatibility(Noting(said(1)), Noting(said(2)), AlignmentSettings())(batch())
    assert asked == [(batch()["labels"][:, 1:] != IGNORED).sum()] * 2


@pytest.mark.parametrize("smaller", range(3))
def test_a_target_that_not_every_model_knows_is_refused(smaller: int) -> None:
    student, old, new = (said(seed, V - (seed == smaller)) for seed in range(3))
    rows = batch()
    rows["labels"][0, 1] = V - 1
    with pytest.raises(MuscleError, match=rf"token {V - 1} .* first {V - 1} rows .*: choose bases with the same added"):
        outcome(compatibility(Fixed(old), Fixed(new), AlignmentSettings()), student, rows)


def test_tokens_that_are_no_targets_may_lie_beyond_the_shared_rows() -> None:
    rows = batch()
    rows["labels"][rows["labels"] == V - 1] = IGNORED
    objective = compatibility(Fixed(said(1, V - 1)), Fixed(said(2)), AlignmentSettings())
    assert outcome(objective, said(0), rows)[1] == (rows["labels"][:, 1:] != IGNORED).sum()


@EVERY_WEIGHT
@pytest.mark.parametrize("ce_share", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_batch_without_targets_keeps_its_graph(weight: WeightName, ce_share: float, dtype: torch.dtype) -> None:
    student, rows = said(0, dtype=dtype).requires_grad_(), batch()
    rows["labels"].fill_(IGNORED)
    settings = AlignmentSettings(weight=weight, ce_share=ce_share)
    total, count, statistics = outcome(compatibility(Fixed(said(1)), Fixed(said(2)), settings), student, rows)
    total.backward()
    assert (total.item(), count.item()) == (0.0, 0)
    assert all(value.item() == 0 for value in statistics.values())
    assert student.grad is not None
    assert not student.grad.any()


def test_ties_of_coarse_logits_go_to_the_first_token() -> None:
    """In bfloat16 several tokens are often equally likely: the mask and the accuracy must decide alike."""
    student = torch.zeros(len(LENGTHS), WIDTH, V, dtype=torch.bfloat16)
    objective = Compatibility(Fixed(said(1)), Fixed(said(2)), student_wrong, 2.0, False, 0.0)
    _, count, statistics = outcome(objective, student)
    zeros = (batch()["labels"][:, 1:] == 0).sum()
    assert statistics["token_accuracy"] == zeros
    assert statistics["aligned_to_old"] == count - zeros
