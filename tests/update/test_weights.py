"""The masks of the paper's table 7 against loops over plain Python numbers, and what must not change them."""

from dataclasses import dataclass, replace
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from muscle.update.recipe import AlignmentSettings, WeightName
from muscle.update.weights import WEIGHTS, facts_read, model_facts

from .reference import masks

EVERY_WEIGHT = pytest.mark.parametrize("name", get_args(WeightName))
DTYPES = st.sampled_from([torch.bfloat16, torch.float32, torch.float64])


@dataclass(frozen=True)
class Rows:
    """The target positions of a few texts."""

    student: Tensor
    """Logits (n, V), and so the old model's."""
    old: Tensor
    targets: Tensor
    sequence: Tensor

    def cast(self, dtype: torch.dtype) -> "Rows":
        return replace(self, student=self.student.to(dtype), old=self.old.to(dtype))


@st.composite
def inputs(draw: st.DrawFn, ties: bool = False) -> Rows:
    """Texts of any number of targets, also none; with ties, logits are small whole numbers."""
    lengths, v = draw(st.lists(st.integers(0, 5), min_size=1, max_size=4)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def logits() -> Tensor:
        drawn = 3 * torch.randn(sum(lengths), v, generator=generator, dtype=torch.float64)
        return drawn.round() if ties else drawn

    sequence = torch.tensor([text for text, length in enumerate(lengths) for _ in range(length)], dtype=torch.long)
    return Rows(logits(), logits(), torch.randint(v, (sum(lengths),), generator=generator), sequence)


def weigh(name: WeightName, rows: Rows) -> Tensor:
    reads = facts_read(WEIGHTS[name])
    known = {"targets": rows.targets, "sequence": rows.sequence}
    facts = {fact: value for fact, value in known.items() if fact in reads}
    facts |= model_facts("student", rows.student, rows.targets, reads)
    facts |= model_facts("old", rows.old, rows.targets, reads)
    assert facts.keys() == reads
    return WEIGHTS[name](**facts)


def naive(name: WeightName, rows: Rows) -> list[int | None]:
    found: list[int | None] = []
    for text in rows.sequence.unique().tolist():  # rows stand text by text
        of = rows.sequence == text
        found += masks(name, rows.student[of].tolist(), rows.old[of].tolist(), rows.targets[of].tolist())
    return found


def test_every_name_of_the_settings_has_its_function() -> None:
    assert list(WEIGHTS) == list(get_args(WeightName))


def test_weights_say_what_they_read() -> None:
    """The paper's own needs no old head where the old model does not rule."""
    assert facts_read(WEIGHTS["student_wrong"]) == {"student_top", "targets"}
    assert facts_read(WEIGHTS["always_old"]) == {"targets"}
    assert facts_read(WEIGHTS["sequence_likelihood"]) == {"student_gold", "old_gold", "sequence"}


@EVERY_WEIGHT
def test_a_teacher_that_never_rules_is_not_asked_for(name: WeightName) -> None:
    logits = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    rows = Rows(logits, logits.flip(0), torch.arange(50) % 3, torch.arange(50))
    w = weigh(name, rows)
    assert AlignmentSettings(weight=name).teachers == ("old", "new")[: 1 + bool((w < 1).any())]
    assert w.any()


@EVERY_WEIGHT
@given(rows=inputs())
def test_masks_are_those_of_table_7(name: WeightName, rows: Rows) -> None:
    assert weigh(name, rows).tolist() == naive(name, rows)


@pytest.mark.parametrize("name", ["student_wrong", "old_right"])
@given(rows=inputs(ties=True), dtype=DTYPES)
def test_ties_go_to_the_first_token(name: WeightName, rows: Rows, dtype: torch.dtype) -> None:
    assert weigh(name, rows.cast(dtype)).tolist() == naive(name, rows)


@EVERY_WEIGHT
@given(rows=inputs(ties=True), dtype=DTYPES)
def test_weights_are_in_the_unit_interval(name: WeightName, rows: Rows, dtype: torch.dtype) -> None:
    w = weigh(name, rows.cast(dtype))
    assert w.shape == rows.targets.shape
    assert w.dtype == torch.float32
    assert ((w >= 0) & (w <= 1)).all()


@EVERY_WEIGHT
@given(rows=inputs(), shift=st.floats(-50, 50), other=st.floats(-50, 50))
def test_constants_added_to_logits_change_nothing(name: WeightName, rows: Rows, shift: float, other: float) -> None:
    shifted = replace(rows, student=rows.student + shift, old=rows.old + other)
    if rows.student.shape[-1] > 1:  # with a single token both likelihoods are 1, a tie that rounding breaks
        assert weigh(name, shifted).equal(weigh(name, rows))


@EVERY_WEIGHT
@given(rows=inputs(), more=inputs())
def test_other_texts_never_matter(name: WeightName, rows: Rows, more: Rows) -> None:
    if rows.student.shape[-1] == more.student.shape[-1]:
        sequence = torch.cat([rows.sequence, more.sequence + 4])
        pairs = ((getattr(rows, field), getattr(more, field)) for field in ("student", "old", "targets"))
        both = Rows(*map(torch.cat, pairs), sequence)
        assert weigh(name, both).tolist() == [*weigh(name, rows).tolist(), *weigh(name, more).tolist()]


@pytest.mark.parametrize("name", ["token_likelihood", "sequence_likelihood"])
@given(rows=inputs(), dtype=DTYPES)
def test_a_student_equal_to_the_old_model_is_left_to_the_new(name: WeightName, rows: Rows, dtype: torch.dtype) -> None:
    assert not weigh(name, replace(rows, old=rows.student).cast(dtype)).any()


@given(rows=inputs())
def test_likelihoods_prefer_one_model_or_the_other(rows: Rows) -> None:
    swapped = replace(rows, student=rows.old, old=rows.student)
    if rows.student.shape[-1] > 1:
        for name in ("token_likelihood", "sequence_likelihood"):
            assert (weigh(name, rows) + weigh(name, swapped) == 1).all()


@given(rows=inputs())
def test_an_old_model_that_is_the_student_is_right_or_wrong(rows: Rows) -> None:
    same = replace(rows, old=rows.student)
    assert (weigh("student_wrong", same) + weigh("old_right", same) == 1).all()


@given(rows=inputs())
def test_a_sequence_has_one_likelihood_mask(rows: Rows) -> None:
    w = weigh("sequence_likelihood", rows)
    for text in rows.sequence.unique():
        assert len(w[rows.sequence == text].unique()) == 1


def test_likelihoods_of_bfloat16_logits_are_told_apart() -> None:
    """Both gold tokens' log-likelihoods round to the same bfloat16."""
    student = torch.tensor([[8.0, 0.0]], dtype=torch.bfloat16)
    old = torch.tensor([[8.0, -1.0]], dtype=torch.bfloat16)
    nothing = torch.zeros(9, dtype=torch.long)
    for rows in (
        Rows(student.expand(9, 2), old.expand(9, 2), nothing, nothing),
        Rows(student + 4, old + 4, nothing[:1], nothing[:1]),
    ):
        assert weigh("token_likelihood", rows).all()
        assert weigh("sequence_likelihood", rows).all()
