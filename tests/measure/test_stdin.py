"""Logs from standard input (-) and from pipes, through the real command."""

import io
import json
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ..command import GOOD, MUSCLE, NEW

Run = Callable[..., subprocess.CompletedProcess[str]]

LIST = json.dumps([json.loads(line) for line in NEW.splitlines()], indent=1)
CSV = "id,correct,answer\n1,false,b\n2,false,c\n"
FRAME = pl.DataFrame({"id": [1, 2], "correct": [False, False], "answer": ["b", "c"]})


@pytest.fixture
def compare(logs: Path) -> Run:
    """Run `muscle compare` in a folder with old.jsonl and new.jsonl, on some bytes."""

    def run(*arguments: str, stdin: bytes | None = b"", **options: Any) -> subprocess.CompletedProcess[str]:
        command = [*MUSCLE, "compare", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, cwd=logs, timeout=120, check=False, **options)
        return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


def written(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [NEW.encode(), LIST.encode(), CSV.encode(), written(FRAME.write_parquet), written(FRAME.write_ipc_stream)],
    ids=["jsonl", "json", "csv", "parquet", "arrow"],
)
def test_any_format_may_come_from_standard_input(compare: Run, logs: Path, content: bytes) -> None:
    run = compare("old.jsonl", "-", "--json", "out.json", "--html", "out.html", stdin=content)
    assert (run.returncode, run.stderr) == (0, "")
    document = json.loads((logs / "out.json").read_text())
    assert (document["n"], document["negative_flips"], document["both_wrong_different"]) == (2, 1, 1)
    assert document["inputs"]["new"]["path"] == "-"


def test_the_hash_is_that_of_the_bytes(compare: Run, logs: Path) -> None:
    assert compare("old.jsonl", "-", "--json", "out.json", stdin=NEW.encode()).returncode == 0
    inputs = json.loads((logs / "out.json").read_text())["inputs"]
    assert compare("old.jsonl", "new.jsonl", "--json", "out.json").returncode == 0
    assert inputs["new"]["sha256"] == json.loads((logs / "out.json").read_text())["inputs"]["new"]["sha256"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "-: the file is empty; run the evaluation again, or leave the file out"),
        (b"\n\n", "-: the file is empty; run the evaluation again, or leave the file out"),
        (b'{"id": 1, "correct": 5}\n', "-:1: correct is 5, neither right nor wrong; "),
        (b'{"id": 1, "correct": 1}\n{"id": 1, "correct": 0}\n', "-:2: id '1' was right in line 1 and is wrong here; "),
        (b'{"id": 1, "correct": tr', "-:1: the last line is cut off (unfinished JSON); "),
        (b"\x1f\x8b\x08", "-: compressed; unpack it first with gunzip"),
        (b"PAR1", "-: damaged or cut off ("),
        (b"\xff\xff\xff\xff", "-: damaged or cut off ("),
    ],
)
def test_faults_are_told_of_the_dash(compare: Run, content: bytes, message: str) -> None:
    run = compare("old.jsonl", "-", stdin=content)
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1)
    assert run.stderr.startswith(f"error: {message}")


def test_only_one_log_can_be_standard_input(compare: Run) -> None:
    run = compare("-", "-", stdin=GOOD.encode())
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert run.stderr.startswith("error: only one log can come from standard input (-)")


def test_a_process_without_standard_input(compare: Run) -> None:
    run = compare("old.jsonl", "-", stdin=None, preexec_fn=lambda: os.close(0))
    assert (run.returncode, run.stderr) == (2, "error: -: there is no standard input; name a file\n")


def test_pipes_are_read_like_files(compare: Run, logs: Path) -> None:
    """As a shell's <(zcat old.jsonl.gz) gives them; the page reads the log a second time."""
    writers = []
    for name, content in (("old", GOOD), ("new", NEW)):
        os.mkfifo(logs / f"{name}.pipe")
        writers.append(threading.Thread(target=(logs / f"{name}.pipe").write_text, args=[content], daemon=True))
        writers[-1].start()
    run = compare("old.pipe", "new.pipe", "--json", "out.json", "--html", "out.html")
    assert (run.returncode, run.stderr) == (0, "")
    document = json.loads((logs / "out.json").read_text())
    assert (document["n"], document["negative_flips"]) == (2, 1)
    assert [document["inputs"][role]["path"] for role in ("old", "new")] == ["old.pipe", "new.pipe"]
    for writer in writers:
        writer.join(timeout=10)


def test_no_copy_is_left_behind(compare: Run, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    run = compare("old.jsonl", "-", stdin=NEW.encode(), env={**os.environ, "TMPDIR": str(copies)})
    assert run.returncode == 0
    assert list(copies.iterdir()) == []
