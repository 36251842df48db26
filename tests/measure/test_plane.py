"""The plane of NFR and accuracy: what its numbers are, where its picture puts them, and its page."""

import dataclasses
import itertools
import math
import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from muscle.measure import compare
from muscle.measure.intervals import UNDEFINED
from muscle.measure.plane import Model, Plane, Spread, mixture_name, pareto, plane_of
from muscle.measure.report.html import to_html
from muscle.measure.report.page.plane import Picture, picture_of
from muscle.measure.report.planes import planes_to_html, planes_to_svg
from muscle.measure.results import Comparison, Estimate

from .pages import make_comparison
from .test_html import HOSTILE, Reader

ROOM = (500.0, 300.0, 17.0)


def outcomes(n: int, seed: int = 0) -> tuple[Any, Any]:
    """Negative flips and right answers of n items, some of them in common."""
    random = np.random.default_rng(seed)
    old, new = random.random(n) < 0.6, random.random(n) < 0.7
    return (old & ~new).astype(np.float64), new.astype(np.float64)


def matrix(spread: Spread) -> Any:
    return np.array([[spread.nfr, spread.both], [spread.both, spread.accuracy]])


def test_the_spread_is_the_sample_covariance_over_n() -> None:
    flips, right = outcomes(300)
    spread = Spread.of(flips, right)
    assert spread is not None
    assert matrix(spread) == pytest.approx(np.cov(flips, right) / 300)
    assert spread.both < 0  # a negative flip is a wrong answer
    assert Spread.of(flips, right, np.arange(300)) == spread


def test_the_spread_by_cluster_adds_up_whole_clusters() -> None:
    flips, right = outcomes(120)
    clusters = np.random.default_rng(1).integers(0, 30, 120)
    expected = np.zeros((2, 2))
    for cluster in set(clusters.tolist()):
        total = np.zeros(2)
        for flip, good, of in zip(flips, right, clusters, strict=True):
            if of == cluster:
                total += [flip - flips.mean(), good - right.mean()]
        expected += np.outer(total, total)
    groups = len(set(clusters.tolist()))
    spread = Spread.of(flips, right, clusters)
    assert spread is not None
    assert matrix(spread) == pytest.approx(expected * groups / (groups - 1) / 120**2)
    assert spread.groups == groups


@pytest.mark.parametrize("clustered", [False, True])
def test_the_spread_is_what_the_bootstrap_finds(clustered: bool) -> None:
    base = outcomes(150, seed=3)
    flips, right = (np.repeat(column, 4) for column in base) if clustered else base
    clusters = np.repeat(np.arange(150), 4) if clustered else None
    spread = Spread.of(flips, right, clusters)
    random = np.random.default_rng(0)
    drawn = random.integers(0, 150, (20_000, 150))  # whole clusters, whose items are all alike
    resampled = np.cov(base[0][drawn].mean(axis=1), base[1][drawn].mean(axis=1))
    assert spread is not None
    assert matrix(spread) == pytest.approx(resampled, rel=0.05)


@pytest.mark.parametrize("groups", [12, 40, 1000])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_reach_is_hotellings(groups: int, confidence: float) -> None:
    reach = Spread(1.0, 1.0, 0.0, groups).reach(confidence)
    f = stats.f.ppf(confidence, 2, groups - 2)
    assert reach**2 == pytest.approx(2 * (groups - 1) / (groups - 2) * f)
    assert Spread(1.0, 1.0, 0.0, 10**7).reach(confidence) ** 2 == pytest.approx(stats.chi2.ppf(confidence, 2), rel=1e-4)


@given(st.floats(1e-6, 1e-2), st.floats(1e-6, 1e-2), st.floats(-0.99, 0.99), st.floats(1, 1e4), st.floats(1, 1e4))
def test_an_ellipse_is_where_the_distance_is_the_reach(
    nfr: float, accuracy: float, correlation: float, per_nfr: float, per_accuracy: float
) -> None:
    spread = Spread(nfr, accuracy, correlation * math.sqrt(nfr * accuracy), 500)
    long, short, degrees = spread.ellipse(0.95, per_nfr, per_accuracy)
    assert long >= short > 0
    turn = math.radians(degrees)
    for angle in np.linspace(0, 2 * math.pi, 7):
        along, across = long * math.cos(angle), short * math.sin(angle)
        x = (along * math.cos(turn) - across * math.sin(turn)) / per_nfr
        y = (along * math.sin(turn) + across * math.cos(turn)) / per_accuracy
        assert np.array([x, y]) @ np.linalg.solve(matrix(spread), [x, y]) == pytest.approx(
            spread.reach(0.95) ** 2, rel=1e-3
        )


def test_the_ellipse_holds_the_truth_as_often_as_it_says() -> None:
    held, repeats, n = 0, 2000, 300
    random = np.random.default_rng(0)
    truth = np.array([0.6 * 0.3, 0.7])
    for _ in range(repeats):
        old, new = random.random(n) < 0.6, random.random(n) < 0.7
        flips, right = (old & ~new).astype(np.float64), new.astype(np.float64)
        spread = Spread.of(flips, right)
        assert spread is not None
        off = np.array([flips.mean(), right.mean()]) - truth
        held += off @ np.linalg.solve(matrix(spread), off) <= spread.reach(0.95) ** 2
    assert held / repeats == pytest.approx(0.95, abs=0.015)  # three standard errors


@pytest.mark.parametrize(
    ("flips", "right", "clusters"),
    [
        pytest.param([0.0] * 50, [1.0, 0.0] * 25, None, id="no flip"),
        pytest.param([1.0] * 4 + [0.0] * 46, [0.0] * 10 + [1.0] * 40, None, id="four flips"),
        pytest.param([1.0] * 10 + [0.0] * 40, [0.0] * 10 + [1.0] * 40, None, id="every error is a flip"),
        pytest.param([1.0] * 10 + [0.0] * 40, [0.0] * 46 + [1.0] * 4, None, id="four right"),
        pytest.param([1.0] * 10 + [0.0] * 40, [0.0] * 20 + [1.0] * 30, [i % 9 for i in range(50)], id="nine clusters"),
        pytest.param([1.0] * 10 + [0.0] * 40, [0.5] * 50, None, id="one grade"),
        pytest.param([], [], None, id="nothing"),
    ],
)
def test_no_ellipse_where_a_normal_approximation_fails(flips: Any, right: Any, clusters: Any) -> None:
    assert Spread.of(np.array(flips), np.array(right), None if clusters is None else np.array(clusters)) is None


def model(name: str, accuracy: float | None, nfr: float | None, **others: Any) -> Model:
    kind, share = others.pop("kind", "control"), others.pop("share", None)
    measured = Estimate(accuracy, None, None), Estimate(nfr, None, None)
    return Model(name, kind, share, *measured, UNDEFINED, UNDEFINED, 0, 0, None, **others)


SHARES = st.integers(0, 8).map(lambda count: count / 8)


@given(st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=9))
def test_the_best_are_beaten_by_none_and_every_other_by_one_of_them(points: list[tuple[float, float]]) -> None:
    found = pareto([model(str(i), *point) for i, point in enumerate(points)])

    def beats(one: Model, other: Model) -> bool:
        a, b = (each.accuracy.value or 0.0 for each in (one, other))
        f, g = (each.nfr.value or 0.0 for each in (one, other))
        return a >= b and f <= g and (a, f) != (b, g)

    best = [each for each in found if each.best]
    assert best
    for each in found:
        assert any(beats(other, each) for other in best) != each.best


def test_two_models_at_inference_and_unknown_ones_are_not_the_best() -> None:
    given_ = [model("ensemble", 0.9, 0.01, kind="both"), model("unknown", None, 0.0), model("new", 0.8, 0.1)]
    assert [each.best for each in pareto(given_)] == [False, False, True]


def rows(right: Any, **columns: Any) -> list[dict[str, Any]]:
    return [
        {"id": i, "correct": int(ok), "answer": f"{ok}"} | {name: column[i] for name, column in columns.items()}
        for i, ok in enumerate(right)
    ]


def test_the_numbers_are_those_of_a_comparison_with_that_model() -> None:
    random = np.random.default_rng(0)
    logs = {name: rows(random.random(200) < 0.7) for name in ("old", "new", "mixture-0.25", "plain", "gated")}
    names = ("mixture-0.25", "plain", "gated")
    comparison = compare(logs["old"], logs["new"], controls={name: logs[name] for name in names})
    plane = plane_of(comparison, methods=("plain",))
    kinds = {each.name: (each.kind, each.share) for each in plane.models}
    assert kinds == {
        "new": ("new", None),
        "mixture-0.25": ("mixture", 0.25),
        "plain": ("method", None),
        "gated": ("both", None),
    }
    assert (plane.items, plane.old, plane.floor) == (200, comparison.update.accuracy_old, None)
    for each in plane.models[1:]:
        alone = compare(logs["old"], logs["new"], logs[each.name])
        assert alone.alignment is not None
        assert alone.compatible is not None
        assert (each.accuracy, each.nfr) == (alone.compatible.accuracy_new, alone.compatible.nfr)
        assert each.relative_nfr == alone.compatible.relative_nfr
        assert (each.fixed, each.made) == (alone.alignment.fixed, alone.alignment.made)
        assert each.change.value == pytest.approx(alone.alignment.nfr_change_percent.value)
        assert each.change.low == pytest.approx(alone.alignment.nfr_change_percent.low, abs=8)


def test_flips_of_a_graded_task_are_grades_that_fell() -> None:
    random = np.random.default_rng(0)
    grades = {role: np.round(random.random(80), 2) for role in ("old", "new", "muscle")}
    logs = {role: rows(column > 0.5, score=column) for role, column in grades.items()}
    comparison = compare(logs["old"], logs["new"], logs["muscle"], tolerance=0.1)
    plane = plane_of(comparison, graded=True)
    smooth = comparison.compatible.smooth if comparison.compatible else None
    assert smooth is not None
    muscle = plane.models[1]
    assert (muscle.kind, muscle.accuracy, muscle.nfr) == ("method", smooth.mean_new, smooth.nfr)
    worse = {role: grades["old"] - column > 0.1 for role, column in grades.items()}
    assert muscle.fixed == np.count_nonzero(worse["new"] & ~worse["muscle"])
    assert muscle.made == np.count_nonzero(worse["muscle"] & ~worse["new"])
    assert muscle.relative_nfr == UNDEFINED
    assert muscle.spread is not None
    flips = (worse["muscle"]).astype(np.float64)
    assert matrix(muscle.spread) == pytest.approx(np.cov(flips, grades["muscle"]) / 80)


def test_clusters_of_the_comparison_widen_the_ellipses() -> None:
    random = np.random.default_rng(0)
    books = [f"book {i % 20}" for i in range(200)]
    easy = {book: random.random() for book in set(books)}
    logs = [rows([random.random() < easy[book] for book in books], book=books) for _ in range(2)]
    alone, clustered = (plane_of(compare(*logs, cluster=cluster)).models[0].spread for cluster in (None, "book"))
    assert alone is not None
    assert clustered is not None
    assert (alone.groups, clustered.groups) == (200, 20)
    assert clustered.accuracy > alone.accuracy


def drawn(plane: Plane) -> Picture:
    picture = picture_of(plane, *ROOM)
    assert picture is not None
    return picture


def flat(models: list[Model], old: float = 0.5) -> Plane:
    return Plane(100, False, Estimate(old, None, None), models, None, 0.95)


def boxes_of(picture: Picture) -> list[tuple[float, float, float]]:
    """Left, right and middle of each name that is there, none of which covers another."""
    boxes = []
    for dot in picture.dots:
        if not dot.label.text:
            continue
        length = 0.48 * ROOM[2] * len(dot.label.text)
        left = dot.label.x - length * {"start": 0.0, "middle": 0.5, "end": 1.0}[dot.label.anchor]
        boxes.append((left, left + length, dot.label.y))
    for (a, b, y), (c, d, z) in itertools.combinations(boxes, 2):
        assert b <= c or d <= a or abs(y - z) >= ROOM[2] - 1e-9
    return boxes


@example([(0.0, 0.0)] * 5)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=9))
def test_names_do_not_cover_each_other_and_marks_lie_inside(points: list[tuple[float, float]]) -> None:
    picture = drawn(flat([model(f"a name {i}", *point) for i, point in enumerate(points)]))
    for dot in picture.dots:
        assert 0 <= dot.x <= ROOM[0]
        assert 0 <= dot.y <= ROOM[1]
    boxes_of(picture)
    assert [dot.label.text for dot in picture.dots] == [f"a name {i}" for i in range(len(points))]


@pytest.mark.parametrize("point", [(0.0, 0.0), (0.5, 0.5), (1.0, 0.0)])
def test_names_of_many_models_at_one_spot_spread_out_and_keep_off_it(point: tuple[float, float]) -> None:
    picture = drawn(flat([model(f"a name {i}", *point) for i in range(40)]))
    x, y = picture.dots[0].x, picture.dots[0].y
    for left, right, middle in boxes_of(picture):
        assert 0 <= left < right <= ROOM[0]
        assert ROOM[2] / 2 <= middle <= ROOM[1] - ROOM[2] / 2
        assert not (left < x < right and abs(middle - y) < ROOM[2] / 2)
    assert all(dot.label.text for dot in picture.dots)
    for label in (dot.label for dot in picture.dots if dot.label.anchor != "middle"):
        assert label.far == (math.hypot(label.x - x, label.y - y) > 29.99)  # a line leads there


def test_names_that_find_no_room_are_left_out() -> None:
    picture = drawn(flat([model(f"a name {i}", i / 150, i / 150) for i in range(150)]))
    assert len(picture.dots) == 150
    assert 60 < len(boxes_of(picture)) < 120  # 17 rows of 7


@given(st.floats(0.05, 0.95), st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=4))
def test_in_the_corner_more_accuracy_is_lost_than_flips_take(old: float, points: list[tuple[float, float]]) -> None:
    picture = drawn(flat([model(str(i), *point) for i, point in enumerate(points)], old))
    x, y = picture.x, picture.y
    for across, down in picture.least:
        nfr = x.low + (x.high - x.low) * across / ROOM[0]
        accuracy = y.high - (y.high - y.low) * down / ROOM[1]
        assert accuracy <= old - nfr + 1e-6
        assert x.low - 1e-9 <= nfr <= x.high + 1e-9
        assert y.low - 1e-9 <= accuracy <= y.high + 1e-9


def test_the_frontier_is_joined_in_the_order_of_a() -> None:
    shares = (1.0, 0.25, 0.0)
    models = [model(mixture_name(a), 0.7, 0.1 - 0.05 * a, kind="mixture", share=a) for a in shares]
    picture = drawn(flat([*models, model("new", 0.72, 0.12)]))
    across = [x for x, _ in picture.chain]
    assert across == sorted(across, reverse=True)
    assert {dot.label.text for dot in picture.dots} == {"a = 0", "a = 0.25", "a = 1", "new"}


def test_an_old_model_far_below_is_named_not_drawn() -> None:
    models = [model("new", 0.80, 0.05), model("other", 0.82, 0.04)]
    assert drawn(flat(models, 0.79)).old is not None
    assert drawn(flat(models, 0.4)).old is None
    page = planes_to_html({"task": flat(models, 0.4)}, "title", "lead").decode()
    assert "The old model is at 40 %, outside the picture." in page


def test_nothing_measured_is_no_picture() -> None:
    assert picture_of(plane_of(make_comparison(0)), *ROOM) is None
    assert picture_of(flat([model("new", None, None)]), *ROOM) is None


def hostile_planes() -> dict[str, Plane]:
    models = [model(name, 0.5 + i / 20, i / 50) for i, name in enumerate(HOSTILE)]
    return {f"{HOSTILE[0]} {HOSTILE[5]}": flat(models), "empty": flat([])}


def real_planes(comparison: Comparison | None = None) -> dict[str, Plane]:
    comparison = comparison or make_comparison(300, compatible=True, controls=True, smooth=True)
    return {"scenes": plane_of(comparison), "grades": plane_of(comparison, graded=True)}


@pytest.mark.parametrize("planes", [hostile_planes(), real_planes()], ids=["hostile", "real"])
def test_the_page_needs_nothing_and_runs_nothing(planes: dict[str, Plane]) -> None:
    page = planes_to_html(planes, f"title {HOSTILE[1]}", HOSTILE[2]).decode()
    reader = Reader(page)
    names = {name for name, _ in reader.elements}
    assert not {"script", "img", "iframe"} & names
    attributes = [pair for _, found in reader.elements for pair in found.items()]
    assert not [name for name, _ in attributes if name.startswith("on") or name == "style"]
    links = [value or "" for name, value in attributes if name in ("href", "src")]
    assert all(link == "data:," or link.startswith("#") for link in links)
    assert "default-src 'none'" in next(found["content"] or "" for _, found in reader.elements if "http-equiv" in found)
    assert "\u202e" not in page


def test_the_table_tells_what_the_picture_shows() -> None:
    planes = real_planes()
    page = planes_to_html(planes, "title", "lead").decode()
    for plane in planes.values():
        for each in plane.models:
            assert f"{100 * (each.nfr.value or 0):.2f} %" in page
            assert f">{each.fixed}</td>" in page or each.kind == "new"


@pytest.mark.parametrize("planes", [hostile_planes(), real_planes()], ids=["hostile", "real"])
def test_the_picture_stands_alone(planes: dict[str, Plane]) -> None:
    content = planes_to_svg(planes)
    root = ElementTree.fromstring(content)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert not [node for node in root.iter() if node.tag.endswith(("script", "image", "foreignObject"))]
    style = next(node for node in root.iter() if node.tag.endswith("style")).text or ""
    assert "var(" not in style
    assert re.search(r"\.mark\.mixture \{ fill: #\w+", style)
    shown = sum(plane.models != [] for plane in planes.values())
    assert sum(node.get("class") == "plane" for node in root.iter()) == shown


def test_mixtures_join_on_the_page_of_a_comparison() -> None:
    base = make_comparison(200, controls=True)
    renamed = {"reseeded": "mixture-0", "old teacher": "mixture-1"}

    def of(columns: Any) -> Any:
        return {renamed.get(role, role): column for role, column in columns.items()}

    total = dataclasses.replace(base.total, controls=of(base.total.controls))
    items = [
        dataclasses.replace(task, correct=of(task.correct), answers=of(task.answers), scores=of(task.scores))
        for task in base.items
    ]
    page = to_html(dataclasses.replace(base, total=total, items=items)).decode()
    assert page.count('class="chain"') == 1
    assert ">a = 1</text>" in page
