"""Limits: what a file may say, and that whatever it must not say is an error with its place and the way out."""

import re
from pathlib import Path
from typing import Any

import pytest

from muscle.errors import MuscleError
from muscle.measure.limits import TEMPLATE, Budget, Limits, read_limits, write_template

FULL = """\
max_nfr: .02
max_relative_nfr: 5e-1
min_items: 500
model: compatible
inconclusive: fail
tasks:
  "*": {max_nfr: 0.05}
  gsm8k:
    max_nfr: 0.03
    min_items: 20
slices:
  doc.subject:
    no: {max_accuracy_drop: 0.1}
protected: [010, gsm8k/42, "a: b", 17.0]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "gate.yaml"


def test_everything_that_a_file_may_say(file: Path) -> None:
    file.write_text(FULL)
    assert read_limits(file) == Limits(
        max_nfr=0.02,
        max_relative_nfr=0.5,
        min_items=500,
        model="compatible",
        inconclusive="fail",
        tasks={"*": Budget(max_nfr=0.05), "gsm8k": Budget(max_nfr=0.03, min_items=20)},
        slices={"doc.subject": {"no": Budget(max_accuracy_drop=0.1)}},
        protected=("010", "gsm8k/42", "a: b", "17"),
    )


def test_names_and_ids_are_texts_whatever_yaml_takes_them_for(file: Path) -> None:
    file.write_text("protected: [0x10, 1_000, 2024-01-01, yes, 1:30]\ntasks: {on: {max_nfr: 1}, 12: {max_nfr: 1}}")
    limits = read_limits(file)
    assert limits.protected == ("0x10", "1_000", "2024-01-01", "yes", "1:30")
    assert list(limits.tasks) == ["on", "12"]


def test_protected_ids_from_a_file_beside_the_limits(file: Path) -> None:
    (file.parent / "ids.txt").write_text("# kept since June\n17\n\n gsm8k/42 \n")
    file.write_text("protected: ids.txt\n")
    assert read_limits(file).protected == ("17", "gsm8k/42")


def test_a_named_task_keeps_the_limits_on_all_tasks_that_it_does_not_replace() -> None:
    own, every = Budget(max_nfr=0.1), Budget(max_nfr=0.5, min_items=3)
    assert own.over(every) == Budget(max_nfr=0.1, min_items=3)


# What is wrong -> (the file, what the error says after the file's name).
ERRORS = {
    "an unknown key": ("min_items: 3\nmax_nrf: 0.1\n", ":2: max_nrf is no limit; did you mean max_nfr?"),
    "a far-off key": ("colour: red\n", ":1: colour is no limit; muscle gate --init writes a file with all of them"),
    "an unknown key of a task": (
        "tasks:\n  a:\n    max_nf: 1\n",
        ":3: tasks.a.max_nf is no limit; did you mean max_nfr?",
    ),
    "a key of the whole gate in a task": ("tasks: {a: {model: new}}", ":1: tasks.a.model is no limit; muscle gate"),
    "a percentage": ("max_nfr: 2 %\n", ":1: max_nfr is '2 %'; write a share between 0 and 1: 0.02 for 2 %"),
    "2 for 2 %": ("\nmax_nfr: 2\n", ":2: max_nfr is 2.0; write a share between 0 and 1: 0.02 for 2 %"),
    "a negative share": ("max_churn: -0.1\n", ":1: max_churn is -0.1; write a share between 0 and 1"),
    "not a number": ("max_nfr: nan\n", ":1: max_nfr is nan; write a share between 0 and 1"),
    "an infinite size": ("max_relative_nfr: inf\n", ":1: max_relative_nfr is inf; write a number of 0 or more"),
    "half an item": ("min_items: 1.5\n", ":1: min_items is 1.5; write a whole number of 1 or more"),
    "no value": ("max_nfr:\n", ":1: max_nfr has no single value; write a share between 0 and 1"),
    "a list": ("max_nfr: [0.1]\n", ":1: max_nfr has no single value; write a share between 0 and 1"),
    "a model": ("model: old\n", ":1: model is 'old'; write new or compatible"),
    "a treatment": ("inconclusive: maybe\n", ":1: inconclusive is 'maybe'; write report, pass or fail"),
    "what is missing of a slice": (
        "slices:\n  group:\n    a:\n      max_nfr: 0.1\n      max_missing: 0\n",
        ":5: slices.group.a.max_missing can never be decided, since the slice of a missing item is not known; set it "
        "at the top or under tasks",
    ),
    "a key twice": ("max_nfr: 0.1\nmax_nfr: 0.2\n", ":2: max_nfr occurs twice; keep one"),
    "a task twice": ("tasks:\n a: {max_nfr: 0}\n a: {max_nfr: 1}\n", ":3: tasks.a occurs twice; keep one"),
    "a task without limits": ("tasks:\n  a:\n", ":2: tasks.a sets no limit; write one below it, or delete it"),
    "tasks without keys": ("tasks: 3\n", ":1: tasks has no keys; write keys below it, each with its value"),
    "a list of limits": ("- max_nfr: 1\n", ":1: the file has no keys; write keys below it"),
    "protected nothing": ("protected:\n", ":1: protected is neither a list of ids nor the name of a file"),
    "protected lists": ("protected: [[a]]\n", ":1: protected holds something that is no id; write ids, or task/id"),
    "protected nowhere": ("protected: no.txt\n", ":1: protected names no.txt, which cannot be read (No such file"),
    "not YAML": ("max_nfr: 0.1\ntasks: [\n", ":3: not YAML (expected the node content"),
    "a control character": ("max_nfr: \x07\n", ": not YAML (unacceptable character #x0007"),
    "two documents": ("max_nfr: 1\n---\nmax_nfr: 1\n", ":2: not YAML (but found another document)"),
    "nested too deeply": ("[" * 5000, ": not YAML (maximum recursion depth exceeded"),
    "nothing": ("# all commented out\n", ": no limits in this file; start from the one that muscle gate --init writes"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_file_line_and_key(file: Path, case: str) -> None:
    content, message = ERRORS[case]
    file.write_text(content)
    with pytest.raises(MuscleError) as error:
        read_limits(file)
    assert str(error.value).startswith(f"{file}{message}")


def test_files_that_cannot_be_read(file: Path) -> None:
    with pytest.raises(
        MuscleError, match=r"cannot be read \(No such file or directory\); write one with muscle gate --in"
    ):
        read_limits(file)
    file.write_bytes(b"max_nfr: 0.1 # \xff")
    with pytest.raises(MuscleError, match=r"gate.yaml: not valid UTF-8; convert the file to UTF-8"):
        read_limits(file)
    (file.parent / "ids").write_bytes(b"\xff")
    file.write_text("protected: ids")
    with pytest.raises(MuscleError, match="names ids, which is not valid UTF-8"):
        read_limits(file)


def test_a_tag_makes_nothing(file: Path) -> None:
    file.write_text("model: !!python/object/apply:os.system [exit]\n")
    with pytest.raises(MuscleError, match="model has no single value"):
        read_limits(file)


def test_flags_override_the_file_and_alone_are_enough() -> None:
    file = Limits(max_nfr=0.1, max_churn=0.2, tasks={"a": Budget(max_nfr=0.3)})
    assert file.with_flags(max_nfr=0.05, max_churn=None, min_items=7) == Limits(
        max_nfr=0.05, max_churn=0.2, min_items=7, tasks={"a": Budget(max_nfr=0.3)}
    )
    assert Limits().with_flags(max_accuracy_drop=0.0) == Limits(max_accuracy_drop=0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"max_nfr": 2.0}, "--max-nfr is 2.0; write a share between 0 and 1: 0.02 for 2 %"),
        ({"max_accuracy_drop": float("nan")}, "--max-accuracy-drop is nan; write a share"),
        ({"max_mean_regression": float("inf")}, "--max-mean-regression is inf; write a number of 0 or more"),
        ({"min_items": 0}, "--min-items is 0; write a whole number of 1 or more"),
    ],
)
def test_flags_out_of_range(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(MuscleError, match=re.escape(message)):
        Limits().with_flags(**flags)


def test_the_template_is_a_limits_file_and_names_every_limit(file: Path) -> None:
    write_template(file)
    assert file.read_text() == TEMPLATE
    assert read_limits(file) == Limits(max_nfr=0.02, max_accuracy_drop=0.01)
    prose = re.compile(r"# [A-Z]")
    everything = "".join(line if prose.match(line) else line.removeprefix("# ") for line in TEMPLATE.splitlines(True))
    file.write_text(everything)
    limits = read_limits(file)
    unset = {name for name in Limits.__struct_fields__ if getattr(limits, name) == getattr(Limits(), name)}
    assert unset == {"inconclusive"}  # the template shows the default
    assert "inconclusive: report" in everything


def test_the_template_is_never_written_over_a_file(file: Path) -> None:
    file.write_text("mine")
    with pytest.raises(MuscleError, match="is there already; edit it, or name another file"):
        write_template(file)
    assert file.read_text() == "mine"
    with pytest.raises(MuscleError, match="cannot be written"):
        write_template(file / "below")
