"""The GitHub Action: its steps are run here as the runner runs them, with a stand-in for GitHub's own command."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from .command import MUSCLE
from .conftest import REPOSITORY

ACTION = yaml.safe_load((REPOSITORY / "action.yml").read_text())
WORKFLOW = yaml.safe_load((REPOSITORY / "docs" / "workflows" / "muscle-gate.yml").read_text())
STEPS = ACTION["runs"]["steps"]
RIGHT, WRONG = ("".join(f'{{"id": {i}, "correct": {value}}}\n' for i in range(300)) for value in ("true", "false"))
GH = """#!/bin/bash
printf '%s\\n' "$@" --- >> "$CALLS"
if [ "$2" = --paginate ]; then printf '%s' "$COMMENTS"; fi
exit "${GH_EXIT:-0}"
"""
PYTHON = """#!/bin/bash
echo "$*" >> "$CALLS"
if [ "$2" = venv ]; then
  mkdir -p "$3/bin"
  cp "$0" "$3/bin/python"
fi
"""


@dataclass
class Runner:
    """What a job's runner keeps between the steps of one action."""

    folder: Path
    inputs: dict[str, str]
    context: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        return (self.folder / "summary").read_text()

    def output(self, name: str) -> str:
        return self.context[f"steps.gate.outputs.{name}"]

    def step(self, name: str) -> int:
        """Run one step; its exit code."""
        (step,) = (step for step in STEPS if step.get("name") == name)
        assert step["shell"] == "bash"
        (self.folder / "script.sh").write_text(step["run"])
        (self.folder / "output").write_text("")
        values = {key: self.resolve(value) for key, value in step.get("env", {}).items()}
        files = {
            f"GITHUB_{kind}": str(self.folder / name)
            for kind, name in (("OUTPUT", "output"), ("STEP_SUMMARY", "summary"))
        }
        path = os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]])
        runner = {
            "PATH": path,
            "RUNNER_TEMP": str(self.folder / "temp"),
            "RUNNER_OS": "Linux",
            "HOME": str(self.folder),
        }
        run = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", self.folder / "script.sh"],
            env={**runner, **files, **self.environment, **values},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        (self.folder / "log").write_text(run.stdout + run.stderr)
        if "id" in step:
            lines = [line.partition("=") for line in (self.folder / "output").read_text().splitlines()]
            self.context |= {f"steps.{step['id']}.outputs.{key}": value for key, _, value in lines}
        return run.returncode

    def resolve(self, value: str) -> str:
        """An env entry with its expressions filled in."""
        known = {**{f"inputs.{name}": text for name, text in self.inputs.items()}, **self.context}
        return re.sub(r"\$\{\{ ([^}]+) \}\}", lambda found: known[found[1]], value)

    def run(self) -> int:
        """Run the action's own steps up to the verdict; its exit code."""
        assert self.step("Install muscle") == 0
        assert self.step("Judge") == 0
        return self.step("Verdict")


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    """A runner with the muscle of this test run on its path, and logs of 300 items."""
    for folder in ("bin", "temp", "logs"):
        (tmp_path / folder).mkdir()
    write_command(tmp_path / "bin" / "muscle", f"#!{sys.executable}\n{MUSCLE[-1]}\n")
    write_command(tmp_path / "bin" / "gh", GH)
    (tmp_path / "logs" / "right.jsonl").write_text(RIGHT)
    (tmp_path / "logs" / "wrong.jsonl").write_text(WRONG)
    (tmp_path / "gate.yaml").write_text("max_nfr: 0.02\n")
    (tmp_path / "summary").touch()
    inputs = {name: entry.get("default", "") for name, entry in ACTION["inputs"].items()}
    inputs |= {"old": "logs/right.jsonl", "new": "logs/right.jsonl", "limits": "gate.yaml", "version": "installed"}
    return Runner(tmp_path, inputs, {"github.token": "t", "github.action_path": str(REPOSITORY)})


def write_command(file: Path, content: str) -> None:
    file.write_text(content)
    file.chmod(0o755)


def test_inputs_reach_scripts_only_as_variables() -> None:
    for step in STEPS:
        assert "${{" not in step.get("run", "")
    expressions = re.findall(r"\$\{\{ ([^}]+) \}\}", (REPOSITORY / "action.yml").read_text())
    used = {name.removeprefix("inputs.") for name in expressions if name.startswith("inputs.")}
    assert used | {"comment"} == set(ACTION["inputs"])  # comment is asked in an `if`
    assert ACTION["runs"]["using"] == "composite"
    assert all("name" in step or "uses" in step for step in STEPS)


def test_the_workflow_in_the_docs_fits_the_action() -> None:
    (job,) = WORKFLOW["jobs"].values()
    (step,) = (step for step in job["steps"] if "/muscle@" in step.get("uses", ""))
    assert step["with"].keys() <= ACTION["inputs"].keys()
    required = {name for name, entry in ACTION["inputs"].items() if entry.get("required")}
    assert required <= step["with"].keys()
    assert WORKFLOW["permissions"] == {"contents": "read", "pull-requests": "write"}
    triggers = WORKFLOW[True]  # YAML takes the key `on` for true
    assert list(triggers) == ["pull_request"]  # never pull_request_target, which hands secrets to forks
    guide = (REPOSITORY / "docs" / "gate.md").read_text()
    assert all(f"`{name}`" in guide for name in ACTION["inputs"])


def test_pass(runner: Runner) -> None:
    assert runner.run() == 0
    assert runner.output("verdict") == "pass"
    assert runner.summary.startswith("### muscle gate: **PASS**\n")
    folder = Path(runner.output("folder"))
    assert {file.name for file in folder.iterdir()} == {
        "comment.md",
        "junit.xml",
        "page.html",
        "gate.json",
        "errors.txt",
    }
    assert folder.is_relative_to(runner.folder / "temp")


def test_fail(runner: Runner) -> None:
    runner.inputs["new"] = "logs/wrong.jsonl"
    assert runner.run() == 1
    assert runner.output("verdict") == "fail"
    assert "muscle gate: fail" in (runner.folder / "log").read_text()
    assert runner.summary.startswith("### muscle gate: **FAIL**\n")


def test_inconclusive_and_arguments_by_line(runner: Runner) -> None:
    runner.inputs["args"] = "--max-nfr=0.001\n\n--seed\n7\n"
    assert runner.run() == 3
    assert runner.output("verdict") == "inconclusive"
    assert json.loads((Path(runner.output("folder")) / "gate.json").read_text())["seed"] == 7


def test_limits_in_arguments_alone_and_a_compatible_model(runner: Runner) -> None:
    runner.inputs |= {
        "limits": "",
        "args": "--max-nfr=0.1",
        "new": "logs/wrong.jsonl",
        "compatible": "logs/right.jsonl",
    }
    assert runner.run() == 0
    assert "1 check of the compatible model against the old one: all hold." in runner.summary


def test_errors_are_shown_and_end_the_job(runner: Runner) -> None:
    runner.inputs["new"] = "logs/none.jsonl"
    assert runner.run() == 2
    assert runner.output("verdict") == "error"
    assert runner.summary.startswith("### muscle gate: **ERROR**\n\n    error: logs/none.jsonl: no such file or folder")


def test_a_crash_is_no_verdict(runner: Runner) -> None:
    """Python ends with 1 on a traceback, which is also the code of a failed gate."""
    write_command(runner.folder / "bin" / "muscle", "#!/bin/bash\necho Traceback >&2\nexit 1\n")
    assert runner.run() == 1
    assert runner.output("verdict") == "error"
    assert "    Traceback\n" in runner.summary
    write_command(runner.folder / "bin" / "muscle", "#!/bin/bash\n")
    assert runner.run() == 2


def test_hostile_inputs_stay_text(runner: Runner) -> None:
    hostile = '$(touch owned) `touch owned` "; touch owned; # '
    runner.inputs |= {"old": hostile, "new": hostile, "limits": hostile, "args": hostile, "name": hostile}
    assert runner.run() == 2
    comment(runner)
    assert not (runner.folder / "owned").exists()
    assert not list(runner.folder.rglob("owned"))


def comment(runner: Runner, **environment: Any) -> list[list[str]]:
    """Run the step that comments; the calls of gh that it made."""
    calls = runner.folder / "calls"
    calls.unlink(missing_ok=True)
    runner.context["github.event.pull_request.number"] = "12"
    runner.inputs["token"] = "t"
    runner.environment = {"CALLS": str(calls), "GITHUB_REPOSITORY": "me/mine", "COMMENTS": "", **environment}
    assert runner.step("Comment") == 0
    return [call.split("\n") for call in calls.read_text().split("\n---\n")[:-1]]


def test_the_comment_is_written_once_and_then_replaced(runner: Runner) -> None:
    assert runner.run() == 0
    body = Path(runner.output("folder")) / "body.md"
    found, written = comment(runner)
    assert found[:3] == ["api", "--paginate", "repos/me/mine/issues/12/comments"]
    assert found[-1] == (
        '.[] | select(.user.type == "Bot" and (.body | startswith("<!-- muscle muscle-gate -->"))) | .id'
    )
    where = "repos/me/mine/issues/12/comments"
    assert written == ["api", "--silent", "--method", "POST", where, "-F", f"body=@{body}"]
    assert body.read_text().startswith("<!-- muscle muscle-gate -->\n### muscle gate: **PASS**\n")
    _, written = comment(runner, COMMENTS="345\n678")
    where = "repos/me/mine/issues/comments/345"
    assert written == ["api", "--silent", "--method", "PATCH", where, "-F", f"body=@{body}"]


def test_a_comment_that_cannot_be_written_is_a_warning(runner: Runner) -> None:
    assert runner.run() == 0
    assert len(comment(runner, GH_EXIT="1")) == 1
    assert (runner.folder / "log").read_text().startswith("::warning::muscle could not comment")


def test_what_is_installed_and_where(runner: Runner) -> None:
    """An environment of its own, with the action's own version or the one that is asked for."""
    write_command(runner.folder / "bin" / "python", PYTHON)
    runner.environment = {"CALLS": str(runner.folder / "calls")}
    own = runner.folder / "temp" / "muscle"
    for version, installed in (("", str(REPOSITORY)), ("muscle-llm==0.1.0", "muscle-llm==0.1.0")):
        (runner.folder / "calls").unlink(missing_ok=True)
        runner.inputs["version"] = version
        assert runner.step("Install muscle") == 0
        assert runner.context["steps.install.outputs.muscle"] == f"{own}/bin/muscle"
        assert (runner.folder / "calls").read_text().splitlines() == [
            f"-m venv {own}",
            f"-m pip install --quiet --disable-pip-version-check {installed}",
        ]
