"""The paper's figures 4 and 5 as SVG, in colours that the colour-blind can tell apart (Okabe & Ito)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from muscle.errors import MuscleError, printable
from muscle.measure import Estimate
from muscle.measure.report.files import replace_whole
from muscle.measure.statistics import FloatArray
from muscle.update.report.study import TaskResult
from muscle.update.report.tables import Row, Table, model_label, tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vP*"


def write_pictures(results: Sequence[TaskResult], folder: Path) -> list[Path]:
    """Write figure_4.svg and figure_5.svg, where there is something to show; the same figures give the same bytes.

    Args:
        results: What to show.
        folder: Made if it is missing.

    Returns:
        The files written.

    Raises:
        MuscleError: matplotlib is not installed, or a file cannot be written.
    """
    made = {table.name: table for table in tables(results)}
    try:
        pictures = {name: draw(made[name]) for name, draw in _DRAWN.items() if name in made}
        contents = {folder / f"{name.replace(' ', '_')}.svg": _svg(picture) for name, picture in pictures.items()}
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise MuscleError("pictures need matplotlib: pip install 'muscle-llm[update]'") from None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in contents.items():
            replace_whole(file, content)
    except OSError as error:
        raise MuscleError(f"{folder}: cannot be written ({error.strerror}); check the folder") from None
    return list(contents)


def _gap_picture(table: Table) -> Figure:
    """Figure 4: one point per task and update; ours filled, with intervals, the paper's hollow."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = picture.add_subplot()
    for place, (task, rows) in enumerate(groupby(table.rows, key=lambda row: row.task)):
        style: dict[str, Any] = {"color": _COLOURS[place % 7], "marker": _MARKERS[place % 7], "linestyle": "none"}
        drawn = list(rows)
        for source, label, filling in (("ours", _plain(task), "full"), ("paper", f"{_plain(task)}, paper", "none")):
            points = [row.figures for row in drawn if row.source == source]
            if points:
                gaps, gap_reach = _drawable([figures.score_gap for figures in points])
                rates, rate_reach = _drawable([figures.nfr for figures in points])
                axes.errorbar(
                    gaps, rates, rate_reach, gap_reach, label=label, fillstyle=filling, elinewidth=0.8, **style
                )
    axes.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.set_xlabel("score of new minus score of old, points")
    axes.set_ylabel("NFR, percent")
    axes.set_ylim(bottom=0)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small")
    return picture


def _inconsistency_picture(table: Table) -> Figure:
    """Figure 5: NFR beside NFR_mc, of the new model and of each model in its place; a panel per task and update."""
    from matplotlib.figure import Figure

    groups = [list(rows) for _, rows in groupby(table.rows, key=lambda row: (row.task, row.update, row.run))]
    heights = [len(rows) + 2 for rows in groups]
    picture = Figure(figsize=(6.4, 0.6 + 0.36 * sum(heights)), layout="constrained")
    panels = picture.subplots(len(groups), squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axes, rows in zip(panels, groups, strict=True):
        _draw_panel(axes, rows)
    panels[-1].set_xlabel("percent of all items")
    picture.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize="small")
    return picture


def _draw_panel(axes: Axes, rows: Sequence[Row]) -> None:
    first, places = rows[0].figures, np.arange(len(rows) + 1)
    for offset, label, colour, rates in (
        (-0.2, "NFR", _COLOURS[0], [first.nfr, *(row.figures.nfr_compatible for row in rows)]),
        (0.2, "NFR_mc", _COLOURS[4], [first.nfr_mc, *(row.figures.nfr_mc_compatible for row in rows)]),
    ):
        values, reach = _drawable(rates)
        axes.barh(places + offset, values, 0.38, xerr=reach, color=colour, label=label, error_kw={"elinewidth": 0.8})
    axes.set_yticks(places, ["new", *(_plain(model_label(row.model)) for row in rows)])
    axes.set_ylim(len(rows) + 0.6, -0.6)
    axes.set_title(_plain(f"{rows[0].task}, {rows[0].update}, {rows[0].run}"), loc="left", fontsize="medium")


def _drawable(estimates: Sequence[Estimate]) -> tuple[FloatArray, FloatArray]:
    """(N,) values, NaN where unknown, which is not drawn; (2, N) how far their intervals reach below and above."""
    known = [(each.value, each.low, each.high) for each in estimates]
    values, low, high = np.array(known, dtype=np.float64).T  # None becomes NaN
    return values, np.nan_to_num(np.maximum(0.0, [values - low, high - values]))


def _plain(text: str) -> str:
    """Text in which matplotlib finds no formula."""
    return printable(text).replace("$", r"\$")


def _svg(picture: Figure) -> bytes:
    import matplotlib

    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "muscle", "svg.fonttype": "none"}):
        picture.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


_DRAWN = {"figure 4": _gap_picture, "figure 5": _inconsistency_picture}
