"""Metrics as plain functions against `muscle.compare` on the same data, and counted by hand."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import muscle
from muscle import metrics
from muscle.measure.results import Estimate

OF_OUTCOMES = ["accuracy_change", "nfr", "pfr", "nfr_given_old_right", "btc", "bec", "nfi", "pfi", "relative_nfr"]
OF_ANSWERS = ["nfr_mc", "inconsistency"]
OF_COMPATIBLE = ["delta_nfr", "nfr_change_percent"]
OF_SCORES = {
    "gain_rate": "pfr",
    "regression_rate": "nfr",
    "mean_gain": "mean_gain",
    "mean_regression": "mean_regression",
}
ANSWERS = st.sampled_from(["A", "B", "18", 18, 18.0, None])
ROWS = st.lists(st.tuples(*[st.booleans()] * 3, *[ANSWERS] * 2, *[st.integers(-4, 4)] * 2), min_size=1, max_size=30)


def same(value: float, estimate: Estimate) -> bool:
    """NaN here is None there."""
    expected = math.nan if estimate.value is None else estimate.value
    return value == pytest.approx(expected, rel=1e-12, abs=1e-15, nan_ok=True)


@given(ROWS, st.sampled_from([0.0, 0.5]))
@settings(max_examples=40, deadline=None)
def test_the_same_as_comparing_logs(rows: list[tuple[object, ...]], tolerance: float) -> None:
    columns = [list(column) for column in zip(*rows, strict=True)]
    old, new, compatible, old_answers, new_answers = columns[:5]
    old_scores, new_scores = (np.array(column) / 4 for column in columns[5:])
    logs = [
        [
            {"id": i, "correct": correct, "answer": answer, "score": float(score)}
            for i, (correct, answer, score) in enumerate(zip(right, answers, scores, strict=True))
        ]
        for right, answers, scores in [
            (old, old_answers, old_scores),
            (new, new_answers, new_scores),
            (compatible, new_answers, new_scores),
        ]
    ]
    total = muscle.compare(*logs, tolerance=tolerance).total
    update, alignment = total.update, total.alignment
    assert alignment is not None
    assert update.smooth is not None
    for name in OF_OUTCOMES:
        assert same(getattr(metrics, name)(old, new), getattr(update, name))
    for name in OF_ANSWERS:
        assert same(getattr(metrics, name)(old, new, old_answers, new_answers), getattr(update, name))
    for name in OF_COMPATIBLE:
        assert same(getattr(metrics, name)(old, new, compatible), getattr(alignment, name))
    for name, theirs in OF_SCORES.items():
        assert same(getattr(metrics, name)(old_scores, new_scores, tolerance), getattr(update.smooth, theirs))
    assert same(metrics.churn(old_answers, new_answers), update.churn)
    assert same(metrics.mean_change(old_scores, new_scores), update.smooth.mean_change)


OLD, NEW, COMPATIBLE = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0], [1, 1, 0, 0, 1, 0, 0, 0, 0, 0], [1, 0, 1, 0, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy_change", -1 / 10),
        ("nfr", 2 / 10),
        ("pfr", 1 / 10),
        ("nfr_given_old_right", 2 / 4),
        ("btc", 2 / 4),
        ("bec", 5 / 7),
        ("nfi", 2 / 7),
        ("pfi", 1 / 3),
        ("relative_nfr", 0.2 / (0.4 * 0.7)),
    ],
)
@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda x: np.array(x, dtype=bool), lambda x: np.array(x) / 1])
def test_outcomes_counted_by_hand(
    name: str, expected: float, kind: Callable[[Sequence[int]], Sequence[object]]
) -> None:
    value = getattr(metrics, name)(kind(OLD), kind(NEW))
    assert type(value) is float
    assert value == pytest.approx(expected, rel=1e-12)


def test_answers_and_alignment_counted_by_hand() -> None:
    old_answers = ["a", "b", "c", "d", "x", "x", None, None, 18, "18"]
    new_answers = ["a", "B", "z", "z", "e", "y", None, "y", 18.0, 18]
    assert metrics.churn(old_answers, new_answers) == 6 / 10
    assert metrics.nfr_mc(OLD, NEW, old_answers, new_answers) == (2 + 2) / 10
    assert metrics.inconsistency(OLD, NEW, old_answers, new_answers) == (2 + 2 + 1) / 10
    assert metrics.delta_nfr(OLD, NEW, COMPATIBLE) == 0.0
    assert metrics.nfr_change_percent(OLD, NEW, NEW) == 0.0
    assert metrics.nfr_change_percent(OLD, NEW, OLD) == -100.0
    assert metrics.delta_nfr(OLD, NEW, [0] * 10) == 2 / 10


def test_scores_counted_by_hand() -> None:
    old, new = [0.0, 0.5, 1.0, 0.25, 0.5], np.array([1.0, 0.75, 0.5, 0.25, 0.25])
    assert metrics.mean_change(old, new) == 0.5 / 5
    assert metrics.gain_rate(old, new) == 2 / 5
    assert metrics.regression_rate(old, new, tolerance=0.25) == 1 / 5
    assert metrics.mean_gain(old, new) == 1.25 / 2
    assert metrics.mean_gain(old, new, tolerance=0.25) == 1.0
    assert metrics.mean_regression(old, new) == 0.75 / 2


def test_columns_of_data_frames() -> None:
    polars, pandas = pytest.importorskip("polars"), pytest.importorskip("pandas")
    for series in (polars.Series, pandas.Series):
        assert metrics.nfr(series([True, True]), series([True, False])) == 0.5
        assert metrics.churn(series(["a", None]), series(["b", None])) == 0.5
        assert metrics.mean_change(series([0.5]), series([1.0])) == 0.5


def test_undefined_is_nan() -> None:
    undefined = [
        *(getattr(metrics, name)([], []) for name in [*OF_OUTCOMES, *OF_SCORES, "churn", "mean_change"]),
        *(getattr(metrics, name)([], [], [], []) for name in OF_ANSWERS),
        *(getattr(metrics, name)([], [], []) for name in OF_COMPATIBLE),
        metrics.btc([0], [1]),
        metrics.bec([1], [1]),
        metrics.nfi([1], [1]),
        metrics.pfi([1], [0]),
        metrics.relative_nfr([0], [0]),
        metrics.nfr_change_percent([1], [1], [0]),
        metrics.mean_gain([1.0], [1.0]),
        metrics.mean_regression([1.0], [2.0]),
    ]
    assert all(math.isnan(value) for value in undefined)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.nfr([1, 0], [1]), "length (old_correct 2, new_correct 1)"),
        (lambda: metrics.delta_nfr([1], [1], []), "compatible_correct 0"),
        (lambda: metrics.churn(["a"], []), "old_answers 1, new_answers 0"),
        (lambda: metrics.nfr_mc([1], [1], ["a", "b"], ["a", "b"]), "old_correct 1, old_answers 2"),
        (lambda: metrics.mean_gain([1.0], [1.0, 2.0]), "old_scores 1, new_scores 2"),
        (lambda: metrics.nfr([1, 2], [1, 0]), "old_correct[1] is 2; give True or 1"),
        (lambda: metrics.pfr([1, 0], [1, 0.5]), "new_correct[1] is 0.5"),
        (lambda: metrics.pfr([1, None], [1, 0]), "old_correct[1] is None, not a finite number"),
        (lambda: metrics.btc(["1"], [1]), "old_correct[0] is '1'"),
        (lambda: metrics.mean_change([1.0, math.nan], [1, 2]), "old_scores[1] is nan"),
        (lambda: metrics.mean_change([1.0], [math.inf]), "new_scores[0] is inf"),
        (lambda: metrics.mean_gain([1.0], [2.0], tolerance=-1), "tolerance must be a number >= 0, not -1"),
        (lambda: metrics.mean_gain([1.0], [2.0], math.nan), "tolerance"),
        (lambda: metrics.nfr(np.ones((2, 2)), np.ones((2, 2))), "one dimension"),
        (lambda: metrics.churn("abc", "abd"), "old_answers is 'abc'; give a list"),
        (lambda: metrics.nfr(1, 1), "old_correct is 1"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_measured_is_refused(call: Callable[[], float], message: str) -> None:
    with pytest.raises(muscle.MuscleError) as error:
        call()
    assert message in str(error.value)


def test_every_function_is_listed() -> None:
    assert metrics.__all__ == sorted([*OF_OUTCOMES, *OF_ANSWERS, *OF_COMPATIBLE, *OF_SCORES, "churn", "mean_change"])
    assert all(getattr(metrics, name).__doc__ for name in metrics.__all__)
