"""The real command in its own process: output, exit codes, and every error that a user's logs can cause."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

MUSCLE = [sys.executable, "-c", "from muscle.cli import main; main()"]
GOOD = '{"id": 1, "correct": true, "answer": "a"}\n{"id": 2, "correct": false, "answer": "b"}\n'
NEW = '{"id": 1, "correct": false, "answer": "b"}\n{"id": 2, "correct": false, "answer": "c"}\n'
LM_EVAL = '{"doc_id": 0, "filtered_resps": ["x"], "filter": "none", "metrics": ["acc"], "acc": NaN}\n'


def muscle(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [*MUSCLE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60, check=False)


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """A folder with old.jsonl and new.jsonl: one negative flip, one wrong answer that became another."""
    (tmp_path / "old.jsonl").write_text(GOOD)
    (tmp_path / "new.jsonl").write_text(NEW)
    return tmp_path


def test_compare_prints_and_writes_the_same(logs: Path) -> None:
    run = muscle("compare", "old.jsonl", "new.jsonl", "--json", "out.json", cwd=logs)
    assert (run.returncode, run.stderr) == (0, "")
    lines = [line.split("|") for line in run.stdout.splitlines() if line.startswith("|")]
    table = {name.strip(): cell.strip() for _, name, cell, _ in lines}
    assert table["N"] == "2"
    assert table["negative flips"] == "1"
    assert table["differently"] == "1"
    assert table["NFR"] == "50.00 %  [9.45, 90.55]"
    assert table["NFR_mc"].startswith("100.00 %")
    assert table["BTC"].startswith("0.00 %")
    assert table["McNemar mid-p"] == "0.5000"
    sentence = "Of 1 answers that were right, 1 became wrong (100.0 %); 0 wrong ones became right."
    assert run.stdout.splitlines()[-1] == sentence
    document = json.loads((logs / "out.json").read_text())
    assert (document["schema"], document["n"], document["negative_flips"]) == (1, 2, 1)
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


# What is wrong -> (name given as NEW, content of that file, start of what follows "error: ").
ERRORS: dict[str, tuple[str, str | None, str]] = {
    "wrong path": ("nwe.jsonl", None, "nwe.jsonl: no such file or folder; did you mean new.jsonl?"),
    "wrong path, nothing like it": ("a/b/c", None, "a/b/c: no such file or folder; check the path"),
    "an empty folder": ("empty", None, "empty: no .jsonl or .csv file in this folder or below; expected lm-eval"),
    "an empty file": ("x.jsonl", "", "x.jsonl: the file is empty; run the evaluation again"),
    "a blank file": ("x.jsonl", "\n\n", "x.jsonl: the file is empty; run the evaluation again"),
    "unknown fields": ("x.jsonl", '{"item": 1}\n', "x.jsonl: unknown format with the fields 'item'; expected lm-eval"),
    "unknown columns": ("x.csv", "id;correct\n1;1\n", "x.csv: unknown format with the fields 'id;correct'; expected"),
    "one JSON document": ("x.json", '{\n "id": 1\n}\n', "x.json:1: unknown format: the first row is not JSON on one"),
    "a JSON list": ("x.json", '[{"id": 1, "correct": 1}]\n', "x.json:1: unknown format, starting with '[{\"id"),
    "binary": ("x.eval", "PK\x03\x04\udcff\udcfe", "x.eval:1: unknown format, starting with 'PK"),
    "no common ids": (
        "x.jsonl",
        '{"id": "b", "correct": 1}\n',
        "the logs have no id in common: old has '1', '2'; new has",
    ),
    "duplicate ids": ("x.jsonl", GOOD + NEW, "x.jsonl:3: id '1' was right in line 1 and is wrong here; keep one row"),
    "last line cut off": ("x.jsonl", GOOD[:-20], "x.jsonl:2: the last line is cut off (unfinished JSON); run the"),
    "only line cut off": ("x.jsonl", GOOD[:20], "x.jsonl:1: the last line is cut off (unfinished JSON); run the"),
    "last CSV line cut off": ("x.csv", "id,correct,answer\n1,1,x\n2,0", "x.csv:3: the last line is cut off (2 cells"),
    "CSV quote cut off": ("x.csv", 'id,correct\n1,1\n2,"0', "x.csv:3: not CSV, or the last line is cut off"),
    "a CSV row too long": ("x.csv", "id,correct\n1,1,1\n2,0\n", "x.csv:2: the row does not fit the header (3 cells"),
    "malformed first line": (
        "x.jsonl",
        f'{{"id": 1,,}}\n{GOOD}',
        "x.jsonl:1: unknown format: the first row is not JSON",
    ),
    "malformed middle line": (
        "x.jsonl",
        f'{GOOD}{{"id": 2,,}}\n{GOOD}',
        "x.jsonl:3: not JSON (Expecting property name",
    ),
    "a row without a field": ("x.jsonl", GOOD + '{"id": 3}\n', "x.jsonl:3: Object missing required field `correct`;"),
    "a row without an id": ("x.jsonl", '{"id": null, "correct": 1}\n', "x.jsonl:1: the row has no id; give every row"),
    "NaN in correct": (
        "x.jsonl",
        GOOD + '{"id": 3, "correct": NaN}\n',
        "x.jsonl:3: correct is NaN; remove it, or write",
    ),
    "NaN in a CSV": ("x.csv", "id,correct\n1,nan\n", "x.csv:2: correct is NaN; remove it, or write null"),
    "NaN in score": (
        "x.jsonl",
        '{"id": 3, "correct": 1, "score": NaN}\n',
        "x.jsonl:1: score is NaN; remove it, or write",
    ),
    "NaN in a metric": ("x.jsonl", LM_EVAL, "x.jsonl:1: acc is NaN; remove it, or write null"),
    "not UTF-8": ("x.csv", "id,correct\n\udcff,1\n", "x.csv:2: not valid UTF-8; convert the file to UTF-8"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_line_with_exit_code_2(logs: Path, case: str) -> None:
    name, content, message = ERRORS[case]
    (logs / "empty").mkdir()
    if content is not None:
        (logs / name).write_bytes(content.encode(errors="surrogateescape"))
    run = muscle("compare", "old.jsonl", name, "--json", "out.json", cwd=logs)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith(f"error: {message}")
    assert run.stderr.count("\n") == 1
    assert not (logs / "out.json").exists()


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


def test_version() -> None:
    import muscle as package

    assert muscle("--version").stdout == f"muscle {package.__version__}\n"


def test_interrupt_is_quiet(tmp_path: Path) -> None:
    fifo = tmp_path / "log.jsonl"
    os.mkfifo(fifo)  # reading it blocks until somebody writes
    with subprocess.Popen([*MUSCLE, "compare", fifo, fifo], stderr=subprocess.PIPE, text=True) as process:
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
