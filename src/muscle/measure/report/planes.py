"""Planes of several tasks as a page of their own, and as one picture."""

import re
from collections.abc import Mapping

from markupsafe import Markup

from muscle import __version__
from muscle.measure.plane import Plane
from muscle.measure.report.html import PLANE, environment, policy, read, style_of_page
from muscle.measure.report.page.plane import picture_of

_MARGINS = (86, 66 + 30)  # of a picture, and the title of its task
_COLOURS = re.compile(r"--([\w-]+): light-dark\((#\w+),")
_VARIABLE = re.compile(r"var\(--([\w-]+)\)")


def planes_to_html(planes: Mapping[str, Plane], title: str, lead: str) -> bytes:
    """A page that needs nothing else, in UTF-8: picture and table of each task.

    Args:
        planes: By task.
        title: Of the page.
        lead: What the page shows, in a sentence or two.
    """
    style = style_of_page()
    page = (
        environment()
        .get_template("frontier.html.jinja")
        .render(
            title=title,
            lead=lead,
            planes=planes,
            pictures={task: picture_of(plane, *PLANE) for task, plane in planes.items()},
            style=Markup(style),
            policy=policy([], [style]),
            version=__version__,
        )
    )
    return page.encode()


def planes_to_svg(planes: Mapping[str, Plane]) -> bytes:
    """One picture, a panel per task, in light colours that every program can draw."""
    pictures = {task: picture for task, plane in planes.items() if (picture := picture_of(plane, *PLANE))}
    width, height = (PLANE[0] + _MARGINS[0], PLANE[1] + _MARGINS[1])
    colours = dict(_COLOURS.findall(read("page.css")))
    style = _VARIABLE.sub(lambda found: colours.get(found[1], "sans-serif"), read("plane.css"))
    content = (
        environment()
        .get_template("frontier.svg.jinja")
        .render(pictures=pictures, width=width, height=height, style=Markup(style), paper=colours["paper"])
    )
    return content.encode()
