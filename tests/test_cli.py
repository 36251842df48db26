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
    "unknown columns": (
        "x.csv",
        "id;correct\n1;1\n",
        "x.csv: the columns are separated by ';'; separate them by commas",
    ),
    "quoted columns, no commas": (
        "x.csv",
        '"id";"correct"\n1;1\n',
        "x.csv: the columns are separated by ';'; separate",
    ),
    "tabs": ("x.csv", "id\tcorrect\n1\t1\n", "x.csv: the columns are separated by '\\t'; separate them by commas"),
    "capitals": ("x.csv", "ID,Correct\n1,1\n", "x.csv: did you mean 'id' by 'ID' and 'correct' by 'Correct'? Names"),
    "a blank in the header": ("x.csv", "id, correct\n1,1\n", "x.csv: did you mean 'correct' by ' correct'? Names"),
    "a column twice": ("x.csv", "id,correct,correct\n1,1,0\n", "x.csv: the header has 2 columns 'correct'; keep one"),
    "a header alone": ("x.csv", "id,correct\n\n", "x.csv: no rows below the header; run the evaluation again, or"),
    "gzip": ("x.jsonl.gz", "\x1f\udc8b\x08", "x.jsonl.gz: compressed; unpack it first with gunzip"),
    "UTF-16": ("x.jsonl", "\udcff\udcfe{\0", "x.jsonl: looks like UTF-16; convert the file to UTF-8"),
    "UTF-16 without a mark": ("x.jsonl", '{\0"\0', "x.jsonl: looks like UTF-16; convert the file to UTF-8"),
    "an empty path": ("", None, "the path of a log is empty; name a file or folder"),
    "control characters": ("\x1b[31m\u202e\n", None, "\\x1b[31m\\u202e\\n: no such file or folder; check the path"),
    "a metric with control characters": (
        "x.jsonl",
        LM_EVAL.replace("acc", "\\u001b[31m"),
        "x.jsonl: no metric can have the name '\\x1b[31m'; rename it",
    ),
    "one JSON document": ("x.json", '{\n "id": 1\n}\n', "x.json:1: unknown format: the first row is not JSON on one"),
    "a JSON list": ("x.json", '[{"id": 1, "correct": 1}]\n', "x.json:1: unknown format, starting with '[{\"id"),
    "binary": ("x.eval", "PK\x03\x04\udcff\udcfe", "x.eval:1: unknown format, starting with 'PK"),
    "no common ids": (
        "x.jsonl",
        '{"id": "b", "correct": 1}\n',
        "the logs have no id in common: old (old.jsonl) has '1', '2'; new (x.jsonl) has 'b'; name",
    ),
    "duplicate ids": ("x.jsonl", GOOD + NEW, "x.jsonl:3: id '1' was right in line 1 and is wrong here; keep one row"),
    "last line cut off": ("x.jsonl", GOOD[:-20], "x.jsonl:2: the last line is cut off (unfinished JSON); run the"),
    "only line cut off": ("x.jsonl", GOOD[:20], "x.jsonl:1: the last line is cut off (unfinished JSON); run the"),
    "last line cut off within a letter": ("x.jsonl", GOOD + '{"id": "\udcc3', "x.jsonl:3: the last line is cut off"),
    "last line no JSON": ("x.jsonl", GOOD + "INFO done\n", "x.jsonl:3: not JSON (Expecting value: line 1 column 1"),
    "last line nested deeply": ("x.jsonl", GOOD + '{"x": ' + "[" * 99_999, "x.jsonl:3: not JSON (maximum recursion"),
    "last line with a huge number": (
        "x.jsonl",
        f'{{"id": {"9" * 5001}, "correct": 1}}\n',
        "x.jsonl:1: not JSON (Integer value out of range",
    ),
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
    "a huge score": (
        "x.jsonl",
        f'{{"id": 3, "correct": 1, "score": {"9" * 400}}}\n',
        "x.jsonl:1: score is 9999999999",
    ),
    "NaN as id": ("x.jsonl", '{"id": NaN, "correct": 1}\n', "x.jsonl:1: the row has no id; give every row"),
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
    assert run.stderr.endswith("write the JSON to another file\n")
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
    assert run.stdout.startswith('{\n  "schema": 1,')


def test_a_pipe_is_no_log(logs: Path) -> None:
    """It would be read three times, and is empty from the second time on."""
    os.mkfifo(logs / "pipe.jsonl")
    run = muscle("compare", "old.jsonl", "pipe.jsonl", cwd=logs)
    assert (run.returncode, run.stderr) == (2, "error: pipe.jsonl: not a regular file; write it to a file first\n")


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
