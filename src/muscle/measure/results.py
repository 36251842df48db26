"""What a comparison found: the one object that every report shows. Field names are the JSON schema's names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from muscle.measure.pairing import Item, Missing, PairedTask
from muscle.measure.predictions import Texts
from muscle.measure.repeats import Repeats


@dataclass(frozen=True)
class Estimate:
    """A measure with its interval at the comparison's confidence. None is undefined, which is not 0."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Smooth:
    """Graded quality of an update: D = S_new - S_old of each item that both logs grade (paper, section 3)."""

    n: int
    ungraded: int
    """Paired items without a score in some log; in no other number here."""
    tolerance: float
    """Changes no larger than this are neither gains nor regressions."""
    mean_old: Estimate
    mean_new: Estimate
    mean_change: Estimate
    """E[D]; at tolerance 0 it equals pfr * mean_gain - nfr * mean_regression."""
    gains: int
    regressions: int
    pfr: Estimate
    nfr: Estimate
    mean_gain: Estimate
    """m_g: mean size of the gains; undefined where there is none."""
    mean_regression: Estimate
    """m_r: mean size of the regressions, above 0; undefined where there is none."""
    p_value: float | None
    """Two-sided t test of mean_change, by cluster where there are clusters; None where it cannot be made."""


@dataclass(frozen=True)
class Update:
    """What users see when one model is replaced by another: all counts and rates.

    Counts and rates are over the `n` paired and scored items. `old` is the model replaced, `new` the one that
    replaces it.
    """

    n: int
    unscored: int
    """Paired items that a log does not score; in no rate here, but see `nfr_bounds`."""
    only_old: int | None
    """Items of the old log that the new one does not have; None in a slice, and of new to compatible."""
    only_new: int | None
    missing_answers_old: int
    missing_answers_new: int
    both_right: int
    positive_flips: int
    negative_flips: int
    both_wrong: int
    both_right_different: int
    """Of both_right, those with a different right answer (several truths)."""
    both_wrong_different: int
    """Of both_wrong, those with a different wrong answer."""
    accuracy_old: Estimate
    accuracy_new: Estimate
    accuracy_change: Estimate
    nfr: Estimate
    nfr_bounds: tuple[float, float] | None
    """NFR over scored and unscored items, if none, or all that can be, of the unscored ones were negative flips."""
    nfr_given_old_right: Estimate
    """1 - BTC; some tools call this the NFR."""
    pfr: Estimate
    nfr_mc: Estimate
    inconsistency: Estimate
    """NFR_mc for several truths: right answers that became other right ones count too."""
    relative_nfr: Estimate
    btc: Estimate
    bec: Estimate
    nfi: Estimate
    pfi: Estimate
    churn: Estimate
    """Share of items whose answer changed, right or wrong."""
    mcnemar_mid_p: float | None
    """None where items are clustered, which McNemar's test ignores, and without items."""
    clustered_p: float | None
    """The same question asked of clusters; None where every item stands for itself."""
    smooth: Smooth | None
    """None where the logs grade nothing."""


@dataclass(frozen=True)
class Alignment:
    """What the compatible model changes against the new one (paper, section 3), on the items of both updates."""

    n: int
    delta_nfr: Estimate
    nfr_change_percent: Estimate
    delta_accuracy: Estimate
    fixed: int
    """Negative flips of the new model that the compatible one does not make."""
    made: int
    """Negative flips that only the compatible model makes."""
    learnt: int
    """Old and new wrong, compatible right."""
    forgotten: int
    """Old wrong, new right, compatible wrong: what alignment took."""
    inherited: int | None
    """Of forgotten, those where the compatible model gives the old model's wrong answer; None: the logs hold none."""
    mid_p: float | None
    """McNemar mid-p of fixed against made; None where items are clustered."""
    clustered_p: float | None
    delta_mean_gain: Estimate | None
    """m_g of old to compatible minus m_g of old to new; None where the logs grade nothing."""
    delta_mean_regression: Estimate | None
    update: Update
    """New to compatible: what a user of the new model would see."""


@dataclass(frozen=True)
class Measures:
    """One set of items (all of them, a task, a slice) measured for every model."""

    update: Update
    """Old to new."""
    compatible: Update | None
    """Old to compatible; its fields named `new` are the compatible model's. None without such a log."""
    alignment: Alignment | None
    """New to compatible; None without such a log."""
    floor: Update | None
    """Old to the old model drawn again (A/A): the flips that chance alone makes. None without such a log."""
    controls: Mapping[str, Update]
    """By name: old to each further model."""


@dataclass(frozen=True)
class Slice:
    """The items that have one value in one column."""

    column: str
    value: str | None
    """None: items without a value there."""
    measures: Measures
    q_value: float | None
    """Benjamini-Hochberg adjusted p of old to new over all slices; None where it cannot be tested."""


@dataclass(frozen=True)
class Input:
    """Where one model's predictions come from."""

    path: str
    format: str
    rows: int
    sha256: str
    metric: Mapping[str, str | None]
    """By task."""
    filter: Mapping[str, str | None]
    """By task."""
    score: Mapping[str, str | None]
    """By task: what grades the answers; None where nothing does."""


@dataclass(frozen=True)
class Comparison:
    """All tasks pooled, each task and slice of its own, and everything needed to get the numbers again."""

    total: Measures
    tasks: Mapping[str, Measures]
    """By name; also where there is only one."""
    slices: Sequence[Slice]
    repeats: Repeats | None
    """Changes beyond the noise of sampling; None where each item was asked once."""
    inputs: Mapping[str, Input]
    """By role: old, new, then compatible, repeat and the controls' names where given."""
    cluster: str | None
    """The column whose equal values make one cluster; "id" for several draws of an item."""
    clusters: int | None
    missing: Missing
    """What became of items that some log lacks."""
    confidence: float
    """Of every interval, two-sided."""
    seed: int
    resamples: int
    notes: tuple[str, ...]
    """What a reader of the numbers should know: items left out, choices made, doubts."""
    settings: Mapping[str, object]
    """Every choice that is not visible elsewhere here: how the logs were read, the tolerance."""
    reliable: Mapping[str, Sequence[tuple[str, str]]]
    """Task and id of the items that changed beyond the noise of several draws, by reliable_regressions and _gains."""
    items: Sequence[PairedTask]
    """The paired items themselves, in columns; not in the JSON."""
    texts: Callable[[Mapping[str, set[Item]]], Mapping[str, Mapping[tuple[str, Item], Texts]]]
    """Reads the logs again: wanted items by task -> by role -> by (task, item), input, target and answer to show."""

    @property
    def update(self) -> Update:
        """Old to new, all tasks pooled."""
        return self.total.update

    @property
    def compatible(self) -> Update | None:
        """Old to compatible, all tasks pooled."""
        return self.total.compatible

    @property
    def alignment(self) -> Alignment | None:
        """New to compatible, all tasks pooled."""
        return self.total.alignment
