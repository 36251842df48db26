"""`muscle frontier`: which stages it adds to a run, what it leaves alone, and what it shows."""

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from muscle.demo.plan import QUICK, demo_plan, demo_recipe, world_stages
from muscle.demo.run import demo_frontier, is_demo
from muscle.errors import MuscleError
from muscle.measure import compare
from muscle.update.pipeline import Stage, fingerprint, pipeline_status
from muscle.update.plan import Plan
from muscle.update.recipe import Recipe
from muscle.update.recipe_file import make_recipe
from muscle.update.report import frontier
from muscle.update.report.frontier import Run, frontier_stages, read_points, run_frontier, update_frontier, with_points
from muscle.update.run import run_update
from tests.command import muscle

from .runs import choices, graded, write_log, write_run

RECIPE: dict[str, Any] = {
    "old": {"base": "models/v1"},
    "new": {"base": "models/v2"},
    "tasks": {"piqa": {}},
    "methods": {"muscle": {}},
    "controls": ["cross_entropy", "ensemble"],
    "alignment": {"temperature": 0.5},
}
NAMES = ["mixture-0", "mixture-1"]


@pytest.mark.parametrize(
    ("text", "points"),
    [("0,0.25,1", [0, 0.25, 1]), ("1,0", [0, 1]), ("0.5,.5,0.50", [0.5]), (" 0.1234 ", [0.1234]), ("-0", [0])],
)
def test_points(text: str, points: list[float]) -> None:
    assert read_points(text) == points
    assert "-" not in str(read_points(text)[0])


@pytest.mark.parametrize("text", ["", "a", "0,,1", "-0.1", "1.01", "nan", "inf", "0.12345", "0;1"])
def test_points_that_are_none(text: str) -> None:
    with pytest.raises(MuscleError, match=r"--points: .* such as"):
        read_points(text)


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=6))
def test_every_point_has_a_name_of_its_own(shares: list[int]) -> None:
    points = read_points(",".join(str(share / 10_000) for share in shares))
    assert len(with_points(make_recipe({**RECIPE, "methods": {}}), points).methods) == len(set(shares))


def test_a_point_is_a_method_with_the_settings_of_the_run() -> None:
    recipe = make_recipe(RECIPE | {"tasks": {"piqa": {"alignment": {"ce_share": 0.2}}}})
    found = with_points(recipe, [0.0, 0.25], ["texts=choices"])
    assert list(found.methods) == ["muscle", "mixture-0", "mixture-0.25"]
    aligned = found.alignment_of("piqa", "mixture-0.25")
    assert (aligned.weight, aligned.old_share, aligned.texts) == ("mixture", 0.25, "choices")
    assert (aligned.temperature, aligned.ce_share) == (0.5, 0.2)
    assert found.alignment_of("piqa", "muscle") == recipe.alignment_of("piqa", "muscle")
    assert found.alignment_training_of("piqa") == recipe.alignment_training_of("piqa")


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("old_share=0.3", "the points say that"),
        ("temperature=-1", "--set temperature=-1"),
        ("temperatur=1", "temperatur"),
        ("temperature", "expected KEY=VALUE"),
    ],
)
def test_keys_that_cannot_be_set(override: str, problem: str) -> None:
    with pytest.raises(MuscleError, match=problem) as error:
        with_points(make_recipe(RECIPE), [0.5], [override])
    assert "methods.points" not in str(error.value)


def test_a_method_of_a_points_name_must_be_that_point() -> None:
    recipe = make_recipe(RECIPE | {"methods": {"mixture-0.5": {"weight": "mixture", "old_share": 0.5}}})
    assert with_points(recipe, [0.5]).methods.keys() == recipe.methods.keys()
    with pytest.raises(MuscleError, match=r"a method 'mixture-0\.5' of its own"):
        with_points(recipe, [0.5], ["temperature=3"])


def finished(stages: list[Stage], root: Path, *but: str) -> None:
    """Records of stages as if they had been run, except those whose name has one of these parts."""
    for name, mark in fingerprint(stages).items():
        if not any(part in name for part in but):
            (root / name).mkdir(parents=True, exist_ok=True)
            (root / name / "stage.json").write_text(json.dumps({"fingerprint": mark, "program": "another"}))


def run_of(recipe: Recipe, root: Path) -> Run:
    return Run(root, recipe, Plan)


@pytest.fixture
def recipe() -> Recipe:
    return make_recipe(RECIPE)


def selected(run: Run, split: Any = "test") -> tuple[set[str], list[str]]:
    stages, models = frontier_stages(run, with_points(run.recipe, [0.0, 1.0]), NAMES, split)
    names = [stage.name for stage in stages]
    for place, stage in enumerate(stages):
        assert set(stage.inputs.values()) <= set(names[:place])
    return set(names), models["piqa"]


def missing(run: Run, names: set[str], split: Any = "test") -> set[str]:
    stages, _ = frontier_stages(run, with_points(run.recipe, [0.0, 1.0]), NAMES, split)
    states = {status.name: status.state for status in pipeline_status(stages, run.root)}
    return {name for name in names if states[name] == "missing"}


def test_of_a_finished_run_only_the_points_are_missing(recipe: Recipe, tmp_path: Path) -> None:
    finished(Plan(recipe).stages(), tmp_path)
    run = run_of(recipe, tmp_path)
    names, models = selected(run)
    assert models == ["old", "new", "muscle", "mixture-0", "mixture-1", "cross_entropy", "ensemble"]
    points = {f"{folder}/piqa/{name}" for folder in ("adapters", "logs") for name in NAMES}
    assert missing(run, names) == points | {"frontier-checks/piqa"}
    assert not [name for name in names if name.startswith("models/")]


def test_of_a_run_that_was_stopped_only_what_it_has_trained_is_shown(recipe: Recipe, tmp_path: Path) -> None:
    finished(Plan(recipe).stages(), tmp_path, "muscle", "piqa/new", "logs/piqa/cross_entropy")
    run = run_of(recipe, tmp_path)
    names, models = selected(run)
    assert models == ["old", "new", "mixture-0", "mixture-1", "cross_entropy", "ensemble"]
    assert {"adapters/piqa/new", "logs/piqa/new", "logs/piqa/cross_entropy"} <= missing(run, names)
    assert "adapters/piqa/muscle" not in names


def test_validation_items_are_scored_beside_the_test_items(recipe: Recipe, tmp_path: Path) -> None:
    finished(Plan(recipe).stages(), tmp_path)
    names, models = selected(run_of(recipe, tmp_path), "validation")
    assert {f"validation-logs/piqa/{model}" for model in models} <= names
    assert not [name for name in names if name.startswith("logs/")]
    assert models == ["old", "new", "muscle", "mixture-0", "mixture-1", "cross_entropy", "ensemble"]


def test_a_run_whose_task_changed_is_refused_and_points_are_replaced(recipe: Recipe, tmp_path: Path) -> None:
    finished(Plan(recipe).stages(), tmp_path)
    stages, _ = frontier_stages(run_of(recipe, tmp_path), with_points(recipe, [0.0, 1.0]), NAMES, "test")
    finished(stages, tmp_path)
    other = with_points(recipe, [0.0, 1.0], ["temperature=3"])
    assert frontier_stages(run_of(recipe, tmp_path), other, NAMES, "test")  # trained anew with other settings
    changed = make_recipe(RECIPE, ["tasks.piqa.seed=5"])
    with pytest.raises(MuscleError, match=r"/piqa/old was made with other settings.*bring the run up to date"):
        frontier_stages(run_of(changed, tmp_path), with_points(changed, [0.0]), NAMES[:1], "test")


def test_a_demo_has_a_frontier_too(tmp_path: Path) -> None:
    assert not is_demo(tmp_path)
    (tmp_path / "demo.json").write_text('{"seed": 3, "quick": true}')
    assert is_demo(tmp_path)
    run = demo_frontier(tmp_path)
    own = [*world_stages(3, QUICK), *demo_plan(demo_recipe(3, QUICK)).stages()]
    stages, models = frontier_stages(run, with_points(run.recipe, [0.0, 1.0]), NAMES, "test")
    marks, ours = fingerprint(stages), fingerprint(own)
    assert {name for name in marks if marks[name] != ours.get(name)} == {
        f"{folder}/{task}/{name}" for folder in ("adapters", "logs") for task in ("scenes", "sums") for name in NAMES
    } | {"frontier-checks/scenes", "frontier-checks/sums"}
    assert set(models) == {"scenes", "sums"}
    for content in ("{", "[]", '{"seed": "x"}'):
        (tmp_path / "demo.json").write_text(content)
        with pytest.raises(MuscleError, match="damaged"):
            demo_frontier(tmp_path)


def show(run: Run, monkeypatch: pytest.MonkeyPatch, logs: Mapping[str, Any], **files: Path) -> str:
    """What is printed where the stages that are missing write these logs."""

    def pretend(stages: list[Stage], root: Path, jobs: int, console: Console, outdated: str) -> None:
        assert outdated == "keep"
        for name, rows in logs.items():
            if not (root / "logs" / name).exists():
                write_log(root / "logs" / name, rows)

    monkeypatch.setattr(frontier, "run_pipeline", pretend)
    printed = io.StringIO()
    console = Console(file=printed, width=100)
    run_frontier(run, [0.0, 0.5], ["texts=choices"], "test", 1, console, **files)
    return printed.getvalue()


def answers(seed: int, wrong: int) -> str:
    return "".join("1" if (i * 7 + seed) % 100 < wrong else "0" for i in range(100))


def test_what_is_shown_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"old": 30, "new": 20, "compatible": 22, "ensemble": 21, "mixture-0": 20, "mixture-0.5": 24}
    logs = {f"piqa/{name}": choices(answers(9 * i, count)) for i, (name, count) in enumerate(wrong.items())}
    recipe = {"methods": {"compatible": {}, "other": {}}, "controls": ["ensemble"]}
    run = write_run(tmp_path / "run", recipe, {"piqa/compatible": logs["piqa/compatible"]})
    before = (run / "run.json").read_bytes()
    finished(Plan(update_frontier(run).recipe).stages(), run, "other", "logs/", "models/")
    files = {"html": tmp_path / "page.html", "svg": tmp_path / "plane.svg"}
    shown = show(update_frontier(run), monkeypatch, logs, **files)
    assert (run / "run.json").read_bytes() == before
    found = {line.split("|")[1].strip(" *"): line for line in shown.splitlines() if line.startswith("|")}
    assert list(found)[2:] == ["old", "new", "compatible (method)", "ensemble", "a = 0", "a = 0.5"]
    folder = run / "logs/piqa"
    alone = compare(folder / "old", folder / "new", folder / "mixture-0.5")
    assert alone.alignment is not None
    assert alone.compatible is not None
    cells = [cell.strip() for cell in found["a = 0.5"].split("|")[2:-1]]
    assert cells[:3] == [
        f"{100 * (estimate.value or 0):.1f}"
        for estimate in (alone.compatible.accuracy_new, alone.compatible.nfr, alone.compatible.relative_nfr)
    ]
    assert cells[4:] == [str(alone.alignment.fixed), str(alone.alignment.made)]
    assert "not trained yet, so not shown: piqa: other" in shown
    record = json.loads((run / "frontier.json").read_text())
    assert (record["points"], record["split"]) == ([0.0, 0.5], "test")
    assert record["settings"] == {"weight": "mixture", "texts": "choices"}
    models = {each["name"]: each for each in record["tasks"]["piqa"]["models"]}
    assert models["mixture-0.5"]["share"] == 0.5
    assert models["mixture-0.5"]["nfr"]["value"] == alone.compatible.nfr.value
    assert models["ensemble"]["kind"] == "both"
    page = files["html"].read_text()
    assert "a = 0.5" in page
    assert files["svg"].read_text().count("<polyline") == 1
    show(update_frontier(run), monkeypatch, logs)
    assert (run / "run.json").read_bytes() == before


def test_a_graded_task_shows_grades(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grades = {"old": [0.5] * 40, "new": [0.4, 0.6] * 20, "mixture-0": [0.4, 0.6] * 20, "mixture-0.5": [0.5, 0.7] * 20}
    logs = {f"piqa/{name}": graded(column) for name, column in grades.items()}
    run = write_run(tmp_path / "run", {"methods": {}, "controls": []}, {"piqa/old": logs["piqa/old"]})
    shown = show(update_frontier(run), monkeypatch, logs)
    row = next(line for line in shown.splitlines() if "a = 0.5" in line)
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["a = 0.5 *", "60.0", "0.0", "", "-100 %", "20", "0"]
    assert json.loads((run / "frontier.json").read_text())["tasks"]["piqa"]["graded"] is True


def test_files_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = {f"piqa/{name}": choices("0011" * 5) for name in ("old", "new", "mixture-0", "mixture-0.5")}
    run = write_run(tmp_path / "run", {"methods": {}, "controls": []}, {"piqa/old": logs["piqa/old"]})
    log = next((run / "logs/piqa/old").rglob("samples*"))
    kept = log.read_bytes()
    with pytest.raises(MuscleError, match="belongs to the old log"):
        show(update_frontier(run), monkeypatch, logs, html=log)
    assert log.read_bytes() == kept


@pytest.mark.parametrize("kind", ["html", "svg"])
@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("nowhere/plane", r"nowhere/plane: cannot be written \(No such file or directory\); check the folder"),
        ("run/run.json/plane", r"run/run.json/plane: cannot be written \(Not a directory\); check the folder"),
        ("run", r"run: is a folder; name a file"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, place: str, problem: str
) -> None:
    run = write_run(tmp_path / "run", {"methods": {}, "controls": []}, {"piqa/old": choices("01")})
    monkeypatch.setattr(frontier, "run_pipeline", lambda *_: pytest.fail("it trained"))
    with pytest.raises(MuscleError, match=problem):
        run_frontier(update_frontier(run), [0.5], [], "test", 1, Console(), **{kind: tmp_path / place})  # type: ignore[arg-type]


def test_what_is_no_run(tmp_path: Path) -> None:
    shown = muscle("frontier", tmp_path)
    assert shown.returncode == 2
    assert shown.stderr.startswith(f"error: {tmp_path / 'run.json'}: cannot be read")
    assert len(shown.stderr.splitlines()) == 1
    run = write_run(tmp_path / "run", {}, {})
    wrong = muscle("frontier", tmp_path / "run", "--points", "0,2")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "error: --points: 2 must be a share" in wrong.stderr
    record = run / "run.json"
    record.write_bytes(record.read_bytes().replace(b"models/v1", b"models/\xff"))
    damaged = muscle("frontier", run)
    assert (damaged.returncode, damaged.stderr.count("\n")) == (2, 1)
    assert damaged.stderr.startswith(f"error: {record}: no recipe of this version ('utf-8' codec")


def test_a_run_keeps_its_own_stages_and_a_second_call_does_nothing(world: Path, tmp_path: Path) -> None:
    sides = {side: {"base": str(world / base), "adapters": {"scenes": str(world / side)}}
             for side, base in (("old", "v1"), ("new", "v2"))}  # fmt: skip
    task = {"include_path": str(world / "tasks"), "validation_share": None}
    training = {"epochs": 1, "batch_size": 8, "accumulation": 1, "learning_rate": 0.01, "warmup_steps": 0}
    plain = {**sides, "tasks": {"scenes": task}, "controls": [], "lora": {"rank": 4, "alpha": 8}}
    recipe, root = make_recipe(plain | {"training": training, "evaluation": {"batch_size": 16}}), tmp_path / "run"
    quiet = Console(file=io.StringIO())
    run_update(recipe, root, 1, quiet)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}

    def call() -> str:
        printed = io.StringIO()
        run_frontier(update_frontier(root), [0.5], [], "test", 1, Console(file=printed, width=100))
        return printed.getvalue()

    first = call()
    assert len(re.findall(r"^\[\d+/\d+\]", first, re.MULTILINE)) == 3  # a check, an adapter and a log
    assert {path: path.stat().st_mtime_ns for path in before} == before
    record = json.loads((root / "adapters/scenes/mixture-0.5/training.json").read_text())
    assert (record["alignment"]["weight"], record["alignment"]["old_share"]) == ("mixture", 0.5)
    assert not re.findall(r"^\[\d+/\d+\]", call(), re.MULTILINE)
    run_update(recipe, root, 1, quiet)
    assert {path: path.stat().st_mtime_ns for path in before if path != root / "run.json"} == {
        path: time for path, time in before.items() if path != root / "run.json"
    }
