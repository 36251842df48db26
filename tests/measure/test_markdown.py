"""Markdown for pull requests: the verdict first, never too long, and nothing from a log gets out of its cell."""

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from muscle.errors import MuscleError
from muscle.measure import Comparison, compare
from muscle.measure.gate import Check, Verdict, judge
from muscle.measure.limits import Budget, Limits
from muscle.measure.report.markdown import LIMIT, to_markdown, write_markdown
from muscle.measure.results import Estimate

from .test_gate import compared, rows

EVIL = (
    "a|b `c` *d* _e_ <script>alert(1)</script> <!-- x --> ![i](http://x.y/z.png) [l](javascript:0) @octocat #1 "
    "www.x.y a@b.cd ~~s~~ :smile: \\| \\ &lt; </code></details>\n\n# h\n- i\r\x1b[31m\u202e\u200b\ud800 org/repo@0a1b"
)
# What this module itself may write; everything else must have come out as text.
TAGS = {
    "h3",
    "p",
    "strong",
    "code",
    "details",
    "summary",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "ul",
    "li",
    "sub",
}


class Page(HTMLParser):
    """Tags met, and the text outside and inside of code."""

    def __init__(self, markdown: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.plain, self.code = "", ""
        self._depth = 0
        self.feed(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._depth += tag == "code"
        assert all(name == "style" for name, _ in attrs)  # how columns are aligned

    def handle_endtag(self, tag: str) -> None:
        self._depth -= tag == "code"
        assert self._depth >= 0

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    def handle_data(self, data: str) -> None:
        if self._depth:
            self.code += data
        else:
            self.plain += data


def columns(markdown: str) -> list[int]:
    """Number of cells in each row of every table, as GitHub would split them."""
    return [len(re.findall(r"(?<!\\)\|", line)) for line in markdown.splitlines() if line.startswith("|")]


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compared(rows(60, 10, 20, 30, task="sums"), rows(40, task="words"))


def test_the_verdict_comes_first(comparison: Comparison) -> None:
    limits = Limits(max_nfr=0.2, max_accuracy_drop=0.5, tasks={"words": Budget(min_items=50, max_nfr=0.01)})
    lines = to_markdown(comparison, judge(comparison, limits)).splitlines()
    assert lines[:3] == [
        "### muscle gate: **INCONCLUSIVE**",
        "",
        "4 checks of the new model against the old one: 2 undecided with these items.",
    ]
    table = [line for line in lines if line.startswith("|")][:6]
    assert [line.split("|")[-2].strip().split(":")[0] for line in table[2:]] == [
        "**inconclusive**",
        "**inconclusive**",
        "pass",
        "pass",
    ]
    assert table[2] == (
        "| <code>n</code> ≥ 50 | <code>task words</code> | 40 "
        "| **inconclusive**: 40 items are paired and scored, of at least 50 |"
    )
    assert to_markdown(comparison, judge(comparison, Limits(max_nfr=0.5))).startswith("### muscle gate: **PASS**\n")
    failed = to_markdown(comparison, judge(comparison, Limits(max_nfr=0.001)))
    assert "\n1 check of the new model against the old one: 1 failed.\n" in failed
    assert "| <code>nfr</code> ≤ 0.10 % | <code>all items</code> | 6.25 % [" in failed


def test_limits_in_their_units(comparison: Comparison) -> None:
    estimate = Estimate(0.5, 0.25, 0.75)
    checks = tuple(
        Check(measure, "all items", 0.125, estimate, "fail", "so", None)
        for measure in ("nfr", "accuracy_change", "mean_regression", "relative_nfr")
    )
    lines = to_markdown(comparison, Verdict("fail", checks)).splitlines()
    assert [line.split(" | ")[0::2] for line in lines if "all items" in line] == [
        ["| <code>nfr</code> ≤ 12.50 %", "50.00 % [25.00, 75.00]"],
        ["| <code>accuracy&#95;change</code> > +12.50 pp", "+50.00 pp [+25.00, +75.00]"],
        ["| <code>mean&#95;regression</code> ≤ 0.1250", "0.5000 [0.2500, 0.7500]"],
        ["| <code>relative&#95;nfr</code> ≤ 12.50 %", "50.00 % [25.00, 75.00]"],
    ]


def test_a_comparison_without_a_gate(comparison: Comparison) -> None:
    text = to_markdown(comparison)
    assert text.startswith(
        "### muscle compare\n\nOf 110 answers that were right, 10 became wrong (9.1 %); 20 wrong ones"
    )
    assert "\n| items | 160 |\n" in text
    assert "\n| NFR | 6.25 % [" in text
    assert "\n| <code>sums</code> | 120 | 58.33 | 66.67 | 8.33 | 16.67 |\n" in text
    assert "<summary>Negative flips of the new model: 10</summary>\n\n- <code>sums&#47;60</code>\n" in text
    assert re.search(r"<sub>90 % intervals .* <code>muscle&#58;.*seed&#58;0.*</code></sub>\n$", text)


def test_three_logs_and_scores() -> None:
    old, new = rows(8, 2, score=0.5)
    three = compared((old, [{**row, "score": 0.25} for row in new]), compatible=old)
    text = to_markdown(three, judge(three, Limits(max_nfr=1)))
    assert "|  | old → new | old → compatible |\n" in text
    assert "\n| better, worse | 0, 10 | 0, 0 |\n" in text
    assert "1 check of the compatible model against the old one: all hold." in text
    assert "Negative flips" not in text  # the compatible model has none
    assert "Negative flips of the new model: 2" in to_markdown(three)


def test_a_log_that_only_grades() -> None:
    graded = [{"id": i, "score": i / 10, "correct": None} for i in range(9)]
    text = to_markdown(compare(graded, [{**row, "score": 0.2} for row in graded]))
    assert "\n| items | 9 |\n" in text
    assert "accuracy" not in text


def test_tasks_and_slices_that_are_only_graded() -> None:
    """Beside those that are judged right or wrong, which are in percent."""
    old = [{"id": i, "score": 0.5, "correct": None, "task": "a", "kind": "x"} for i in range(4)]
    new = [{**row, "score": score} for row, score in zip(old, (0.75, 0.25, 0.0, 0.5), strict=True)]
    text = to_markdown(compared((old, new), rows(8, 2, task="b"), slices=["kind"]))
    header = "|  | N graded | mean before | mean after | m_g | m_r |"
    assert f"\n**By task, scores**\n\n{header}\n" in text
    assert "\n| <code>a</code> | 4 | 0.5000 | 0.3750 | 0.2500 | 0.3750 |\n" in text
    assert "\n**By task, in percent**\n\n|  | N | old | new | NFR | PFR |\n" in text
    assert "\n| <code>b</code> | 10 | 100.00 | 80.00 | 20.00 | 0.00 |\n" in text
    assert f"\n**By <code>kind</code>, scores**\n\n{header[:-1]}| q |\n" in text
    assert "<code>a</code> | 0 |" not in text


def test_flips_of_draws_and_how_many_are_named() -> None:
    old = [{"id": item, "correct": 1} for item in "abc" for _ in range(2)]
    flipped = compare(old, [{**row, "correct": 0} for row in old], duplicates="draws")
    text = to_markdown(flipped, max_items=2)
    assert (
        "Negative flips of the new model: 6</summary>\n\n- <code>a</code>, draw 0\n- <code>a</code>, draw 1\n" in text
    )
    assert "\n4 more are not shown here.\n" in text


def evil_comparison(text: str) -> Comparison:
    """A text of a log in every place that takes one."""
    pairs = [rows(2, 2, task=text, group=text), rows(1, 1, task="plain")]
    for side in pairs[0]:
        for row in side:
            row["id"] = f"{row['id']}{text}"
    comparison = compared(*pairs, slices=["group"])
    return dataclasses.replace(comparison, notes=(f"a note {text}", f"WARNING: {text}"))


def evil_verdict(comparison: Comparison, text: str) -> Verdict:
    tasks = {"*": Budget(max_nfr=0.1), text + "?": Budget(max_nfr=0.1)}
    slices = {"group": {"*": Budget(max_nfr=0.1), text + "?": Budget(max_nfr=0.1)}}
    return judge(comparison, Limits(tasks=tasks, slices=slices, protected=(f"3{text}", text)))


def test_nothing_in_a_log_is_markdown_or_html() -> None:
    comparison, plain = evil_comparison(EVIL), evil_comparison("text")
    text = to_markdown(comparison, evil_verdict(comparison, EVIL))
    page, harmless = Page(text), Page(to_markdown(plain, evil_verdict(plain, "text")))
    assert page.tags == harmless.tags <= TAGS
    assert page.plain == harmless.plain
    assert columns(text) == columns(to_markdown(plain, evil_verdict(plain, "text")))
    assert EVIL[:60] in page.code
    assert "alert&#40;1&#41;" in text
    assert not re.search("(?<!&)#", text.replace("### muscle", ""))
    for dangerous in ("@", "www.", "http:", "<script", "\x1b", "\u202e", "\u200b", "\r"):
        assert dangerous not in text
    text.encode()


@settings(deadline=None, max_examples=50)
@given(st.text().map(lambda text: text + "q"))
def test_any_text_at_all(text: str) -> None:
    """What Markdown and HTML make of it is the same as of a harmless text."""
    comparison, plain = evil_comparison(text), evil_comparison("text")
    markdown = to_markdown(comparison, evil_verdict(comparison, text))
    assert Page(markdown).plain == Page(to_markdown(plain, evil_verdict(plain, "text"))).plain
    markdown.encode()


def test_a_comment_is_never_too_long() -> None:
    """A thousand tasks with long names, and as many checks and flips: what is left out is counted."""
    name = "<" * 80
    pairs = [rows(3, 2, task=f"{i:04}{name}") for i in range(400)]
    comparison = compared(*pairs)
    verdict = judge(comparison, Limits(max_nfr=0.1, tasks={"*": Budget(max_nfr=0.1)}))
    text = to_markdown(comparison, verdict, max_items=10_000)
    assert 0.9 * LIMIT < len(text) <= LIMIT
    assert text.startswith("### muscle gate: **FAIL**")
    assert text.endswith("</sub>\n")
    assert Page(text).tags <= TAGS
    assert text.count("<details>") == text.count("</details>")
    left_out = re.findall(r"\n(\d+) more are not shown here\.", text)
    assert text.count("| <code>nfr</code> ≤") + int(left_out[0]) == len(verdict.checks) == 401


def test_long_tables_are_folded() -> None:
    def text(tasks: int) -> str:
        return to_markdown(compared(*(rows(2, task=str(i)) for i in range(tasks))))

    assert "\n**By task, in percent**\n" in text(10)
    assert "<details><summary>By task, in percent</summary>\n\n|" in text(11)


def test_real_logs(data: Path, tmp_path: Path) -> None:
    folder = data / "logs" / "lmeval_0.4.12_mmlu_qwen2.5_0shot_vs_5shot"
    comparison = compare(folder / "0shot", folder / "5shot")
    write_markdown(comparison, tmp_path / "comment.md", max_items=3)
    text = (tmp_path / "comment.md").read_text()
    assert text == to_markdown(comparison, max_items=3)
    assert "| NFR | 7.50 % [5.30, 10.50] |" in text
    assert "Negative flips of the new model: 30</summary>" in text
    assert "\n27 more are not shown here.\n" in text
    with pytest.raises(MuscleError, match="belongs to the old log"):
        write_markdown(comparison, next((folder / "0shot").rglob("samples_*")))
