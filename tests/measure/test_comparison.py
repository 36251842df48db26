"""What a comparison does beyond counting quadrants: scores, slices, clusters, further logs."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel
from statsmodels.stats.multitest import multipletests

from muscle.errors import MuscleError
from muscle.measure import Comparison, compare
from muscle.measure.statistics import wilson_interval

from .conftest import WriteRows

Column = Sequence[float | None]


@pytest.fixture
def graded(write_rows: WriteRows) -> Callable[..., Comparison]:
    """Compare logs that hold nothing but scores, one list per log."""

    def run(*logs: Column, **options: Any) -> Comparison:
        files = [
            write_rows(f"{number}.jsonl", [{"id": i, "score": score} for i, score in enumerate(log)])
            for number, log in enumerate(logs)
        ]
        return compare(*files, **options)

    return run


def test_smooth_measures_counted_by_hand(graded: Callable[..., Comparison]) -> None:
    """D = 0.5, -0.25, 0, 0.125, and one item that the new model was not graded on."""
    comparison = graded([0.25, 0.5, 0.5, 0.0, 1.0], [0.75, 0.25, 0.5, 0.125, None])
    smooth = comparison.update.smooth
    assert smooth is not None
    assert (smooth.n, smooth.ungraded, smooth.gains, smooth.regressions) == (4, 1, 2, 1)
    values = {name: getattr(getattr(smooth, name), "value", None) for name in vars(smooth)}
    assert (values["pfr"], values["nfr"]) == (0.5, 0.25)
    assert (values["mean_gain"], values["mean_regression"]) == (0.3125, 0.25)
    assert values["mean_change"] == 0.375 / 4
    assert (values["mean_old"], values["mean_new"]) == (1.25 / 4, 1.625 / 4)
    assert comparison.update.n == 0
    assert comparison.update.nfr.value is None


def test_a_tolerance_forgives_small_changes(graded: Callable[..., Comparison]) -> None:
    smooth = graded([0.25, 0.5, 0.5, 0.0], [0.75, 0.25, 0.5, 0.125], tolerance=0.125).update.smooth
    assert smooth is not None
    assert (smooth.gains, smooth.regressions, smooth.tolerance) == (1, 1, 0.125)
    assert smooth.mean_change.value == 0.375 / 4  # of all items, whatever the tolerance


def test_no_regression_has_no_size(graded: Callable[..., Comparison]) -> None:
    smooth = graded([0.0, 0.5], [0.5, 0.5]).update.smooth
    assert smooth is not None
    assert smooth.mean_regression.value is None
    assert (smooth.nfr.value, smooth.mean_gain.value) == (0, 0.5)


scores = st.lists(st.tuples(st.sampled_from([0, 0.25, 0.5, 1]), st.sampled_from([0, 0.25, 0.5, 1])), min_size=1)


@settings(max_examples=30, deadline=None)
@given(scores)
def test_smooth_invariances(pairs: list[tuple[float, float]]) -> None:
    def run(rows: list[tuple[float, float]]) -> Any:
        logs = [[{"id": i, "score": row[side]} for i, row in enumerate(rows)] for side in range(2)]
        return compare(*logs).update.smooth

    there, back, twice = run(pairs), run([(b, a) for a, b in pairs]), run(pairs * 2)
    assert (there.pfr, there.gains, there.mean_gain.value) == (back.nfr, back.regressions, back.mean_regression.value)
    assert there.mean_change.value == pytest.approx(-back.mean_change.value)
    assert there.mean_gain.value == pytest.approx(twice.mean_gain.value)
    assert there.nfr.value == twice.nfr.value
    gained = there.pfr.value * (there.mean_gain.value or 0)
    lost = there.nfr.value * (there.mean_regression.value or 0)
    assert there.mean_change.value == pytest.approx(gained - lost)


def labelled(write_rows: WriteRows, name: str, rows: Sequence[tuple[int, str | None]]) -> Path:
    return write_rows(name, [{"id": i, "correct": right, "subject": label} for i, (right, label) in enumerate(rows)])


def test_slices_partition_the_items(write_rows: WriteRows) -> None:
    subjects = ["law"] * 20 + ["art"] * 20 + [None] * 5
    old = labelled(write_rows, "old.jsonl", [(1, subject) for subject in subjects])
    new = labelled(write_rows, "new.jsonl", [(int(i >= 12), subject) for i, subject in enumerate(subjects)])
    comparison = compare(old, new, slices=["subject"])
    assert [(part.column, part.value) for part in comparison.slices] == [
        *[("subject", "law"), ("subject", "art"), ("subject", None)]
    ]
    updates = [part.measures.update for part in comparison.slices]
    assert [update.n for update in updates] == [20, 20, 5]
    assert [update.negative_flips for update in updates] == [12, 0, 0]
    assert [update.only_old for update in updates] == [None] * 3
    p = [update.mcnemar_mid_p for update in updates]
    assert [part.q_value for part in comparison.slices] == pytest.approx(multipletests(p, method="fdr_bh")[1])


def test_slices_of_scores_are_tested_too(write_rows: WriteRows) -> None:
    rng = np.random.default_rng(2)
    scores = [rng.normal(size=30), rng.normal(size=30) + np.repeat([1.0, 0.0], 15)]
    old, new = (
        write_rows(
            f"{name}.jsonl", [{"id": i, "score": s, "half": str(i // 15)} for i, s in enumerate(column.tolist())]
        )
        for name, column in zip(("old", "new"), scores, strict=True)
    )
    parts = compare(old, new, slices=["half"]).slices
    p = [ttest_rel(scores[1][rows], scores[0][rows]).pvalue for rows in (slice(15), slice(15, 30))]
    assert [part.q_value for part in parts] == pytest.approx(multipletests(p, method="fdr_bh")[1])


def test_a_column_that_no_log_has(write_rows: WriteRows) -> None:
    old = labelled(write_rows, "old.jsonl", [(1, "law")])
    with pytest.raises(MuscleError, match=r"no log has anything in 'topic'; name a column of the table, or a path"):
        compare(old, old, slices=["topic"])


def test_only_one_log_has_the_column(write_rows: WriteRows) -> None:
    old = labelled(write_rows, "old.jsonl", [(1, "law"), (1, "art")])
    new = write_rows("new.jsonl", [{"id": 0, "correct": 0}, {"id": 1, "correct": 1}])
    assert [part.value for part in compare(new, old, slices=["subject"]).slices] == ["law", "art"]


def test_clusters_widen_the_interval_of_repeated_items(write_rows: WriteRows) -> None:
    """Fifty items asked eight times over say as much as fifty items, not as four hundred."""
    rng = np.random.default_rng(5)
    once = [(int(rng.random() < 0.7), int(rng.random() < 0.7)) for _ in range(50)]
    logs = [
        write_rows(
            f"{side}.jsonl",
            [
                {"id": f"{i}-{copy}", "correct": row[side], "item": str(i)}
                for i, row in enumerate(once)
                for copy in range(8)
            ],
        )
        for side in range(2)
    ]
    alone = [
        write_rows(f"once{side}.jsonl", [{"id": i, "correct": r[side]} for i, r in enumerate(once)]) for side in (0, 1)
    ]
    clustered, naive, truth = compare(*logs, cluster="item"), compare(*logs), compare(*alone)
    assert (clustered.cluster, clustered.clusters, clustered.update.n) == ("item", 50, 400)

    def width(comparison: Comparison, name: str) -> float:
        estimate = getattr(comparison.update, name)
        return float(estimate.high - estimate.low)

    for name in ("nfr", "accuracy_change", "relative_nfr", "btc"):
        assert getattr(clustered.update, name).value == getattr(naive.update, name).value
        assert width(naive, name) < 0.5 * width(clustered, name)
        assert width(clustered, name) == pytest.approx(width(truth, name), rel=0.15)
    p = clustered.update.clustered_p
    assert p is not None
    assert clustered.update.mcnemar_mid_p is None
    assert p > (naive.update.mcnemar_mid_p or 0)


def test_one_cluster_has_no_interval(write_rows: WriteRows) -> None:
    rows = [{"id": i, "correct": int(i % 3 > 0), "passage": "p"} for i in range(30)]
    new = write_rows("new.jsonl", [{**row, "correct": int(row["id"] % 4 > 0)} for row in rows])
    update = compare(write_rows("old.jsonl", rows), new, cluster="passage").update
    assert update.nfr.value == pytest.approx(5 / 30)
    for estimate in (update.nfr, update.accuracy_change, update.churn, update.btc):
        assert estimate.low is estimate.high is None or estimate.value in (0, 1)


def test_a_cluster_counts_as_one_item_where_none_flips(write_rows: WriteRows) -> None:
    """Old is right in two clusters of twenty, so two are all that is known of what becomes of right answers."""
    rows = [{"id": i, "correct": int(i < 10), "passage": f"p{i // 5}"} for i in range(100)]
    log = write_rows("old.jsonl", rows)
    update = compare(log, log, cluster="passage").update
    assert (update.nfr_given_old_right.value, update.nfr.value) == (0, 0)
    assert update.nfr_given_old_right.high == pytest.approx(wilson_interval(0, 2)[1])
    assert update.nfr.high == pytest.approx(wilson_interval(0, 20)[1])


def test_draws_of_one_item_cannot_be_split_over_clusters(write_rows: WriteRows) -> None:
    rows = [{"id": i, "draw": d, "correct": 1, "seed": str(d)} for i in range(3) for d in range(2)]
    log = write_rows("old.jsonl", rows)
    with pytest.raises(MuscleError, match="seed differs between draws of one item; they depend on each other"):
        compare(log, log, cluster="seed")


def test_few_clusters_are_warned_of(write_rows: WriteRows) -> None:
    old = labelled(write_rows, "old.jsonl", [(1, "law"), (1, "art"), (0, None)])
    comparison = compare(old, old, cluster="subject")
    assert comparison.clusters == 3  # an item without a value stands for itself
    assert comparison.notes[-1].startswith("WARNING: only 3 clusters")


def test_further_logs_share_the_items(write_rows: WriteRows) -> None:
    def log(name: str, outcomes: str) -> Path:
        return write_rows(f"{name}.jsonl", [{"id": i, "correct": int(right)} for i, right in enumerate(outcomes)])

    comparison = compare(
        log("old", "11110"),
        log("new", "00111"),
        log("compatible", "01111"),
        repeat=log("again", "11011"),
        controls={"CE": log("ce", "0000")},
    )
    total = comparison.total
    assert list(comparison.inputs) == ["old", "new", "compatible", "repeat", "CE"]
    assert total.floor is not None
    assert (total.update.n, total.update.negative_flips, total.floor.negative_flips) == (4, 2, 1)
    assert total.controls["CE"].negative_flips == 4
    assert total.alignment is not None
    assert (total.alignment.fixed, total.alignment.update.positive_flips) == (1, 1)


@pytest.mark.parametrize("name", ["old", "repeat"])
def test_a_control_with_the_name_of_a_role(write_rows: WriteRows, name: str) -> None:
    log = write_rows("old.jsonl", [{"id": 0, "correct": 1}])
    with pytest.raises(MuscleError, match=f"a control cannot be named '{name}'"):
        compare(log, log, controls={name: log})


def test_errors_cannot_be_inherited_where_no_answer_is_known(write_rows: WriteRows) -> None:
    old, new = ([{"id": i, "correct": right} for i in range(3)] for right in (0, 1))
    alignment = compare(old, new, old).alignment
    assert alignment is not None
    assert (alignment.forgotten, alignment.inherited) == (3, None)
    answered = [{**row, "answer": "x"} for row in old]
    alignment = compare(answered, new, answered).alignment
    assert alignment is not None
    assert alignment.inherited == 3


def test_a_model_that_goes_silent_is_wrong(write_rows: WriteRows) -> None:
    old = [{"id": i, "answer": "a", "target": "a"} for i in range(4)]
    new = [{**row, "answer": None} for row in old]
    comparison = compare(old, new, text_score="exact_match")
    assert (comparison.update.n, comparison.update.negative_flips) == (4, 4)
    smooth = compare(old, new, text_score="rouge1").update.smooth
    assert smooth is not None
    assert smooth.mean_new.value == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"missing": "foo"}, "missing is 'foo'; choose among error, drop, wrong"),
        ({"duplicates": "foo"}, "duplicates is 'foo'; choose among error, first, last, draws"),
        ({"confidence": 95}, "confidence is 95; give a share between 0 and 1"),
        ({"confidence": math.nan}, "confidence is nan; give a share"),
        ({"tolerance": math.inf}, "tolerance is inf; give a number"),
        ({"seed": -1}, "seed is -1; give a whole number"),
        ({"slices": "group"}, "slices is 'group'; give a list"),
        ({"metrik": "acc"}, "no argument 'metrik'; choose among format, metric"),
        ({"cluster": ""}, "no log has anything in ''"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], message: str) -> None:
    rows = [{"id": 0, "correct": 1}]
    with pytest.raises(MuscleError, match=message):
        compare(rows, rows, **options)


def test_reliable_changes_are_named(write_rows: WriteRows) -> None:
    old = [{"id": item, "draw": d, "correct": 1} for item in "ab" for d in range(10)]
    new = [{**row, "correct": int(row["id"] == "a")} for row in old]
    comparison = compare(old, new)
    assert comparison.reliable == {"reliable_regressions": [("", "b")], "reliable_gains": []}


def test_confidence_moves_every_interval(write_rows: WriteRows) -> None:
    outcomes = [(i % 3 > 0, i % 5 > 0) for i in range(200)]
    old, new = (
        write_rows(
            f"{side}.jsonl",
            [
                {"id": i, "correct": row[side], "answer": i % (6 + side), "score": i % (7 + side) / 7}
                for i, row in enumerate(outcomes)
            ],
        )
        for side in range(2)
    )
    wide, narrow = compare(old, new, confidence=0.99), compare(old, new, confidence=0.8)
    assert wide.confidence == 0.99
    for name, estimate in vars(wide.update).items():
        inner = getattr(narrow.update, name)
        if hasattr(estimate, "low"):
            assert estimate.low < inner.low <= inner.high < estimate.high, name
    assert wide.update.smooth is not None
    assert narrow.update.smooth is not None
    assert wide.update.smooth.mean_regression.low < narrow.update.smooth.mean_regression.low


def test_the_texts_of_some_items(write_rows: WriteRows) -> None:
    old, new = (
        write_rows(
            f"{name}.jsonl",
            [{"id": i, "correct": 1, "answer": f"{name} {i}", "target": f"t{i}", "input": f"q{i}"} for i in range(3)],
        )
        for name in ("old", "new")
    )
    comparison = compare(old, new)
    texts = comparison.texts({"": {("1", 0)}})
    assert {role: dict(found) for role, found in texts.items()} == {
        role: {("", ("1", 0)): ("q1", "t1", f"{role} 1")} for role in ("old", "new")
    }


def test_both_models_in_one_table(write_rows: WriteRows) -> None:
    table = write_rows("both.jsonl", [{"id": i, "a": {"ok": 1}, "b": {"ok": i % 2}} for i in range(4)])
    columns = {"old:correct": "a.ok", "new:correct": "b.ok"}
    assert compare(table, table, columns=columns).update.negative_flips == 2
    with pytest.raises(MuscleError, match=r"column 'nwe:correct': no log is called 'nwe'; choose among old, new$"):
        compare(table, table, columns=columns | {"nwe:correct": "b.ok"})


def test_nothing_is_undefined_as_nan(write_rows: WriteRows) -> None:
    log = write_rows("old.jsonl", [{"id": 0, "correct": None, "score": 0.5}])
    for estimate in vars(compare(log, log).update).values():
        assert getattr(estimate, "value", None) is None or not math.isnan(estimate.value)
