"""The gate: three verdicts, each where it belongs, and never a pass that nothing shows."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from muscle.errors import MuscleError
from muscle.measure import Comparison, compare
from muscle.measure.gate import CONFIDENCE, EXIT_CODES, Check, Verdict, judge
from muscle.measure.limits import Budget, Limits
from muscle.measure.results import Estimate
from muscle.measure.statistics import wilson_interval

Rows = list[dict[str, Any]]
SHARES = ("max_nfr", "max_nfr_given_old_right", "max_nfr_mc", "max_churn")


def rows(both_right: int = 0, lost: int = 0, gained: int = 0, both_wrong: int = 0, **cells: Any) -> tuple[Rows, Rows]:
    """Old and new rows of items of the four quadrants; every row gets the cells."""
    quadrants = [(1, 1)] * both_right + [(1, 0)] * lost + [(0, 1)] * gained + [(0, 0)] * both_wrong
    old: Rows = [{"id": i, "correct": before, "answer": "x", **cells} for i, (before, _) in enumerate(quadrants)]
    return old, [{**row, "correct": after} for row, (_, after) in zip(old, quadrants, strict=True)]


def compared(*pairs: tuple[Rows, Rows], **settings: Any) -> Comparison:
    """Tables of one or more tasks compared as the gate wants it."""
    old, new = ([row for pair in pairs for row in pair[side]] for side in (0, 1))
    return compare(old, new, confidence=CONFIDENCE, **settings)


def only(verdict: Verdict) -> Check:
    (check,) = verdict.checks
    assert verdict.status == check.status
    return check


@pytest.fixture(scope="module")
def base() -> Comparison:
    return compared(rows(60, 10, 20, 30))


def with_estimate(comparison: Comparison, name: str, estimate: Estimate) -> Comparison:
    """The comparison with another interval, for what data would hardly give."""
    update = dataclasses.replace(comparison.update, **{name: estimate})
    return dataclasses.replace(comparison, total=dataclasses.replace(comparison.total, update=update))


@pytest.mark.parametrize(
    ("limit", "status"),
    [(0.10, "pass"), (0.05, "fail"), (0.07, "inconclusive"), (0.0758, "inconclusive"), (1.0, "pass")],
)
def test_a_rate_worked_by_hand(limit: float, status: str) -> None:
    """75 of 1000 at z = 1.6449: (76.353 +- 1.6449 sqrt(75 * 925 / 1000 + 0.676)) / 1002.706 = 0.0624, 0.0899."""
    comparison = compared(rows(300, 75, 125, 500))
    check = only(judge(comparison, Limits(max_nfr=limit)))
    assert (check.measure, check.where, check.limit, check.status) == ("nfr", "all items", limit, status)
    assert check.estimate is not None
    assert check.estimate.value == 0.075
    assert (check.estimate.low, check.estimate.high) == pytest.approx((0.0624, 0.0899), abs=1e-4)


def test_the_bounds_themselves_belong_to_pass_and_to_inconclusive(base: Comparison) -> None:
    low, high = base.update.nfr.low, base.update.nfr.high
    assert low is not None
    assert high is not None
    assert judge(base, Limits(max_nfr=high)).status == "pass"
    assert judge(base, Limits(max_nfr=math.nextafter(high, 0))).status == "inconclusive"
    assert judge(base, Limits(max_nfr=low)).status == "inconclusive"
    assert judge(base, Limits(max_nfr=math.nextafter(low, 0))).status == "fail"


@pytest.mark.parametrize(
    ("interval", "status"),
    [
        ((-0.009, 0.02), "pass"),
        ((-0.01, 0.02), "inconclusive"),
        ((-0.03, -0.01), "inconclusive"),
        ((-0.03, -0.011), "fail"),
    ],
)
def test_the_accuracy_may_fall_by_less_than_the_margin(
    base: Comparison, interval: tuple[float, float], status: str
) -> None:
    comparison = with_estimate(base, "accuracy_change", Estimate(sum(interval) / 2, *interval))
    check = only(judge(comparison, Limits(max_accuracy_drop=0.01)))
    assert (check.measure, check.limit, check.status) == ("accuracy_change", -0.01, status)


def test_reasons_say_what_decides(base: Comparison) -> None:
    comparison = with_estimate(base, "accuracy_change", Estimate(0.01, -0.02, 0.04))
    limits = [
        Limits(max_nfr=0.5),
        Limits(max_nfr=0.01),
        Limits(max_nfr=0.1),
        Limits(max_accuracy_drop=0.03),
        Limits(max_accuracy_drop=0.0),
    ]
    reasons = [only(judge(comparison, each)).reason for each in limits]
    assert reasons == [
        "at most 13.46 %",  # (11.353 +- 5.160) / 122.706
        "at least 5.05 %",
        "between 5.05 % and 13.46 %; about 877 items would decide",  # 2.7055 * 0.1 * 0.9 / (1 / 60)^2
        "at least -2.00 pp",
        "between -2.00 pp and +4.00 pp; about 1,080 items would decide",  # 120 * (0.03 / 0.01)^2
    ]


@settings(deadline=None)
@given(st.integers(1, 300), st.data())
def test_items_needed_is_where_wilson_s_interval_leaves_the_limit(n: int, data: st.DataObject) -> None:
    """Against a search over multiples of the very counts, so that the rate stays exactly what it is."""
    lost = data.draw(st.integers(0, n))
    interval = wilson_interval(lost, n, CONFIDENCE)
    assert interval is not None
    limit = data.draw(st.floats(*interval, exclude_max=True))
    assume(abs(lost / n - limit) > 0.01)
    comparison = compared(rows(n - lost, lost))
    needed = only(judge(comparison, Limits(max_nfr=limit))).items_needed
    assert needed is not None
    assert needed > n

    def decided(times: int) -> bool:
        low, high = wilson_interval(times * lost, times * n, CONFIDENCE) or (0.0, 1.0)
        return not low <= limit < high

    times = next(times for times in range(1, 10**6) if decided(times))
    assert (times - 1) * n < needed <= times * n + 1


def test_items_needed_of_a_rate_of_some_items_counts_all_items() -> None:
    check = only(judge(compared(rows(50, 0, 0, 150)), Limits(max_nfr_given_old_right=0.02)))
    assert check.items_needed == math.ceil(4 * 1.6448536**2 * 0.02 * 0.98 / 0.02**2)


def test_at_the_limit_itself_no_number_of_items_decides() -> None:
    check = only(judge(compared(rows(98, 2)), Limits(max_nfr=0.02)))
    assert (check.status, check.items_needed) == ("inconclusive", None)
    assert check.reason.endswith("2.00 % is the limit itself, which no number of items decides")


def test_a_limit_of_0_fails_with_a_flip_and_never_passes() -> None:
    assert judge(compared(rows(999, 1)), Limits(max_nfr=0.0)).status == "fail"
    check = only(judge(compared(rows(10_000)), Limits(max_nfr=0.0)))
    assert (check.status, check.items_needed) == ("inconclusive", None)
    assert check.reason.endswith("to let none flip, name the items under protected")


ORDER = {"pass": 0, "inconclusive": 1, "fail": 2}
ESTIMATES = st.tuples(*[st.floats(0, 1)] * 3).map(lambda x: Estimate(sorted(x)[1], sorted(x)[0], sorted(x)[2]))


@pytest.mark.parametrize("limit", [*SHARES, "max_relative_nfr", "max_accuracy_drop"])
@given(ESTIMATES, st.floats(0, 1), st.floats(0, 1))
def test_a_tighter_limit_is_never_easier(base: Comparison, limit: str, estimate: Estimate, a: float, b: float) -> None:
    name = {"max_accuracy_drop": "accuracy_change"}.get(limit, limit.removeprefix("max_"))
    if name == "accuracy_change":
        estimate = Estimate(*(-(value or 0.0) for value in (estimate.value, estimate.high, estimate.low)))
    comparison = with_estimate(base, name, estimate)
    tight, loose = (judge(comparison, Limits(**{limit: value})) for value in sorted((a, b)))
    assert ORDER[tight.status] >= ORDER[loose.status]


@given(ESTIMATES, st.floats(0, 1))
def test_worse_bounds_are_never_easier(base: Comparison, estimate: Estimate, limit: float) -> None:
    assert estimate.value is not None
    assert estimate.low is not None
    assert estimate.high is not None
    worse = Estimate(estimate.value + 0.1, estimate.low + 0.1, estimate.high + 0.1)
    before, after = (judge(with_estimate(base, "nfr", e), Limits(max_nfr=limit)).status for e in (estimate, worse))
    assert ORDER[after] >= ORDER[before]


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40), st.integers(1, 40), st.floats(0.01, 0.5))
def test_swapping_the_models_turns_a_rise_into_a_drop(
    both_right: int, lost: int, gained: int, both_wrong: int, margin: float
) -> None:
    """What is certainly no drop of more than the margin is certainly no rise of less than minus the margin."""
    old, new = rows(both_right, lost, gained, both_wrong)
    limits = Limits(max_accuracy_drop=margin)
    forth, back = (judge(compared(pair), limits).status for pair in ((old, new), (new, old)))
    assert not forth == back == "fail"  # both cannot have dropped
    if gained == lost:
        assert forth == back


def test_verdicts_of_several_checks(base: Comparison) -> None:
    """FAIL if any fails, PASS if all pass."""
    passing, failing, open_ = {"max_nfr": 0.5}, {"max_churn": 0.0}, {"max_nfr_given_old_right": 0.15}
    base = with_estimate(base, "churn", Estimate(0.2, 0.1, 0.3))
    assert judge(base, Limits(**passing)).status == "pass"
    assert judge(base, Limits(**passing, **open_)).status == "inconclusive"
    assert judge(base, Limits(**passing, **open_, **failing)).status == "fail"


def test_exit_codes() -> None:
    assert EXIT_CODES == {"pass": 0, "fail": 1, "inconclusive": 3}
    undecided = Verdict("inconclusive", ())
    assert [undecided.exit_code(choice) for choice in ("report", "pass", "fail")] == [3, 0, 1]
    assert [Verdict("fail", ()).exit_code("pass"), Verdict("pass", ()).exit_code("fail")] == [1, 0]


# Nothing is known -> how to make it so, the limit, what the check says.
UNKNOWN: Mapping[str, tuple[Callable[[], Comparison], Limits, str]] = {
    "nothing scored": (
        lambda: compared(([{"id": 1, "correct": None}], [{"id": 1, "correct": 1}])),
        Limits(max_nfr=0.5),
        "no item is scored in every log",
    ),
    "nothing right before": (
        lambda: compared(rows(0, 0, 5, 5)),
        Limits(max_nfr_given_old_right=0.5),
        "no answer was right before",
    ),
    "nothing right before, relative": (
        lambda: compared(rows(0, 0, 5, 5)),
        Limits(max_relative_nfr=0.5),
        "no answer was right before",
    ),
    "nothing graded": (
        lambda: compared(rows(5, 5)),
        Limits(max_mean_regression=0.5),
        "no answer is graded in every log; choose what grades them with --score",
    ),
    "too few regressions for an interval": (
        lambda: compared(graded(19, 80)),
        Limits(max_mean_regression=0.5),
        "0.3000 in 19 answers that became worse; with fewer than 20 its interval is too narrow",
    ),
    "an interval without width": (
        lambda: with_estimate(compared(rows(5)), "nfr", Estimate(1 / 12, 0.08333333333333331, 0.08333333333333334)),
        Limits(max_nfr=0.5),
        "8.33 % in every resample, which shows nothing of its spread",
    ),
    "few clusters": (
        lambda: compared(grouped(9), cluster="group"),
        Limits(max_nfr=0.9),
        "10.00 %, of 9 clusters; bounds hold their 5 % only from 10 clusters on",
    ),
    "few clusters in a task": (
        lambda: compared(grouped(9, task="few"), grouped(30, "b", task="many"), cluster="group"),
        Limits(max_nfr=0.9, tasks={"*": Budget(max_nfr=0.9)}),
        "10.00 %, of 9 clusters; bounds hold their 5 % only from 10 clusters on",
    ),
    "few clusters in a slice": (
        lambda: compared(
            grouped(9, task="few", kind="few"),
            grouped(30, "b", task="many", kind="many"),
            cluster="group",
            slices=["kind"],
        ),
        Limits(slices={"kind": {"*": Budget(max_nfr=0.9)}}),
        "10.00 %, of 9 clusters; bounds hold their 5 % only from 10 clusters on",
    ),
    "few clusters, none of which could be better": (
        lambda: compared(rows(20, 0, 20, group="a"), cluster="group"),
        Limits(max_relative_nfr=0.5),
        "none of 40 answers is wrong, of 1 cluster; bounds hold their 5 % only from 10 clusters on",
    ),
    "too few items that became no worse": (
        lambda: compared(graded(0, 19)),
        Limits(max_mean_regression=0.1),
        "none of 19 graded answers became worse; fewer than 20 show nothing",
    ),
    "too few items that are right": (
        lambda: compared(rows(9, 0, 10)),
        Limits(max_relative_nfr=0.1),
        "none of 19 answers is wrong; fewer than 20 show nothing",
    ),
    "no such task": (
        lambda: compared(rows(5, task="a")),
        Limits(tasks={"b": Budget(max_nfr=0.5)}),
        "not every log has this task",
    ),
    "a whole task missing": (
        lambda: compared((rows(5, task="a")[0] + rows(5, task="b")[0], rows(5, task="a")[0])),
        Limits(max_nfr=0.9),
        "not every log has this task",
    ),
    "a whole task missing that the limits name": (
        lambda: compared((rows(5, task="a")[0] + rows(5, task="b")[0], rows(5, task="a")[0])),
        Limits(tasks={"b": Budget(max_nfr=0.9)}),
        "not every log has this task",
    ),
    "a whole task missing from the judged model": (
        lambda: compared((rows(5, task="a")[0] + rows(5, task="b")[0],) * 2, compatible=rows(5, task="a")[0]),
        Limits(max_nfr=0.9),
        "not every log has this task",
    ),
    "a task of the new log alone, where nothing may be missing": (
        lambda: compared((rows(5, task="a")[0], rows(5, task="a")[0] + rows(5, task="b")[0])),
        Limits(max_missing=0.0),
        "not every log has this task",
    ),
    "a task without an item in common": (
        lambda: compared(
            rows(5, task="a"), ([{"id": 1, "correct": 1, "task": "b"}], [{"id": 2, "correct": 1, "task": "b"}])
        ),
        Limits(max_nfr=0.9),
        "no item of this task is in every log",
    ),
    "no such slice": (
        lambda: compared(rows(5, group="a"), slices=["group"]),
        Limits(slices={"group": {"b": Budget(max_nfr=0.5)}}),
        "no item is in this slice",
    ),
    "no such item": (lambda: compared(rows(5)), Limits(protected=("9",)), "not every log has this item"),
    "missing items of a slice": (
        lambda: compared(rows(5, group="a"), slices=["group"]),
        Limits(slices={"group": {"a": Budget(max_missing=0.5)}}),
        "it is not known which slice a missing item would be in",
    ),
}


def grouped(groups: int, prefix: str = "a", **cells: Any) -> tuple[Rows, Rows]:
    """Clusters of about 10 items, of which none or two flip: 10 % in all."""
    pair = rows(9 * groups, groups, **cells)
    for side in pair:
        for i, row in enumerate(side):
            row["group"] = f"{prefix}{i % groups if i < 9 * groups else (i - 9 * groups) // 2}"
    return pair


def graded(worse: int, same: int) -> tuple[Rows, Rows]:
    old, new = rows(worse + same, score=0.8)
    return old, [{**row, "score": 0.5} if i < worse else row for i, row in enumerate(new)]


@pytest.mark.parametrize("case", UNKNOWN)
def test_unknown_is_inconclusive(case: str) -> None:
    make, limits, reason = UNKNOWN[case]
    verdict = judge(make(), limits)
    assert verdict.status == "inconclusive"
    (check,) = (check for check in verdict.checks if check.status != "pass")
    assert (check.status, check.reason, check.items_needed) == ("inconclusive", reason, None)


def test_what_could_not_be_better_passes() -> None:
    check = only(judge(compared(graded(0, 20)), Limits(max_mean_regression=0.1)))
    assert (check.status, check.reason) == ("pass", "none of 20 graded answers became worse")
    check = only(judge(compared(rows(10, 0, 10)), Limits(max_relative_nfr=0.1)))
    assert (check.status, check.reason) == ("pass", "none of 20 answers is wrong")


def test_clusters_enough_are_judged() -> None:
    check = only(judge(compared(grouped(10), cluster="group"), Limits(max_accuracy_drop=0.9)))
    assert "clusters" not in check.reason


def test_a_missing_task_never_passes() -> None:
    """Also where the limits are on all items together, or on items of another task."""
    old, new = (rows(200, task="a")[0] + rows(200, task="b")[0], rows(200, task="a")[0])
    comparison = compared((old, new))
    for limits in (Limits(max_nfr=0.02), Limits(min_items=10), Limits(protected=("a/1",))):
        verdict = judge(comparison, limits)
        assert verdict.status == "inconclusive"
        check = verdict.checks[-1]
        assert (check.measure, check.where, check.limit, check.status) == ("task", "task b", None, "inconclusive")
    with pytest.raises(MuscleError, match="no limit is set"):
        judge(comparison, Limits())
    assert judge(compared((new, old)), Limits(max_nfr=0.02)).status == "pass"  # nothing of the old log is missing


def test_a_lone_task_goes_by_any_name() -> None:
    old, new = rows(200)[0], rows(200, task="a")[1]
    assert judge(compared((old, new)), Limits(max_nfr=0.02)).status == "pass"


def test_a_missing_task_that_counts_as_wrong_is_judged() -> None:
    old, new = (rows(200, task="a")[0] + rows(200, task="b")[0], rows(200, task="a")[0])
    check = only(judge(compared((old, new), missing="wrong"), Limits(max_nfr=0.02)))
    assert (check.measure, check.status) == ("nfr", "fail")


def test_mean_regressions_of_several_sizes() -> None:
    old, new = rows(40, score=0.9)
    new = [{**row, "score": 0.9 - 0.01 * i} for i, row in enumerate(new)]  # 0.01 to 0.39, on average 0.2
    comparison = compared((old, new))
    verdicts = [judge(comparison, Limits(max_mean_regression=limit)).status for limit in (0.3, 0.2001, 0.1)]
    assert verdicts == ["pass", "inconclusive", "fail"]


def test_relative_nfr_without_a_flip_is_bounded_by_the_nfr() -> None:
    """The bootstrap alone would show 0 from 10 items as surely as from 10,000."""
    few = compared(rows(5, 0, 0, 5))
    check = only(judge(few, Limits(max_relative_nfr=0.5)))
    assert check.estimate == Estimate(0, 0, pytest.approx(4 * (few.update.nfr.high or 0)))  # 1 / (0.5 * 0.5)
    assert check.status == "inconclusive"


def test_counted_limits() -> None:
    old, new = rows(6, 0, 0, 2)
    comparison = compared(
        ([*old, {"id": 50, "correct": 1}], [*new[:-1], {"id": 7, "correct": None}, {"id": 60, "correct": 1}])
    )
    assert (comparison.update.n, comparison.update.unscored) == (7, 1)
    limits = Limits(min_items=7, max_unscored=0.125, max_missing=0.2)
    passed = judge(comparison, limits)
    assert [(check.measure, check.status) for check in passed.checks] == [
        ("n", "pass"),
        ("unscored", "pass"),  # 1 of 8
        ("missing", "pass"),  # 2 of 10
    ]
    assert [check.estimate and check.estimate.value for check in passed.checks] == [7, 0.125, 0.2]
    missed = judge(comparison, Limits(min_items=8, max_unscored=0.12, max_missing=0.19))
    assert [(check.status, check.items_needed) for check in missed.checks] == [
        ("inconclusive", 8),
        ("fail", None),
        ("fail", None),
    ]
    assert missed.checks[1].reason == "1 of 8 items, 12.50 % with a limit of 12.00 %"


def test_tasks_and_slices_have_their_own_limits() -> None:
    pairs = [rows(90, 10, task="a", group="x"), rows(99, 1, task="b", group="y"), rows(100, task="c")]
    limits = Limits(
        tasks={"*": Budget(max_nfr=0.05), "a": Budget(max_nfr=0.5), "c": Budget(min_items=5)},
        slices={"group": {"*": Budget(max_nfr=0.04), "y": Budget(max_nfr=0.2)}},
    )
    verdict = judge(compared(*pairs, slices=["group"]), limits)
    assert [(check.where, check.measure, check.limit, check.status) for check in verdict.checks] == [
        ("task a", "nfr", 0.5, "pass"),
        ("task b", "nfr", 0.05, "pass"),
        ("task c", "n", 5, "pass"),
        ("task c", "nfr", 0.05, "pass"),
        ("group=x", "nfr", 0.04, "fail"),
        ("group=y", "nfr", 0.2, "pass"),
        ("group=(none)", "nfr", 0.04, "pass"),
    ]


def test_protected_items() -> None:
    first, second = rows(1, 1, 1, 1, task="a"), rows(1, 1, task="b/c")
    second[1][0]["correct"] = None
    comparison = compared(first, second)
    assert only(judge(comparison, Limits(protected=("a/0", "2", "3")))).reason == "none of 3 flipped"
    verdict = judge(comparison, Limits(protected=("1", "b/c/0", "a/0", "a/9", "b/c")))
    assert [(check.where, check.status, check.reason) for check in verdict.checks] == [
        ("a/1", "fail", "was right and is wrong"),  # an id without a task is that of every task
        ("b/c/0", "inconclusive", "not every log scores this item"),
        ("b/c/1", "fail", "was right and is wrong"),
        ("a/9", "inconclusive", "not every log has this item"),
        ("b/c", "inconclusive", "not every log has this item"),
        ("protected items", "pass", "none of 1 flipped"),
    ]


def test_a_protected_item_may_flip_in_no_draw() -> None:
    old = [{"id": item, "correct": 1} for item in "ab" for _ in range(3)]
    new = [dict(row) for row in old]
    new[4]["correct"] = 0
    verdict = judge(compared((old, new), duplicates="draws"), Limits(protected=("a", "b")))
    assert [(check.where, check.reason) for check in verdict.checks] == [
        ("b", "was right and is wrong in 1 of 3 draws"),
        ("protected items", "none of 1 flipped"),
    ]


def test_which_model_is_judged() -> None:
    old, new = rows(80, 20)
    three = compared((old, new), compatible=old)
    two = compared((old, new))
    limits = Limits(max_nfr=0.1, protected=("99",))
    for comparison, model, chosen, status in (
        (two, None, "new", "fail"),
        (three, None, "compatible", "pass"),
        (three, "compatible", "compatible", "pass"),
        (three, "new", "new", "fail"),
    ):
        verdict = judge(comparison, limits.with_flags(model=model))
        assert (verdict.model, verdict.status, {check.status for check in verdict.checks}) == (chosen, status, {status})
    with pytest.raises(MuscleError, match="name its log with --compatible, or set model: new"):
        judge(two, limits.with_flags(model="compatible"))


def test_what_cannot_be_judged_is_an_error(base: Comparison) -> None:
    with pytest.raises(MuscleError, match=r"needs intervals of 90% and these are of 95%; compare with confidence=0.9"):
        judge(compare(*rows(5)), Limits(max_nfr=0.1))
    with pytest.raises(MuscleError, match="no limit is set; name a file with --limits"):
        judge(base, Limits())
    with pytest.raises(MuscleError, match="the limits name slices by 'group', by which the comparison is not sliced"):
        judge(base, Limits(slices={"group": {"a": Budget(max_nfr=0.1)}}))


@pytest.mark.parametrize(
    ("allowed", "passes", "fails"), [(0.5, 0, 0.2), (2, 0.09, 0.12), (7, 0.063, 0.085), (20, 0.062, 0.073)]
)
@pytest.mark.parametrize("limit", [0.005, 0.02, 0.1])
def test_how_often_chance_decides_at_the_limit(limit: float, allowed: float, passes: float, fails: float) -> None:
    """The table of docs/gate.md, by exact binomial sums, for a true NFR that is the limit itself."""
    n = round(allowed / limit)
    passed, failed = 0.0, 0.0
    for flips in range(n + 1):
        chance = math.exp(
            math.lgamma(n + 1)
            - math.lgamma(flips + 1)
            - math.lgamma(n - flips + 1)
            + flips * math.log(limit)
            + (n - flips) * math.log1p(-limit)
        )
        low, high = wilson_interval(flips, n, CONFIDENCE) or (0.0, 1.0)
        passed += chance * (high <= limit)
        failed += chance * (low > limit)
    assert passed <= passes
    assert failed <= fails


def test_clustered_rates_scale_their_own_interval() -> None:
    pairs = rows(380, 20)
    for pair in pairs:
        for i, row in enumerate(pair):
            row["passage"] = i // 4
    comparison = compared(pairs, cluster="passage")
    check = only(judge(comparison, Limits(max_nfr=0.06)))
    nfr = comparison.update.nfr
    assert nfr.high is not None
    assert check.items_needed == pytest.approx(400 * ((nfr.high - 0.05) / 0.01) ** 2, abs=2)


def test_real_logs(data: Path) -> None:
    """Qwen2.5-1.5B on four subjects of MMLU, 0 against 5 shots: 30 of 400 items flip, of 166 that were right."""
    folder = data / "logs" / "lmeval_0.4.12_mmlu_qwen2.5_0shot_vs_5shot"
    comparison = compare(folder / "0shot", folder / "5shot", confidence=CONFIDENCE)
    limits = Limits(max_nfr=0.05, max_nfr_given_old_right=0.25, max_accuracy_drop=0, tasks={"*": Budget(max_nfr=0.05)})
    verdict = judge(comparison, limits)
    assert verdict.status == "fail"
    assert [(check.where.removeprefix("task mmlu_"), check.measure, check.status) for check in verdict.checks] == [
        ("all items", "nfr", "fail"),
        ("all items", "nfr_given_old_right", "pass"),
        ("all items", "accuracy_change", "pass"),
        ("abstract_algebra", "nfr", "fail"),
        ("college_computer_science", "nfr", "fail"),
        ("high_school_statistics", "nfr", "pass"),
        ("machine_learning", "nfr", "fail"),
    ]
    same = judge(compare(folder / "0shot", folder / "0shot", confidence=CONFIDENCE), limits)
    assert {check.status for check in same.checks if check.measure != "accuracy_change"} == {"pass"}
