"""JUnit XML: what CI systems take for test results."""

import dataclasses
import re
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muscle.errors import MuscleError
from muscle.measure import Comparison, compare
from muscle.measure.gate import judge
from muscle.measure.limits import Budget, Limits
from muscle.measure.report.junit import to_junit, write_junit
from muscle.measure.report.text import signature

from .test_gate import compared, rows
from .test_markdown import EVIL, evil_comparison, evil_verdict

# Jenkins's schema, jenkinsci/xunit-plugin junit-10.xsd, as far as it concerns us:
# element -> (attributes it must have, attributes it may have, elements it may hold).
SCHEMA: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": (set(), {"name", "time", "tests", "failures", "errors"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors"},
        {"group", "time", "skipped", "timestamp", "hostname", "id", "package", "file", "log", "url"},
        {"testsuite", "properties", "testcase", "system-out", "system-err"},
    ),
    "properties": (set(), set(), {"property"}),
    "property": ({"name", "value"}, set(), set()),
    "testcase": ({"name"}, {"time", "classname", "group"}, {"skipped", "error", "failure", "system-out", "system-err"}),
    "failure": (set(), {"type", "message"}, set()),
    "skipped": (set(), {"type", "message"}, set()),
    "system-out": (set(), set(), set()),
}


def parsed(document: bytes) -> Xml.Element:
    """The root, valid by the schema, with counts that are right."""
    root = Xml.fromstring(document)
    assert root.tag == "testsuites"
    for element in root.iter():
        required, optional, children = SCHEMA[element.tag]
        assert required <= element.attrib.keys() <= required | optional
        assert {child.tag for child in element} <= children
    (suite,) = root
    for attribute, tag in (("tests", "testcase"), ("failures", "testcase/failure"), ("skipped", "testcase/skipped")):
        assert suite.get(attribute) == str(len(suite.findall(tag)))
    assert (root.get("tests"), root.get("failures")) == (suite.get("tests"), suite.get("failures"))
    return suite


def properties(suite: Xml.Element) -> dict[str | None, str | None]:
    return {entry.get("name"): entry.get("value") for entry in suite.findall("properties/property")}


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compared(rows(60, 10, 20, 30, task="sums"), rows(40, task="words"))


def test_a_test_for_every_check(comparison: Comparison) -> None:
    limits = Limits(max_nfr=0.001, max_accuracy_drop=0.5, tasks={"words": Budget(max_nfr=0.01)})
    suite = parsed(to_junit(comparison, judge(comparison, limits)))
    cases = [
        (case.get("classname"), case.get("name"), [child.tag for child in case]) for case in suite.iter("testcase")
    ]
    assert cases == [
        ("muscle.gate.new", "all items: nfr 0.001", ["failure"]),
        ("muscle.gate.new", "all items: accuracy_change -0.5", ["system-out"]),
        ("muscle.gate.new", "task words: nfr 0.01", ["skipped"]),
    ]
    failure, skipped = suite.find("testcase/failure"), suite.find("testcase/skipped")
    assert failure is not None
    assert skipped is not None
    assert failure.attrib == {"message": "at least 3.77 %", "type": "nfr"}
    assert skipped.get("message", "").startswith("inconclusive: between 0.00 % and 6.34 %; about 268 items")
    assert properties(suite) == {
        "signature": signature(comparison),
        "muscle": signature(comparison).split("|")[0].removeprefix("muscle:"),
        "old": "<list>",
        "new": "<list>",
        "verdict": "fail",
    }


def test_without_a_verdict_every_task_passes_with_its_numbers(comparison: Comparison) -> None:
    suite = parsed(to_junit(comparison))
    assert suite.get("failures") == suite.get("skipped") == "0"
    assert [case.get("name") for case in suite.iter("testcase")] == ["sums", "words"]
    text = suite.findtext("testcase/system-out", "")
    assert text.startswith("Of 70 answers that were right, 10 became wrong (14.3 %); 20 wrong ones became right.\n")
    assert "\nold to new: 120 items, accuracy 58.33 % [" in text
    assert "verdict" not in properties(suite)
    (case,) = parsed(to_junit(compared(rows(3)))).iter("testcase")
    assert case.get("name") == "all items"


def test_the_compatible_model_has_numbers_and_checks_of_its_own() -> None:
    old, new = rows(80, 20)
    three = compared((old, new), compatible=old)
    assert "\nold to compatible: 100 items" in parsed(to_junit(three)).findtext("testcase/system-out", "")
    (case,) = parsed(to_junit(three, judge(three, Limits(max_nfr=0.1)))).iter("testcase")
    assert case.get("classname") == "muscle.gate.compatible"


def test_a_log_that_only_grades() -> None:
    old = [{"id": i, "score": 0.5} for i in range(4)]
    new = [{**row, "score": score} for row, score in zip(old, (0.75, 0.25, 0.0, 0.5), strict=True)]
    text = parsed(to_junit(compare(old, new))).findtext("testcase/system-out", "")
    line = next(line for line in text.splitlines() if line.startswith("old to new: "))
    assert re.fullmatch(
        r"old to new: 4 graded items, mean score 0\.5000 .*, then 0\.3750 .*, m_g 0\.2500.*, m_r 0\.3750.*", line
    )


def assert_text_arrives(text: str) -> None:
    comparison = evil_comparison(text)
    suite = parsed(to_junit(comparison, evil_verdict(comparison, text)))
    plain = evil_comparison("text")
    harmless = parsed(to_junit(plain, evil_verdict(plain, "text")))
    assert [element.tag for element in suite.iter()] == [element.tag for element in harmless.iter()]
    parsed(to_junit(comparison))


def test_no_text_of_a_log_breaks_the_xml() -> None:
    """XML 1.0 has no control characters but tab and line breaks, not even escaped, and no surrogates or U+FFFE."""
    assert_text_arrives(EVIL + "\0\x08\x7f\x85\ufffe\uffff]]>&#0;")


@settings(deadline=None, max_examples=50)
@given(st.text().map(lambda text: text + "q"))
def test_any_text_at_all(text: str) -> None:
    assert_text_arrives(text)


def test_names_stay_readable() -> None:
    suite = parsed(to_junit(dataclasses.replace(compared(rows(2, task="a<b> & \"c\" 'd' é")), notes=("x\0y",))))
    (case,) = suite.iter("testcase")
    assert case.get("name") == "a<b> & \"c\" 'd' é"
    assert suite.findtext("system-out", "").endswith("\nx\\x00y")


def test_real_logs(data: Path, tmp_path: Path) -> None:
    folder = data / "logs" / "lmeval_0.4.12_mmlu_qwen2.5_0shot_vs_5shot"
    comparison = compare(folder / "0shot", folder / "5shot")
    write_junit(comparison, tmp_path / "junit.xml")
    suite = parsed((tmp_path / "junit.xml").read_bytes())
    assert suite.get("tests") == "4"
    with pytest.raises(MuscleError, match="belongs to the old log"):
        write_junit(comparison, next((folder / "0shot").rglob("samples_*")))
