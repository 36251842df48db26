"""The table of rates: which measures stand in it, in which groups, and what each of them means."""

from collections.abc import Sequence
from dataclasses import dataclass

from muscle.measure.report.page.pictures import SHARES, Axis
from muscle.measure.results import Estimate, Measures, Smooth, Update


@dataclass(frozen=True)
class Rate:
    """One row: a measure of each update."""

    name: str
    meaning: str
    estimates: Sequence[Estimate]
    kind: str = "percent"
    """percent, change (in percentage points), number (in the score's unit) or signed (the same, with a sign)."""


@dataclass(frozen=True)
class Group:
    """Rows that share an axis."""

    title: str
    rates: Sequence[Rate]
    axis: Axis
    reference: float | None = None
    """Where a line is drawn, for comparison."""


_SHARES_OF_ALL = (
    ("NFR", "nfr", "right before, wrong now"),
    ("PFR", "pfr", "wrong before, right now"),
    ("NFR_mc", "nfr_mc", "negative flips, and wrong answers that became other wrong ones"),
    ("Inconsistency", "inconsistency", "NFR_mc, and right answers that became other right ones"),
    ("Churn", "churn", "any other answer than before"),
)
_SHARES_OF_SOME = (
    ("BTC", "btc", "of what was right before, still right"),
    ("1 - BTC", "nfr_given_old_right", "of what was right before, lost; some call this the NFR"),
    ("BEC", "bec", "of what is wrong now, wrong before too"),
    ("NFI", "nfi", "of what is wrong now, right before"),
    ("PFI", "pfi", "of what is right now, wrong before"),
)


def rate_groups(measures: Measures) -> list[Group]:
    """The groups of rates of old to new and, beside them, of old to compatible."""
    updates = [measures.update, *([measures.compatible] if measures.compatible else [])]
    groups = []
    if updates[0].n:
        groups += _right_or_wrong(updates)
    smooths = [update.smooth for update in updates if update.smooth]
    if len(smooths) == len(updates):
        groups += _graded(smooths)
    return groups


def _right_or_wrong(updates: Sequence[Update]) -> list[Group]:
    def rates(names: Sequence[tuple[str, str, str]]) -> list[Rate]:
        return [Rate(name, meaning, [getattr(update, key) for update in updates]) for name, key, meaning in names]

    several_truths = any(update.both_right_different for update in updates)
    of_all = rates([names for names in _SHARES_OF_ALL if several_truths or names[1] != "inconsistency"])
    accuracies = [
        Rate("Accuracy before", "right answers of the old model", [update.accuracy_old for update in updates]),
        Rate("Accuracy after", "right answers of the model that replaces it", [u.accuracy_new for u in updates]),
    ]
    changes = [Rate("Change", "after minus before", [update.accuracy_change for update in updates], "change")]
    relative = [
        Rate("Relative NFR", "100 %: as many as independent errors would make", [u.relative_nfr for u in updates])
    ]
    return [
        Group("Accuracy", accuracies, SHARES),
        Group("Change of accuracy", changes, _axis(changes), reference=0.0),
        Group("Flips, as a share of all items", of_all, _axis(of_all)),
        Group("Flips, against chance", relative, _axis(relative, [1.0]), reference=1.0),
        Group("Shares of some items", rates(_SHARES_OF_SOME), SHARES),
    ]


def _graded(smooths: Sequence[Smooth]) -> list[Group]:
    means = [
        Rate("Score before", "mean", [smooth.mean_old for smooth in smooths], "number"),
        Rate("Score after", "mean", [smooth.mean_new for smooth in smooths], "number"),
    ]
    sizes = [
        Rate("Mean change", "E[D], over all items", [smooth.mean_change for smooth in smooths], "signed"),
        Rate("Mean gain", "m_g, over the items that gained", [smooth.mean_gain for smooth in smooths], "number"),
        Rate("Mean regression", "m_r, over the items that lost", [s.mean_regression for s in smooths], "number"),
    ]
    shares = [
        Rate("Graded worse", "share of items", [smooth.nfr for smooth in smooths]),
        Rate("Graded better", "share of items", [smooth.pfr for smooth in smooths]),
    ]
    return [
        Group("Score", means, _axis(means)),
        Group("Size of change", sizes, _axis(sizes), reference=0.0),
        Group("Direction of change", shares, _axis(shares)),
    ]


def _axis(rates: Sequence[Rate], more: Sequence[float] = ()) -> Axis:
    ends = [end for rate in rates for e in rate.estimates for end in (e.low, e.value, e.high)]
    return Axis.around([0.0, *more, *ends], ticks=4)
