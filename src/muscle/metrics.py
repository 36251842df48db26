"""Every metric as a plain function on arrays: `nfr([1, 1, 0], [1, 0, 1])`.

Item i of each argument is the same item. Outcomes are (N,) booleans or 0 and 1; answers (N,) texts, numbers or other
values, compared by their text as in a log (18, 18.0 and "18" are the same), None where there is none; scores (N,)
finite numbers, higher is better. Lists, numpy arrays and columns of data frames all do. Each function gives a float,
NaN where there are no items to divide by; "paper" is arXiv 2407.09435. For intervals and tests compare logs with
`muscle.compare`, which counts by the same formulas.
"""

import math
from collections.abc import Callable, Iterable

import numpy as np

from muscle.errors import MuscleError, quoted
from muscle.measure import metrics as _metrics
from muscle.measure.logs.rows import as_text
from muscle.measure.metrics import AlignmentCells, BoolArray, Quadrants, Ratio
from muscle.measure.resampling import ScoreTotals
from muscle.measure.statistics import FloatArray, divide

__all__ = [
    "accuracy_change",
    "bec",
    "btc",
    "churn",
    "delta_nfr",
    "gain_rate",
    "inconsistency",
    "mean_change",
    "mean_gain",
    "mean_regression",
    "nfi",
    "nfr",
    "nfr_change_percent",
    "nfr_given_old_right",
    "nfr_mc",
    "pfi",
    "pfr",
    "regression_rate",
    "relative_nfr",
]

Outcomes = Iterable[object]
"""(N,) whether each answer is right: booleans, or 0 and 1."""
Answers = Iterable[object]
"""(N,) what each item was answered; None is no answer, which is the same as no answer again."""
Scores = Iterable[object]
"""(N,) graded quality of each answer: finite numbers, higher is better."""


def accuracy_change(old_correct: Outcomes, new_correct: Outcomes) -> float:
    """Accuracy of the new model minus that of the old = PFR - NFR; in [-1, 1]."""
    return _of_outcomes(_metrics.accuracy_change, old_correct, new_correct)


def nfr(old_correct: Outcomes, new_correct: Outcomes) -> float:
    """Negative flip rate: share of all items that were right and became wrong (Yan et al. 2021); in [0, 1]."""
    return _of_outcomes(_metrics.nfr, old_correct, new_correct)


def pfr(old_correct: Outcomes, new_correct: Outcomes) -> float:
    """Positive flip rate: share of all items that were wrong and became right (paper, section 3); in [0, 1]."""
    return _of_outcomes(_metrics.pfr, old_correct, new_correct)


def nfr_given_old_right(old_correct: Outcomes, new_correct: Outcomes) -> float:
    """1 - BTC: share of the items the old model had right that became wrong; some tools call this the NFR."""
    return _of_outcomes(_metrics.nfr_given_old_right, old_correct, new_correct)


def btc(old_correct: Outcomes, new_correct: Outcomes) -> float:
    """Backward trust compatibility: share of the items the old model had right that stay right (Srivastava 2020)."""
    return _of_outcomes(_metrics.btc, old_correct, new_correct)


def bec(old_correct: Outcomes, new_correct: Outcomes) -> float:
    """Backward error compatibility: share of the new model's errors that the old one made too (Srivastava 2020)."""
    return _of_outcomes(_metrics.bec, old_correct, new_correct)


def nfi(old_correct: Outcomes, new_correct: Outcomes) -> float:
    """Negative flip impact: share of the new model's errors that are negative flips = NFR / err_new (Cai 2022)."""
    return _of_outcomes(_metrics.nfi, old_correct, new_correct)


def pfi(old_correct: Outcomes, new_correct: Outcomes) -> float:
    """Positive flip impact: share of the new model's right answers that are positive flips = PFR / accuracy_new."""
    return _of_outcomes(_metrics.pfi, old_correct, new_correct)


def relative_nfr(old_correct: Outcomes, new_correct: Outcomes) -> float:
    """NFR over the NFR that independent errors would give: NFR / ((1 - err_old) err_new) (Yan et al. 2021, eq. 11)."""
    return _of_outcomes(_metrics.relative_nfr, old_correct, new_correct)


def nfr_mc(old_correct: Outcomes, new_correct: Outcomes, old_answers: Answers, new_answers: Answers) -> float:
    """Inconsistency flip rate: negative flips, plus wrong answers that became other wrong ones (paper, section 3)."""
    return _of_outcomes(_metrics.nfr_mc, old_correct, new_correct, old_answers, new_answers)


def inconsistency(old_correct: Outcomes, new_correct: Outcomes, old_answers: Answers, new_answers: Answers) -> float:
    """NFR_mc for several truths per item: a switch between two right answers counts as well (paper, section 3)."""
    return _of_outcomes(_metrics.inconsistency, old_correct, new_correct, old_answers, new_answers)


def churn(old_answers: Answers, new_answers: Answers) -> float:
    """Share of items whose answer changed, right or wrong (Milani Fard et al. 2016); in [0, 1]."""
    differ = _differ(old_answers, new_answers)
    return _value(Ratio(np.asarray(np.count_nonzero(differ)), np.asarray(len(differ))))


def delta_nfr(old_correct: Outcomes, new_correct: Outcomes, compatible_correct: Outcomes) -> float:
    """NFR of the compatible model minus that of the new one (paper, section 3); in [-1, 1], below 0 is better."""
    return _value(_metrics.delta_nfr(_alignment(old_correct, new_correct, compatible_correct)))


def nfr_change_percent(old_correct: Outcomes, new_correct: Outcomes, compatible_correct: Outcomes) -> float:
    """100 (NFR_c - NFR) / NFR (paper, section 3), >= -100; NaN where the new model has no negative flip."""
    return _value(_metrics.nfr_change_percent(_alignment(old_correct, new_correct, compatible_correct)))


def mean_change(old_scores: Scores, new_scores: Scores) -> float:
    """Mean of new score minus old score over all items, in the unit of the score."""
    return _of_scores("change_sum", "n", old_scores, new_scores, 0.0)


def gain_rate(old_scores: Scores, new_scores: Scores, tolerance: float = 0.0) -> float:
    """Share of items whose score rose by more than the tolerance (smooth PFR; paper, section 3); in [0, 1]."""
    return _of_scores("gains", "n", old_scores, new_scores, tolerance)


def regression_rate(old_scores: Scores, new_scores: Scores, tolerance: float = 0.0) -> float:
    """Share of items whose score fell by more than the tolerance (smooth NFR; paper, section 3); in [0, 1]."""
    return _of_scores("regressions", "n", old_scores, new_scores, tolerance)


def mean_gain(old_scores: Scores, new_scores: Scores, tolerance: float = 0.0) -> float:
    """Mean rise over the items whose score rose by more than the tolerance (paper, section 3); > 0."""
    return _of_scores("gain_sum", "gains", old_scores, new_scores, tolerance)


def mean_regression(old_scores: Scores, new_scores: Scores, tolerance: float = 0.0) -> float:
    """Mean fall, without its sign, over the items whose score fell by more than the tolerance (section 3); > 0."""
    return _of_scores("regression_sum", "regressions", old_scores, new_scores, tolerance)


def _of_outcomes(
    metric: Callable[[Quadrants], Ratio],
    old_correct: Outcomes,
    new_correct: Outcomes,
    old_answers: Answers | None = None,
    new_answers: Answers | None = None,
) -> float:
    old, new = _outcomes(old_correct=old_correct, new_correct=new_correct)
    if old_answers is None or new_answers is None:
        differ = np.zeros(len(old), dtype=np.bool_)  # of no matter to metrics that are not given answers
    else:
        differ = _differ(old_answers, new_answers)
        _check_lengths(old_correct=len(old), old_answers=len(differ))
    return _value(metric(Quadrants.count(Quadrants.codes(old, new, differ))))


def _alignment(old_correct: Outcomes, new_correct: Outcomes, compatible_correct: Outcomes) -> AlignmentCells:
    old, new, compatible = _outcomes(
        old_correct=old_correct, new_correct=new_correct, compatible_correct=compatible_correct
    )
    # Answers only divide the forgotten items further, which no function here tells apart.
    return AlignmentCells.count(AlignmentCells.codes(old, new, compatible, np.zeros(len(old), dtype=np.bool_)))


def _of_scores(numerator: str, denominator: str, old_scores: Scores, new_scores: Scores, tolerance: float) -> float:
    if not 0 <= tolerance < np.inf:
        raise MuscleError(f"tolerance must be a number >= 0, not {quoted(tolerance)}")
    old, new = _numbers("old_scores", old_scores), _numbers("new_scores", new_scores)
    _check_lengths(old_scores=len(old), new_scores=len(new))
    totals = ScoreTotals.count(new - old, tolerance)
    return float(divide(getattr(totals, numerator), getattr(totals, denominator)))


def _value(ratio: Ratio) -> float:
    return float(ratio.value)


def _outcomes(**arguments: Outcomes) -> list[BoolArray]:
    """(N,) of each argument, in their order; the names are for messages."""
    columns = []
    for name, values in arguments.items():
        numbers = _numbers(name, values)
        if len(bad := np.flatnonzero((numbers != 0) & (numbers != 1))):
            raise MuscleError(
                f"{name}[{bad[0]}] is {numbers[bad[0]]:g}; give True or 1 where the model is right, else False or 0"
            )
        columns.append(numbers == 1)
    _check_lengths(**dict(zip(arguments, map(len, columns), strict=True)))
    return columns


def _numbers(name: str, values: Iterable[object]) -> FloatArray:
    """(N,) the values as finite numbers."""
    listed = _listed(name, values)
    for i, value in enumerate(listed):
        if not isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating)) or not math.isfinite(value):
            raise MuscleError(f"{name}[{i}] is {quoted(value)}, not a finite number; leave such items out of all lists")
    return np.array(listed, dtype=np.float64)


def _differ(old_answers: Answers, new_answers: Answers) -> BoolArray:
    """(N,) whether the two answers differ; no answer equals only no answer."""
    old, new = _listed("old_answers", old_answers), _listed("new_answers", new_answers)
    _check_lengths(old_answers=len(old), new_answers=len(new))
    return np.array([as_text(a) != as_text(b) for a, b in zip(old, new, strict=True)], dtype=np.bool_)


def _listed(name: str, values: Iterable[object]) -> list[object]:
    """The values of a list, an array of one dimension or a column."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) != 1:
        raise MuscleError(f"{name} is {quoted(values)}; give a list, or an array of one dimension, with an item each")
    return values.tolist() if isinstance(values, np.ndarray) else list(values)


def _check_lengths(**lengths: int) -> None:
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise MuscleError(f"the arguments differ in length ({listed}); item i of each must be the same item")
