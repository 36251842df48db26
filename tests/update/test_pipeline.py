"""Stages in real worker processes: what is kept, what is redone, what a failure leaves behind."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from rich.console import Console

from muscle.errors import MuscleError
from muscle.update import pipeline
from muscle.update.pipeline import Stage, fingerprint, pipeline_status, program_hash
from muscle.update.workers import run_pipeline
from tests.update import steps

LEFT = Stage("parts/left", steps.write, {"text": "a"})
RIGHT = Stage("parts/right", steps.write, {"text": "b"})
WHOLE = Stage("whole", steps.join, {"between": "-"}, {"left": "parts/left", "right": "parts/right"})
PLAN = [LEFT, RIGHT, WHOLE]


def run(root: Path, *stages: Stage) -> str:
    console = Console(file=io.StringIO())
    run_pipeline(stages, root, 2, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def times(root: Path) -> dict[str, str]:
    return {str(path.parent.relative_to(root)): path.read_text() for path in root.rglob("ran")}


def test_only_what_changed_is_run_again(tmp_path: Path) -> None:
    lines = run(tmp_path, *PLAN).splitlines()
    assert (tmp_path / "whole" / "text").read_text() == "a-b"
    assert [line.split(":")[0] for line in lines[2:]] == ["[3/3] whole"]
    record = json.loads((tmp_path / "whole" / "stage.json").read_text())
    assert record["settings"] == {"between": "-"}
    assert record["inputs"] == {"left": "parts/left", "right": "parts/right"}
    assert "chatter" in (tmp_path / "whole" / "stage.log").read_text()
    assert not list((tmp_path / ".partial").rglob("text"))
    first = times(tmp_path)

    assert run(tmp_path, *PLAN) == ""
    assert times(tmp_path) == first

    run(tmp_path, LEFT, replace(RIGHT, settings={"text": "c"}), WHOLE)
    assert (tmp_path / "whole" / "text").read_text() == "a-c"
    again = times(tmp_path)
    assert {name for name in again if again[name] != first[name]} == {"parts/right", "whole"}


@pytest.mark.parametrize(
    ("way", "message"),
    [("raise", "^stage broken: no such tokenizer: choose another"), ("die", "worker process was killed.*--jobs 1")],
)
def test_a_failed_stage_leaves_nothing_and_the_rest_stays(tmp_path: Path, way: str, message: str) -> None:
    broken = Stage("broken", steps.fail, {"way": way}, {"left": "parts/left"})
    with pytest.raises(MuscleError, match=message):
        run(tmp_path, LEFT, broken)
    assert not (tmp_path / "broken").exists()
    assert (tmp_path / "parts/left/text").read_text() == "a"
    before = times(tmp_path)
    run(tmp_path, LEFT, replace(WHOLE, name="broken", inputs={"left": "parts/left", "right": "parts/left"}))
    assert (tmp_path / "broken" / "text").read_text() == "a-a"
    assert times(tmp_path)["parts/left"] == before["parts/left"]


def test_output_is_kept_until_its_successor_is_whole(tmp_path: Path) -> None:
    again = Stage("again", steps.write, {"text": "first"})
    run(tmp_path, LEFT, again)
    with pytest.raises(MuscleError, match="no such tokenizer"):
        run(tmp_path, LEFT, Stage("again", steps.fail, {"way": "raise"}, {"left": "parts/left"}))
    assert (tmp_path / "again" / "text").read_text() == "first"
    run(tmp_path, LEFT, replace(again, settings={"text": "second"}))
    assert (tmp_path / "again" / "text").read_text() == "second"
    assert [path.parent.name for path in tmp_path.rglob("text")] == ["again", "left"]


@pytest.mark.parametrize(("way", "said"), [("bug", "KeyError: 'bug'"), ("unpicklable", "UnpicklableError: lost")])
def test_an_unexpected_failure_names_its_log(tmp_path: Path, way: str, said: str) -> None:
    broken = Stage("broken", steps.fail, {"way": way}, {"left": "parts/left"})
    with pytest.raises(MuscleError, match=rf"stage broken failed \({said}\): see .*/.partial/broken/stage.log"):
        run(tmp_path, LEFT, broken)
    assert said in (tmp_path / ".partial/broken/stage.log").read_text()


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "thesis").write_text("mine")
    with pytest.raises(MuscleError, match="whole exists and was not written by this pipeline: choose another folder"):
        run(tmp_path, *PLAN)
    assert (tmp_path / "whole" / "thesis").read_text() == "mine"
    assert not (tmp_path / "parts").exists()


def test_a_failure_beside_a_chatty_stage_does_not_hang(tmp_path: Path) -> None:
    chatty = Stage("chatty", steps.chat, {}, {"left": "parts/left"})
    broken = Stage("broken", steps.fail, {"way": "raise"}, {"left": "parts/left"})
    with pytest.raises(MuscleError, match="no such tokenizer"):
        run(tmp_path, LEFT, chatty, broken)


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(MuscleError, match=r"another run is at work in .*: wait for it, or choose another folder"),
    ):
        run(tmp_path, LEFT)
    assert "parts/left" in run(tmp_path, LEFT)


def test_a_damaged_record_counts_as_missing(tmp_path: Path) -> None:
    run(tmp_path, LEFT)
    (tmp_path / "parts/left/stage.json").write_text('{"fingerpr')
    assert "parts/left" in run(tmp_path, LEFT)


def changed_program(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """From here on the file reads as if it had been edited."""
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"#" * (path.name == name))


@pytest.mark.parametrize("name", ["losses.py", "steps.py", "similarity.py", "statistics.py", "samsum.yaml"])
def test_another_version_of_the_program_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    run(tmp_path, LEFT)
    changed_program(monkeypatch, name)
    assert [status.state for status in pipeline_status([LEFT], tmp_path)] == ["outdated"]
    assert "parts/left" in run(tmp_path, LEFT)
    assert [status.state for status in pipeline_status([LEFT], tmp_path)] == ["done"]


def test_what_another_version_did_can_be_kept_or_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, LEFT)
    before = times(tmp_path)
    changed_program(monkeypatch, "losses.py")
    with pytest.raises(MuscleError, match=r"1 of 3 stages in .*, parts/left among them, .* --outdated keep takes them"):
        run_pipeline(PLAN, tmp_path, 2, Console(file=io.StringIO()), outdated="refuse", record={"run.json": "{}"})
    assert not (tmp_path / "run.json").exists()
    run_pipeline(PLAN, tmp_path, 2, Console(file=io.StringIO()), outdated="keep", record={"run.json": "{}"})
    assert times(tmp_path)["parts/left"] == before["parts/left"]
    assert (tmp_path / "whole" / "text").read_text() == "a-b"
    assert (tmp_path / "run.json").read_text() == "{}"


def test_reports_and_verbs_decide_no_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, LEFT)
    for name in ("tables.py", "verbs.py", "hub.py"):
        changed_program(monkeypatch, name)
    assert run(tmp_path, LEFT) == ""


def test_a_worker_has_a_device_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    stages = [Stage(f"parts/{name}", steps.show_device, {"other": f"parts/{other}"}) for name, other in ("ab", "ba")]
    run(tmp_path, *stages)
    assert {(tmp_path / stage.name / "device").read_text() for stage in stages} == {"4", "7"}


def test_fingerprint_depends_on_everything_that_decides_the_output() -> None:
    base = fingerprint(PLAN)
    assert fingerprint(PLAN) == base
    for changed in (
        [replace(LEFT, settings={"text": "z"}), RIGHT, WHOLE],
        [LEFT, RIGHT, replace(WHOLE, settings={"between": "+"})],
        [LEFT, RIGHT, replace(WHOLE, function=steps.fail)],
        [LEFT, RIGHT, replace(WHOLE, inputs={"left": "parts/right", "right": "parts/left"})],
    ):
        assert fingerprint(changed)["whole"] != base["whole"]
        assert fingerprint(changed)["parts/right"] == base["parts/right"]


@pytest.mark.parametrize(
    ("file", "decides"), [("losses.py", True), ("across/comparisons.py", True), ("hub.py", False), ("run.py", False)]
)
def test_what_decides_a_result_is_part_of_the_program(
    file: str, decides: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, changed, read = program_hash(), Path(pipeline.__file__).parent / file, Path.read_bytes
    assert changed.is_file()
    monkeypatch.setattr(Path, "read_bytes", lambda path: b"other" if path == changed else read(path))
    assert (program_hash() != before) == decides
