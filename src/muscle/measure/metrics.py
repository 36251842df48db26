"""The measures of compatibility, each a plain function of counts. Undefined (0 items to divide by) is NaN, never 0.

Counts are integer arrays of one shape: () for the observed items, (R,) for R bootstrap draws, so that a value and its
interval come from the same formula.
"""

from dataclasses import astuple, dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from muscle.measure.statistics import FloatArray, IntArray, multinomial_draws

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Cells:
    """Counts of disjoint kinds of items; every item is of exactly one kind."""

    @property
    def n(self) -> IntArray:
        """Number of items."""
        return np.asarray(sum(astuple(self)), dtype=np.int64)

    def resample(self, seed: int) -> Self:
        """Bootstrap over items: the same kinds, each count an (R,) array."""
        return type(self)(*multinomial_draws(np.array(astuple(self), dtype=np.int64), seed))


@dataclass(frozen=True)
class Quadrants(Cells):
    """The four quadrants of a model update (paper, figure 2), the last one split by whether the answer changed."""

    both_right: IntArray
    positive_flips: IntArray
    negative_flips: IntArray
    both_wrong_same: IntArray
    both_wrong_different: IntArray

    @classmethod
    def count(cls, old_correct: BoolArray, new_correct: BoolArray, answers_differ: BoolArray) -> Self:
        """Count items.

        Args:
            old_correct: (N,) whether the old model is right.
            new_correct: (N,) whether the new model is right.
            answers_differ: (N,) whether the two gave different answers.
        """
        both_wrong = ~old_correct & ~new_correct
        return cls(
            both_right=_count(old_correct & new_correct),
            positive_flips=_count(~old_correct & new_correct),
            negative_flips=_count(old_correct & ~new_correct),
            both_wrong_same=_count(both_wrong & ~answers_differ),
            both_wrong_different=_count(both_wrong & answers_differ),
        )

    @property
    def both_wrong(self) -> IntArray:
        """Items that both models get wrong."""
        return self.both_wrong_same + self.both_wrong_different

    @property
    def old_right(self) -> IntArray:
        """Items that the old model gets right."""
        return self.both_right + self.negative_flips

    @property
    def new_right(self) -> IntArray:
        """Items that the new model gets right."""
        return self.both_right + self.positive_flips

    @property
    def new_wrong(self) -> IntArray:
        """Items that the new model gets wrong."""
        return self.negative_flips + self.both_wrong


@dataclass(frozen=True)
class AlignmentCells(Cells):
    """What the compatible model changes against the new one, as seen from the old one."""

    fixed: IntArray
    """Old right, new wrong, compatible right: a negative flip undone."""
    kept: IntArray
    """Old right, new and compatible wrong: a negative flip in both."""
    made: IntArray
    """Old and new right, compatible wrong: a negative flip that the new model does not have."""
    learnt: IntArray
    """Old and new wrong, compatible right."""
    forgotten: IntArray
    """Old wrong, new right, compatible wrong."""
    unchanged: IntArray
    """Every other item: new and compatible are right together, or wrong together where old was wrong."""

    @classmethod
    def count(cls, old_correct: BoolArray, new_correct: BoolArray, compatible_correct: BoolArray) -> Self:
        """Count items; each argument is (N,), whether that model is right."""
        old, new, compatible = old_correct, new_correct, compatible_correct
        return cls(
            fixed=_count(old & ~new & compatible),
            kept=_count(old & ~new & ~compatible),
            made=_count(old & new & ~compatible),
            learnt=_count(~old & ~new & compatible),
            forgotten=_count(~old & new & ~compatible),
            unchanged=_count(~(old & ~new) & (new == compatible)),
        )


@dataclass(frozen=True)
class Ratio:
    """A measure as numerator over denominator."""

    numerator: IntArray
    denominator: IntArray

    @property
    def value(self) -> FloatArray:
        """The quotient; NaN where the denominator is 0."""
        quotient: FloatArray = np.full(np.shape(self.denominator), np.nan)
        np.divide(self.numerator, self.denominator, out=quotient, where=self.denominator != 0)
        return quotient


def accuracy_old(q: Quadrants) -> Ratio:
    """Share of items that the old model gets right."""
    return Ratio(q.old_right, q.n)


def accuracy_new(q: Quadrants) -> Ratio:
    """Share of items that the new model gets right."""
    return Ratio(q.new_right, q.n)


def accuracy_change(q: Quadrants) -> Ratio:
    """Accuracy of the new model minus that of the old = PFR - NFR; in [-1, 1]."""
    return Ratio(q.positive_flips - q.negative_flips, q.n)


def nfr(q: Quadrants) -> Ratio:
    """Negative flip rate: share of all items that were right and became wrong (Yan et al. 2021; paper, section 3)."""
    return Ratio(q.negative_flips, q.n)


def pfr(q: Quadrants) -> Ratio:
    """Positive flip rate: share of all items that were wrong and became right (paper, section 3)."""
    return Ratio(q.positive_flips, q.n)


def nfr_mc(q: Quadrants) -> Ratio:
    """Inconsistency flip rate: negative flips, plus wrong answers that became other wrong ones (paper, section 3)."""
    return Ratio(q.negative_flips + q.both_wrong_different, q.n)


def relative_nfr(q: Quadrants) -> Ratio:
    """NFR over the NFR that independent errors would give: NFR / ((1 - err_old) err_new) (Yan et al. 2021, eq. 11).

    1 = as many flips as two unrelated models would show. Unlike NFR it does not fall merely because accuracy rises.
    """
    return Ratio(q.negative_flips * q.n, q.old_right * q.new_wrong)


def btc(q: Quadrants) -> Ratio:
    """Backward trust compatibility: share of the items the old model had right that stay right (Srivastava 2020)."""
    return Ratio(q.both_right, q.old_right)


def bec(q: Quadrants) -> Ratio:
    """Backward error compatibility: share of the new model's errors that the old one made too (Srivastava 2020)."""
    return Ratio(q.both_wrong, q.new_wrong)


def nfi(q: Quadrants) -> Ratio:
    """Negative flip impact: share of the new model's errors that are negative flips = NFR / err_new (Cai 2022)."""
    return Ratio(q.negative_flips, q.new_wrong)


def delta_nfr(cells: AlignmentCells) -> Ratio:
    """dNFR_c = NFR_c - NFR: the compatible model's NFR minus the new model's (paper, section 3); below 0 is better."""
    return Ratio(cells.made - cells.fixed, cells.n)


def nfr_change_percent(cells: AlignmentCells) -> Ratio:
    """d%NFR_c = 100 (NFR_c - NFR) / NFR (paper, section 3); undefined where the new model has no negative flip."""
    return Ratio(100 * (cells.made - cells.fixed), cells.fixed + cells.kept)


def delta_accuracy(cells: AlignmentCells) -> Ratio:
    """Accuracy of the compatible model minus that of the new one."""
    return Ratio(cells.fixed + cells.learnt - cells.made - cells.forgotten, cells.n)


def _count(items: BoolArray) -> IntArray:
    return np.asarray(np.count_nonzero(items), dtype=np.int64)
