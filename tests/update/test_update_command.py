"""`muscle update` and `muscle status` as processes: four real tasks, and what a user can do wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from muscle.measure import compare

from .commands import run
from .real_data import some_rows

RECIPE = """
old: {scratch: {hidden_size: 16, layers: 1, heads: 2, vocabulary: 400, steps: 20, batch_size: 4, seed: 1}}
new: {scratch: {hidden_size: 16, layers: 1, heads: 2, vocabulary: 400, steps: 20, batch_size: 4, seed: 2}}
data: data
tasks:
  banking77: {}
  cogs: {}
  arc_easy: {}
  gsm8k: {num_fewshot: 0, evaluation: {limit: 4}}
controls: [ensemble]
lora: {rank: 4, alpha: 8}
training: {epochs: 1, batch_size: 8, accumulation: 1, learning_rate: 0.01, warmup_steps: 0}
evaluation: {limit: 8}
"""
TASKS = {"banking77": "acc", "cogs": "exact_match", "arc_easy": "acc", "gsm8k": "exact_match"}
MODELS = ("old", "new", "muscle", "ensemble")
COMMAND = ("update", "recipe.yaml", "--out", "run", "--jobs", "2")


@pytest.fixture(scope="module")
def real(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe of four real tasks, its run, and what that printed."""
    folder = tmp_path_factory.mktemp("real")
    some_rows(data, folder, rows=24)
    (folder / "recipe.yaml").write_text(RECIPE)
    done = run(*COMMAND, cwd=folder, seconds=400)
    assert (done.returncode, done.stderr) == (0, "")
    (folder / "stdout").write_text(done.stdout)
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    (log,) = folder.rglob("samples_*.jsonl")
    read = [json.loads(line) for line in log.read_text().splitlines()]
    return [row for row in read if row["filter"] == read[0]["filter"]]


def lines(stdout: str) -> list[list[str]]:
    """The words of each table row that is printed, without the second line of a heading."""
    words = (line.replace("|", " ").split() for line in stdout.splitlines() if line.startswith("| "))
    return [row for row in words if row[0] != "scratch->scratch"]


def test_tables_say_what_the_logs_say(real: Path) -> None:
    printed = lines((real / "stdout").read_text())
    for task, metric in TASKS.items():
        logs = {model: real / "run/logs" / task / model for model in MODELS}
        scores = {}
        for model, log in logs.items():
            items = rows(log)
            assert len(items) == (4 if task == "gsm8k" else 8)
            scores[model] = 100 * sum(row[metric] for row in items) / len(items)
        start = next(place for place, cells in enumerate(printed) if cells[0] == f"{task},")
        for cells, model in zip(printed[start + 1 :], ("muscle", "ensemble"), strict=False):
            update = compare(logs["old"], logs["new"]).update
            assert cells[0] == model
            assert cells[1:4] == [f"{scores[name]:.2f}" for name in ("old", "new", model)]
            assert cells[5] == f"{100 * update.nfr.value:.2f}"


def test_every_stage_is_done_and_none_runs_again(real: Path) -> None:
    again = run(*COMMAND, cwd=real)
    assert (again.returncode, again.stderr) == (0, "")
    first = (real / "stdout").read_text().splitlines()
    assert again.stdout.splitlines() == [line for line in first if not line.startswith("[")]
    stages = 3 + len(TASKS) * (1 + 3 + 4 + 1)
    assert sum(line.startswith("[") for line in first) == stages
    status = run("status", "run", cwd=real)
    assert (status.returncode, status.stderr) == (0, "")
    assert status.stdout.endswith(f"{stages} of {stages} stages are done\n")


def test_what_is_handed_on_says_where_it_is_from(real: Path) -> None:
    for task in TASKS:
        package = real / "run/models" / task / "muscle"
        assert f"adapter   {Path('run/models') / task / 'muscle'}" in (real / "stdout").read_text()
        card = (package / "README.md").read_text()
        assert "library_name: peft" in card
        assert task in card
        adapter = real / "run/adapters" / task / "muscle/adapter_model.safetensors"
        assert (package / "adapter_model.safetensors").read_bytes() == adapter.read_bytes()


SIDES = "old: {scratch: {hidden_size: 16, heads: 2}}\nnew: {scratch: {hidden_size: 16, heads: 2}}\n"


@pytest.mark.parametrize(
    ("recipe", "more", "message"),
    [
        pytest.param(
            SIDES + "tasks: {piqa: {}}\ntrainin: {epochs: 1}\n",
            (),
            "recipe.yaml:4: trainin is no setting; did you mean training?",
            id="unknown key",
        ),
        pytest.param(
            SIDES + "tasks: {piqa: {}}\n",
            ("--set", "training.epochs=0"),
            "--set training.epochs=0: training.epochs: expected `int` >= 1; correct it",
            id="value out of range",
        ),
        pytest.param("old: {base: [}\n", (), "recipe.yaml:1: not YAML", id="not YAML"),
        pytest.param("tasks: {piqa: {}}\n", (), "recipe.yaml: the recipe", id="no sides"),
        pytest.param(
            SIDES + "tasks: {piqa: {}}\n",
            ("--set", "data=nowhere"),
            "data: no folder nowhere: correct it",
            id="no folder of data",
        ),
    ],
)
def test_a_wrong_recipe_leaves_nothing(recipe: str, more: tuple[str, ...], message: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe)
    done = run("update", "recipe.yaml", "--out", "run", *more, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("task", "more", "message"),
    [
        pytest.param("bankin77", (), "no lm-eval task 'bankin77': did you mean 'banking77'?", id="unknown task"),
        pytest.param("cogs", (), "cogs", id="no data"),
    ],
)
def test_a_stage_that_cannot_start_ends_the_run_in_one_line(
    task: str, more: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(SIDES + f"tasks: {{{task}: {{}}}}\n")
    done = run("update", "recipe.yaml", "--out", "run", *more, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"run.json", ".lock", ".partial"}


def test_a_folder_in_use_keeps_its_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(SIDES + "tasks: {piqa: {}}\n")
    root = tmp_path / "run"
    root.mkdir()
    (root / "run.json").write_text("{}")
    with FileLock(root / ".lock"):
        done = run("update", "recipe.yaml", "--out", "run", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: another run is at work in run: wait for it, or choose another folder\n"
    assert (root / "run.json").read_text() == "{}"


def test_out_is_a_run_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(SIDES + "tasks: {piqa: {}}\n")
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("mine")
    for out, problem in (
        ("file", "cannot be used (File exists): choose another folder with --out"),
        ("file/below", "cannot be used (Not a directory): choose another folder with --out"),
        ("full", "holds something else: choose a new or empty folder with --out"),
    ):
        done = run("update", "recipe.yaml", "--out", out, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {out} {problem}\n")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_status_of_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text('{"recipe": {"old"')
    for folder, message in (("nowhere", "cannot be read (No such file or directory)"), ("run", "no recipe of this")):
        done = run("status", folder, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {folder}/run.json: {message}")
        assert done.stderr.count("\n") == 1
