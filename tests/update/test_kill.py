"""A run that is killed in every kind of stage ends as one that nobody disturbed, bit by bit."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from .commands import run, stop_when

pytestmark = pytest.mark.slow

RECIPE = """
old: {{scratch: {{hidden_size: 16, layers: 1, heads: 2, vocabulary: 300, steps: 30, batch_size: 4, seed: 1}}}}
new: {{scratch: {{hidden_size: 16, layers: 1, heads: 2, vocabulary: 300, steps: 30, batch_size: 4, seed: 2}}}}
tasks:
  scenes: {{include_path: {tasks}}}
controls: [cross_entropy, ensemble]
lora: {{rank: 4, alpha: 8}}
training: {{epochs: 4, batch_size: 4, accumulation: 1, learning_rate: 0.01, warmup_steps: 2}}
evaluation: {{batch_size: 1}}
"""
COMMAND = ("update", "recipe.yaml", "--out", "run")
KILLED_IN = (
    "bases/tokenizer",
    "bases/old",
    "adapters/scenes/new",
    "adapters/scenes/muscle",
    "logs/scenes/new",
    "logs/scenes/ensemble",
    "models/scenes/muscle",
)
"""A stage of each kind, in the order in which they run."""
PARTS = ("bases", "adapters", "logs", "models")
TRAINED_BY_EPOCHS = ("adapters/scenes/new", "adapters/scenes/muscle")


@pytest.fixture(scope="module")
def undisturbed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, its whole run, and what that printed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "recipe.yaml").write_text(RECIPE.format(tasks=world / "tasks"))
    done = run(*COMMAND, cwd=folder, seconds=400)
    assert (done.returncode, done.stderr) == (0, "")
    (folder / "stdout").write_text(done.stdout)
    return folder


def under_way(folder: Path, stage: str) -> Callable[[], bool]:
    """Is that stage begun, and if it trains by epochs, has it a checkpoint?"""
    partial = folder / "run/.partial" / stage
    if stage in TRAINED_BY_EPOCHS:
        return lambda: any((partial / "checkpoints").glob("checkpoint-*/whole.json"))
    return (partial / "stage.log").exists


def finished(folder: Path) -> dict[str, int]:
    """When each stage that is done was done, by its name."""
    root = folder / "run"
    records = (record for part in PARTS for record in (root / part).rglob("stage.json"))
    return {record.parent.relative_to(root).as_posix(): record.stat().st_mtime_ns for record in records}


def outcome(folder: Path) -> dict[str, object]:
    """Weights, curves and answers, by file; names of logs hold the time."""
    found: dict[str, object] = {}
    for path in sorted((folder / "run").rglob("*")):
        name = path.relative_to(folder / "run")
        if path.suffix == ".safetensors" or path.name == "tokenizer.json":
            found[name.as_posix()] = path.read_bytes()
        elif path.name == "training.json":
            found[name.as_posix()] = json.loads(path.read_text())["result"]
        elif path.name.startswith("samples_"):
            found[name.parts[0] + "/" + name.parts[2]] = path.read_bytes()
    return found


def printed_tables(stdout: str) -> list[str]:
    return [line for line in stdout.splitlines() if not line.startswith("[")]


def test_killed_in_every_kind_of_stage(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copy(undisturbed / "recipe.yaml", tmp_path)
    before: dict[str, int] = {}
    for stage in KILLED_IN:
        code, _, errors = stop_when(under_way(tmp_path, stage), *COMMAND, cwd=tmp_path)
        assert (code, errors) == (-signal.SIGKILL, "")
        after = finished(tmp_path)
        assert stage not in after
        assert (tmp_path / "run/.partial" / stage).exists()
        assert after.items() >= before.items()
        before = after
    status = run("status", "run", cwd=tmp_path)
    assert [line.split("|")[1].strip() for line in status.stdout.splitlines() if "| stopped" in line] == [KILLED_IN[-1]]

    done = run(*COMMAND, cwd=tmp_path, seconds=400)
    assert (done.returncode, done.stderr) == (0, "")
    assert finished(tmp_path).keys() == finished(undisturbed).keys()
    expected = outcome(undisturbed)
    assert outcome(tmp_path) == expected
    assert len(expected) == 20  # 3 tokenizers, 2 bases, 5 adapters, 5 curves, 5 logs
    assert printed_tables(done.stdout) == printed_tables((undisturbed / "stdout").read_text())


def test_ctrl_c_after_a_change_and_the_same_command_again(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    before = finished(tmp_path)
    changed = (*COMMAND, "--set", "alignment.temperature=5")
    code, output, errors = stop_when(
        under_way(tmp_path, "adapters/scenes/muscle"), *changed, cwd=tmp_path, by=signal.SIGINT
    )
    assert code == 130
    assert "Stopped. Finished stages are kept: the same command goes on from here." in output
    assert errors in ("", "Aborted.\n")
    assert finished(tmp_path) == before  # what is there is replaced when its successor is whole

    done = run(*changed, cwd=tmp_path, seconds=400)
    assert (done.returncode, done.stderr) == (0, "")
    after = finished(tmp_path)
    again = {name for name in after if after[name] != before[name]}
    assert again == {"adapters/scenes/muscle", "logs/scenes/muscle", "models/scenes/muscle"}
    expected, found = outcome(undisturbed), outcome(tmp_path)
    muscle = "adapters/scenes/muscle/adapter_model.safetensors"
    assert found[muscle] != expected[muscle]
    assert found["models/scenes/muscle/adapter_model.safetensors"] == found[muscle]
    assert {name for name in found if found[name] != expected[name]} <= {
        name for name in found if name.endswith("/muscle") or "/muscle/" in name
    }
