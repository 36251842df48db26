"""The verbs that measure: compare and gate."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from muscle.errors import MuscleError

if TYPE_CHECKING:
    from muscle.measure import Comparison
    from muscle.measure.gate import Verdict

# Written out, since the readers take too long to import for --help; a test holds it against them.
FORMATS = ("baseline", "lm-eval", "lm-eval-0.3", "inspect_ai", "helm", "promptfoo", "table")

# Flags that several verbs share. Paths of logs are texts, since Path("") is the current folder.
Old = Annotated[str, typer.Argument(help="Log of the old model: a file, a folder, or - for standard input.")]
New = Annotated[str, typer.Argument(help="Log of the new model.")]
Compatible = Annotated[
    str | None,
    typer.Option(metavar="LOG", help="Log of the new model aligned to the old one, to see what that gave."),
]
RepeatOf = Annotated[
    str | None,
    typer.Option(metavar="OLD2", help="Log of the old model run or trained once more: the flips of chance alone."),
]
Control = Annotated[
    list[str] | None, typer.Option(metavar="NAME=LOG", help="Log of a further model to set beside; repeatable.")
]
Format = Annotated[
    str | None,
    typer.Option("--format", metavar="NAME", help=f"Format of the logs: {', '.join(FORMATS)} [default: by content]"),
]
Metric = Annotated[
    str | None, typer.Option(help="Metric or scorer that says right or wrong [default: each task's first]")
]
Filter = Annotated[
    str | None, typer.Option("--filter", help="lm-eval filter or promptfoo provider to read [default: the first]")
]
Score = Annotated[str | None, typer.Option(help="Metric or column that grades answers, for gains and regressions.")]
TextScore = Annotated[
    str | None,
    typer.Option(help="Grade computed from answer and target: exact_match, rouge1, rouge2, rougeL, bleu, chrf."),
]
Column = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=THEIRS",
        help="Column of a table that holds id, correct, answer, ... (new:answer: of the new log); repeatable.",
    ),
]
Slice = Annotated[
    list[str] | None,
    typer.Option("--slice", metavar="COLUMN", help="Measure each value of a column by itself; repeatable."),
]
Cluster = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="Items with the same value there depend on each other.")
]
Missing = Annotated[Literal["error", "drop", "wrong"], typer.Option(help="What becomes of an item that a log lacks.")]
Duplicates = Annotated[
    Literal["error", "first", "last", "draws"], typer.Option(help="What rows of one id with different outcomes are.")
]
NumericAnswers = Annotated[
    bool, typer.Option("--numeric-answers", help="18 and 18.0 are the same answer also where they are texts.")
]
Tolerance = Annotated[float, typer.Option(min=0, help="Changes of a score up to this size are no change.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the bootstrap intervals.")]
Json = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write everything as JSON.")]
Markdown = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a comment for a pull request.")]
Junit = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write JUnit XML.")]
Html = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write a page to look at, with every item.")]


def compare(
    old: Old,
    new: New,
    compatible: Compatible = None,
    repeat_of: RepeatOf = None,
    control: Control = None,
    format_: Format = None,
    metric: Metric = None,
    filter_: Filter = None,
    score: Score = None,
    text_score: TextScore = None,
    column: Column = None,
    slice_: Slice = None,
    cluster: Cluster = None,
    missing: Missing = "drop",
    duplicates: Duplicates = "error",
    numeric_answers: NumericAnswers = False,
    tolerance: Tolerance = 0.0,
    seed: Seed = 0,
    json: Json = None,
    markdown: Markdown = None,
    junit: Junit = None,
    html: Html = None,
) -> None:
    """Compare evaluation logs item by item.

    Which right answers became wrong? Reads the logs of lm-evaluation-harness, inspect_ai, HELM and promptfoo, tables
    (JSON lines, CSV, Parquet) and Hugging Face dataset folders; a log is a file, a folder, or - for standard input.
    """
    from muscle.measure import compare as compare_logs
    from muscle.measure.report.terminal import print_comparison

    comparison = compare_logs(
        old,
        new,
        compatible,
        repeat=repeat_of,
        controls=_pairs("--control", control),
        slices=slice_ or (),
        cluster=cluster,
        missing=missing,
        tolerance=tolerance,
        seed=seed,
        format=format_,
        metric=metric,
        filter=filter_,
        score=score,
        text_score=text_score,
        columns=_pairs("--column", column),
        numeric=numeric_answers,
        duplicates=duplicates,
    )
    _write_reports(comparison, None, json=json, markdown=markdown, junit=junit, html=html)
    print_comparison(comparison)


def gate(
    old: Annotated[str | None, typer.Argument(help="Log of the old model, or a blessed baseline.")] = None,
    new: Annotated[str | None, typer.Argument(help="Log of the new model.")] = None,
    compatible: Compatible = None,
    limits: Annotated[Path | None, typer.Option(metavar="FILE", help="Limits as YAML; flags override it.")] = None,
    init: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a commented file of limits, and do nothing else.")
    ] = None,
    bless: Annotated[
        str | None, typer.Option(metavar="LOG", help="Write the log of an accepted model to --baseline, as later OLD.")
    ] = None,
    baseline: Annotated[Path | None, typer.Option(metavar="FILE", help="Where --bless writes.")] = None,
    max_nfr: Annotated[float | None, typer.Option(help="Limit on negative flips over all items: 0.02 is 2 %.")] = None,
    max_nfr_given_old_right: Annotated[float | None, typer.Option(help="... over the items that were right.")] = None,
    max_relative_nfr: Annotated[float | None, typer.Option(help="... over those of unrelated models.")] = None,
    max_nfr_mc: Annotated[float | None, typer.Option(help="... and changed wrong answers, over all items.")] = None,
    max_churn: Annotated[float | None, typer.Option(help="Limit on changed answers over all items.")] = None,
    max_mean_regression: Annotated[float | None, typer.Option(help="Limit on the mean loss of worse answers.")] = None,
    max_accuracy_drop: Annotated[float | None, typer.Option(help="Margin by which the accuracy may fall.")] = None,
    min_items: Annotated[int | None, typer.Option(help="Fewer items decide nothing.")] = None,
    max_unscored: Annotated[float | None, typer.Option(help="Limit on items that a log does not score.")] = None,
    max_missing: Annotated[float | None, typer.Option(help="Limit on items that only one log has.")] = None,
    inconclusive: Annotated[
        Literal["report", "pass", "fail"] | None,
        typer.Option(help="Exit code where items are too few to decide: 3, or that of pass or fail [default: report]"),
    ] = None,
    format_: Format = None,
    metric: Metric = None,
    filter_: Filter = None,
    score: Score = None,
    text_score: TextScore = None,
    column: Column = None,
    slice_: Slice = None,
    cluster: Cluster = None,
    missing: Missing = "drop",
    duplicates: Duplicates = "error",
    numeric_answers: NumericAnswers = False,
    tolerance: Tolerance = 0.0,
    seed: Seed = 0,
    json: Json = None,
    markdown: Markdown = None,
    junit: Junit = None,
    html: Html = None,
) -> None:
    """Hold a model update against limits, for CI.

    Exits with 0 (pass), 1 (fail), 3 (inconclusive: too few items), or 2 (the input or the command is wrong). Every
    limit is judged by a one-sided bound of 95 %.
    """
    from muscle.measure.baseline import bless as bless_log
    from muscle.measure.baseline import check_fresh
    from muscle.measure.comparison import Reading, compare
    from muscle.measure.gate import CONFIDENCE, judge
    from muscle.measure.limits import Limits, read_limits, write_template
    from muscle.measure.logs.rows import Selection
    from muscle.measure.report.terminal import print_comparison, print_verdict

    judged = old is not None or limits is not None
    if init is not None or bless is not None:
        if judged or (init is not None and bless is not None):
            raise MuscleError(
                "--init and --bless stand alone; leave out the logs and limits, and judge in a second command"
            )
    elif baseline is not None:
        raise MuscleError("--baseline is where --bless writes; to judge against a baseline name it as OLD")
    if init:
        write_template(init)
        print(f"wrote {init}; next: muscle gate OLD NEW --limits {init}")
        return
    reading: Reading = {
        "format": format_,
        "metric": metric,
        "filter": filter_,
        "score": score,
        "text_score": text_score,
        "columns": _pairs("--column", column),
        "numeric": numeric_answers,
        "duplicates": duplicates,
    }
    if bless is not None:
        if baseline is None:
            raise MuscleError("--bless needs --baseline FILE, where the baseline is written")
        header = bless_log(bless, baseline, Selection(**reading))
        print(f"wrote {baseline}: {header.rows} rows of {header.source} (sha {header.sha256[:8]})")
        return
    if old is None or new is None:
        raise MuscleError("the gate needs two logs: muscle gate OLD NEW")
    held = (read_limits(limits) if limits else Limits()).with_flags(
        max_nfr=max_nfr,
        max_nfr_given_old_right=max_nfr_given_old_right,
        max_relative_nfr=max_relative_nfr,
        max_nfr_mc=max_nfr_mc,
        max_churn=max_churn,
        max_mean_regression=max_mean_regression,
        max_accuracy_drop=max_accuracy_drop,
        min_items=min_items,
        max_unscored=max_unscored,
        max_missing=max_missing,
        inconclusive=inconclusive,
    )
    comparison = compare(
        old,
        new,
        compatible,
        slices=list(dict.fromkeys([*(slice_ or ()), *held.slices])),
        cluster=cluster,
        missing=missing,
        tolerance=tolerance,
        confidence=CONFIDENCE,
        seed=seed,
        **reading,
    )
    check_fresh(comparison, held.max_baseline_age_days)
    verdict = judge(comparison, held)
    _write_reports(comparison, verdict, json=json, markdown=markdown, junit=junit, html=html)
    print_comparison(comparison)
    print_verdict(verdict)
    raise typer.Exit(verdict.exit_code(held.inconclusive))


def _pairs(flag: str, values: Sequence[str] | None) -> dict[str, str]:
    """Values of the form NAME=SOMETHING, by name."""
    pairs = {}
    for value in values or ():
        name, equals, rest = value.partition("=")
        if not (name and equals and rest):
            raise MuscleError(f"{flag} {value}: expected NAME=VALUE")
        if name in pairs:
            raise MuscleError(f"{flag} {value}: {name} is given twice")
        pairs[name] = rest
    return pairs


def _write_reports(
    comparison: "Comparison",
    verdict: "Verdict | None",
    *,
    json: Path | None,
    markdown: Path | None,
    junit: Path | None,
    html: Path | None,
) -> None:
    if json:
        from muscle.measure.report.json import write_json

        write_json(comparison, json, verdict)
    if markdown:
        from muscle.measure.report.markdown import write_markdown

        write_markdown(comparison, markdown, verdict)
    if junit:
        from muscle.measure.report.junit import write_junit

        write_junit(comparison, junit, verdict)
    if html:
        from muscle.measure.report.html import write_html

        write_html(comparison, html, verdict)


VERBS = (compare, gate)
