"""The HTML page without a browser: what it holds, that it needs nothing else, that no text of a log acts in it."""

import base64
import dataclasses
import hashlib
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muscle.measure import compare
from muscle.measure.gate import Check, Verdict
from muscle.measure.predictions import Texts
from muscle.measure.report.html import to_html, write_html
from muscle.measure.report.page.instances import ALIGNMENTS, QUADRANTS, choose, collect
from muscle.measure.report.page.packing import BLOCK, LIMITS, pack, pack_texts, shorten, snippet, without_shared_head
from muscle.measure.report.page.pictures import Axis, fourfold, histogram
from muscle.measure.results import Comparison, Estimate

from ..command import muscle
from .pages import make_comparison

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "<!--<script>",
    "\u202eesrever\u2066",
    "\u2028\u2029\x00",
    "half a pair \ud800",
)


class Reader(HTMLParser):
    """All elements of a page with their attributes, and the texts of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.contents: dict[str, list[str]] = {"script": [], "style": [], "title": []}
        self._inside = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag in self.contents:
            self.contents[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in self.contents:
            self.contents[self._inside][-1] += data


def unpack(packed: str) -> Any:
    return json.loads(zlib.decompress(base64.b64decode(packed)))


def read(comparison: Comparison, verdict: Verdict | None = None) -> tuple[str, Reader]:
    page = to_html(comparison, verdict).decode()
    return page, Reader(page)


def full(n: int = 60, **others: Any) -> Comparison:
    return make_comparison(n, compatible=True, smooth=True, slices=True, controls=True, repeats=True, **others)


def hostile_comparison() -> Comparison:
    """Every text that a log decides is hostile."""
    every = " ".join(HOSTILE)
    found = full(
        40,
        tasks=[f"task {every}", "plain"],
        notes=[f"note {every}", f"WARNING: {every}"],
        path=f"{{role}} {every.replace('{', '{{').replace('}', '}}')}",
        ids=lambda i: f"{HOSTILE[i % len(HOSTILE)]} {i}",
        answer=lambda role, item, _: Texts(f"in {every}", f"target {every}", f"{role} {item} {every}"),
    )
    slices = [dataclasses.replace(part, value=every, column=every) for part in found.slices[:1]]
    items = [dataclasses.replace(task, labels={every: [every] * len(task.ids)}) for task in found.items]
    return dataclasses.replace(found, slices=slices, items=items)


@pytest.mark.parametrize(
    "comparison",
    [
        pytest.param(make_comparison(), id="two logs"),
        pytest.param(full(), id="everything"),
        pytest.param(make_comparison(1), id="one item"),
        pytest.param(make_comparison(0), id="no item"),
        pytest.param(make_comparison(scored=False), id="nothing scored"),
        pytest.param(make_comparison(scored=False, smooth=True, compatible=True), id="only graded"),
        pytest.param(make_comparison(draws=3), id="several draws"),
        pytest.param(make_comparison(tasks=[""]), id="a task without a name"),
        pytest.param(make_comparison(answer=lambda *_: Texts(None, None, None)), id="no texts"),
        pytest.param(hostile_comparison(), id="hostile"),
    ],
)
def test_the_page_needs_nothing_else(comparison: Comparison) -> None:
    page, reader = read(comparison)
    attributes = [pair for _, found in reader.elements for pair in found.items()]
    links = [value for name, value in attributes if name in ("href", "src", "action")]
    assert all(link == "data:," or (link or "").startswith("#") for link in links)
    assert not [name for name, _ in attributes if name == "style" or name.startswith("on")]
    names = [name for name, _ in reader.elements]
    assert not {"link", "iframe", "object", "embed", "img", "base"} & set(names) - {"link"}
    policy = next(found["content"] or "" for name, found in reader.elements if "http-equiv" in found)
    for kind in ("script", "style"):
        parts = zip([found for name, found in reader.elements if name == kind], reader.contents[kind], strict=True)
        for found, content in parts:
            if found.get("type", "module") == "module":
                digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
                assert f"'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert page.count("<script") - page.count('type="text/plain"') - page.count("application/json") < 12


def test_texts_of_logs_never_become_markup() -> None:
    page, reader = read(hostile_comparison())
    shown = page[: page.index('<script type="application/json"')]
    assert "onerror" in shown
    assert "<img" not in shown
    assert not re.search(r"<(script|svg onload)", shown)
    assert "{{ 7 * 7 }}" in shown  # as it is: neither evaluated nor taken out
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u2028\u2029\x00]", page.replace("\n", ""))
    kinds = [found.get("type") for name, found in reader.elements if name == "script"]
    assert kinds == ["application/json", "text/plain", "text/plain", "module", "module"]


def test_the_same_comparison_gives_the_same_bytes() -> None:
    assert to_html(full()) == to_html(full())


def test_the_page_tells_every_number() -> None:
    comparison = full()
    page, _ = read(comparison)
    update, alignment = comparison.update, comparison.alignment
    assert alignment is not None
    for number in (update.negative_flips, update.positive_flips, update.both_right, alignment.fixed, alignment.made):
        assert re.search(rf"[>\s]{number}[<\s]", page)
    for expected in ("logs/old.jsonl", "muscle:", "seed 0", "law", "no value", "undefined", "old teacher", "0.0100"):
        assert expected in page


def test_undefined_is_not_zero() -> None:
    comparison = make_comparison()
    nothing = Estimate(None, None, None)
    update = dataclasses.replace(comparison.update, btc=nothing, relative_nfr=nothing)
    page, _ = read(dataclasses.replace(comparison, total=dataclasses.replace(comparison.total, update=update)))
    assert page.count('<span class="undefined">undefined</span>') == 2  # in the table
    assert "<b>undefined</b>" in page  # in the head


@pytest.mark.parametrize(
    ("statuses", "headline"),
    [
        (("pass",), "Pass: the limit holds."),
        (("pass", "pass"), "Pass: all 2 limits hold."),
        (("fail",), "Fail: the limit is broken."),
        (("pass", "fail", "inconclusive"), "Fail: 1 of 3 limits broken."),
        (("pass", "inconclusive"), "Inconclusive: 1 of 2 limits cannot be decided with these items."),
    ],
)
def test_a_verdict_stands_first(statuses: tuple[Any, ...], headline: str) -> None:
    checks = tuple(Check("nfr", "all <b>", 0.02, Estimate(0.03, 0.02, 0.04), s, f"why {s}", 1234) for s in statuses)
    status: Any = next(s for s in ("fail", "inconclusive", "pass") if s in statuses)
    page, reader = read(make_comparison(), Verdict(status, checks))
    assert headline in reader.contents["title"][0]
    assert f'<h1 id="headline">{headline}</h1>' in page
    assert "Of 2" in page  # the sentence still stands below
    assert all(f"why {s}" in page for s in statuses)
    assert "all &lt;b&gt;" in page
    assert "1,234" in page


def test_the_kinds_of_instances_are_those_that_the_measures_count() -> None:
    comparison = full(400)
    held = collect(comparison, 10**6, 10**7)
    update, alignment = comparison.update, comparison.alignment
    assert alignment is not None
    assert update.smooth is not None
    counts = {kind.name: count for kind, count in held.quadrants.items()}
    assert counts["negative_flip"] == update.negative_flips
    assert counts["positive_flip"] == update.positive_flips
    assert counts["both_wrong_different"] == update.both_wrong_different
    assert counts["both_wrong"] + counts["both_wrong_different"] == update.both_wrong
    assert counts["both_right"] + counts.get("both_right_different", 0) == update.both_right
    assert counts["unscored"] == update.unscored > 0
    given = {kind.name: count for kind, count in held.alignments.items()}
    assert given["fixed"] == alignment.fixed > 0
    assert given["made"] == alignment.made > 0
    assert given["fixed"] + given["kept"] == update.negative_flips
    assert given["learnt"] == alignment.learnt > 0
    assert given["inherited"] == alignment.inherited > 0
    assert given["forgotten"] + given["inherited"] == alignment.forgotten
    assert held.graded == {"worse": update.smooth.regressions, "better": update.smooth.gains}


def test_columns_and_texts_come_back_as_they_were() -> None:
    comparison = full(400)
    held = collect(comparison, 10**6, 10**7)
    columns = unpack(held.columns)
    ids = [item for task in comparison.items for item in task.ids]
    assert columns["ids"] == ids
    assert columns["tasks"] == ["sums", "scenes"]
    assert [QUADRANTS[code].name for code in columns["quadrant"]].count(
        "negative_flip"
    ) == comparison.update.negative_flips
    assert len(ALIGNMENTS) > max(columns["alignment"]) > 0
    subject = columns["slices"]["subject"]
    assert [subject["values"][i] for i in subject["index"]][:4] == ["algebra", "law", "history", None]
    assert columns["scores"]["old"][0] is None
    blocks = [unpack(block) for block in held.texts.blocks]
    row = BLOCK + 7
    answers = blocks[1]["columns"]["new"]["answer"]
    assert blocks[1]["texts"][answers[7]].startswith(f"The new model thinks long about {ids[row]} and gives a ")
    inputs = {role: blocks[1]["columns"][role]["input"][7] for role in ("old", "new", "compatible")}
    assert len(set(inputs.values())) == 1  # stored once


@given(st.lists(st.booleans(), max_size=300), st.integers(1, 100), st.integers(0, 3))
def test_flips_are_kept_before_others(flips: list[bool], limit: int, seed: int) -> None:
    chosen = choose(np.array(flips, dtype=np.bool_), limit, seed)
    assert len(chosen) == len(set(chosen.tolist())) == min(limit, len(flips))
    assert (np.diff(chosen) > 0).all()
    kept = sum(flips[row] for row in chosen.tolist())
    assert kept == min(sum(flips), len(chosen))
    assert (choose(np.array(flips, dtype=np.bool_), limit, seed) == chosen).all()


def test_a_sample_is_random_and_said() -> None:
    comparison = make_comparison(500)
    flips = comparison.update.negative_flips + comparison.update.positive_flips
    page = to_html(comparison, instances=flips + 100).decode()
    others = f"a random sample of 100 of the {1000 - flips} others (seed 0)."
    assert f"Of 1,000 instances this page holds all {flips} flips and {others}" in page
    page = to_html(comparison, instances=flips - 10).decode()
    assert f"a random sample of {flips - 10} of {flips} flips and none of the others (seed 0)" in page
    assert "this page holds" not in to_html(comparison).decode()


def test_only_graded_items_that_changed_are_kept_first() -> None:
    comparison = make_comparison(200, tasks=["sums"], scored=False, smooth=True)
    smooth = comparison.update.smooth
    assert smooth is not None
    assert collect(comparison, 10, 10**6).flips == smooth.gains + smooth.regressions


@pytest.mark.parametrize("size", [200_000, 60_000, 20_000, 8_000, 3_000])
def test_texts_are_shortened_to_what_fits(size: int) -> None:
    random = np.random.default_rng(0)
    noise = [base64.b64encode(random.bytes(2500)).decode() for _ in range(300)]  # 3,336 characters that hardly shrink
    texts = [[Texts(None, None, text)] for text in noise]
    packed = pack_texts(texts, [i % 10 == 0 for i in range(300)], ["old"], size)
    assert sum(map(len, packed.blocks)) <= size
    assert packed.limits in LIMITS
    assert packed.limits[0] >= packed.limits[1]
    assert packed.cut == 300


def test_short_texts_are_left_whole() -> None:
    packed = pack_texts([[Texts("in", None, "")]] * 3, [False] * 3, ["old"], 10_000)
    assert packed.cut == 0
    assert unpack(packed.blocks[0]) == {
        "texts": ["in", ""],
        "columns": {"old": {"input": [0, 0, 0], "target": [-1, -1, -1], "answer": [1, 1, 1]}},
    }


def test_a_shortened_text_keeps_both_ends() -> None:
    assert shorten("a" * 10 + "b" * 100 + "c" * 20, 30) == "a" * 10 + " [...] " + "c" * 20
    assert shorten("short", 30) == "short"
    assert shorten("gone", 0) == " [...] "


def test_snippets() -> None:
    assert snippet(None, 9) is None
    assert snippet(" two\n\nlines ", 9) == "two lines"
    assert snippet("much longer", 4) == "much…"
    assert without_shared_head(["Do it. One", None, "Do it. Other", ""]) == ["One", None, "Other", ""]
    assert without_shared_head(["the same", "the same"]) == ["the same", "the same"]
    assert without_shared_head([]) == []


@given(st.recursive(st.none() | st.text() | st.integers(-(2**40), 2**40), lambda inner: st.lists(inner)))
def test_what_is_packed_is_what_is_unpacked(document: Any) -> None:
    assert unpack(pack(document)) == document


def test_areas_of_the_quadrants_are_as_the_counts() -> None:
    update = make_comparison(400).update
    areas = {square.name: square.side**2 for square in fourfold(update, 150.0)}
    counts = {
        "both_right": update.both_right,
        "negative_flip": update.negative_flips,
        "positive_flip": update.positive_flips,
        "both_wrong": update.both_wrong,
    }
    for name, count in counts.items():
        assert areas[name] / 150**2 == pytest.approx(count / max(counts.values()))
    wrong = next(square for square in fourfold(update, 150.0) if square.name == "both_wrong")
    assert wrong.inner / wrong.side == pytest.approx(update.both_wrong_different / update.both_wrong)


@given(st.lists(st.floats(-1e6, 1e6), max_size=9), st.integers(2, 6))
def test_an_axis_holds_its_values_and_has_round_ends(values: list[float], ticks: int) -> None:
    axis = Axis.around(values, ticks=ticks)
    assert axis.low < axis.high
    slack = 1e-8 * (axis.high - axis.low)
    assert all(axis.low - slack <= v <= axis.high + slack for v in values)
    assert len(axis.ticks) <= 2 * ticks + 2
    assert axis.at(axis.low) == 0
    assert axis.at(axis.high) == 1


def test_a_histogram_counts_every_change_once() -> None:
    changes = np.array([-0.5, -0.5, -0.1, 0.0, 0.0, 0.05, 0.3, 1.0])
    found = histogram(changes, 0.06, 1.0, bins=10)
    counts = {sign: sum(bar.count for bar in found.bins if bar.sign == sign) for sign in ("negative", "positive")}
    assert counts == {"negative": 3, "positive": 2}
    assert found.unchanged == 3


def test_a_real_comparison_from_the_command_line(logs: Path) -> None:
    result = muscle("compare", logs / "old.jsonl", logs / "new.jsonl", "--html", logs / "page.html")
    assert result.returncode == 0, result.stderr
    comparison = compare(logs / "old.jsonl", logs / "new.jsonl")
    write_html(comparison, logs / "again.html")
    page = (logs / "page.html").read_text()
    assert f"{comparison.update.negative_flips}</b>" in page
    assert unpack(collect(comparison, 100, 10**6).columns)["ids"] == list(comparison.items[0].ids)
    assert (logs / "again.html").read_text().count("<script") == page.count("<script")
