"""What the rows of a batch belong to, and sums over what belongs together, against plain loops."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from muscle.update.heads import Head
from muscle.update.rows import Targets, TeacherRows, log_softmax_within, sums
from muscle.update.tokenized import IGNORED

GROUPS = st.lists(st.tuples(st.integers(0, 4), st.floats(-300, 300)), max_size=12)


def batch() -> dict[str, torch.Tensor]:
    """Four texts of two items, one of them without a target."""
    labels = torch.tensor(
        [[5, 6, IGNORED, 7], [IGNORED, IGNORED, 8, IGNORED], [9, IGNORED, IGNORED, IGNORED], [IGNORED, 1, 2, 3]]
    )
    return {"labels": labels, "item": torch.tensor([7, 3, 7, 7]), "right": torch.tensor([False, True, True, True])}


def test_rows_belong_to_texts_and_items() -> None:
    targets = Targets.of(batch())
    assert targets.gold.tolist() == [6, 7, 8, 1, 2, 3]  # the first token of a text is never one
    assert targets.sequence.tolist() == [0, 0, 1, 3, 3, 3]
    assert targets.before.tolist() == [0, 2, 1, 0, 1, 2]
    assert targets.item.tolist() == [7, 7, 3, 7, 7, 7]
    assert targets.right.tolist() == [False, False, True, True, True, True]
    assert targets.count == 6
    assert targets.text.tolist() == [0, 0, 1, 2, 2, 2]  # text 2 has no target, and so no number
    assert targets.right_texts.tolist() == [False, True, True]
    assert targets.item_of_text.tolist() == [1, 0, 1]
    hidden = torch.arange(16).reshape(4, 4, 1)
    assert targets.of_states(hidden)[:, 0].tolist() == [0, 2, 5, 12, 13, 14]


def test_without_items_each_text_is_one_and_right() -> None:
    targets = Targets.of({"labels": batch()["labels"]})
    assert targets.item.equal(targets.sequence)
    assert targets.right.dtype == torch.bool
    assert targets.right.all()
    assert targets.item_of_text.tolist() == [0, 1, 2]


def test_nothing_belongs_to_nothing() -> None:
    targets = Targets.of({"labels": torch.full((3, 4), IGNORED)})
    assert targets.count == 0
    for column in (*targets.facts.values(), targets.text, targets.right_texts, targets.item_of_text):
        assert column.shape == (0,)


@given(rows=GROUPS)
def test_sums_by_group(rows: list[tuple[int, float]]) -> None:
    group, numbers = (
        torch.tensor([row[k] for row in rows], dtype=kind) for k, kind in enumerate((torch.long, torch.double))
    )
    expected = [math.fsum(x for g, x in rows if g == k) for k in range(max((g for g, _ in rows), default=-1) + 1)]
    assert sums(numbers, group).tolist() == pytest.approx(expected, abs=1e-9)


@given(rows=GROUPS, shift=st.floats(-1e4, 1e4))
def test_log_softmax_by_group(rows: list[tuple[int, float]], shift: float) -> None:
    group, numbers = (
        torch.tensor([row[k] for row in rows], dtype=kind) for k, kind in enumerate((torch.long, torch.double))
    )
    found = log_softmax_within(numbers + shift * group, group)
    for k in set(group.tolist()):
        torch.testing.assert_close(found[group == k], numbers[group == k].log_softmax(0), rtol=1e-9, atol=1e-7)


def test_teachers_keep_their_own_precision() -> None:
    rows = TeacherRows(torch.randn(5, 3), Head(nn.Linear(3, 7).requires_grad_(False)))
    with torch.autocast("cpu", torch.bfloat16):
        logits = rows.logits(slice(1, 4))
    assert logits.dtype == torch.float32
    assert rows.vocabulary == 7
    torch.testing.assert_close(rows.logits(slice(1, 4), torch.tensor([2, 0])), logits[[2, 0]])
    assert not rows.logits(slice(None)).requires_grad
