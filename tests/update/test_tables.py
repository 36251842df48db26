"""The paper's tables from run folders of a few items, counted by hand."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from muscle.errors import MuscleError
from muscle.measure import compare
from muscle.update.recipe import Recipe
from muscle.update.report import paper
from muscle.update.report.figures import ESTIMATES, Figures
from muscle.update.report.study import collect
from muscle.update.report.tables import Row, Table, inert, print_tables, tables, write_csv, write_markdown

from .runs import choices, graded, texts, write_run

PIQA = {
    "piqa/old": choices("0000001121"),
    "piqa/new": choices("0001120011"),  # flips 3, 4, 5 down and 6, 7 up; item 8 is wrong in another way
    "piqa/muscle": choices("0010020101"),  # flips 2, 5 down and 6, 8 up
}
SAMSUM = {
    "samsum/old": graded([0.5, 0.5, 0.25, 0.0]),
    "samsum/new": graded([0.75, 0.25, 0.25, 0.5]),  # D = 0.25, -0.25, 0, 0.5
    "samsum/muscle": graded([0.5, 0.375, 0.5, 0.5]),  # D = 0, -0.125, 0.25, 0.5
}
GSM8K = {
    "gsm8k/old": texts(["right", "right", "a", "b"]),
    "gsm8k/new": texts(["right", "a", "right", "c"]),
}


def values(figures: Figures) -> dict[str, float]:
    """Every figure that is known."""
    estimates = {name: getattr(figures, name).value for name in ESTIMATES}
    return {name: value for name, value in estimates.items() if value is not None}


def table(run: Path | list[Path], name: str) -> Table:
    runs = [run] if isinstance(run, Path) else run
    return next(table for table in tables(collect(runs)) if table.name == name)


def rows(found: Table) -> dict[str, Row]:
    return {row.model: row for row in found.rows}


def test_multiple_choice_counted_by_hand(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {}, PIQA)
    figures = rows(table(run, "table 4"))["muscle"].figures
    assert figures.items == 10
    assert values(figures) == pytest.approx(
        {
            "score_old": 60,
            "score_new": 50,
            "score_gap": -10,
            "nfr": 30,
            "pfr": 20,
            "nfr_mc": 40,
            "score_compatible": 60,
            "score_change": 10,
            "nfr_compatible": 20,
            "pfr_compatible": 20,
            "nfr_mc_compatible": 20,
            "nfr_change": -10,
            "nfr_change_percent": -100 / 3,
            "pfr_change": 0,
        }
    )


@pytest.mark.parametrize("unit", [1, 100])
def test_graded_texts_counted_by_hand_whatever_the_unit_of_the_log(tmp_path: Path, unit: int) -> None:
    logs = {name: [{**row, "rouge1": row["rouge1"] * unit} for row in log] for name, log in SAMSUM.items()}
    figures = rows(table(write_run(tmp_path / "run", {}, logs), "table 6"))["muscle"].figures
    assert figures.items == 4
    assert values(figures) == pytest.approx(
        {
            "score_old": 31.25,
            "score_new": 43.75,
            "score_gap": 12.5,
            "nfr": 25,
            "pfr": 50,
            "score_compatible": 46.875,
            "score_change": 3.125,
            "nfr_compatible": 25,
            "pfr_compatible": 50,
            "nfr_change": 0,
            "nfr_change_percent": 0,
            "pfr_change": 0,
            "mean_gain_change": 0,  # 37.5 both
            "mean_regression_change": -12.5,  # 25 and 12.5
        }
    )


def test_changes_have_the_intervals_of_compare(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {}, PIQA)
    figures = rows(table(run, "table 4"))["muscle"].figures
    alignment = compare(*(run / "logs" / "piqa" / model for model in ("old", "new", "muscle"))).alignment
    assert alignment is not None
    found, expected = figures.nfr_change, alignment.delta_nfr
    assert (found.low, found.high) == pytest.approx((100 * expected.low, 100 * expected.high))  # type: ignore[operator]
    assert figures.nfr_change_percent == alignment.nfr_change_percent
    score = figures.score_change
    assert (score.low, score.high) == pytest.approx(
        (100 * alignment.delta_accuracy.low, 100 * alignment.delta_accuracy.high)  # type: ignore[operator]
    )


def test_the_log_decides_the_table(tmp_path: Path) -> None:
    """The names of the tasks would put them elsewhere."""
    logs = {
        "samsum/old": choices("001"),
        "samsum/new": choices("010"),
        "samsum/muscle": choices("000"),
        "piqa/old": texts(["right", "a"]),
        "piqa/new": texts(["b", "right"]),
        "piqa/muscle": texts(["right", "a"]),
        "gsm8k/old": graded([0.0, 1.0]),  # no grade in between, but in a later log
        "gsm8k/new": graded([0.0, 1.0]),
        "gsm8k/muscle": graded([0.5, 1.0]),
    }
    found = tables(collect([write_run(tmp_path / "run", {"controls": []}, logs)]))
    assert {table.name: [row.task for row in table.rows] for table in found[:3]} == {
        "table 4": ["samsum"],
        "table 5": ["piqa"],
        "table 6": ["gsm8k"],
    }
    assert found[2].rows[0].figures.score_compatible.value == 75  # a grade of 1 is the best there is


def test_rouge_is_read_where_there_are_several_grades(tmp_path: Path) -> None:
    logs = {
        name: [{**row, "length": 7.0, "bleu": ["a", "b"], "metrics": ["bleu", "length", "rouge1"]} for row in log]
        for name, log in SAMSUM.items()
    }
    [result] = collect([write_run(tmp_path / "run", {}, logs)])
    assert (result.figures.metric, result.figures.new.score_old.value) == ("rouge1", 31.25)


def test_references_with_both_models_are_named_in_words(tmp_path: Path) -> None:
    """But for a program, which reads the name of the folder."""
    logs = {f"piqa/{model}": choices("0012") for model in ("old", "new", "reranked", "gated")}
    run = write_run(tmp_path / "run", {"methods": {}, "controls": ["reranked", "gated"]}, logs)
    console = Console(width=100, file=io.StringIO())
    print_tables(collect([run]), console)
    write_markdown(collect([run]), tmp_path / "tables.md")
    write_csv(collect([run]), tmp_path / "tables.csv")
    assert isinstance(console.file, io.StringIO)
    for text in (console.file.getvalue(), (tmp_path / "tables.md").read_text()):
        for label in ("| re-ranked (both models) |", "| gated (both models)"):
            assert text.count(label) == 2
    assert (tmp_path / "tables.csv").read_text().count("v1->v2,reranked,ours") == 2


def test_what_is_missing_is_unknown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {}, GSM8K)
    found = rows(table(run, "table 5"))
    assert list(found) == ["muscle", "cross_entropy"]  # the control is a row like the method
    assert values(found["muscle"].figures) == pytest.approx(
        {"score_old": 50, "score_new": 50, "score_gap": 0, "nfr": 25, "pfr": 25, "nfr_mc": 50}
    )
    [result] = collect([run])
    assert result.figures.missing == ("muscle", "cross_entropy")


def test_without_the_new_model_the_compatible_one_is_still_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {}, {name: log for name, log in PIQA.items() if name != "piqa/new"})
    figures = rows(table(run, "table 4"))["muscle"].figures
    assert values(figures) == pytest.approx(
        {
            "score_old": 60,
            "score_compatible": 60,
            "nfr_compatible": 20,
            "pfr_compatible": 20,
            "nfr_mc_compatible": 20,
        }
    )


def test_without_the_old_model_nothing_is_known(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {}, {name: log for name, log in PIQA.items() if name != "piqa/old"})
    assert [values(row.figures) for row in table(run, "table 4").rows] == [{}, {}]


def test_a_run_without_a_log_has_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", {"tasks": {"piqa": {}}}, {})
    assert tables(collect([run])) == []
    print_tables(collect([run]), Console())
    assert capsys.readouterr().out == "not evaluated yet: run, piqa: old, new, muscle, cross_entropy\n"


def test_the_papers_rows_stand_below_ours(tmp_path: Path) -> None:
    logs = PIQA | {"boolq/old": choices("01"), "boolq/new": choices("00")}
    run = write_run(tmp_path / "run", {"paper_update": "Llama 1->2", "controls": ["cross_entropy"]}, logs)
    found = table(run, "table 4")
    assert [(row.task, row.model) for row in found.rows] == [
        ("piqa", "muscle"),
        ("piqa", "cross_entropy"),
        ("piqa", "paper"),
        ("boolq", "muscle"),
        ("boolq", "cross_entropy"),
    ]
    assert values(found.rows[2].figures) == pytest.approx(
        {
            "score_old": 74.86,
            "score_new": 74.76,
            "score_gap": -0.1,
            "score_compatible": 79.27,
            "score_change": 4.51,
            "nfr": 11.59,
            "nfr_change": -3.97,
            "nfr_change_percent": -34.25,
        }
    )
    assert [row.source for row in table(run, "table 9").rows] == ["ours", "paper", "ours"]


def test_other_updates_have_no_rows_of_the_paper(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {}, PIQA)
    assert {row.source for each in tables(collect([run])) for row in each.rows} == {"ours"}
    assert table(run, "table 9").rows[0].update == "v1->v2"


def test_the_ablation_names_the_papers_losses(tmp_path: Path) -> None:
    recipe = {
        "paper_update": "Llama 1->2",
        "alignment": {"ce_share": 0.5},
        "tasks": {"piqa": {"alignment": {"ce_share": 0.0}}},
        "methods": {
            "muscle": {},
            "v1": {"weight": "old_right"},
            "mixed": {"ce_share": 0.3},
            "likely": {"weight": "token_likelihood"},  # the paper has it with cross-entropy only
        },
        "controls": ["cross_entropy", "old_teacher"],
    }
    found = table(write_run(tmp_path / "run", recipe, PIQA), "table 7")
    assert [row.model for row in found.rows] == [
        "muscle",
        "paper, mask: student wrong (the method)",
        "v1",
        "paper, mask: v1 right",
        "mixed",
        "paper, CE + student wrong",
        "likely",
        "cross_entropy",
        "old_teacher",
        "paper, a_v1 only",
    ]
    assert values(found.rows[3].figures) == {
        "nfr_change": -2.29,
        "nfr_change_percent": -19.76,
        "pfr_change": -0.60,
        "score_change": 1.68,
    }


def test_one_method_is_no_ablation(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"controls": ["old_teacher"]}, PIQA)
    assert [each.name for each in tables(collect([run]))] == ["table 4", "table 9", "figure 4", "figure 5"]


def test_a_run_that_only_measures(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"methods": {}, "controls": []}, GSM8K)
    assert [each.name for each in tables(collect([run]))] == ["table 9", "figure 4"]


def test_several_draws_of_an_item(tmp_path: Path) -> None:
    """Two draws of each of 24 items, all alike: the intervals are by item, as those of compare."""
    period = {"old": 25, "new": 2, "muscle": 4}  # every second item becomes wrong, with muscle every fourth
    logs = {
        f"gsm8k/{model}": [
            {**row, "doc_id": place // 2}
            for place, row in enumerate(texts(["right" if i // 2 % n else "a" for i in range(2, 50)]))
        ]
        for model, n in period.items()
    }
    run = write_run(tmp_path / "run", {"evaluation": {"draws": 2}}, logs)
    figures = rows(table(run, "table 5"))["muscle"].figures
    assert (figures.items, figures.nfr.value, figures.nfr_change.value) == (48, 50, -25)
    models = (run / "logs" / "gsm8k" / model for model in ("old", "new", "muscle"))
    alignment = compare(*models, duplicates="draws").alignment
    assert alignment is not None
    assert 100 * alignment.delta_nfr.low == pytest.approx(figures.nfr_change.low)  # type: ignore[operator]
    assert figures.nfr_change_percent == alignment.nfr_change_percent


def test_tasks_of_several_runs_stand_together(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, {"controls": []}, PIQA | GSM8K) for name in ("first", "second")]
    assert [(row.task, row.run) for row in table(runs, "table 9").rows] == [
        ("piqa", "first"),
        ("piqa", "second"),
        ("gsm8k", "first"),
        ("gsm8k", "second"),
    ]


def test_the_terminal_shows_it_in_100_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {"paper_update": "Vicuna 1.3->1.5", "methods": {"muscle": {}, "[b]a long name of a method[/b]": {}}}
    run = write_run(tmp_path / "run", recipe, PIQA | SAMSUM)
    print_tables(collect([run]), Console(width=100))
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert max(len(line) for line in lines if line.startswith("|")) <= 100
    assert "[b]a long name" in shown
    muscle = next(line for line in lines if "muscle" in line)
    cells = [cell.strip() for cell in muscle.split("|")[1:-1]]
    assert cells == ["muscle", "60.00", "50.00", "60.00", "+10.00", "30.00", "-10.00", "-33.33"]


def test_markdown_is_inert(tmp_path: Path) -> None:
    name = "a|b `c` <b>d</b> [e](http://f) *g* @h #1 www.i"
    run = write_run(tmp_path / "run", {"methods": {name: {}}}, {"piqa/old": choices("01"), "piqa/new": choices("00")})
    write_markdown(collect([run]), tmp_path / "tables.md")
    text = (tmp_path / "tables.md").read_text()
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    assert "<td>a|b `c` &lt;b&gt;d&lt;/b&gt; [e](http://f) *g* @h #1 www.i</td>" in page
    assert "<h2>Table 4: multiple choice, accuracy</h2>" in page
    assert "not evaluated yet: run, piqa: a|b" in page


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cross_entropy_", "cross_entropy_"),
        ("a->b", "a-&gt;b"),
        ("x\ny", r"x\ny"),
        ("\\", "\\"),
        ("&amp;", "&amp;amp;"),
        ("gr\u00fc\u00df \u2192", "gr\u00fc\u00df \u2192"),
    ],
)
def test_inert_text_is_shown_as_it_is(text: str, shown: str) -> None:
    assert MarkdownIt().render(inert(text)) == f"<p>{shown}</p>\n"


def test_csv_has_every_figure_with_its_interval(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"paper_update": "Llama 1->2"}, PIQA | SAMSUM)
    write_csv(collect([run]), tmp_path / "tables.csv")
    found = list(csv.DictReader(io.StringIO((tmp_path / "tables.csv").read_text())))
    row = next(row for row in found if (row["table"], row["model"]) == ("table 4", "muscle"))
    assert (row["task"], row["items"], row["source"]) == ("piqa", "10", "ours")
    assert float(row["nfr_change"]) == pytest.approx(-10)
    assert float(row["nfr_change_low"]) < -10 < float(row["nfr_change_high"])
    control = next(row for row in found if (row["table"], row["model"]) == ("table 4", "cross_entropy"))
    assert (control["nfr"], control["nfr_compatible"], control["nfr_change_low"]) == ("30.0", "", "")
    known = {name for name in ESTIMATES if row[name]}
    bounded = {name for name in known if row[f"{name}_low"] and row[f"{name}_high"]}
    assert known - bounded == {"nfr_change_percent"}  # undefined in the bootstrap draws without a flip of new


def test_errors_name_the_folder(tmp_path: Path) -> None:
    with pytest.raises(MuscleError, match=r"run\.json: cannot be read .* name the folder of a run"):
        collect([tmp_path])
    (tmp_path / "run.json").write_text(json.dumps({"recipe": {"old": 1}}))
    with pytest.raises(MuscleError, match=r"run\.json: no recipe of this version"):
        collect([tmp_path])
    with pytest.raises(MuscleError, match="cannot be written"):
        write_csv([], tmp_path / "nowhere" / "tables.csv")


# --- the paper's own figures ---


@pytest.mark.parametrize(
    "row", [*paper.TABLE_4, *paper.TABLE_5, *paper.TABLE_6], ids=lambda row: f"{row.task} {row.update}"
)
def test_the_papers_figures_agree_with_each_other(row: paper.UpdateRow) -> None:
    """A slip of the pen would show: changes follow from scores and rates, to the last digit printed."""
    assert row.score_change == pytest.approx(row.score_compatible - row.score_new, abs=0.0101)
    assert row.nfr_change_percent == pytest.approx(100 * row.nfr_change / row.nfr, abs=0.2)
    assert row.update in paper.TRAINED_UPDATES


def test_the_papers_tables_are_whole() -> None:
    assert [len(rows) for rows in (paper.TABLE_4, paper.TABLE_5, paper.TABLE_6, paper.TABLE_7)] == [8, 4, 4, 6]
    assert (len(paper.TABLE_9), len(set(paper.TABLE_9))) == (13, 13)
    method = paper.row_of(paper.TABLE_7_TASK, paper.TABLE_7_UPDATE)
    assert method is not None
    assert paper.TABLE_7[0].nfr_change == method.nfr_change
    for row in paper.TABLE_7:  # all of one NFR
        assert row.nfr_change_percent == pytest.approx(100 * row.nfr_change / method.nfr, abs=0.05)


def test_the_defaults_of_a_recipe_are_table_8() -> None:
    recipe = msgspec.convert({"old": {"base": "a"}, "new": {"base": "b"}, "tasks": {"piqa": {}}}, Recipe)
    plain: dict[str, Any] = recipe.as_dict() | {"tasks": recipe.tasks["piqa"].as_dict()}
    plain["lora"]["alpha"] = 2 * plain["lora"].pop("rank") if plain["lora"]["alpha"] is None else None
    plain["lora"]["rank"] = recipe.lora.rank
    for key, value in paper.TABLE_8.items():
        group, _, name = key.partition(".")
        assert plain[group][name] == value, key
