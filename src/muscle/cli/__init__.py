"""The command line: one function per verb, which parses, calls and prints. No logic, and no heavy import at the top."""

import sys
from typing import Annotated

import typer

from muscle import __version__
from muscle.cli import measuring, training
from muscle.errors import MuscleError

app = typer.Typer(
    name="muscle",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # rich would double the time that --help takes
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (*measuring.VERBS, *training.VERBS):
    app.command()(verb)


def main() -> None:
    """Run the command line; what a user can act on ends with exit code 2 and one line, not with a traceback."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a log's text may not fit the locale
    try:
        app()
    except MuscleError as error:
        print("error:", error, file=sys.stderr)
        sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"muscle {__version__}")
        raise typer.Exit


@app.callback()
def _muscle(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Update a language model without breaking what users rely on."""
