"""The gate: a model update held against limits, with three verdicts, since too few items show neither good nor bad.

The bounds of a two-sided 90 % interval are each one-sided at 95 %. A limit passes where the worse bound keeps it, fails
where the better bound breaks it, and is otherwise inconclusive. PASS asks every check to pass, and so no correction for
their number: the chance to pass although a limit is broken is that of this limit alone, about 5 % (intersection-union
test: Berger 1982, Technometrics 24:295). FAIL asks for one check, so of many tasks that lie right at their limits about
one in twenty fails by chance; of tasks well within them next to none does.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from muscle.errors import MuscleError, quoted
from muscle.measure.limits import EVERY, Budget, Limits
from muscle.measure.pairing import Missing, PairedTask
from muscle.measure.predictions import RIGHT, UNSCORED, WRONG
from muscle.measure.results import Comparison, Estimate, Measures, Update
from muscle.measure.statistics import normal_quantile

CONFIDENCE = 0.90
"""Of the comparison that `judge` takes, two-sided: then each bound is one-sided at 95 %."""

_FEWEST_CLUSTERS = 10
"""With fewer, a limit that is just broken passes more often than the bounds say; docs/gate.md has how often."""
_FEWEST_REGRESSIONS = 20
"""With fewer, the same goes for the bootstrap of their mean."""
_FEWEST_FAULTLESS = 20
"""Fewer items without a fault do not show that there could be none."""

Status = Literal["pass", "fail", "inconclusive"]
EXIT_CODES: Mapping[Status, int] = {"pass": 0, "fail": 1, "inconclusive": 3}
"""2 is that of a usage or input error."""


@dataclass(frozen=True)
class Check:
    """One limit on one set of items."""

    measure: str
    """Its name in the JSON, such as nfr; `protected` for items that may not flip."""
    where: str
    """The items: all of them, a task, a slice or a single one. May hold text from logs."""
    limit: float | None
    """None where nothing is measured: protected items, tasks and slices that are not there."""
    estimate: Estimate | None
    status: Status
    reason: str
    """In words, with the numbers; holds no text from logs."""
    items_needed: int | None
    """Where more items would decide: about how many in all, if the rate stays what it is."""


@dataclass(frozen=True)
class Verdict:
    """Fails if any check fails, passes if all pass."""

    status: Status
    checks: tuple[Check, ...]
    model: Literal["new", "compatible"] = "new"
    """Which model was judged against the old one."""

    def exit_code(self, inconclusive: Literal["report", "pass", "fail"] = "report") -> int:
        """The command's exit code, where `inconclusive` may count as another verdict."""
        if self.status == "inconclusive" and inconclusive != "report":
            return EXIT_CODES[inconclusive]
        return EXIT_CODES[self.status]


def judge(comparison: Comparison, limits: Limits) -> Verdict:
    """Hold a comparison against limits.

    Args:
        comparison: With intervals at CONFIDENCE, and sliced by every column of `limits.slices`.
        limits: At least one.

    Raises:
        MuscleError: The comparison has another confidence, or lacks the compatible model or a column that the limits
            name; or there is no limit.
    """
    if not math.isclose(comparison.confidence, CONFIDENCE):
        raise MuscleError(
            f"the gate needs intervals of {CONFIDENCE:.0%} and these are of {comparison.confidence:.0%}; "
            f"compare with confidence={CONFIDENCE}"
        )
    model = limits.model or ("compatible" if comparison.compatible else "new")
    if model == "compatible" and comparison.compatible is None:
        raise MuscleError("the limits judge the compatible model; name its log with --compatible, or set model: new")
    checks: list[Check] = []
    clusters = _clusters(comparison)
    for where, part, measures, budget in _sections(comparison, limits):
        update = measures.update if model == "new" else measures.compatible
        assert update is not None  # all sections measure the same models
        checks += _check(where, update, budget, comparison, clusters.get(part))
    checks += _unknown(comparison, limits)
    checks += _protected(comparison.items, limits.protected, model)
    if not checks:
        raise MuscleError(
            "no limit is set; name a file with --limits (muscle gate --init writes one), or give --max-nfr"
        )
    checks += _absent(comparison, limits, model)
    statuses = {check.status for check in checks}
    status: Status = "fail" if "fail" in statuses else "inconclusive" if "inconclusive" in statuses else "pass"
    return Verdict(status, tuple(checks), model)


@dataclass(frozen=True)
class _Rule:
    """How one limit is judged."""

    limit: str
    """The field of Budget."""
    measure: str
    """The field of Update; or of its `smooth`."""
    unit: Literal["%", "pp", ""]
    trials: Callable[[Update], int] | None = None
    """Of a share with Wilson's interval: the items that it is a share of."""


_RULES = (
    _Rule("max_nfr", "nfr", "%", lambda update: update.n),
    _Rule("max_nfr_given_old_right", "nfr_given_old_right", "%", lambda u: u.both_right + u.negative_flips),
    _Rule("max_relative_nfr", "relative_nfr", "%"),
    _Rule("max_nfr_mc", "nfr_mc", "%", lambda update: update.n),
    _Rule("max_churn", "churn", "%", lambda update: update.n),
    _Rule("max_mean_regression", "mean_regression", ""),
    _Rule("max_accuracy_drop", "accuracy_change", "pp"),
)


_Part = tuple[str | None, ...]
"""A set of items: of (column, value), of (task,), or () for all of them."""


def _sections(comparison: Comparison, limits: Limits) -> Iterator[tuple[str, _Part, Measures, Budget]]:
    """Every set of items that has limits, in words and in short."""
    yield "all items", (), comparison.total, limits
    for name, measures in comparison.tasks.items():
        yield f"task {name or '(no name)'}", (name,), measures, _budget_of(name, limits.tasks)
    for column, by_value in limits.slices.items():
        slices = [part for part in comparison.slices if part.column == column]
        if not slices:
            raise MuscleError(f"the limits name slices by {quoted(column)}, by which the comparison is not sliced")
        for part in slices:
            where = f"{column}={'(none)' if part.value is None else part.value}"
            yield where, (column, part.value), part.measures, _budget_of(part.value, by_value)


def _clusters(comparison: Comparison) -> dict[_Part, int]:
    """The number of clusters in every set of items; empty where each item stands for itself."""
    if comparison.clusters is None:
        return {}
    found: dict[_Part, set[object]] = {}
    columns = list(dict.fromkeys(part.column for part in comparison.slices))
    for task in comparison.items:
        values = task.labels.get(comparison.cluster or "", [None] * len(task.ids))
        for row, (item, value) in enumerate(zip(task.ids, values, strict=True)):
            cluster = (task.task, item) if value is None else value  # an item without a value stands for itself
            for part in ((task.task,), *((column, task.labels[column][row]) for column in columns)):
                found.setdefault(part, set()).add(cluster)
    return {(): comparison.clusters, **{part: len(clusters) for part, clusters in found.items()}}


def _budget_of(name: str | None, budgets: Mapping[str, Budget]) -> Budget:
    """The limits on a name of its own, and where it has none those on every name."""
    own = budgets.get(name, Budget()) if name is not None else Budget()
    return own.over(budgets.get(EVERY, Budget()))


_NO_TASK = "not every log has this task"


def _absent(comparison: Comparison, limits: Limits, model: str) -> Iterator[Check]:
    """A check for every task of the old log that was not compared: its flips are unknown, and unknown is no pass."""
    old, judged = (comparison.inputs[role].metric for role in ("old", model))
    if len(old) == len(judged) == 1:  # a lone task goes by any name
        return
    paired = {task.task for task in comparison.items if task.ids}
    for name in old:
        if name not in paired and (name in comparison.tasks or name not in limits.tasks):
            reason = "no item of this task is in every log" if name in comparison.tasks else _NO_TASK
            yield Check("task", f"task {name or '(no name)'}", None, None, "inconclusive", reason, None)
    for name in judged if limits.max_missing is not None else ():
        if name not in comparison.tasks and name not in old:
            yield Check("missing", f"task {name}", limits.max_missing, None, "inconclusive", _NO_TASK, None)


def _unknown(comparison: Comparison, limits: Limits) -> Iterator[Check]:
    """A check for every task and slice that has limits and is not there."""
    for name in limits.tasks:
        if name != EVERY and name not in comparison.tasks:
            yield Check("task", f"task {name}", None, None, "inconclusive", _NO_TASK, None)
    there = {(part.column, part.value) for part in comparison.slices}
    for column, by_value in limits.slices.items():
        for value in by_value:
            if value != EVERY and (column, value) not in there:
                yield Check("slice", f"{column}={value}", None, None, "inconclusive", "no item is in this slice", None)


def _check(where: str, update: Update, budget: Budget, comparison: Comparison, clusters: int | None) -> Iterator[Check]:
    """The checks of one set of items; `clusters` is None where each item stands for itself."""
    yield from _guards(where, update, budget, comparison.missing)
    for rule in _RULES:
        if (budgeted := getattr(budget, rule.limit)) is None:
            continue
        limit = -budgeted if rule.unit == "pp" else budgeted
        estimate = _estimate(rule.measure, update)
        if estimate.value is None:
            status, reason = _undefined(rule.measure, update)
            if status == "pass" and (doubt := _few(clusters)):
                status, reason = "inconclusive", reason + doubt
            yield Check(rule.measure, where, limit, estimate, status, reason, None)
        else:
            yield _decide(rule, where, limit, estimate, update, comparison, clusters)


def _guards(where: str, update: Update, budget: Budget, missing: Missing) -> Iterator[Check]:
    """The checks of the logs themselves, which need no interval: what they lack is known."""
    if budget.min_items is not None:
        enough, counted = update.n >= budget.min_items, Estimate(update.n, None, None)
        reason = f"{update.n} items are paired and scored, of at least {budget.min_items}"
        needed = None if enough else budget.min_items
        yield Check("n", where, budget.min_items, counted, "pass" if enough else "inconclusive", reason, needed)
    paired = update.n + update.unscored
    if budget.max_unscored is not None:
        yield _share("unscored", where, budget.max_unscored, update.unscored, paired)
    if budget.max_missing is not None:
        if update.only_old is None or update.only_new is None:
            unknown = "it is not known which slice a missing item would be in"
            yield Check("missing", where, budget.max_missing, None, "inconclusive", unknown, None)
        else:
            lacking = update.only_old + update.only_new
            items = paired if missing == "wrong" else paired + lacking  # there they are among the paired
            yield _share("missing", where, budget.max_missing, lacking, items)


def _share(measure: str, where: str, limit: float, count: int, n: int) -> Check:
    if n == 0:
        return Check(measure, where, limit, Estimate(None, None, None), "inconclusive", "no item is paired", None)
    share = count / n
    reason = f"{count} of {n} items, {100 * share:.2f} % with a limit of {100 * limit:.2f} %"
    return Check(measure, where, limit, Estimate(share, None, None), "pass" if share <= limit else "fail", reason, None)


def _estimate(measure: str, update: Update) -> Estimate:
    if measure == "mean_regression":
        return update.smooth.mean_regression if update.smooth else Estimate(None, None, None)
    estimate: Estimate = getattr(update, measure)
    return estimate


def _few(clusters: int | None) -> str:
    """Why so few clusters decide nothing; empty where they are enough."""
    if clusters is None or clusters >= _FEWEST_CLUSTERS:
        return ""
    counted = f"{clusters} cluster{'' if clusters == 1 else 's'}"
    return f", of {counted}; bounds hold their 5 % only from {_FEWEST_CLUSTERS} clusters on"


def _faultless(count: int, found: str) -> tuple[Status, str]:
    if count < _FEWEST_FAULTLESS:
        return "inconclusive", f"{found}; fewer than {_FEWEST_FAULTLESS} show nothing"
    return "pass", found


def _undefined(measure: str, update: Update) -> tuple[Status, str]:
    """Unknown is no pass, except where the new model cannot be better: it makes no error, or no answer worse."""
    if measure == "mean_regression":
        if update.smooth is None or update.smooth.n == 0:
            return "inconclusive", "no answer is graded in every log; choose what grades them with --score"
        return _faultless(update.smooth.n, f"none of {update.smooth.n} graded answers became worse")
    if update.n == 0:
        return "inconclusive", "no item is scored in every log"
    if update.positive_flips + update.both_right == update.n:
        return _faultless(update.n, f"none of {update.n} answers is wrong")
    return "inconclusive", "no answer was right before"


def _decide(
    rule: _Rule,
    where: str,
    limit: float,
    estimate: Estimate,
    update: Update,
    comparison: Comparison,
    clusters: int | None,
) -> Check:
    """The check of a measure that is defined: where do the bounds lie?"""
    value, low, high = estimate.value, estimate.low, estimate.high
    assert value is not None

    def check(status: Status, reason: str, needed: int | None = None) -> Check:
        return Check(rule.measure, where, limit, estimate, status, reason, needed)

    def shown(number: float) -> str:
        scaled = f"{number:.4f}" if rule.unit == "" else f"{100 * number:{'+' if rule.unit == 'pp' else ''}.2f}"
        return f"{scaled} {rule.unit}".rstrip()

    if doubt := _few(clusters):
        return check("inconclusive", shown(value) + doubt)
    if rule.measure == "mean_regression" and update.smooth and update.smooth.regressions < _FEWEST_REGRESSIONS:
        worsened = f"{shown(value)} in {update.smooth.regressions} answers that became worse"
        return check("inconclusive", f"{worsened}; with fewer than {_FEWEST_REGRESSIONS} its interval is too narrow")
    if low is None or high is None:
        return check("inconclusive", f"{shown(value)}, with an interval that so few items do not give")
    if math.isclose(low, high, rel_tol=1e-9, abs_tol=1e-9):  # rounding makes equal draws differ in the last digit
        return check("inconclusive", f"{shown(value)} in every resample, which shows nothing of its spread")
    if rule.unit == "pp":
        passes, fails = low > limit, high < limit
        worse, better = f"at least {shown(low)}", f"at most {shown(high)}"
    else:
        passes, fails = high <= limit, low > limit
        worse, better = f"at most {shown(high)}", f"at least {shown(low)}"
    if passes or fails:
        return check("pass", worse) if passes else check("fail", better)
    needed = _items_needed(rule, limit, estimate, update, comparison)
    between = f"between {shown(low)} and {shown(high)}"
    if needed is None:
        advice = "; to let none flip, name the items under protected" if limit == 0 and rule.unit == "%" else ""
        return check(
            "inconclusive", f"{between}; {shown(value)} is the limit itself, which no number of items decides{advice}"
        )
    return check("inconclusive", f"{between}; about {needed:,} items would decide", needed)


def _items_needed(rule: _Rule, limit: float, estimate: Estimate, update: Update, comparison: Comparison) -> int | None:
    """Fewest items whose interval would leave the limit out, if the value stays what it is; None where none would.

    Wilson's interval is the score test turned round: it leaves out a limit L once n > z^2 L (1 - L) / (p - L)^2. Every
    other interval is taken to shrink with the root of n, as it does once n is not small.
    """
    value, low, high = estimate.value, estimate.low, estimate.high
    assert value is not None
    assert low is not None
    assert high is not None
    distance = abs(value - limit)
    if math.isclose(value, limit, rel_tol=1e-9, abs_tol=1e-12):
        return None
    n = update.smooth.n if rule.measure == "mean_regression" and update.smooth else update.n
    if rule.trials is not None and comparison.cluster is None:
        z = normal_quantile((1 + comparison.confidence) / 2)
        needed = z * z * limit * (1 - limit) / distance**2 * n / rule.trials(update)
    else:
        reach = high - value if value < limit else value - low
        needed = n * (reach / distance) ** 2
    return max(n + 1, math.ceil(needed))


def _protected(tasks: Sequence[PairedTask], protected: Sequence[str], model: str) -> Iterator[Check]:
    """A check for every protected item that is not kept, and one for those that are."""
    entries = dict.fromkeys(protected)
    found: set[str] = set()
    kept = 0
    for task in tasks:
        prefix = f"{task.task}/"
        wanted = entries.keys() | {entry.removeprefix(prefix) for entry in entries if entry.startswith(prefix)}
        rows_of: dict[str, list[int]] = {}
        for row, item in enumerate(task.ids):
            if item in wanted and not entries.keys().isdisjoint({item, prefix + item}):
                rows_of.setdefault(item, []).append(row)
        for item, rows in rows_of.items():
            found |= {item, prefix + item}
            status, reason = _kept(task.correct["old"][rows], task.correct[model][rows])
            if status == "pass":
                kept += 1
            else:
                yield Check("protected", prefix.lstrip("/") + item, None, None, status, reason, None)
    for entry in entries:
        if entry not in found:
            yield Check("protected", entry, None, None, "inconclusive", "not every log has this item", None)
    if kept:
        yield Check("protected", "protected items", None, None, "pass", f"none of {kept} flipped", None)


def _kept(old: NDArray[np.int8], new: NDArray[np.int8]) -> tuple[Status, str]:
    """Whether one item is kept in all its draws, (K,) each. One that was wrong before cannot flip."""
    flips = int(np.count_nonzero((old == RIGHT) & (new == WRONG)))
    if flips:
        return "fail", "was right and is wrong" + (f" in {flips} of {len(old)} draws" if len(old) > 1 else "")
    if ((old == UNSCORED) | (new == UNSCORED)).any():
        return "inconclusive", "not every log scores this item"
    return "pass", "did not flip"
