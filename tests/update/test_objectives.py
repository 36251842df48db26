"""The whole objective on a padded batch, against a reference that goes token by token in float64."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from muscle.update.objectives import Compatibility, task_objective
from muscle.update.tasks import IGNORED
from muscle.update.weights import student_wrong

LENGTHS, WIDTH, V = (6, 3), 6, 5


@dataclass
class Fixed:
    """A teacher that always says the same; stands in for CachedTeacher, which its own tests compare with a model."""

    said: Tensor

    def logits(self, index: Tensor) -> Tensor:
        return self.said[index]


def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(V, (2, WIDTH), generator=generator)
    labels[:, 0] = IGNORED
    for row, length in enumerate(LENGTHS):
        labels[row, length:] = IGNORED
    return {"labels": labels, "index": torch.tensor([1, 0])}


def said(seed: int) -> Tensor:
    return 2 * torch.randn(2, WIDTH, V, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def log_softmax(row: Tensor, temperature: float = 1.0) -> list[float]:
    values = [value / temperature for value in row.tolist()]
    normaliser = math.log(sum(math.exp(value) for value in values))
    return [value - normaliser for value in values]


@pytest.mark.parametrize("ce_share", [0.0, 0.3])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_compatibility_is_the_papers_sum(ce_share: float, temperature: float) -> None:
    student, old, new, rows = said(0).requires_grad_(), said(1), said(2), batch()
    objective = Compatibility(Fixed(old), Fixed(new), student_wrong, temperature, ce_share)  # type: ignore[arg-type]
    total, count = objective(student, rows)

    expected, targets = 0.0, 0
    for row, length in enumerate(LENGTHS):
        source = int(rows["index"][row])
        for position in range(1, length):  # the logits that predict a token stand one before it
            gold, z = int(rows["labels"][row, position]), student[row, position - 1].detach()
            teacher = old if int(z.argmax()) != gold else new
            p, q = log_softmax(teacher[source, position - 1], temperature), log_softmax(z, temperature)
            divergence = sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
            expected += (1 - ce_share) * divergence - ce_share * log_softmax(z)[gold]
            targets += 1
    assert total.item() == pytest.approx(expected, rel=1e-9)
    assert count.item() == targets == sum(LENGTHS) - 2

    total.backward()
    assert student.grad is not None
    assert not student.grad[1, LENGTHS[1] - 1 :].any()  # padding, and the end-of-text that predicts nothing
    assert student.grad[0, : LENGTHS[0] - 1].any(-1).all()


def test_equal_teachers_make_the_mask_irrelevant() -> None:
    student, teacher, rows = said(0), said(1), batch()
    totals = []
    for weight in (student_wrong, lambda logits, targets: torch.zeros_like(logits[..., 0])):
        objective = Compatibility(Fixed(teacher), Fixed(teacher), weight, 1.0, 0.0)  # type: ignore[arg-type]
        totals.append(objective(student, rows)[0].item())
    assert totals[0] == pytest.approx(totals[1])


def test_task_objective_is_the_last_of_the_ce_shares() -> None:
    student, rows = said(0), batch()
    expected = sum(
        -log_softmax(student[row, position - 1])[int(rows["labels"][row, position])]
        for row, length in enumerate(LENGTHS)
        for position in range(1, length)
    )
    assert task_objective(student, rows)[0].item() == pytest.approx(expected)
