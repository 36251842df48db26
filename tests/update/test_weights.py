"""Weights and emphases, row by row, against loops over plain Python numbers, and what must not change them."""

from dataclasses import dataclass, fields, replace
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from muscle.update.alignment_settings import AlignmentSettings, EmphasisName, WeightName
from muscle.update.weights import EMPHASES, WEIGHTS, Weight, facts_read, model_facts, with_settings

from .reference import Text, emphases, weights

MASKS = ("student_wrong", "old_right", "always_old", "token_likelihood", "sequence_likelihood")
"""The paper's."""
MIXTURES = ("mixture", "old_right_else_mixture", "old_right_item_else_mixture", "likelier")
"""What an old_share decides."""
FUNCTIONS: dict[str, Weight] = {**WEIGHTS, **EMPHASES}

EVERY_WEIGHT = pytest.mark.parametrize("name", get_args(WeightName))
EVERY_EMPHASIS = pytest.mark.parametrize("name", get_args(EmphasisName))
EVERY_ONE = pytest.mark.parametrize("name", FUNCTIONS)
DTYPES = st.sampled_from([torch.bfloat16, torch.float32, torch.float64])
ANY = st.integers(1, 6)
"""Tokens in the vocabulary; with a single one all likelihoods are 1."""
SHARES = st.sampled_from([0.0, 0.3, 0.5, 1.0])


@dataclass(frozen=True)
class Rows:
    """The target positions of a few texts."""

    student: Tensor
    """Logits (n, V), and so those of the task models."""
    old: Tensor
    new: Tensor
    targets: Tensor
    sequence: Tensor
    item: Tensor
    right: Tensor

    def cast(self, dtype: torch.dtype) -> "Rows":
        return replace(self, **{model: getattr(self, model).to(dtype) for model in ("student", "old", "new")})

    def beside(self, more: "Rows") -> "Rows":
        """With texts of other items."""
        more = replace(more, sequence=more.sequence + 10, item=more.item + 10)
        return Rows(*(torch.cat([getattr(self, field.name), getattr(more, field.name)]) for field in fields(Rows)))


@st.composite
def inputs(draw: st.DrawFn, ties: bool = False, vocabulary: st.SearchStrategy[int] = ANY) -> Rows:
    """Texts of any number of targets, also none, of items in any order; with ties, logits are small whole numbers."""
    lengths = draw(st.lists(st.integers(0, 5), min_size=1, max_size=5))
    items = draw(st.lists(st.integers(0, 2), min_size=len(lengths), max_size=len(lengths)))
    right_ones = {item: draw(st.sampled_from([*range(len(lengths)), None])) for item in range(3)}
    v, generator = draw(vocabulary), torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def logits() -> Tensor:
        drawn = 3 * torch.randn(sum(lengths), v, generator=generator, dtype=torch.float64)
        return drawn.round() if ties else drawn

    sequence = torch.tensor([text for text, length in enumerate(lengths) for _ in range(length)], dtype=torch.long)
    item = torch.tensor(items)[sequence]
    right = torch.tensor([right_ones[items[text]] == text for text in range(len(lengths))])[sequence]
    targets = torch.randint(v, (sum(lengths),), generator=generator)
    return Rows(logits(), logits(), logits(), targets, sequence, item, right)


def weigh(name: str, rows: Rows, **settings: float) -> Tensor:
    reads = facts_read(with_settings(FUNCTIONS[name], AlignmentSettings()))
    known = {fact: getattr(rows, fact) for fact in ("targets", "sequence", "item", "right")}
    known["tokens"] = torch.ones_like(rows.targets)
    facts = {fact: value for fact, value in known.items() if fact in reads}
    for model in ("student", "old", "new"):
        facts |= model_facts(model, getattr(rows, model), rows.targets, reads)
    assert facts.keys() == reads
    return with_settings(FUNCTIONS[name], AlignmentSettings(**settings))(**facts)


def texts_of(rows: Rows) -> list[Text]:
    found = []
    for text in rows.sequence.unique().tolist():  # rows stand text by text
        of = rows.sequence == text
        numbers = [getattr(rows, field)[of].tolist() for field in ("student", "old", "new", "targets")]
        found.append(Text(*numbers, item=int(rows.item[of][0]), right=bool(rows.right[of][0])))
    return found


def test_every_name_of_the_settings_has_its_function() -> None:
    assert list(WEIGHTS) == list(get_args(WeightName)) == [*MASKS, *MIXTURES]
    assert list(EMPHASES) == list(get_args(EmphasisName))


def test_weights_say_what_they_read() -> None:
    """The paper's own needs no old head where the old model does not rule."""
    assert facts_read(WEIGHTS["student_wrong"]) == {"student_top", "targets"}
    assert facts_read(WEIGHTS["always_old"]) == {"targets"}
    assert facts_read(WEIGHTS["sequence_likelihood"]) == {"student_gold", "old_gold", "sequence"}
    assert facts_read(with_settings(WEIGHTS["mixture"], AlignmentSettings())) == {"targets"}


# ------------------------------------------------------------------------------------------------ the paper's masks


@pytest.mark.parametrize("name", MASKS)
@given(rows=inputs())
def test_masks_are_those_of_table_7(name: str, rows: Rows) -> None:
    assert weigh(name, rows).tolist() == weights(name, texts_of(rows))


@pytest.mark.parametrize("name", ["student_wrong", "old_right", "old_right_else_mixture"])
@given(rows=inputs(ties=True), dtype=DTYPES)
def test_ties_go_to_the_first_token(name: str, rows: Rows, dtype: torch.dtype) -> None:
    assert weigh(name, rows.cast(dtype)).tolist() == weights(name, texts_of(rows))


@pytest.mark.parametrize("name", ["token_likelihood", "sequence_likelihood"])
@given(rows=inputs(), dtype=DTYPES)
def test_a_student_equal_to_the_old_model_is_left_to_the_new(name: str, rows: Rows, dtype: torch.dtype) -> None:
    assert not weigh(name, replace(rows, old=rows.student).cast(dtype)).any()


@given(rows=inputs(vocabulary=st.integers(2, 6)))
def test_likelihoods_prefer_one_model_or_the_other(rows: Rows) -> None:
    swapped = replace(rows, student=rows.old, old=rows.student)
    for name in ("token_likelihood", "sequence_likelihood"):
        assert (weigh(name, rows) + weigh(name, swapped) == 1).all()


@given(rows=inputs())
def test_an_old_model_that_is_the_student_is_right_or_wrong(rows: Rows) -> None:
    same = replace(rows, old=rows.student)
    assert (weigh("student_wrong", same) + weigh("old_right", same) == 1).all()


@pytest.mark.parametrize("name", ["sequence_likelihood", "likelier", "old_likelihood"])
@given(rows=inputs())
def test_a_sequence_has_one_likelihood_mask(name: str, rows: Rows) -> None:
    w = weigh(name, rows)
    for text in rows.sequence.unique():
        assert len(w[rows.sequence == text].unique()) == 1


def test_likelihoods_of_bfloat16_logits_are_told_apart() -> None:
    """Both gold tokens' log-likelihoods round to the same bfloat16."""
    student = torch.tensor([[8.0, 0.0]], dtype=torch.bfloat16)
    old = torch.tensor([[8.0, -1.0]], dtype=torch.bfloat16)
    nothing, right = torch.zeros(9, dtype=torch.long), torch.ones(9, dtype=torch.bool)
    for rows in (
        Rows(student.expand(9, 2), old.expand(9, 2), old.expand(9, 2), nothing, nothing, nothing, right),
        Rows(student + 4, old + 4, old + 4, nothing[:1], nothing[:1], nothing[:1], right[:1]),
    ):
        assert weigh("token_likelihood", rows).all()
        assert weigh("sequence_likelihood", rows).all()


# ------------------------------------------------------------------------------------------------ mixtures


@pytest.mark.parametrize("name", MIXTURES)
@given(rows=inputs(), share=SHARES)
def test_mixtures_are_those_of_the_reference(name: str, rows: Rows, share: float) -> None:
    found = weigh(name, rows, old_share=share).tolist()
    assert found == pytest.approx(weights(name, texts_of(rows), share), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", MIXTURES)
@given(rows=inputs(), share=SHARES)
def test_where_no_text_is_known_to_be_right_the_share_rules(name: str, rows: Rows, share: float) -> None:
    unknown = replace(rows, right=torch.zeros_like(rows.right))
    assert (weigh(name, unknown, old_share=share) == torch.tensor(share)).all()


@pytest.mark.parametrize("name", MIXTURES)
@given(rows=inputs())
def test_with_a_share_of_one_the_old_teacher_rules_alone(name: str, rows: Rows) -> None:
    assert (weigh(name, rows, old_share=1.0) == 1).all()


@given(rows=inputs(), share=SHARES)
def test_equally_likely_teachers_have_their_shares(rows: Rows, share: float) -> None:
    w = weigh("likelier", replace(rows, new=rows.old), old_share=share)
    assert w.tolist() == pytest.approx([share] * len(w))


@given(rows=inputs(vocabulary=st.integers(2, 6)), share=st.sampled_from([0.2, 0.5, 0.9]), likelier=st.floats(0.1, 5))
def test_the_weight_rises_with_the_old_models_likelihood(rows: Rows, share: float, likelier: float) -> None:
    better = rows.old.scatter_add(-1, rows.targets[:, None], torch.full_like(rows.old, likelier))
    before, after = (weigh("likelier", replace(rows, old=old), old_share=share) for old in (rows.old, better))
    assert (after[rows.right] > before[rows.right]).all()
    assert after[~rows.right].equal(before[~rows.right])


@given(rows=inputs(), share=SHARES)
def test_an_item_has_one_teacher(rows: Rows, share: float) -> None:
    w = weigh("old_right_item_else_mixture", rows, old_share=share)
    for item in rows.item.unique():
        assert len(w[rows.item == item].unique()) == 1


# ------------------------------------------------------------------------------------------------ emphases


@EVERY_EMPHASIS
@given(rows=inputs(), beta=st.sampled_from([0.5, 5.0]))
def test_emphases_are_those_of_the_reference(name: str, rows: Rows, beta: float) -> None:
    found = weigh(name, rows, focal_beta=beta).tolist()
    assert found == pytest.approx(emphases(name, texts_of(rows), beta), rel=1e-9)


@EVERY_EMPHASIS
@given(rows=inputs(ties=True), dtype=DTYPES)
def test_emphases_are_factors(name: str, rows: Rows, dtype: torch.dtype) -> None:
    found = weigh(name, rows.cast(dtype), focal_beta=3.0)
    assert found.shape == rows.targets.shape
    if name == "old_likelihood":
        assert ((found > 0) & (found <= 1)).all()
    else:
        assert set(found.tolist()) <= ({1.0, 4.0} if name == "focal" else {0.0, 1.0})


# ------------------------------------------------------------------------------------------------ of all


@EVERY_WEIGHT
@given(rows=inputs(ties=True), dtype=DTYPES, share=SHARES)
def test_weights_are_in_the_unit_interval(name: str, rows: Rows, dtype: torch.dtype, share: float) -> None:
    w = weigh(name, rows.cast(dtype), old_share=share)
    assert w.shape == rows.targets.shape
    assert w.dtype == torch.float32
    assert ((w >= 0) & (w <= 1)).all()


@EVERY_ONE
@given(rows=inputs(vocabulary=st.integers(2, 6)), shifts=st.tuples(*[st.floats(-50, 50)] * 3))
def test_constants_added_to_logits_change_nothing(name: str, rows: Rows, shifts: tuple[float, float, float]) -> None:
    moved = {model: getattr(rows, model) + by for model, by in zip(("student", "old", "new"), shifts, strict=True)}
    found, expected = weigh(name, replace(rows, **moved)), weigh(name, rows)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@EVERY_ONE
@given(rows=inputs(vocabulary=st.just(4)), more=inputs(vocabulary=st.just(4)))
def test_other_texts_never_matter(name: str, rows: Rows, more: Rows) -> None:
    """Texts of other items, that is; who reads no `item` cannot tell these from those of the same one."""
    both = weigh(name, rows.beside(more)).tolist()
    assert both == pytest.approx([*weigh(name, rows).tolist(), *weigh(name, more).tolist()], rel=1e-6)


@EVERY_ONE
@given(rows=inputs(vocabulary=st.just(4)), seed=st.integers(0, 100))
def test_numbers_of_texts_and_items_mean_nothing(name: str, rows: Rows, seed: int) -> None:
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed)) + 3
    renamed = replace(rows, sequence=order[rows.sequence], item=order.flip(0)[rows.item])
    torch.testing.assert_close(weigh(name, renamed), weigh(name, rows), rtol=1e-6, atol=0)
