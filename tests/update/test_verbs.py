"""`muscle adapt`, `align` and `evaluate`: in one process, in two, killed, and told something else."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from .commands import ENVIRONMENT, run, stop_when

pytestmark = pytest.mark.slow

RECIPE = """
old: {{base: {world}/v1}}
new: {{base: {world}/v2}}
tasks:
  scenes: {{include_path: {world}/tasks, validation_share: null}}
  sums: {{include_path: {world}/tasks, validation_share: null}}
lora: {{rank: 4, alpha: 8}}
training: {{epochs: 5, batch_size: 4, accumulation: 1, learning_rate: 0.01, warmup_steps: 2}}
evaluation: {{batch_size: 4}}
"""


@pytest.fixture(scope="module")
def here(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe of the world, an adapter "adapted", one "aligned", and "logs" of both."""
    folder = tmp_path_factory.mktemp("verbs")
    (folder / "recipe.yaml").write_text(RECIPE.format(world=world))
    adapted = run(*adapt(world, "adapted"), cwd=folder)
    assert adapted.returncode == 0, adapted.stderr
    assert adapted.stdout == "wrote adapted\n"
    aligned = run(*align(world, "aligned"), cwd=folder)
    assert aligned.returncode == 0, aligned.stderr
    return folder


def adapt(world: Path, out: str, *more: str) -> tuple[str, ...]:
    return ("adapt", f"{world}/v2", "scenes", "--recipe", "recipe.yaml", "--out", out, *more)


def align(world: Path, out: str, *more: str) -> tuple[str, ...]:
    sides = ("--old", f"{world}/v1", "--old-adapter", f"{world}/old", "--new", f"{world}/v2")
    return ("align", "scenes", *sides, "--new-adapter", f"{world}/new", "--recipe", "recipe.yaml", "--out", out, *more)


def evaluate(world: Path, out: str, *more: str) -> tuple[str, ...]:
    return ("evaluate", f"{world}/v2", "scenes", "--recipe", "recipe.yaml", "--out", out, *more)


def in_two_processes(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Each with half of the batch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    command = [*launch, "-m", "muscle", *arguments]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def rows(folder: Path) -> list[dict[str, Any]]:
    (log,) = folder.rglob("samples_*.jsonl")
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_adapters_are_ordinary_ones_that_learnt_something(here: Path, world: Path) -> None:
    for out in ("adapted", "aligned"):
        assert json.loads((here / out / "adapter_config.json").read_text())["r"] == 4
        assert not {"checkpoints", "begun"} & {path.name for path in (here / out).iterdir()}
        assert "library_name: peft" in (here / out / "README.md").read_text()
    curve = json.loads((here / "adapted/training.json").read_text())["result"]["validation_cross_entropy"]
    assert curve[-1] < curve[0]
    start, aligned = weights(world / "new"), weights(here / "aligned")
    assert start.keys() == aligned.keys()
    assert any(not torch.equal(start[name], aligned[name]) for name in start)


def test_a_killed_training_goes_on_and_refuses_to_become_another(here: Path, world: Path) -> None:
    checkpoints = here / "killed/checkpoints"
    code, _, _ = stop_when(lambda: any(checkpoints.glob("checkpoint-*/whole.json")), *adapt(world, "killed"), cwd=here)
    assert code == -signal.SIGKILL
    assert not (here / "killed/adapter_model.safetensors").exists()

    other = run(*adapt(world, "killed", "--set", "training.epochs=4"), cwd=here)
    message = "killed holds a training or a search that was begun with other settings, models or data"
    assert (other.returncode, other.stdout) == (2, "")
    assert other.stderr.splitlines()[-1] == f"error: {message}: remove it, or choose another folder with --out"
    assert any(checkpoints.iterdir())

    again = run(*adapt(world, "killed"), cwd=here)
    assert again.returncode == 0, again.stderr
    for name in ("adapter_model.safetensors", "adapter_config.json", "training.json"):
        assert (here / "killed" / name).read_bytes() == (here / "adapted" / name).read_bytes(), name


def test_a_folder_that_is_not_empty_is_left_alone(here: Path, world: Path) -> None:
    before = (here / "adapted/adapter_model.safetensors").read_bytes()
    done = run(*adapt(world, "adapted"), cwd=here)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: adapted is not empty: remove it, or choose another folder with --out"
    )
    assert (here / "adapted/adapter_model.safetensors").read_bytes() == before
    assert not (here / "adapted/checkpoints").exists()


def test_evaluate_writes_what_compare_reads(here: Path, world: Path) -> None:
    for name, adapter in (("old", world / "new"), ("new", "aligned")):
        done = run(*evaluate(world, f"logs/{name}", "--adapter", str(adapter), "--limit", "7"), cwd=here)
        assert (done.returncode, done.stdout) == (0, f"wrote logs/{name}/scenes\n"), done.stderr
        assert [row["doc_id"] for row in rows(here / f"logs/{name}/scenes")] == list(range(7))
    compared = run("compare", "logs/old", "logs/new", cwd=here)
    assert compared.returncode == 0, compared.stderr
    assert compared.stdout.count("lm-eval, 7 rows, metric acc") == 2
    there = run(*evaluate(world, "logs/old"), cwd=here)
    assert there.returncode == 2
    assert there.stderr.splitlines()[-1].startswith("error: logs/old/scenes: is there already; choose another folder")


def test_draws_differ_and_come_again(here: Path, world: Path) -> None:
    found = []
    for out in ("draws/a", "draws/b"):
        command = ("evaluate", f"{world}/v2", "sums", "--recipe", "recipe.yaml", "--out", out)
        done = run(*command, "--adapter", f"{world}/new", "--draws", "3", "--limit", "5", cwd=here)
        assert done.returncode == 0, done.stderr
        found.append([(row["doc_id"], row["filtered_resps"][0]) for row in rows(here / out / "sums")])
    assert found[0] == found[1]
    assert [item for item, _ in found[0]] == [*range(5)] * 3
    answers = [{answer for item, answer in found[0] if item == wanted} for wanted in range(5)]
    assert max(map(len, answers)) > 1


def search(world: Path, out: str, *more: str) -> tuple[str, ...]:
    """`align` without a recipe, of inputs as small as the recipe's."""
    training = ("epochs=4", "batch_size=4", "accumulation=1", "learning_rate=0.01", "warmup_steps=2")
    keys = ["lora.rank=4", *(f"training.{key}" for key in training)]
    keys += [f"tasks.scenes.{key}" for key in (f"include_path={world}/tasks", "validation_share=null")]
    keys += ["evaluation.batch_size=4"]
    sides = ("--old", f"{world}/v1", "--old-adapter", f"{world}/old", "--new", f"{world}/v2")
    given = [part for key in keys for part in ("--set", key)]
    return ("align", "scenes", *sides, "--new-adapter", f"{world}/new", "--out", out, *given, *more)


def test_align_searches_where_no_recipe_says_otherwise(here: Path, world: Path) -> None:
    done = run(*search(world, "auto", "--budget", "1.5"), cwd=here)
    assert done.returncode == 0, done.stderr
    record = json.loads((here / "auto/search.json").read_text())
    assert record["search"]["budget"] == 1.5
    assert record["budget_used"] <= 1.5
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 2 + 1 + len(record["trials"])
    assert f"\n*: {record['why']}\n" in done.stdout
    assert done.stdout.endswith("wrote auto\n")
    assert "it/s" not in done.stderr  # no bars of libraries
    assert not (here / "auto/checkpoints").exists()
    assert weights(here / "auto").keys() == weights(world / "new").keys()

    named = run(*search(world, "papers", "--method", "muscle"), cwd=here)
    assert named.returncode == 0, named.stderr
    assert not (here / "papers/search.json").exists()
    assert json.loads((here / "papers/training.json").read_text())["alignment"]["weight"] == "student_wrong"

    refused = run(*search(world, "refused", "--method", "muscle", "--budget", "2"), cwd=here)
    assert refused.returncode == 2
    message = "error: method muscle does not search: leave --budget out, or choose --method auto"
    assert refused.stderr.splitlines()[-1] == message
    unknown = run(*align(world, "unknown", "--method", "mussel"), cwd=here)
    assert unknown.returncode == 2
    message = "error: name one of the recipe's methods by --method (there are: auto, muscle)"
    assert unknown.stderr.splitlines()[-1] == message
    by_name = run(*align(world, "by name", "--method", "auto", "--budget", "1"), cwd=here)
    assert by_name.returncode == 0, by_name.stderr
    assert len(json.loads((here / "by name/search.json").read_text())["trials"]) == 1


def test_a_killed_search_goes_on(here: Path, world: Path) -> None:
    trials = here / "searched/checkpoints/trials"
    command = search(world, "searched", "--budget", "2")
    code, _, _ = stop_when(lambda: len(list(trials.glob("*/trial.json"))) == 2, *command, cwd=here)
    assert code == -signal.SIGKILL
    before = {file: file.stat().st_mtime_ns for file in trials.glob("*/trial.json")}
    (here / "before").mkdir()
    for file in before:
        (here / "before" / file.parent.name).write_bytes(file.read_bytes())
    again = run(*command, cwd=here)
    assert again.returncode == 0, again.stderr
    record = json.loads((here / "searched/search.json").read_text())
    kept = {trial["folder"]: trial for trial in record["trials"]}
    assert len(kept) > 2
    for file in (here / "before").iterdir():
        assert kept[file.name] == json.loads(file.read_text())


def test_two_processes_search_as_one_does(here: Path, world: Path) -> None:
    one = run(*search(world, "one/auto", "--budget", "1.5"), cwd=here)
    assert one.returncode == 0, one.stderr
    half = ("--budget", "1.5", "--set", "training.batch_size=2")
    two = in_two_processes(*search(world, "two/auto", *half), cwd=here)
    assert two.returncode == 0, two.stderr[-4000:]
    assert two.stdout.count("wrote") == 1
    records = [json.loads((here / which / "auto/search.json").read_text()) for which in ("one", "two")]
    for trial, other in zip(*(record["trials"] for record in records), strict=True):
        same = ("name", "length", "training", "tokens", "cost")
        assert [trial[key] for key in same] == [other[key] for key in same]


def test_two_processes_train_and_evaluate_as_one_does(here: Path, world: Path) -> None:
    half = ("--set", "training.batch_size=2")
    for verb, out in ((adapt, "adapted"), (align, "aligned"), (align, "aligned disk"), (align, "aligned off")):
        out, _, cache = out.partition(" ")
        how = (*half, *(("--teacher-cache", cache) if cache else ()))
        done = in_two_processes(*verb(world, f"two/{out}{cache}", *how), cwd=here)
        assert done.returncode == 0, done.stderr[-4000:]
        assert done.stdout.count("wrote") == 1
        assert not (here / f"two/{out}{cache}/checkpoints").exists()
        one, two = weights(here / out), weights(here / f"two/{out}{cache}")
        assert one.keys() == two.keys()
        for name, weight in one.items():
            torch.testing.assert_close(two[name], weight, rtol=1e-2, atol=1e-4, msg=name)

    assert run(*evaluate(world, "one/logs", "--adapter", "aligned"), cwd=here).returncode == 0
    done = in_two_processes(*evaluate(world, "two/logs", "--adapter", "aligned"), cwd=here)
    assert done.returncode == 0, done.stderr[-4000:]
    logs = [rows(here / which / "logs/scenes") for which in ("one", "two")]
    assert [row["doc_id"] for row in logs[0]] == [row["doc_id"] for row in logs[1]]
    for one, two in zip(*logs, strict=True):
        assert (one["doc_hash"], one["acc"], one["target"]) == (two["doc_hash"], two["acc"], two["target"])
        for answer, other in zip(one["filtered_resps"], two["filtered_resps"], strict=True):
            assert float(answer[0]) == pytest.approx(float(other[0]), abs=1e-4)
