"""The Comparison as JUnit XML, which CI systems show as test results: a test for every check of the gate.

Without a verdict nothing can fail, so every task is a test that passes and carries its numbers. Elements and attributes
are those that Jenkins knows (jenkinsci/xunit-plugin, junit-10.xsd), which are what GitLab and others read too.
"""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as Xml

from muscle import __version__
from muscle.errors import printable
from muscle.measure.gate import Check, Verdict
from muscle.measure.report.files import write_whole
from muscle.measure.report.text import number, percent, sentence, signature
from muscle.measure.results import Comparison, Measures


def to_junit(comparison: Comparison, verdict: Verdict | None = None) -> bytes:
    """Render as UTF-8 XML. A check that fails is a failure, one that is inconclusive is skipped."""
    name = "muscle compare" if verdict is None else "muscle gate"
    suite = Xml.Element("testsuite", name=name)
    properties = Xml.SubElement(suite, "properties")
    _property(properties, "signature", signature(comparison))
    _property(properties, "muscle", __version__)
    for role, source in comparison.inputs.items():
        _property(properties, role, source.path)
    if verdict is None:
        for task, measures in comparison.tasks.items():
            _text(_add(suite, "muscle.compare", task or "all items"), "system-out", _numbers(measures))
    else:
        _property(properties, "verdict", verdict.status)
        for check in verdict.checks:
            _add_check(suite, check, verdict.model)
    _text(suite, "system-out", [sentence(comparison.total), *comparison.notes])
    counts = {
        "tests": len(suite.findall("testcase")),
        "failures": len(suite.findall("testcase/failure")),
        "errors": 0,
        "skipped": len(suite.findall("testcase/skipped")),
    }
    suite.attrib |= {key: str(count) for key, count in counts.items()}
    suites = Xml.Element("testsuites", {key: value for key, value in suite.attrib.items() if key != "skipped"})
    suites.append(suite)
    Xml.indent(suites)
    document: bytes = Xml.tostring(suites, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def write_junit(comparison: Comparison, file: Path, verdict: Verdict | None = None) -> None:
    """Write `to_junit` to a file, whole or not at all.

    Raises:
        MuscleError: The file cannot be written, or one of the logs is read from it.
    """
    write_whole(comparison, file, to_junit(comparison, verdict))


def _add_check(suite: Xml.Element, check: Check, model: str) -> None:
    limit = "" if check.limit is None else f" {check.limit:g}"
    case = _add(suite, f"muscle.gate.{model}", f"{check.where}: {check.measure}{limit}")
    if check.status == "pass":
        _text(case, "system-out", [check.reason])
    elif check.status == "fail":
        _text(case, "failure", [check.reason], message=check.reason, type=check.measure)
    else:
        _text(case, "skipped", [], message=f"inconclusive: {check.reason}")


def _numbers(measures: Measures) -> Sequence[str]:
    lines = [sentence(measures)]
    for role, update in (("new", measures.update), ("compatible", measures.compatible)):
        if update and update.n == 0 and (smooth := update.smooth):  # a log that only grades
            means = f"mean score {number(smooth.mean_old)}, then {number(smooth.mean_new)}"
            sizes = f"m_g {number(smooth.mean_gain)}, m_r {number(smooth.mean_regression)}"
            lines.append(f"old to {role}: {smooth.n} graded items, {means}, {sizes}")
        elif update:
            accuracies = f"accuracy {percent(update.accuracy_old)}, then {percent(update.accuracy_new)}"
            lines.append(f"old to {role}: {update.n} items, {accuracies}, NFR {percent(update.nfr)}")
    return lines


def _add(suite: Xml.Element, classname: str, name: str) -> Xml.Element:
    return Xml.SubElement(suite, "testcase", classname=classname, name=printable(name), time="0")


def _property(properties: Xml.Element, name: str, value: str) -> None:
    Xml.SubElement(properties, "property", name=printable(name), value=printable(value))


def _text(parent: Xml.Element, tag: str, lines: Sequence[str], **attributes: str) -> None:
    """An element with lines of text, each of which may come from a log: XML knows no control characters at all."""
    element = Xml.SubElement(parent, tag, {key: printable(value) for key, value in attributes.items()})
    element.text = "\n".join(printable(line) for line in lines) or None
