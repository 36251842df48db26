"""Which items are compared, and what is said about the others."""

from pathlib import Path
from typing import Any

import pytest

from muscle.errors import PairingError
from muscle.measure import compare

from .conftest import WriteRows


def rows(**outcomes: Any) -> list[dict[str, Any]]:
    return [{"id": item, "correct": outcome} for item, outcome in outcomes.items()]


def test_ids_pair_whatever_their_type(tmp_path: Path, write_rows: WriteRows) -> None:
    new = tmp_path / "new.csv"
    new.write_text("id,correct\n2,False\n1,True\n")
    update = compare(write_rows("old.jsonl", [{"id": 1, "correct": 1}, {"id": 2, "correct": 1}]), new).update
    assert (update.both_right, update.negative_flips) == (1, 1)


def test_ids_that_pandas_made_floats(tmp_path: Path, write_rows: WriteRows) -> None:
    new = tmp_path / "new.csv"
    new.write_text("id,correct\n1.0,True\n-2.0,True\n3.5,True\nv1.0,True\n")
    old = write_rows("old.jsonl", [{"id": item, "correct": 1} for item in (1.0, -2, 3.5, "v1.0")])
    assert compare(old, new).update.both_right == 4


def test_answers_that_differ_in_number_format_only(write_rows: WriteRows) -> None:
    answers = {"old": ["18.0", "1e3", "x", "5", None, "NaN"], "new": ["18", "1000", "y", "6", "5", "nan"]}
    old, new = (
        write_rows(f"{name}.jsonl", [{"id": i, "correct": 0, "answer": answer} for i, answer in enumerate(column)])
        for name, column in answers.items()
    )
    comparison = compare(old, new)
    assert comparison.update.both_wrong_different == 6
    assert comparison.notes[0] == (
        "answer pairs of old and new that differ only in number format, and count as different unless "
        "--numeric-answers is given: 2 ('0', '1')"
    )
    assert len(comparison.notes) == 2
    asked = compare(old, new, numeric=True)
    assert (asked.update.both_wrong_different, len(asked.notes)) == (4, 1)


def test_items_on_one_side_only_are_counted_and_shown(write_rows: WriteRows) -> None:
    old = write_rows("old.jsonl", rows(a=1, b=1, c=1, d=1, e=0))
    new = write_rows("new.jsonl", rows(e=1, f=1))
    comparison = compare(old, new)
    assert (comparison.update.n, comparison.update.only_old, comparison.update.only_new) == (1, 4, 1)
    assert comparison.notes[:2] == (
        "ids of old that new lacks: 4 of 5 ('a', 'b', 'c', ...)",
        "ids of new that old lacks: 1 of 2 ('f')",
    )


def test_an_unscored_item_is_neither_right_nor_wrong(write_rows: WriteRows) -> None:
    old = write_rows("old.jsonl", rows(a=1, b=None, c=1))
    new = write_rows("new.jsonl", rows(a=0, b=1, c=None))
    update = compare(old, new).update
    assert (update.n, update.unscored, update.negative_flips, update.positive_flips) == (1, 2, 1, 0)


def test_missing_answers(write_rows: WriteRows) -> None:
    """Missing against present differs, missing against missing is the same, and both are counted."""
    old = write_rows("old.jsonl", [{"id": i, "correct": 0, "answer": answer} for i, answer in enumerate([None, None])])
    new = write_rows("new.jsonl", [{"id": i, "correct": 0, "answer": answer} for i, answer in enumerate([None, "x"])])
    comparison = compare(old, new)
    assert comparison.update.both_wrong_different == 1
    assert (comparison.update.missing_answers_old, comparison.update.missing_answers_new) == (2, 1)
    assert comparison.notes == ("missing answers: 2 in old, 1 in new; missing counts as an answer of its own",)


def test_three_logs_share_one_set_of_items(write_rows: WriteRows) -> None:
    old = write_rows("old.jsonl", rows(a=1, b=1, c=1, d=0))
    new = write_rows("new.jsonl", rows(a=0, b=0, c=1, d=0))
    compatible = write_rows("compatible.jsonl", rows(b=1, c=0, d=None))
    comparison = compare(old, new, compatible)
    assert comparison.compatible is not None
    assert comparison.alignment is not None
    assert comparison.update.n == comparison.compatible.n == comparison.alignment.n == 2
    assert (comparison.update.negative_flips, comparison.compatible.negative_flips) == (1, 1)
    assert (comparison.alignment.fixed, comparison.alignment.made, comparison.alignment.mid_p) == (1, 1, 0.75)
    assert comparison.update.unscored == comparison.compatible.unscored == 1
    assert "items of old and new left out because another log lacks them: 1" in comparison.notes


def test_tasks_that_only_one_log_has(tmp_path: Path, write_rows: WriteRows) -> None:
    for side, tasks in (("old", "xy"), ("new", "yz")):
        for task in tasks:
            write_rows(f"{side}/{task}.jsonl", rows(a=1))
    comparison = compare(tmp_path / "old", tmp_path / "new")
    assert list(comparison.tasks) == ["y"]
    assert comparison.notes[:2] == (
        "tasks of old left out because not every log has them: 'x'",
        "tasks of new left out because not every log has them: 'z'",
    )


def test_a_file_without_a_task_name_takes_the_other_s(tmp_path: Path, write_rows: WriteRows) -> None:
    write_rows("old/piqa.jsonl", rows(a=1))
    comparison = compare(tmp_path / "old", write_rows("whatever.jsonl", rows(a=0)))
    assert list(comparison.tasks) == ["piqa"]
    assert comparison.update.negative_flips == 1


def test_logs_without_a_common_task(tmp_path: Path, write_rows: WriteRows) -> None:
    write_rows("old/x.jsonl", rows(a=1))
    write_rows("new/y.jsonl", rows(a=1))
    held = r"no task in common: old \(.*/old\) has 'x'; new \(.*/new\) has 'y'"
    with pytest.raises(PairingError, match=f"{held}; name logs of the same tasks, or name the files themselves$"):
        compare(tmp_path / "old", tmp_path / "new")
    write_rows("new/z.jsonl", rows(a=1))  # now it is no longer a matter of one file's name
    with pytest.raises(PairingError, match=r"name logs of the same tasks$"):
        compare(tmp_path / "old", tmp_path / "new")


def lm_eval(write_rows: WriteRows, name: str, **fields: Any) -> Path:
    row = {"doc_id": 0, "filtered_resps": ["x"], "filter": "none", "metrics": ["acc"], "acc": 1, "target": "t"}
    return write_rows(name, [row | fields])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"metrics": ["em"], "em": 1},
            r"different metrics \(old \(.*old.jsonl\) by acc, new \(.*new.jsonl\) by em\); choose one with --metric",
        ),
        (
            {"filter": "strict"},
            r"different filters \(old \(.*old.jsonl\) by none, new \(.*\) by strict\); choose one with --filter",
        ),
    ],
)
def test_logs_judged_differently_are_not_compared(write_rows: WriteRows, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(PairingError, match=message):
        compare(lm_eval(write_rows, "old.jsonl"), lm_eval(write_rows, "new.jsonl", **fields))


@pytest.mark.parametrize(
    ("old", "new", "sign"),
    [
        ({"doc_hash": "a" * 64}, {"doc_hash": "b" * 64, "target": "u"}, "doc_hash"),
        ({"doc_hash": "a" * 64}, {"target": "u"}, "target"),
    ],
)
def test_one_id_for_different_items_is_warned_of(
    write_rows: WriteRows, old: dict[str, str], new: dict[str, str], sign: str
) -> None:
    notes = compare(lm_eval(write_rows, "old.jsonl", **old), lm_eval(write_rows, "new.jsonl", **new)).notes
    assert len(notes) == 1
    assert notes[0].startswith(f"WARNING: {sign} differs between old and new for 1 of 1 paired ids ('0')")


def test_a_table_and_a_samples_log_can_be_compared(write_rows: WriteRows) -> None:
    table = write_rows("new.jsonl", [{"id": "0", "correct": False, "answer": "y", "target": "t"}])
    assert compare(lm_eval(write_rows, "old.jsonl"), table).update.negative_flips == 1


def test_missing_items_as_an_error(write_rows: WriteRows) -> None:
    old, new = write_rows("old.jsonl", rows(a=1, b=1)), write_rows("new.jsonl", rows(a=1))
    with pytest.raises(PairingError, match=r"ids of old that new lacks: 1 of 2 \('b'\); evaluate the missing"):
        compare(old, new, missing="error")
    assert compare(new, new, missing="error").update.n == 1


def test_missing_items_as_wrong_answers(write_rows: WriteRows) -> None:
    old = write_rows("old.jsonl", rows(a=1, b=1, c=0, d=None))
    new = write_rows("new.jsonl", rows(a=1, e=1))
    comparison = compare(old, new, missing="wrong")
    update = comparison.update
    assert (update.n, update.unscored, update.only_old, update.only_new) == (4, 1, 3, 1)
    assert (update.both_right, update.negative_flips, update.positive_flips, update.both_wrong) == (1, 1, 1, 1)
    assert "items that a log lacks, and that count as wrong there (--missing wrong): 4" in comparison.notes


def test_missing_tasks_as_an_error(tmp_path: Path, write_rows: WriteRows) -> None:
    for file in ("old/x.jsonl", "old/y.jsonl", "new/x.jsonl"):
        write_rows(file, rows(a=1))
    with pytest.raises(PairingError, match=r"tasks of old left out .*: 'y'; evaluate them, or choose --missing drop"):
        compare(tmp_path / "old", tmp_path / "new", missing="error")


def test_missing_tasks_as_wrong_answers(tmp_path: Path, write_rows: WriteRows) -> None:
    for file in ("old/x.jsonl", "old/y.jsonl", "new/x.jsonl"):
        write_rows(file, rows(a=1, b=0))
    comparison = compare(tmp_path / "old", tmp_path / "new", missing="wrong")
    assert list(comparison.tasks) == ["x", "y"]
    assert (comparison.update.n, comparison.update.negative_flips, comparison.update.only_old) == (4, 1, 2)


def test_changed_items_are_counted(write_rows: WriteRows) -> None:
    old = write_rows("old.jsonl", [{"id": i, "correct": 1, "target": "t"} for i in range(3)])
    new = write_rows("new.jsonl", [{"id": i, "correct": 1, "target": "t" * (i + 1)} for i in range(3)])
    assert [task.changed for task in compare(old, new, compatible=old).items] == [{"new": 2, "compatible": 0}]


def test_equal_notes_of_several_tasks_are_one(tmp_path: Path, write_rows: WriteRows) -> None:
    for task in ("x", "y"):
        write_rows(f"old/{task}.jsonl", rows(a=1, b=0))
        write_rows(f"new/{task}.jsonl", rows(a=1))
    notes = compare(tmp_path / "old", tmp_path / "new").notes
    assert notes[0] == "2 tasks (x, ...): ids of old that new lacks: 1 of 2 ('b')"


def test_what_unscored_items_could_do_to_the_nfr(write_rows: WriteRows) -> None:
    """a flips for certain; b, c and d may; e cannot, whatever its missing outcome is."""
    old = write_rows("old.jsonl", rows(a=1, b=1, c=None, d=None, e=0, f=1))
    new = write_rows("new.jsonl", rows(a=0, b=None, c=None, d=0, e=None, f=1))
    update = compare(old, new).update
    assert (update.n, update.unscored, update.nfr.value) == (2, 4, 0.5)
    assert update.nfr_bounds == (1 / 6, 4 / 6)


def draws(**outcomes: str) -> list[dict[str, Any]]:
    return [
        {"id": item, "draw": draw, "correct": int(outcome), "answer": outcome}
        for item, column in outcomes.items()
        for draw, outcome in enumerate(column, 1)
        if outcome in "01"
    ]


def test_draws_pair_by_their_number(write_rows: WriteRows) -> None:
    old = write_rows("old.jsonl", draws(a="110", b="000"))
    new = write_rows("new.jsonl", draws(a="011", b="001"))
    comparison = compare(old, new)
    update = comparison.update
    assert (update.n, update.negative_flips, update.positive_flips, update.both_right) == (6, 1, 2, 1)
    assert (comparison.cluster, comparison.clusters, update.mcnemar_mid_p) == ("id", 2, None)
    assert comparison.repeats is not None
    assert (comparison.repeats.items, comparison.repeats.fewest_draws) == (2, 3)


def test_more_draws_in_one_log_count_for_reliable_changes_only(write_rows: WriteRows) -> None:
    old = write_rows("old.jsonl", draws(a="1" * 10, b="0" * 10))
    new = write_rows("new.jsonl", draws(a="0" * 12, b="0" * 12))
    comparison = compare(old, new, missing="wrong")
    assert (comparison.update.n, comparison.update.negative_flips, comparison.update.only_new) == (20, 10, 0)
    assert "draws without a partner in every log: 4; only the test for reliable changes uses them" in comparison.notes
    assert comparison.repeats is not None
    assert (comparison.repeats.reliable_regressions, comparison.repeats.reliable_gains) == (1, 0)


def test_draws_of_one_log_against_single_answers(write_rows: WriteRows) -> None:
    """The one answer pairs with the first draw, whatever number the log gives that."""
    old = write_rows("old.jsonl", rows(a=1))
    comparison = compare(old, write_rows("new.jsonl", draws(a="01")))
    assert (comparison.update.n, comparison.update.negative_flips) == (1, 1)
