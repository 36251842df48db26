"""The command line: one function per verb, which parses, calls and prints. No logic, and no heavy import at the top."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from muscle import __version__
from muscle.errors import MuscleError

app = typer.Typer(
    name="muscle",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # rich would double the time that --help takes
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


@app.command()
def compare(
    # Texts, since Path("") is the current folder.
    old: Annotated[str, typer.Argument(help="Log of the old model: a file or folder.")],
    new: Annotated[str, typer.Argument(help="Log of the new model.")],
    compatible: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Log of the new model aligned to the old one, to see what that gave."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="lm-eval metric that says right or wrong [default: each task's first]")
    ] = None,
    filter_: Annotated[
        str | None, typer.Option("--filter", help="lm-eval filter whose rows to read [default: each task's first]")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write everything as JSON.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap intervals.")] = 0,
) -> None:
    """Compare evaluation logs item by item.

    Which right answers became wrong? Reads lm-eval samples logs (0.4.3 and later), and JSON lines or CSV with the
    columns id and correct.
    """
    from muscle.measure import compare as compare_logs
    from muscle.measure.report.json import write_json
    from muscle.measure.report.terminal import print_comparison

    comparison = compare_logs(old, new, compatible, metric=metric, filter=filter_, seed=seed)
    if json:
        write_json(comparison, json)
    print_comparison(comparison)


@app.command()
def demo(
    seed: Annotated[
        int, typer.Option(min=0, max=10**8, help="Decides the world, the data, and every initial weight.")
    ] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Every stage at a tenth of the size, to see it run.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the run [default: one below muscle-demo]")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Worker processes; each takes about 0.7 GB.")] = 2,
) -> None:
    """Run one whole model update in a small world: bases, adapters, alignment, controls, table.

    Ctrl-C loses nothing but the stage under way: the same command goes on from there.
    """
    from rich.console import Console

    from muscle.update import require_training_stack

    require_training_stack()
    from muscle.demo.run import run_demo

    run_demo(seed, quick, out, jobs, Console(highlight=False, emoji=False, markup=False))
