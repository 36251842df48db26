"""The real command in its own process: output, files, exit codes, signals."""

import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from .command import GOOD, MUSCLE, muscle


def test_compare_prints_and_writes_the_same(logs: Path) -> None:
    run = muscle("compare", "old.jsonl", "new.jsonl", "--json", "out.json", cwd=logs)
    assert (run.returncode, run.stderr) == (0, "")
    lines = [line.split("|") for line in run.stdout.splitlines() if line.startswith("|")]
    table = {name.strip(): cell.strip() for _, name, cell, _ in lines}
    assert table["N"] == "2"
    assert table["negative flips"] == "1"
    assert table["differently"] == "1"
    assert table["NFR"] == "50.00 % [9.45, 90.55]"
    assert table["NFR_mc"].startswith("100.00 %")
    assert table["BTC"].startswith("0.00 %")
    assert table["McNemar mid-p"] == "0.5000"
    sentence = "Of 1 answers that were right, 1 became wrong (100.0 %); 0 wrong ones became right."
    assert run.stdout.splitlines()[-1] == sentence
    document = json.loads((logs / "out.json").read_text())
    assert (document["schema"], document["n"], document["negative_flips"]) == (2, 2, 1)
    assert document["nfr"] == {
        "value": 0.5,
        "low": pytest.approx(0.0945, abs=1e-4),
        "high": pytest.approx(0.9055, abs=1e-4),
    }
    assert document["inputs"]["old"]["path"] == "old.jsonl"
    assert "tasks" not in document
    assert "compatible" not in document


def test_three_logs(logs: Path) -> None:
    run = muscle("compare", "old.jsonl", "new.jsonl", "--compatible", "old.jsonl", "--json", "out.json", cwd=logs)
    assert run.returncode == 0
    document = json.loads((logs / "out.json").read_text())
    assert document["compatible"]["negative_flips"] == 0
    alignment = document["alignment"]
    assert (alignment["fixed"], alignment["made"], alignment["mid_p"]) == (1, 0, 0.5)
    assert alignment["nfr_change_percent"]["value"] == -100
    assert "-100.00 %" in run.stdout
    assert "1 of the 1 are fixed, 0 newly made." in run.stdout


def test_undefined_values_are_null(logs: Path) -> None:
    (logs / "wrong.jsonl").write_text('{"id": 1, "correct": false}\n')
    run = muscle("compare", "wrong.jsonl", "wrong.jsonl", "--json", "out.json", cwd=logs)
    assert json.loads((logs / "out.json").read_text())["btc"] == {"value": None, "low": None, "high": None}
    assert "undefined" in run.stdout


def test_the_same_inputs_give_the_same_bytes(logs: Path) -> None:
    for name in ("first.json", "second.json"):
        muscle("compare", "old.jsonl", "new.jsonl", "--compatible", "old.jsonl", "--json", name, cwd=logs)
    assert (logs / "first.json").read_bytes() == (logs / "second.json").read_bytes()
    muscle(
        "compare",
        "old.jsonl",
        "new.jsonl",
        "--compatible",
        "old.jsonl",
        "--json",
        "third.json",
        "--seed",
        "1",
        cwd=logs,
    )
    assert (logs / "first.json").read_bytes() != (logs / "third.json").read_bytes()


def test_piped_output_is_plain_ascii_of_80_columns(data: Path) -> None:
    folder = data / "logs" / "lmeval_0.4.12_mmlu_qwen2.5_0shot_vs_5shot"
    run = muscle("compare", "0shot", "5shot", "--compatible", "5shot", cwd=folder)
    assert run.returncode == 0
    assert run.stdout.isascii()
    assert "\x1b" not in run.stdout
    assert max(len(row) for row in run.stdout.splitlines() if row[:1] == "|") <= 80
    assert "mmlu_college_computer_science" in run.stdout


@pytest.mark.parametrize("arguments", [["compare", "old.jsonl"], ["comapre"], ["compare", "a", "b", "--seed", "-1"]])
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    run = muscle(*arguments)
    assert run.returncode == 2
    assert "Error: " in run.stderr
    assert "Traceback" not in run.stderr


def test_an_unwritable_json_file_is_a_plain_error(logs: Path) -> None:
    run = muscle("compare", "old.jsonl", "new.jsonl", "--json", "no/such/folder.json", cwd=logs)
    assert run.returncode == 2
    assert run.stderr == "error: no/such/folder.json: cannot be written (No such file or directory); check the folder\n"


@pytest.mark.parametrize("target", ["old.jsonl", "sub/../new.jsonl", "link.json", "folder/x.csv", "folder/more.jsonl"])
def test_json_never_lies_over_a_log(logs: Path, target: str) -> None:
    for name in ("sub", "folder"):
        (logs / name).mkdir()
    (logs / "folder" / "x.csv").write_text("id,correct\n1,1\n")
    (logs / "link.json").symlink_to("old.jsonl")
    before = {file: file.read_bytes() for file in logs.rglob("*") if file.is_file()}
    run = muscle("compare", "old.jsonl", "new.jsonl", "--compatible", "folder", "--json", target, cwd=logs)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith(f"error: {target}: belongs to the ")
    assert run.stderr.endswith("write the report to another file\n")
    assert {file: file.read_bytes() for file in logs.rglob("*") if file.is_file()} == before


def test_json_replaces_a_file_whole_and_follows_links(logs: Path) -> None:
    (logs / "out.json").write_text("x" * 100_000)
    (logs / "link.json").symlink_to("out.json")
    assert muscle("compare", "old.jsonl", "new.jsonl", "--json", "link.json", cwd=logs).returncode == 0
    assert json.loads((logs / "out.json").read_text())["n"] == 2
    assert (logs / "link.json").is_symlink()
    assert {file.name for file in logs.iterdir()} == {"old.jsonl", "new.jsonl", "out.json", "link.json"}


def test_json_into_a_pipe(logs: Path) -> None:
    run = muscle("compare", "old.jsonl", "new.jsonl", "--json", "/dev/stdout", cwd=logs)
    assert run.returncode == 0
    assert run.stdout.startswith('{\n  "schema": 2,')


def test_a_pipe_is_read_once_and_for_all(logs: Path) -> None:
    script = f"{shlex.join(MUSCLE)} compare old.jsonl <(cat new.jsonl)"
    run = subprocess.run(["bash", "-c", script], cwd=logs, capture_output=True, text=True, timeout=120, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert "new  /dev/fd/" in run.stdout
    assert "1 became wrong" in run.stdout


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("dangling.jsonl", "dangling.jsonl: broken link to nowhere; mend the link"),
        ("loop", "loop: broken link to loop; mend the link"),
        ("loop/x.jsonl", "loop: broken link to loop; mend the link"),
        (".", "dangling.jsonl: broken link to nowhere; mend the link"),
    ],
)
def test_broken_links(logs: Path, path: str, message: str) -> None:
    (logs / "dangling.jsonl").symlink_to("nowhere")
    (logs / "loop").symlink_to("loop")
    run = muscle("compare", "old.jsonl", path, cwd=logs)
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: {message}")


def test_names_cannot_steer_the_terminal(logs: Path) -> None:
    evil = "\x1b[31mred\u202e\nline \ud800 \u00e9"
    rows = [{"id": 1, "correct": 1, "task": evil}, {"id": 1, "correct": 1, "task": "plain"}]
    old, new = logs / "\x1b]0;old\x07.jsonl", logs / "\udcff.jsonl"  # the second name is not UTF-8
    old.write_text("".join(json.dumps(row) + "\n" for row in rows))
    new.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "task": evil + "2"}]))
    run = muscle("compare", old.name, new.name, "--json", "out.json", cwd=logs)
    assert (run.returncode, run.stderr) == (0, "")
    assert "\\x1b[31mred\\u202e\\nline \\ud800 \u00e9" in run.stdout
    assert "old  \\x1b]0;old\\x07.jsonl" in run.stdout
    assert "new  \\udcff.jsonl" in run.stdout
    assert all(character.isprintable() or character == "\n" for character in run.stdout)
    document = json.loads((logs / "out.json").read_text())
    assert document["inputs"]["new"]["path"] == "\\udcff.jsonl"
    assert "\x1b[31mred\u202e\nline \\ud800 \u00e9" in document["tasks"]


def test_a_folder_with_a_file_name_that_is_not_utf8(logs: Path) -> None:
    (logs / "run").mkdir()
    (logs / "run" / "\udcff.jsonl").write_text(GOOD)
    run = muscle("compare", "run", "run", "--json", "out.json", cwd=logs)
    assert (run.returncode, run.stderr) == (0, "")
    assert json.loads((logs / "out.json").read_text())["inputs"]["old"]["metric"] == {"\\udcff": None}


def test_version() -> None:
    import muscle as package

    assert muscle("--version").stdout == f"muscle {package.__version__}\n"


def test_interrupt_is_quiet(logs: Path) -> None:
    os.mkfifo(logs / "fifo")  # writing to it blocks until somebody reads
    command = [*MUSCLE, "compare", "old.jsonl", "new.jsonl", "--json", "fifo"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=logs) as process:
        time.sleep(3)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, "")


def test_a_closed_pipe_is_quiet(logs: Path) -> None:
    command = [*MUSCLE, "compare", "old.jsonl", "new.jsonl"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=logs) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_the_gate_judges_blesses_and_begins(logs: Path) -> None:
    assert muscle("gate", "--init", "gate.yaml", cwd=logs).returncode == 0
    assert muscle("gate", "--bless", "old.jsonl", "--baseline", "base.jsonl", cwd=logs).returncode == 0
    run = muscle("gate", "base.jsonl", "new.jsonl", "--limits", "gate.yaml", "--json", "out.json", cwd=logs)
    assert (run.returncode, run.stdout.splitlines()[-1]) == (1, "verdict: FAIL (0 of 2 checks pass)")
    document = json.loads((logs / "out.json").read_text())
    assert (document["verdict"]["status"], document["confidence"]) == ("fail", 0.9)
    assert muscle("gate", "old.jsonl", "new.jsonl", "--max-nfr", "0.05", cwd=logs).returncode == 1
    assert muscle("gate", "old.jsonl", "new.jsonl", "--max-nfr", "1", cwd=logs).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["old.jsonl", "new.jsonl", "--bless", "old.jsonl", "--baseline", "base.jsonl"],
        ["old.jsonl", "new.jsonl", "--baseline", "base.jsonl", "--max-nfr", "0.5"],
        ["--bless", "old.jsonl", "--baseline", "base.jsonl", "--limits", "gate.yaml"],
        ["--bless", "old.jsonl"],
        ["old.jsonl", "--max-nfr", "0.5"],
        ["old.jsonl", "new.jsonl"],
    ],
)
def test_the_gate_ignores_no_argument(logs: Path, arguments: list[str]) -> None:
    run = muscle("gate", *arguments, cwd=logs)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("error: ")
    assert not (logs / "base.jsonl").exists()
