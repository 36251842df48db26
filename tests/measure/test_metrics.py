"""The measures against a naive reference, their published values, and what must not change them."""

import json
import random
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muscle.measure import Comparison, Update, compare, metrics
from muscle.measure.metrics import AlignmentCells, Quadrants

Answer = tuple[bool, str]
# (old, new, compatible) of one item; a right answer is always "y", as one item has one truth.
answers = st.one_of(st.just((True, "y")), st.tuples(st.just(False), st.sampled_from("nm")))
items = st.lists(st.tuples(answers, answers, answers), min_size=1, max_size=30)
many = settings(max_examples=40, deadline=None)


def run(logs: list[dict[str, Answer]]) -> Comparison:
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{number}.jsonl") for number in range(len(logs))]
        for path, log in zip(paths, logs, strict=True):
            rows = [{"id": item, "correct": correct, "answer": answer} for item, (correct, answer) in log.items()]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return compare(*paths)


def columns(items_: list[tuple[Answer, Answer, Answer]], models: str = "onc") -> list[dict[str, Answer]]:
    return [{str(row): item["onc".index(model)] for row, item in enumerate(items_)} for model in models]


def share(numerator: int, denominator: int) -> float | None:
    return float(Fraction(numerator, denominator)) if denominator else None


def naive_update(pairs: list[tuple[Answer, Answer]]) -> dict[str, Any]:
    """The definitions, one item at a time."""
    n = len(pairs)
    old_right = sum(old[0] for old, _ in pairs)
    new_wrong = sum(not new[0] for _, new in pairs)
    negative = sum(old[0] and not new[0] for old, new in pairs)
    positive = sum(not old[0] and new[0] for old, new in pairs)
    both_wrong = sum(not old[0] and not new[0] for old, new in pairs)
    inconsistent = sum(not new[0] and old[1] != new[1] for old, new in pairs)
    return {
        "n": n,
        "negative_flips": negative,
        "positive_flips": positive,
        "both_wrong": both_wrong,
        "both_right": n - negative - positive - both_wrong,
        "both_wrong_different": inconsistent - negative,
        "accuracy_old": share(old_right, n),
        "accuracy_new": share(n - new_wrong, n),
        "accuracy_change": share(n - new_wrong - old_right, n),
        "nfr": share(negative, n),
        "pfr": share(positive, n),
        "nfr_mc": share(inconsistent, n),
        "relative_nfr": share(negative * n, old_right * new_wrong),
        "btc": share(old_right - negative, old_right),
        "bec": share(both_wrong, new_wrong),
        "nfi": share(negative, new_wrong),
        "pfi": share(positive, n - new_wrong),
        "nfr_given_old_right": share(negative, old_right),
        "inconsistency": share(inconsistent, n),  # one truth per item: right answers are all the same
        "churn": share(sum(old[1] != new[1] for old, new in pairs), n),
    }


def values(update: Update) -> dict[str, Any]:
    """Field -> number, intervals left out."""
    return {name: getattr(field, "value", field) for name, field in vars(update).items()}


@many
@given(items)
def test_measures_equal_the_naive_reference(items_: list[tuple[Answer, Answer, Answer]]) -> None:
    comparison = run(columns(items_))
    updates = {
        "update": ([(old, new) for old, new, _ in items_], comparison.update),
        "compatible": ([(old, compatible) for old, _, compatible in items_], comparison.compatible),
    }
    for pairs, update in updates.values():
        assert update is not None
        want = naive_update(pairs)
        assert {name: values(update)[name] for name in want} == want


@many
@given(items)
def test_alignment_is_the_difference_of_the_two_updates(items_: list[tuple[Answer, Answer, Answer]]) -> None:
    comparison = run(columns(items_))
    new, compatible, alignment = comparison.update, comparison.compatible, comparison.alignment
    assert compatible is not None
    assert alignment is not None
    assert new.negative_flips - alignment.fixed + alignment.made == compatible.negative_flips
    assert alignment.fixed == sum(o[0] and not n[0] and c[0] for o, n, c in items_)
    assert alignment.learnt == sum(not o[0] and not n[0] and c[0] for o, n, c in items_)
    assert alignment.forgotten == sum(not o[0] and n[0] and not c[0] for o, n, c in items_)
    assert alignment.inherited == sum(n[0] and not c[0] and o == c for o, n, c in items_)
    assert alignment.update == run(columns(items_, "nc")).update.__class__(
        **{**vars(run(columns(items_, "nc")).update), "only_old": None, "only_new": None}
    )
    change = compatible.negative_flips - new.negative_flips
    assert alignment.delta_nfr.value == share(change, len(items_))
    assert alignment.nfr_change_percent.value == share(100 * change, new.negative_flips)
    gained = compatible.both_right + compatible.positive_flips - new.both_right - new.positive_flips
    assert alignment.delta_accuracy.value == share(gained, len(items_))


@many
@given(items, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(
    items_: list[tuple[Answer, Answer, Answer]], shuffler: random.Random
) -> None:
    logs = columns(items_)
    shuffled = []
    for log in logs:
        rows = list(log.items())
        shuffler.shuffle(rows)
        shuffled.append(dict(rows))
    ours, theirs = run(logs), run(shuffled)
    assert (ours.update, ours.compatible, ours.alignment) == (theirs.update, theirs.compatible, theirs.alignment)


@many
@given(items)
def test_swapping_old_and_new_turns_negative_into_positive_flips(items_: list[tuple[Answer, Answer, Answer]]) -> None:
    there, back = run(columns(items_, "on")).update, run(columns(items_, "no")).update
    assert there.nfr == back.pfr
    assert there.pfr == back.nfr
    assert there.accuracy_old == back.accuracy_new
    assert there.churn == back.churn
    assert there.mcnemar_mid_p == back.mcnemar_mid_p
    assert (there.both_right, there.both_wrong_different) == (back.both_right, back.both_wrong_different)


@many
@given(items)
def test_doubling_every_item_keeps_every_rate(items_: list[tuple[Answer, Answer, Answer]]) -> None:
    once, twice = run(columns(items_)), run(columns(items_ * 2))
    rates = ("accuracy_old", "accuracy_new", "accuracy_change", "nfr", "pfr", "nfr_mc", "relative_nfr", "btc", "bec")
    for name in (*rates, "nfi", "pfi", "nfr_given_old_right", "inconsistency", "churn"):
        assert getattr(once.update, name).value == getattr(twice.update, name).value
    assert once.alignment is not None
    assert twice.alignment is not None
    assert once.alignment.nfr_change_percent.value == twice.alignment.nfr_change_percent.value


@many
@given(items)
def test_what_always_holds(items_: list[tuple[Answer, Answer, Answer]]) -> None:
    update = run(columns(items_, "on")).update
    assert update.both_right + update.positive_flips + update.negative_flips + update.both_wrong == update.n
    assert update.both_wrong_different <= update.both_wrong
    assert update.nfr_mc.value >= update.nfr.value
    assert update.accuracy_change.value == pytest.approx(update.pfr.value - update.nfr.value)
    for name, estimate in vars(update).items():
        if getattr(estimate, "low", None) is not None:
            assert estimate.low <= estimate.value <= estimate.high, name


def test_relative_nfr_of_the_paper() -> None:
    """HellaSwag, Llama 1 -> 2 (table 4): NFR 10.27 at accuracies 72.74 and 72.91, of 10,000 items."""
    quadrants = Quadrants(*np.array([7274 - 1027, 0, 7291 - (7274 - 1027), 1027, 0, 10_000 - 7291 - 1027]))
    assert metrics.accuracy_new(quadrants).value == 0.7291
    assert metrics.relative_nfr(quadrants).value == pytest.approx(0.521, abs=5e-4)


def test_independent_errors_have_a_relative_nfr_of_one() -> None:
    quadrants = Quadrants(*np.array([48, 0, 12, 32, 8, 0]))  # 80 % and 60 % right, independently
    assert metrics.relative_nfr(quadrants).value == 1


def test_undefined_is_not_zero() -> None:
    all_wrong = Quadrants(*np.array([0, 0, 0, 0, 5, 0]))
    assert np.isnan(metrics.btc(all_wrong).value)
    assert metrics.nfr(all_wrong).value == 0
    no_flips = AlignmentCells(*np.array([0, 0, 3, 0, 0, 0, 7]))
    assert np.isnan(metrics.nfr_change_percent(no_flips).value)
    assert metrics.delta_nfr(no_flips).value == 0.3


def test_measures_take_arrays_of_counts() -> None:
    draws = Quadrants(*np.array([[1, 2], [0, 0], [0, 1], [1, 0], [0, 1], [0, 0]]))
    assert metrics.nfr(draws).value.tolist() == [0.5, 0.0]
    assert metrics.accuracy_change(draws).value.tolist() == [-0.5, 0.25]
