"""Figures 4 and 5 as pictures: what is drawn where, and that the same figures give the same bytes."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.colors import to_hex

from muscle.errors import MuscleError
from muscle.update.report.pictures import _gap_picture, _inconsistency_picture, write_pictures
from muscle.update.report.study import TaskResult, collect
from muscle.update.report.tables import tables

from .runs import choices, texts, write_run

NASTY = "$\\frac{1$ <b>"


@pytest.fixture
def results(tmp_path: Path) -> list[TaskResult]:
    """Multiple choice: NFR 30 and NFR_mc 40 before, 20 and 20 after; one control without a log; and a bare pair."""
    logs = {
        "piqa/old": choices("0000001121"),
        "piqa/new": choices("0001120011"),
        f"piqa/{NASTY}": choices("0010020101"),
        "gsm8k/old": texts(["right", "right", "a", "b"]),
        "gsm8k/new": texts(["right", "a", "right", "right"]),
    }
    return collect([write_run(tmp_path / "run", {"paper_update": "Llama 1->2", "methods": {NASTY: {}}}, logs)])


def text_of(picture: Path) -> str:
    return " ".join(" ".join(ElementTree.parse(picture).getroot().itertext()).split())


def test_both_pictures_are_written(tmp_path: Path, results: list[TaskResult]) -> None:
    written = write_pictures(results, tmp_path / "new" / "folder")
    assert [file.name for file in written] == ["figure_4.svg", "figure_5.svg"]
    assert "piqa, paper" in text_of(written[0])
    assert NASTY in text_of(written[1])
    again = write_pictures(results, tmp_path / "again")
    assert [file.read_bytes() for file in written] == [file.read_bytes() for file in again]


def test_points_of_figure_4(results: list[TaskResult]) -> None:
    [axes] = _gap_picture({table.name: table for table in tables(results)}["figure 4"]).axes
    points = {bar.get_label(): bar.lines[0] for bar in axes.containers}
    found = {label: (*line.get_xdata(), *line.get_ydata(), line.get_fillstyle()) for label, line in points.items()}
    assert found == {
        "piqa": (pytest.approx(-10), 30, "full"),
        "piqa, paper": (pytest.approx(-0.1), 11.59, "none"),
        "gsm8k": (pytest.approx(25), 25, "full"),
        "gsm8k, paper": (pytest.approx(8.64), 8.49, "none"),
    }
    colours = {label: to_hex(line.get_color()) for label, line in points.items()}
    assert colours["piqa"] == colours["piqa, paper"] != colours["gsm8k"]


def test_bars_of_figure_5(results: list[TaskResult]) -> None:
    [axes] = _inconsistency_picture({table.name: table for table in tables(results)}["figure 5"]).axes
    bars = {bar.get_label(): [patch.get_width() for patch in bar] for bar in axes.containers if hasattr(bar, "patches")}
    assert bars["NFR"][:2] == pytest.approx([30, 20])
    assert bars["NFR_mc"][:2] == pytest.approx([40, 20])
    assert bars["NFR"][2] != bars["NFR"][2]  # the control has no log: no bar, not one of 0
    assert [label.get_text() for label in axes.get_yticklabels()] == ["new", NASTY.replace("$", r"\$"), "cross_entropy"]


def test_nothing_to_show(tmp_path: Path) -> None:
    assert write_pictures([], tmp_path) == []


def test_without_matplotlib(tmp_path: Path, results: list[TaskResult], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MuscleError, match=r"pictures need matplotlib: pip install 'muscle-llm\[update\]'"):
        write_pictures(results, tmp_path)
