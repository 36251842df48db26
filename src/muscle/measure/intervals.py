"""Which interval an estimate gets: one home for the choice, with and without clusters."""

import math
from dataclasses import dataclass

import numpy as np

from muscle.measure.metrics import Ratio
from muscle.measure.results import Estimate
from muscle.measure.statistics import (
    FloatArray,
    IntArray,
    Interval,
    clustered_difference_error,
    few_clusters_factor,
    normal_quantile,
    percentile_interval,
    tango_interval,
    wilson_interval,
)

UNDEFINED = Estimate(None, None, None)


@dataclass(frozen=True)
class Intervals:
    """The intervals of estimates from one set of items."""

    confidence: float
    clusters: IntArray | None
    """(N,) which cluster an item is of; None where every item stands for itself."""

    @property
    def groups(self) -> int:
        """Number of clusters; 0 where there are none."""
        return 0 if self.clusters is None else len(np.unique(self.clusters))

    def share(self, observed: Ratio, draws: Ratio, groups: int | None = None) -> Estimate:
        """A share of items: Wilson's interval, which ignores clusters; where there are any, the bootstrap over them.

        Where none or all of the items have it, every draw says the same; then a cluster counts as one item to Wilson.

        Args:
            observed: Count over items.
            draws: The same in each bootstrap draw; used only with clusters.
            groups: Number of clusters with an item of the denominator; None: all of them.
        """
        count, n = int(observed.numerator), int(observed.denominator)
        if self.clusters is not None:
            if 0 < count < n:
                return self.bootstrapped(observed, draws)
            n = self.groups if groups is None else groups
            count = n if count else 0
        return _estimate(observed.value, wilson_interval(count, n, self.confidence))

    def bootstrapped(self, observed: Ratio, draws: Ratio) -> Estimate:
        """Percentile bootstrap; over few clusters too narrow, so stretched as a normal interval is to Student's."""
        estimate = _estimate(observed.value, percentile_interval(draws.value, self.confidence))
        value, low, high = estimate.value, estimate.low, estimate.high
        if self.clusters is None or value is None or low is None or high is None:
            return estimate
        if self.groups < 2:
            return Estimate(value, None, None)
        factor = few_clusters_factor(self.groups, self.confidence)
        return Estimate(value, value - factor * (value - low), value + factor * (high - value))

    def difference(self, observed: Ratio, gained: int, lost: int, values: FloatArray) -> Estimate:
        """A difference of two shares of the same items: Tango's interval, with clusters Student's (Miller 2024).

        Args:
            observed: (gained - lost) over items.
            gained: Items that add to it.
            lost: Items that take from it.
            values: (N,) 1, -1 or 0 per item.
        """
        if self.clusters is not None:
            return self.mean(values)
        return _estimate(observed.value, tango_interval(gained, lost, int(observed.denominator), self.confidence))

    def mean(self, values: FloatArray) -> Estimate:
        """A mean of (N,) values with a Student interval; the standard error is by cluster where there are clusters."""
        if not len(values):
            return UNDEFINED
        value = float(values.mean())
        clusters = np.arange(len(values)) if self.clusters is None else self.clusters
        groups = len(values) if self.clusters is None else self.groups
        if groups < 2:
            return Estimate(value, None, None)
        error = clustered_difference_error(values, clusters) * few_clusters_factor(groups, self.confidence)
        reach = normal_quantile((1 + self.confidence) / 2) * error
        return Estimate(value, value - reach, value + reach)


def at_least(estimate: Estimate, low: float, high: float) -> Estimate:
    """The estimate with an interval that holds [low, high] too."""
    if estimate.low is None or estimate.high is None:
        return Estimate(estimate.value, low, high)
    return Estimate(estimate.value, min(estimate.low, low), max(estimate.high, high))


def _estimate(value: FloatArray, interval: Interval | None) -> Estimate:
    if math.isnan(value):
        return UNDEFINED
    low, high = interval or (None, None)
    return Estimate(float(value), low, high)
