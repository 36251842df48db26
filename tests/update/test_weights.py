"""The masks of the paper's table 7 against loops over plain Python numbers, and what must not change them."""

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from muscle.update.recipe import WeightName
from muscle.update.tasks import IGNORED
from muscle.update.weights import WEIGHTS, WeightInputs

from .reference import masks

EVERY_WEIGHT = pytest.mark.parametrize("name", get_args(WeightName))
DTYPES = st.sampled_from([torch.bfloat16, torch.float32, torch.float64])


@st.composite
def inputs(draw: st.DrawFn, ties: bool = False) -> WeightInputs:
    """A batch of any shape and type; with ties, logits are small whole numbers."""
    b, t, v = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def logits() -> Tensor:
        drawn = 3 * torch.randn(b, t, v, generator=generator, dtype=torch.float64)
        return drawn.round() if ties else drawn

    counted = torch.rand(b, t, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    targets = torch.randint(v, (b, t), generator=generator).masked_fill(~counted, IGNORED)
    return WeightInputs(logits(), logits(), targets, counted)


def cast(batch: WeightInputs, dtype: torch.dtype) -> WeightInputs:
    return replace(batch, student=batch.student.to(dtype), old=batch.old.to(dtype))


def is_naive(name: WeightName, batch: WeightInputs) -> bool:
    for w, student, old, targets in zip(WEIGHTS[name](batch), batch.student, batch.old, batch.targets, strict=True):
        gold = [None if y == IGNORED else y for y in targets.tolist()]
        expected = masks(name, student.tolist(), old.tolist(), gold)
        if any(m is not None and m != w_i for m, w_i in zip(expected, w.tolist(), strict=True)):
            return False
    return True


def test_every_name_of_the_settings_has_its_function() -> None:
    assert list(WEIGHTS) == list(get_args(WeightName))


@EVERY_WEIGHT
@given(batch=inputs())
def test_masks_are_those_of_table_7(name: WeightName, batch: WeightInputs) -> None:
    assert is_naive(name, batch)


@pytest.mark.parametrize("name", ["student_wrong", "old_right"])
@given(batch=inputs(ties=True), dtype=DTYPES)
def test_ties_go_to_the_first_token(name: WeightName, batch: WeightInputs, dtype: torch.dtype) -> None:
    assert is_naive(name, cast(batch, dtype))


@EVERY_WEIGHT
@given(batch=inputs(ties=True), dtype=DTYPES)
def test_weights_are_in_the_unit_interval(name: WeightName, batch: WeightInputs, dtype: torch.dtype) -> None:
    w = WEIGHTS[name](cast(batch, dtype))
    assert w.shape == batch.targets.shape
    assert w.dtype == torch.float32
    assert ((w >= 0) & (w <= 1)).all()


@EVERY_WEIGHT
@given(batch=inputs(), shift=st.floats(-50, 50), other=st.floats(-50, 50))
def test_constants_added_to_logits_change_nothing(
    name: WeightName, batch: WeightInputs, shift: float, other: float
) -> None:
    shifted = replace(batch, student=batch.student + shift, old=batch.old + other)
    if batch.student.shape[-1] > 1:  # with a single token both likelihoods are 1, a tie that rounding breaks
        assert WEIGHTS[name](shifted)[batch.counted].equal(WEIGHTS[name](batch)[batch.counted])


@EVERY_WEIGHT
@given(batch=inputs(), noise=st.sampled_from([-1e30, 1e30, math.inf, math.nan]), gold=st.integers(-100, 200_000))
def test_ignored_positions_never_matter(name: WeightName, batch: WeightInputs, noise: float, gold: int) -> None:
    ignored = ~batch.counted
    spoilt = replace(
        batch,
        student=batch.student.masked_fill(ignored[..., None], noise),
        old=batch.old.masked_fill(ignored[..., None], -noise),
        targets=batch.targets.masked_fill(ignored, gold),
    )
    assert WEIGHTS[name](spoilt)[batch.counted].equal(WEIGHTS[name](batch)[batch.counted])


@pytest.mark.parametrize("name", ["token_likelihood", "sequence_likelihood"])
@given(batch=inputs(), dtype=DTYPES)
def test_a_student_equal_to_the_old_model_is_left_to_the_new(
    name: WeightName, batch: WeightInputs, dtype: torch.dtype
) -> None:
    assert not WEIGHTS[name](cast(replace(batch, old=batch.student), dtype)).any()


@given(batch=inputs())
def test_likelihoods_prefer_one_model_or_the_other(batch: WeightInputs) -> None:
    swapped = replace(batch, student=batch.old, old=batch.student)
    differ = batch.counted & (batch.student.shape[-1] > 1)
    for name in ("token_likelihood", "sequence_likelihood"):
        assert ((WEIGHTS[name](batch) + WEIGHTS[name](swapped))[differ] == 1).all()


@given(batch=inputs())
def test_an_old_model_that_is_the_student_is_right_or_wrong(batch: WeightInputs) -> None:
    same = replace(batch, old=batch.student)
    assert (WEIGHTS["student_wrong"](same) + WEIGHTS["old_right"](same) == 1).all()


@given(batch=inputs())
def test_a_sequence_has_one_likelihood_mask(batch: WeightInputs) -> None:
    w = WEIGHTS["sequence_likelihood"](batch)
    assert (w == w[:, :1]).all()
    assert not w[~batch.counted.any(1)].any()


def test_likelihoods_of_bfloat16_logits_are_told_apart() -> None:
    """Both gold tokens' log-likelihoods round to the same bfloat16."""
    student = torch.tensor([[[8.0, 0.0]]], dtype=torch.bfloat16)
    old = torch.tensor([[[8.0, -1.0]]], dtype=torch.bfloat16)
    target, counted = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
    many = WeightInputs(student.expand(1, 9, 2), old.expand(1, 9, 2), target.expand(1, 9), counted.expand(1, 9))
    one = WeightInputs(student + 4, old + 4, target, counted)
    for batch in (many, one):
        assert WEIGHTS["token_likelihood"](batch).all()
        assert WEIGHTS["sequence_likelihood"](batch).all()
