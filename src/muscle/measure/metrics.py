"""The measures of compatibility, each a plain function of counts. Undefined (0 items to divide by) is NaN, never 0.

Counts are integer arrays of one shape: () for the observed items, (R,) for R bootstrap draws, so that a value and its
interval come from the same formula.
"""

from dataclasses import astuple, dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from muscle.measure.resampling import cluster_cell_draws
from muscle.measure.statistics import RESAMPLES, FloatArray, IntArray, divide, multinomial_draws

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Cells:
    """Counts of disjoint kinds of items; every item is of exactly one kind, whose code is the field's place."""

    @property
    def n(self) -> IntArray:
        """Number of items."""
        return np.asarray(sum(astuple(self)), dtype=np.int64)

    @classmethod
    def count(cls, codes: IntArray) -> Self:
        """Count items from (N,) codes, which `codes` of the subclass makes."""
        return cls(*(np.asarray(count) for count in np.bincount(codes, minlength=len(fields(cls)))))

    @classmethod
    def draws(cls, codes: IntArray, clusters: IntArray | None, seed: int, resamples: int = RESAMPLES) -> Self:
        """Bootstrap over items, or over clusters of them where (N,) clusters are given: each count is an (R,) array."""
        if clusters is None:
            return cls(*multinomial_draws(np.bincount(codes, minlength=len(fields(cls))), seed, resamples))
        return cls(*cluster_cell_draws(codes, len(fields(cls)), clusters, seed, resamples))


@dataclass(frozen=True)
class Quadrants(Cells):
    """The four quadrants of a model update (paper, figure 2), two of them split by whether the answer changed."""

    both_right_same: IntArray
    both_right_different: IntArray
    positive_flips: IntArray
    negative_flips: IntArray
    both_wrong_same: IntArray
    both_wrong_different: IntArray

    @staticmethod
    def codes(old_correct: BoolArray, new_correct: BoolArray, answers_differ: BoolArray) -> IntArray:
        """Kind of each item, (N,).

        Args:
            old_correct: (N,) whether the old model is right.
            new_correct: (N,) whether the new model is right.
            answers_differ: (N,) whether the two gave different answers.
        """
        both_right, both_wrong = old_correct & new_correct, ~old_correct & ~new_correct
        gained, lost = ~old_correct & new_correct, old_correct & ~new_correct
        kinds = [both_right & ~answers_differ, both_right, gained, lost, both_wrong & ~answers_differ]
        return np.select(kinds, range(5), 5).astype(np.int64)

    @property
    def both_right(self) -> IntArray:
        """Items that both models get right."""
        return self.both_right_same + self.both_right_different

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
    inherited: IntArray
    """Old wrong, new right, compatible wrong with the old model's answer."""
    otherwise_forgotten: IntArray
    """Old wrong, new right, compatible wrong in another way."""
    unchanged: IntArray
    """Every other item: new and compatible are right together, or wrong together where old was wrong."""

    @staticmethod
    def codes(
        old_correct: BoolArray, new_correct: BoolArray, compatible_correct: BoolArray, answers_differ: BoolArray
    ) -> IntArray:
        """Kind of each item, (N,).

        Args:
            old_correct: (N,) whether the old model is right.
            new_correct: (N,) whether the new model is right.
            compatible_correct: (N,) whether the compatible model is right.
            answers_differ: (N,) whether old and compatible gave different answers.
        """
        old, new, compatible = old_correct, new_correct, compatible_correct
        forgotten = ~old & new & ~compatible
        fixed, made, learnt = old & ~new & compatible, old & new & ~compatible, ~old & ~new & compatible
        kinds = [fixed, old & ~new, made, learnt, forgotten & ~answers_differ, forgotten]
        return np.select(kinds, range(6), 6).astype(np.int64)

    @property
    def forgotten(self) -> IntArray:
        """Old wrong, new right, compatible wrong."""
        return self.inherited + self.otherwise_forgotten


@dataclass(frozen=True)
class Ratio:
    """A measure as numerator over denominator."""

    numerator: IntArray
    denominator: IntArray

    @property
    def value(self) -> FloatArray:
        """The quotient; NaN where the denominator is 0."""
        return divide(self.numerator, self.denominator)


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


def nfr_given_old_right(q: Quadrants) -> Ratio:
    """1 - BTC: share of the items the old model had right that became wrong; some tools call this the NFR."""
    return Ratio(q.negative_flips, q.old_right)


def inconsistency(q: Quadrants) -> Ratio:
    """NFR_mc for several truths per item: a switch between two right answers counts as well (paper, section 3)."""
    return Ratio(q.negative_flips + q.both_wrong_different + q.both_right_different, q.n)


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


def pfi(q: Quadrants) -> Ratio:
    """Positive flip impact: share of the new model's right answers that are positive flips = PFR / accuracy_new."""
    return Ratio(q.positive_flips, q.new_right)


def delta_nfr(cells: AlignmentCells) -> Ratio:
    """dNFR_c = NFR_c - NFR: the compatible model's NFR minus the new model's (paper, section 3); below 0 is better."""
    return Ratio(cells.made - cells.fixed, cells.n)


def nfr_change_percent(cells: AlignmentCells) -> Ratio:
    """d%NFR_c = 100 (NFR_c - NFR) / NFR (paper, section 3); undefined where the new model has no negative flip."""
    return Ratio(100 * (cells.made - cells.fixed), cells.fixed + cells.kept)


def delta_accuracy(cells: AlignmentCells) -> Ratio:
    """Accuracy of the compatible model minus that of the new one."""
    return Ratio(cells.fixed + cells.learnt - cells.made - cells.forgotten, cells.n)
