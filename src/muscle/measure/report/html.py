"""The Comparison as one HTML page that needs nothing else: no server, no network, no other file."""

import base64
import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import numpy as np
from markupsafe import Markup

from muscle import __version__
from muscle.errors import printable
from muscle.measure.plane import plane_of
from muscle.measure.report import text
from muscle.measure.report.files import write_whole
from muscle.measure.report.page.instances import Instances, collect, natural
from muscle.measure.report.page.pictures import Histogram, accuracy_axis, fourfold, histogram
from muscle.measure.report.page.plane import Picture, picture_of
from muscle.measure.report.page.rates import rate_groups
from muscle.measure.results import Comparison, Estimate, Slice

if TYPE_CHECKING:
    from muscle.measure.gate import Verdict

INSTANCES = 100_000
"""A page holds at most this many instances: all flips, and a random sample of the others."""

SIZE = 29_000_000
"""Bytes that a page takes at most; longer texts are cut to keep it."""

PLANE = (500.0, 300.0, 17.0)
"""Width and height of the plotting area of a plane, and height of a line of its text."""

_SLICES = 300  # rows of a table by slice; the JSON has all
_SCRIPTS = ("text", "diff", "store", "filters", "list", "instance", "main")
_REACH = 150.0  # side of the largest square of the quadrant picture
_PAGE = files("muscle.measure.report") / "page"


def to_html(comparison: Comparison, verdict: "Verdict | None" = None, *, instances: int = INSTANCES) -> bytes:
    """Render the page in UTF-8.

    Args:
        comparison: What to show; its logs are read again for the texts.
        verdict: Of the gate, shown first.
        instances: Largest number of instances to hold.
    """
    scripts = {"tables": _tables_script(), "page": _inline("\n".join(read(f"{name}.js") for name in _SCRIPTS))}
    styles = {
        "tables": (files("itables") / "html" / "dt_bundle.css").read_text(encoding="utf-8"),
        "page": style_of_page(),
    }
    fixed = sum(len(part.encode()) for part in [*scripts.values(), *styles.values()])
    planes = _planes(comparison)
    held = collect(comparison, instances, SIZE - fixed - 1_000_000)  # the rest of the page is smaller than that
    page = (
        environment()
        .get_template("page.html.jinja")
        .render(
            comparison=comparison,
            total=comparison.total,
            verdict=verdict,
            headline=_headline(comparison, verdict),
            sentence=text.sentence(comparison.total),
            signature=text.signature(comparison),
            version=__version__,
            squares=fourfold(comparison.update, _REACH),
            groups=rate_groups(comparison.total),
            planes=planes,
            drawn={dot.model.name: dot.model for picture in planes[:1] for dot in picture.dots},
            histograms=_histograms(comparison),
            accuracies=accuracy_axis([*comparison.tasks.values(), *(part.measures for part in comparison.slices)]),
            slices=_by_column(comparison.slices),
            held=held,
            blocks=[Markup(block) for block in held.texts.blocks],
            held_notes=_held_notes(comparison, held),
            scripts={name: Markup(script) for name, script in scripts.items()},
            styles={name: Markup(style) for name, style in styles.items()},
            policy=policy(scripts.values(), styles.values()),
        )
    )
    return page.encode()


def write_html(comparison: Comparison, file: Path, verdict: "Verdict | None" = None) -> None:
    """Write `to_html` to a file, whole or not at all.

    Raises:
        MuscleError: The file cannot be written, or one of the logs is read from it.
    """
    write_whole(comparison, file, to_html(comparison, verdict))


def _headline(comparison: Comparison, verdict: "Verdict | None") -> str:
    """What a reader should know first."""
    if verdict is None:
        return text.sentence(comparison.total)
    checks = len(verdict.checks)
    counts = {status: sum(check.status == status for check in verdict.checks) for status in ("fail", "inconclusive")}
    limits = "the limit" if checks == 1 else f"{checks} limits"
    if verdict.status == "fail":
        return f"Fail: {counts['fail']} of {limits} broken." if checks > 1 else "Fail: the limit is broken."
    if verdict.status == "inconclusive":
        return f"Inconclusive: {counts['inconclusive']} of {limits} cannot be decided with these items."
    return "Pass: the limit holds." if checks == 1 else f"Pass: all {limits} hold."


def _histograms(comparison: Comparison) -> dict[str, Histogram]:
    """The distribution of D of the new and of the compatible model, over the items that every log grades."""
    smooth = comparison.update.smooth
    if smooth is None or not smooth.n:
        return {}
    roles = [role for role in ("new", "compatible") if role in comparison.inputs]
    scores = {role: np.concatenate([task.scores[role] for task in comparison.items]) for role in ("old", *roles)}
    graded = np.logical_and.reduce([np.isfinite(column) for column in scores.values()])
    changes = {role: (scores[role] - scores["old"])[graded] for role in roles}
    reach = max(float(np.abs(change).max(initial=0.0)) for change in changes.values())
    return {role: histogram(change, smooth.tolerance, reach) for role, change in changes.items()}


def _planes(comparison: Comparison) -> list[Picture]:
    """NFR and accuracy of all models; where answers are graded, also the grades and how many of them fell."""
    graded = comparison.update.smooth is not None
    found = [plane_of(comparison, graded=kind) for kind in ([False, True] if graded else [False])]
    return [picture for plane in found if (picture := picture_of(plane, *PLANE))]


def _by_column(slices: Sequence[Slice]) -> dict[str, list[Slice]]:
    """The largest slices of each column, in the order of their values."""
    columns: dict[str, list[Slice]] = {}
    for part in slices:
        columns.setdefault(part.column, []).append(part)
    for column, parts in columns.items():
        if len(parts) > _SLICES:
            least = sorted((part.measures.update.n for part in parts), reverse=True)[_SLICES - 1]
            columns[column] = [part for part in parts if part.measures.update.n >= least][:_SLICES]
        columns[column].sort(key=lambda part: natural(part.value))
    return columns


def _held_notes(comparison: Comparison, held: Instances) -> list[str]:
    """What the page does not hold."""
    notes = []
    if held.shown < held.total:
        others, shown = held.total - held.flips, held.shown - held.flips_shown
        if held.flips_shown < held.flips:
            kept = f"a random sample of {held.flips_shown:,} of {held.flips:,} flips and none of the others"
        else:
            kept = f"all {held.flips:,} flips and a random sample of {shown:,} of the {others:,} others"
        notes.append(f"Of {held.total:,} instances this page holds {kept} (seed {comparison.seed}).")
    if held.texts.cut:
        flips, others = held.texts.limits
        limits = f"{flips:,} characters" + (f" ({others:,} of instances that are no flips)" if others != flips else "")
        notes.append(
            f"{held.texts.cut:,} texts of more than {limits} are shortened in the middle, [...]; "
            "the search sees only what is left of them."
        )
    return notes


def _figures(estimate: Estimate, kind: str) -> tuple[str, str]:
    """The value with its unit, and the interval, empty where there is none."""
    if kind == "change":
        figures = text.change(estimate)
    elif kind == "percents":  # in percent already
        figures = text.change(estimate, scale=1, unit=" %")
    else:
        figures = text.percent(estimate) if kind == "percent" else text.number(estimate)
    sign = "+" if kind == "signed" and (estimate.value or 0) > 0 else ""
    value, bracket, interval = figures.partition("[")
    return sign + value.rstrip(), bracket + interval


def _share(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{100 * value:.2f} %"


@cache
def environment() -> jinja2.Environment:
    """The templates of the page; they escape every text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("muscle.measure.report", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Escapes of its own for what would steer the reader's eye: texts of logs stand in headings and tables too.
        finalize=lambda value: printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )
    environment.filters |= {
        "figures": _figures,
        "points": text.points,
        "p": text.p_value,
        "count": "{:,}".format,
        "share": _share,
    }
    return environment


def read(name: str) -> str:
    """A style or a script of the page."""
    return (_PAGE / name).read_text(encoding="utf-8")


def style_of_page() -> str:
    """All of the page's own style."""
    return read("plane.css") + read("page.css")


def _tables_script() -> str:
    """The bundle of DataTables, an ES module, as a script that leaves what it exports in `muscleTables`."""
    source = (files("itables") / "html" / "dt_bundle.js").read_text(encoding="utf-8")

    def kept(exports: re.Match[str]) -> str:
        pairs = (pair.split(" as ") for pair in exports[1].split(","))
        return "globalThis.muscleTables={" + ",".join(f"{pair[-1]}:{pair[0]}" for pair in pairs) + "}"

    return _inline(re.sub(r"\bexport\s*\{([^{}]*)\}", kept, source))


def _inline(script: str) -> str:
    """A script that cannot end, or swallow the end of, the element it stands in."""
    return re.sub("<(?=!--|/script)", r"\\x3C", script, flags=re.IGNORECASE)


def policy(scripts: Iterable[str], styles: Iterable[str]) -> str:
    """A content security policy: only these very scripts and styles, and nothing from anywhere."""

    def hashes(parts: Iterable[str]) -> str:
        digests = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes(scripts)}; style-src {hashes(styles)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
